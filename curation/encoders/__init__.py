"""Encoders: from a tile to a vector of unit length."""

from curation.encoders.base import ENCODERS, QUALITY, Encoder, build_encoder, fit_artefact

__all__ = ["ENCODERS", "QUALITY", "Encoder", "build_encoder", "fit_artefact"]
