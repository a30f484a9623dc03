"""Distillation: a labelled archive in a few synthetic images a class (DPD, arXiv 2601.15829)."""
