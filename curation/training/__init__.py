"""Dynamic pruning inside a training loop."""
