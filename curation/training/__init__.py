"""Pruning while a model trains, and the self-supervised training that it is shown on."""
