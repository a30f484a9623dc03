"""Kept samples written out as shards of their own, for trainings that read too often to pick them out each time."""
