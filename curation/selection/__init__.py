"""Which samples stay: settings, and pure functions from arrays to arrays. No Ray, files, clock or global state."""
