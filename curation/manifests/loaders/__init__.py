"""Readers of a pruned manifest for training: a WebDataset pipeline, a torch dataset, a Ray Data set."""
