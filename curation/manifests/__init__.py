"""Which samples are kept and why: drawn on Ray, written, and read by whoever trains."""
