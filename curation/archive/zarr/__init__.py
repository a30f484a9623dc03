"""Zarr, versions 2 and 3: samples out of the chunks of arrays, in folders and in zip files."""
