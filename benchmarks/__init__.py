"""Benchmarks: ``python -m benchmarks.NAME``; both sides in one run, one JSON object as the last line."""
