"""Archives as they lie: what is in them, and each sample's pixels and what is said of it. Knows nobody above it."""
