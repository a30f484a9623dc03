"""Which samples stay: pure functions from arrays to arrays. No Ray, no input or output, no clock, no global state."""
