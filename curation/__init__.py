"""Curate satellite archives: from sharded tiles to the pruned set that is worth training on."""

__version__ = "0.1.0"
