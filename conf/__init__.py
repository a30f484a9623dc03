"""The Hydra configuration: defaults and groups."""
