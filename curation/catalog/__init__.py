"""What every sample was found to be: one Parquet file a shard, written once for an encoder and a radiometry."""
