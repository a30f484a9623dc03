"""The classes of a labelled archive: the class of each row, and which part of each class nothing learns from (Ray).

``distilled/classes/<id>/rows.safetensors`` has ``codes`` int32 (n,), -1 for no label, and ``held`` bool (n,) of all
rows of the archive, in the order of its shards and then of their catalog files, as `TileDataset` counts them.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import safetensors.numpy
from numpy.typing import NDArray

from curation.catalog.labels import Labels
from curation.catalog.store import CatalogStore, chunks
from curation.errors import RequestError
from curation.manifests.exchange import submit
from curation.selection.sampling import Floats, hash01
from curation.storage import Folder

if TYPE_CHECKING:  # it brings Ray Data and pandas along, which tasks need not load
    from curation.catalog.build import Catalog

log = logging.getLogger("curation")

VERSION = 1  # raise when the same labels would be divided otherwise
SEED = 0x686F6C64  # of the hash that holds samples out: not a seed that somebody else draws by
SHARDS = 500  # read in one task
NAMED = 5  # classes that a warning names
ROWS, ABOUT = "rows.safetensors", "classes.json"

Codes = NDArray[np.int32]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """The classes of an archive.

    Attributes:
        folder: ``distilled/classes/<id>``.
        names: sorted.
        learned: samples of each that are learned from.
        held: samples of each that are held out.
    """

    folder: Folder
    names: tuple[str, ...]
    learned: tuple[int, ...]
    held: tuple[int, ...]

    def read(self) -> tuple[Codes, Mask]:
        """The class of each row of the archive (-1: none), and whether it is held out."""
        found = safetensors.numpy.load(self.folder.read(ROWS))
        return found["codes"], found["held"]

    def members(self) -> "Members":
        """The rows that are learned from."""
        codes, held = self.read()
        return Members(codes, (codes >= 0) & ~held)

    def held_rows(self) -> Rows:
        """The rows that are held out."""
        return np.flatnonzero(self.read()[1])

    def images(self, ipc: int) -> tuple[int, ...]:
        """Images that each class gets: ``ipc``, or as many as it has samples to learn from."""
        return tuple(min(ipc, count) for count in self.learned)


def build_classes(catalog: "Catalog", source: Labels, holdout: float, label: str) -> Classes:
    """Read all labels and divide each class, unless that was done.

    Args:
        catalog: complete.
        source: of the labels.
        holdout: share of each class that nothing learns from.
        label: ``distill.label``, for messages.

    Raises:
        RequestError: there are fewer than two classes.
    """
    made_of = [VERSION, catalog.store.catalog_id, catalog.digest, source.identity, holdout]
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    folder = catalog.store.workspace.child(f"distilled/classes/{name}")
    if not folder.exists(ABOUT):
        parts = [submit(read_labels, catalog.store, source, list(some)) for some in chunks(catalog.shards, SHARDS)]
        ray.get(submit(_publish, folder, holdout, label, *parts))
    about = json.loads(folder.read(ABOUT))
    return Classes(folder, *(tuple(about[key]) for key in ("names", "learned", "held")))


def warn_of_small(classes: Classes, ipc: int) -> str | None:
    """Say which classes get fewer images than asked for."""
    small = [(name, count) for name, count in zip(classes.names, classes.learned, strict=True) if count < ipc]
    if not small:
        return None
    told = ", ".join(f"{name} {count}" for name, count in sorted(small, key=lambda item: item[1])[:NAMED])
    more = f" and {len(small) - NAMED} more" if len(small) > NAMED else ""
    warning = (
        f"{len(small)} of {len(classes.names)} classes have fewer samples than distill.ipc={ipc} and get as many "
        f"images as they have: {told}{more}"
    )
    log.warning("distill: %s", warning)
    return warning


# tasks


def read_labels(store: CatalogStore, source: Labels, shards: Sequence[str]) -> tuple[list[str], Codes, Floats]:
    """Of some shards: the labels there are, each row's (-1: none), and each row's uniform number."""
    columns = [source.read(store, shard) for shard in shards]
    encoded = pc.dictionary_encode(pa.concat_arrays(columns).cast(pa.string()))
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    chance = np.concatenate([hash01(store.read(shard, ["sample_id"])["sample_id"], SEED) for shard in shards])
    return encoded.dictionary.to_pylist(), codes, chance


def _publish(folder: Folder, holdout: float, label: str, *parts: tuple[list[str], Codes, Floats]) -> None:
    names, codes = join(parts, label)
    held = hold_out(codes, np.concatenate([chance for _, _, chance in parts]), holdout)
    learned, out = (np.bincount(codes[(codes >= 0) & (held == part)], minlength=len(names)) for part in (False, True))
    folder.publish(ROWS, safetensors.numpy.save({"codes": codes, "held": held}))
    about = {"names": names, "learned": learned.tolist(), "held": out.tolist()}
    folder.publish(ABOUT, json.dumps(about, ensure_ascii=False).encode())


def join(parts: Sequence[tuple[list[str], Codes, Floats]], label: str) -> tuple[list[str], Codes]:
    """The sorted names of all classes, and each row's class.

    Raises:
        RequestError: they are fewer than two.
    """
    names = sorted({name for some, _, _ in parts for name in some})
    if len(names) < 2:
        found = f"all labelled samples are {names[0]!r}" if names else "no sample has one"
        raise RequestError(
            f"distilling needs labels of two classes or more, but by distill.label={label} {found}: give labels in "
            "sidecars, or in a table (archive.tables, distill.label=COLUMN)"
        )
    number = {name: code for code, name in enumerate(names)}
    known = [np.array([*(number[name] for name in some), -1], np.int32)[codes] for some, codes, _ in parts]
    return names, np.concatenate(known)


def hold_out(codes: Codes, chance: Floats, holdout: float) -> Mask:
    """Which rows are held out: of each class those of the smallest numbers, but one at least is learned from.

    Args:
        codes: (n,) below 0: no label.
        chance: (n,) each row's uniform number.
        holdout: share of each class.
    """
    held = np.zeros(len(codes), bool)
    order = np.lexsort((chance, codes))
    edges = np.searchsorted(codes[order], np.arange(codes.max(initial=-1) + 2))
    for first, last in pairwise(edges.tolist()):
        held[order[first : first + min(round(holdout * (last - first)), last - first - 1)]] = True
    return held


class Members:
    """The rows of each class.

    Args:
        codes: (n,) of all rows.
        wanted: (n,) which of them count.

    Attributes:
        rows: int64, class by class, each ascending.
        codes: of these.
    """

    def __init__(self, codes: Codes, wanted: Mask) -> None:
        rows = np.flatnonzero(wanted)
        self.rows: Rows = rows[np.argsort(codes[rows], kind="stable")]
        self.codes = codes[self.rows]
        self.present, starts = np.unique(self.codes, return_index=True)  # classes that have a row
        self.starts = np.append(starts, len(self.rows))

    def of(self, code: int) -> Rows:
        """The rows of a class, ascending."""
        at = int(np.searchsorted(self.present, code))
        if at == len(self.present) or self.present[at] != code:
            return self.rows[:0]
        return self.rows[self.starts[at] : self.starts[at + 1]]
