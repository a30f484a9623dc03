"""What is fitted once on the archive and then never changed: bands, dtype, ranges, the encoder's arrays.

One safetensors file, published create-if-absent, under the catalog-id. Its
SHA-256 is the artefact's hash, which every catalog file's footer carries. How
it comes to be: :mod:`~curation.catalog.fit`.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from curation.archive.settings import ArchiveConfig
from curation.config import Config, to_dict
from curation.encoders.checkpoints import weights_file
from curation.storage import Folder, file_name, is_local, local_path

ARTEFACT, AUDIT = "artefact.safetensors", "audit.json"  # beside them calibration.CALIBRATION
READER_VERSION = 3  # raise when the same bytes would give other rows


@dataclass(frozen=True)
class Artefact:
    """What was fitted.

    Attributes:
        arrays: ``range``, float32 (bands, 2), and the encoder's own.
        bands: names.
        dtype: of the numbers that encoders see.
        radiometry: what these numbers mean.
        found: what decoding needs besides the config: ``radiometry`` by modality, ``clouds`` the classes of a mask.
        speckle_entropy: of radar's bands, what speckle alone has; ``None`` of others. Empty where there is no radar.
        gsd: median ground sampling distance of the fitted tiles, metres, to four digits; ``None`` where none is known.
    """

    arrays: dict[str, NDArray[Any]]
    bands: tuple[str, ...]
    dtype: str
    radiometry: str = "unknown"
    found: dict[str, Any] = field(default_factory=dict)
    speckle_entropy: tuple[float | None, ...] = ()
    gsd: float | None = None

    def settled(self, archive: ArchiveConfig) -> ArchiveConfig:
        """How to decode, with what was found."""
        return settled(archive, self.found.get("radiometry", {}), self.found.get("clouds"))

    def to_bytes(self) -> bytes:
        """The artefact as a safetensors file."""
        names = ("bands", "dtype", "radiometry", "found", "speckle_entropy", "gsd")
        about = json.dumps({name: getattr(self, name) for name in names})
        return safetensors.numpy.save(
            {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}, metadata={"curation": about}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Artefact":
        """Read what :meth:`to_bytes` wrote."""
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["curation"])
        about |= {name: tuple(about[name]) for name in ("bands", "speckle_entropy")}
        return cls(safetensors.numpy.load(data), **about)

    @cached_property
    def sha256(self) -> str:
        """The artefact's hash."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def settled(archive: ArchiveConfig, radiometry: dict[str, Any], clouds: str | None) -> ArchiveConfig:
    """An archive's settings with what the fit found."""
    return replace(
        archive,
        radiometry=replace(archive.radiometry, found=radiometry),
        clouds=replace(archive.clouds, found=clouds),
    )


def catalog_id(config: Config) -> str:
    """The hash of what decides a catalog row's content, whichever archive it comes from."""
    archive = to_dict(config.archive)
    del archive["url"], archive["max_bad_fraction"], archive["tables"]
    content = {
        "reader": READER_VERSION,
        "archive": archive,
        "encoder": _weighed(config.encoder),
        "thumbnails": config.catalog.thumbnails,
        "fit_samples": config.catalog.fit_samples,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def portable_encoder(config: Config) -> dict[str, Any]:
    """The encoder's config with the names of files in the place of where they lie."""
    return _portable(config.encoder)


def _portable(encoder: dict[str, Any]) -> dict[str, Any]:
    made = dict(encoder)
    for name in ("checkpoint", "path", "keys"):
        if made.get(name):
            made[name] = file_name(made[name])
    return made | (
        {"parts": {name: _portable(part) for name, part in made["parts"].items()}} if "parts" in made else {}
    )


@lru_cache(16)
def _content(path: str, size: int, mtime: int) -> str:
    """The SHA-256 of a file's bytes; read again only once size or modification time (ns) are others."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weighed(encoder: dict[str, Any]) -> dict[str, Any]:
    """The encoder's config with the content of its weights in the place of their names."""
    made, checkpoint = _portable(encoder), encoder.get("checkpoint")
    if checkpoint:
        made["checkpoint"] = checkpoint  # a hub tag counts whole
    if checkpoint and is_local(checkpoint) and Path(path := weights_file(local_path(checkpoint))).is_file():
        about = Path(path).stat()  # the content counts, not what it is called
        made["checkpoint"] = _content(path, about.st_size, about.st_mtime_ns)
    return made | ({"parts": {n: _weighed(part) for n, part in encoder["parts"].items()}} if "parts" in made else {})


def same_eyes(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two encoders, or parts of them, look by the same weights or filters, however they are run."""
    return bool(_eyes(one) & _eyes(other))


def _eyes(encoder: dict[str, Any]) -> set[str]:
    parts = encoder["parts"].values() if encoder["name"] == "joined" else [encoder]
    weighed = [_weighed(part) for part in parts]
    what = ("name", "architecture", "checkpoint", "path", "seed")
    return {json.dumps([part.get(key) for key in what]) for part in weighed}


def encoder_config(config: Config) -> dict[str, Any]:
    """What encoders are made with: their own config, and how object stores are opened."""
    return {**config.encoder, "storage": config.runtime.storage}


def needs_pixels(config: Config) -> bool:
    """Whether the encoder looks at images at all; ``precomputed`` does not."""
    return str(config.encoder["name"]) != "precomputed"


def load_artefact(config: Config, workspace: Folder) -> Artefact:
    """The artefact that the workspace has."""
    return Artefact.from_bytes(workspace.read(artefact_path(config)))


def load_audit(workspace: Folder, catalog_id: str) -> list[dict[str, Any]]:
    """The table of what the numbers of fitted tiles were found to be; empty where nothing was to be told."""
    try:
        return list(json.loads(workspace.read(f"encoders/{catalog_id}/{AUDIT}")))
    except FileNotFoundError:
        return []


def artefact_path(config: Config) -> str:
    """Where it lies in a workspace."""
    return f"encoders/{catalog_id(config)}/{ARTEFACT}"
