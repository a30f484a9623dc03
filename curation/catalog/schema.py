"""The catalog's columns: one row a sample, one Parquet file a shard."""

import pyarrow as pa

FOOTER = b"curation"  # key of the JSON in a catalog file's metadata

MEMBER = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("file", pa.string())])
WINDOW = pa.struct([(side, pa.int32()) for side in ("row", "column", "height", "width")])
FOOTPRINT = pa.struct([(side, pa.float64()) for side in ("west", "south", "east", "north")])


def catalog_schema(dim: int) -> pa.Schema:
    """The schema of a catalog file whose embeddings have ``dim`` numbers (unit length, then float16)."""
    return pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),  # see archive.sample.sample_id
            pa.field("shard", pa.string(), nullable=False),  # <root>/<path below it>
            pa.field("index", pa.int64(), nullable=False),  # from 0 in the shard, quarantined samples counted
            pa.field("key", pa.string(), nullable=False),
            pa.field("offset", pa.int64()),  # of the image member's data in the shard, bytes
            pa.field("size", pa.int64()),
            pa.field("members", pa.list_(MEMBER)),  # file: below the root, null: the shard itself
            pa.field("position", pa.list_(pa.int64())),  # in a container: row group and row, or indices along axes
            pa.field("window", WINDOW),  # of a tile in its image, pixels; null: the whole image
            pa.field("source_id", pa.string()),
            pa.field("label", pa.string()),
            pa.field("caption", pa.string()),
            pa.field("time", pa.timestamp("us", tz="UTC")),
            pa.field("footprint", FOOTPRINT),  # degrees
            pa.field("crs", pa.string()),  # of the image's own grid
            pa.field("gsd", pa.float32()),  # ground sampling distance, metres
            pa.field("incidence_angle", pa.float32()),  # degrees
            pa.field("license", pa.string()),
            pa.field("height", pa.int32()),  # pixels
            pa.field("width", pa.int32()),
            pa.field("radiometry", pa.string()),  # what the numbers mean, see archive.radiometry
            pa.field("valid_fraction", pa.float32()),
            pa.field("cloud_fraction", pa.float32()),  # null where nothing tells
            pa.field("entropy_bands", pa.list_(pa.float32())),  # bits a band
            pa.field("entropy", pa.float32()),  # mean of the chosen bands, bits
            pa.field("thumbnail", pa.binary()),  # JPEG, for a hashed share of the samples
            pa.field("signature", pa.list_(pa.float32())),  # see scoring.signature
            pa.field("patch", pa.binary()),
            pa.field("embedding", pa.list_(pa.float16(), dim)),
        ]
    )


QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),  # error class
        pa.field("message", pa.string(), nullable=False),
    ]
)
