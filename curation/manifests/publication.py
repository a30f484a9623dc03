"""A manifest as it may be shared with the world: which samples, which licences, made how; nothing of where they lie.

A publication is a folder: ``samples.parquet``, ``README.md``, and
``published.json``, written last, which has the hashes of both. Names of roots,
paths below them and keys are published, as they tell another copy's samples
apart; what is known to be private is looked for in all that goes out.
"""

import getpass
import hashlib
import json
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.catalog.schema import catalog_schema
from curation.errors import RequestError
from curation.manifests.explain import catalog_rows
from curation.manifests.reading import ManifestReader, open_catalog, open_workspace
from curation.manifests.schema import (
    KEPT_ROW_GROUP,
    MANIFEST_SCHEMA,
    ROWS_FILE,
    WRITING,
    content_id,
    file_digest,
    json_bytes,
    open_parquet,
)
from curation.selection.strategies import STRATEGIES
from curation.storage import Folder, is_local, local_path, public_url

PUBLISHED_FILE = "published.json"
SAMPLES_FILE = "samples.parquet"
README_FILE = "README.md"
FORMAT = 1

LICENSE = pa.field("license", pa.string())  # also a column of an applied manifest, which has no catalog to ask
SAMPLES = pa.schema(
    [
        *(MANIFEST_SCHEMA.field(name) for name in ("sample_id", "source_id", "shard", "key", "window")),
        LICENSE,
        *(MANIFEST_SCHEMA.field(name) for name in ("label", "scene", "cluster", "distance", "entropy")),
        *(MANIFEST_SCHEMA.field(name) for name in ("rank", "weight", "radiometry", "size")),
    ]
)
MORE = (  # columns of the catalog that go out only where they are asked for
    *("caption", "time", "footprint", "crs", "gsd", "height", "width"),
    *("valid_fraction", "cloud_fraction", "incidence_angle"),
)
MADE = (  # of the manifest's header; what is not named here is not published
    *("archive", "references", "catalog", "artefact", "bands", "dtype", "radiometry", "speckle_entropy", "profiles"),
    *("clusters", "counts", "selection", "scores"),
)
CONFIG = ("archive", "catalog", "cluster", "encoder", "seed", "select")

METHODS = {  # by strategy
    "rs_prune": ["RS-Prune, arXiv:2512.23239"],
    "balanced": ["RS-Prune, arXiv:2512.23239"],
    "hierarchical": ["Vo et al. 2024, arXiv:2405.15613"],
    "semdedup": ["Abbas et al. 2023, SemDeDup"],
    "margin": ["DPD, arXiv:2601.15829"],
    "el2n": ["Paul et al. 2021, EL2N"],
    "ccs": ["Zheng et al. 2023, coverage-centric coreset selection"],
    "sims": ["SIM and SIMS, arXiv:2409.13915"],
}
DRAW = "Efraimidis and Spirakis 2006, weighted random sampling"
ENCODERS = {"random_conv": "Rolf et al. 2021, MOSAIKS"}

SHORTEST = 3  # letters of a name that is looked for


def publish(
    url: str,
    dest: str | None = None,
    licenses: Sequence[str] = (),
    columns: Sequence[str] = (),
    attribution: str | None = None,
    allow: Sequence[str] = (),
    storage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a manifest's publication.

    Args:
        url: of ``manifest.json``, in its workspace: licences are in the catalog.
        dest: URL of the folder to write; ``<workspace>/published/<manifest id>`` without it.
        licenses: those that may be published; samples of others, and without any, are left out. None: all.
        columns: further columns of the catalog, of `MORE`.
        attribution: whom to name, in words; it goes into both texts.
        allow: names of hosts, buckets or users that may go out, as they stand in names of shards or keys.
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.

    Returns:
        ``published`` (URL of ``published.json``), ``id``, ``manifest``, ``samples``, ``left_out`` (by licence; the
        empty one: without), ``licenses`` (likewise, of what was published), ``unlicensed``.

    Raises:
        RequestError: no catalog, no such column, nothing left, another publication lies there, or something private
            would go out.
    """
    manifest = ManifestReader(url, storage)
    strange = [name for name in columns if name not in MORE]
    if strange:
        raise RequestError(f"--column {strange[0]}: choose of {', '.join(MORE)}")
    if dest is None:
        target = open_workspace(manifest, storage).child(f"published/{manifest.id}")
    else:
        target = Folder(dest, storage)
    _check_target(target, manifest.id)
    target.check_writable()
    guard = _Guard(_private(manifest, storage), allow)
    source = _Source(manifest, storage, licenses, columns)
    content = _content(manifest, columns, attribution)
    guard.check_json(content)  # before any row is written; and what the rows say, before it goes out
    rows = _write(target, source, guard)
    content["licenses"] = _listed(source.published)
    content["counts"] |= {"published": rows, "left_out": _listed(source.left_out)}
    guard.check_json(content)
    readme = _readme(content).encode()
    target.publish(README_FILE, readme)
    size, digest = file_digest(target, SAMPLES_FILE)
    content["files"] = {
        SAMPLES_FILE: {"size": size, "sha256": digest, "rows": rows},
        README_FILE: {"size": len(readme), "sha256": hashlib.sha256(readme).hexdigest()},
    }
    target.publish(PUBLISHED_FILE, json_bytes({"id": content_id(content), "content": content}))
    return {
        "published": target.public(PUBLISHED_FILE),
        "id": content_id(content),
        "manifest": manifest.folder.public("manifest.json"),
        "samples": rows,
        "left_out": dict(sorted(source.left_out.items())),
        "licenses": dict(sorted(source.published.items())),
        "unlicensed": source.published[""],
    }


def _check_target(target: Folder, manifest: str) -> None:
    """Nothing of others is written over: the folder is empty, or has a publication of this manifest."""
    try:
        there = json.loads(target.read(PUBLISHED_FILE))["content"]["manifest"]
    except FileNotFoundError:
        found = [file.path for file in target.list(recursive=False)]
        killed = SAMPLES_FILE in found and {*found} <= {SAMPLES_FILE, README_FILE}  # a run that was, before its end
        there = found[0] if found and not killed else manifest
    except (ValueError, KeyError, TypeError, NotADirectoryError):
        there = PUBLISHED_FILE
    if there != manifest:
        raise RequestError(f"{target.public()} holds something else ({there}): name an empty folder after the manifest")


# what goes out


class _Source:
    """The kept samples a row group at a time, with their licences; counts what goes out and what does not.

    Attributes:
        published, left_out: samples by licence, the empty one: without.
    """

    def __init__(
        self, manifest: ManifestReader, storage: dict[str, Any] | None, licenses: Sequence[str], columns: Sequence[str]
    ) -> None:
        self.manifest, self.licenses = manifest, licenses
        self.carried = LICENSE.name in manifest.schema.names
        self.asked = [*([] if self.carried else [LICENSE.name]), *columns]
        self.store = open_catalog(manifest, storage) if self.asked else None
        self.schema = pa.unify_schemas([SAMPLES, pa.schema([catalog_schema(1).field(name) for name in columns])])
        self.published: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def tables(self) -> Iterator[pa.Table]:
        """What may be published, ranked without gaps.

        Raises:
            RequestError: there is no catalog; nothing may.
        """
        ranks = self._ranks() if self.licenses else None
        for table in self._groups(self.schema.names):
            chosen = self._may(table)
            self.left_out.update(pc.fill_null(table.filter(pc.invert(chosen))["license"], "").to_pylist())
            table = table.filter(chosen)
            self.published.update(pc.fill_null(table["license"], "").to_pylist())
            if ranks is not None:
                place = table.schema.get_field_index("rank")
                table = table.set_column(place, SAMPLES.field("rank"), pa.array(ranks[table["rank"].to_numpy()]))
            yield table
        if not self.published.total():
            there = ", ".join(name or "none" for name in sorted(self.left_out))
            raise RequestError(
                f"no sample may be published: their licences are {there}; name those that may by --license"
            )

    def _may(self, table: pa.Table) -> pa.ChunkedArray:
        if not self.licenses:
            return pa.chunked_array([pa.array(np.ones(len(table), bool))])
        return pc.is_in(table["license"], value_set=pa.array(self.licenses))

    def _ranks(self) -> NDArray[np.int64]:
        """The new rank by the old one."""
        stays = np.zeros(self.manifest.num_rows, bool)
        for table in self._groups(["license", "rank"]):
            stays[table.filter(self._may(table))["rank"].to_numpy()] = True
        return np.cumsum(stays) - 1

    def _groups(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        with open_parquet(self.manifest.folder, ROWS_FILE) as file:
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number)
                found = [name for name in self.asked if name in columns]
                if self.store is not None and number == 0 and self.store.footer(rows["shard"][0].as_py()) is None:
                    raise RequestError(
                        f"no catalog of {self.manifest.folder.public()} in {self.store.own.public()}: licences are in "
                        "the catalog, so publish the manifest that lies in its workspace"
                    )
                if self.store is not None and found:
                    for name, column in zip(found, catalog_rows(self.store, rows, found).columns, strict=True):
                        rows = rows.append_column(name, column)
                yield rows.select(columns)


def _write(target: Folder, source: _Source, guard: "_Guard") -> int:
    """``samples.parquet``; the number of its rows."""
    rows = 0
    with target.writer(SAMPLES_FILE) as file, pq.ParquetWriter(file, source.schema, **WRITING) as writer:
        for table in source.tables():
            for name in table.column_names:
                if pa.types.is_string(table[name].type):
                    guard.check_column(name, table[name])
            writer.write_table(table.cast(source.schema), KEPT_ROW_GROUP)
            rows += len(table)
    return rows


def _content(manifest: ManifestReader, columns: Sequence[str], attribution: str | None) -> dict[str, Any]:
    """What is told of how it was made."""
    content = manifest.header["content"]
    made = {name: content[name] for name in MADE if name in content}
    made["config"] = {name: value for name, value in content.get("config", {}).items() if name in CONFIG}
    told = {
        "format": FORMAT,
        "manifest": manifest.id,
        "parent": content.get("parent"),
        "applied": content.get("applied"),
        "counts": {"kept": manifest.num_rows},
        "attribution": attribution,
        "columns": list(columns),
        "made": made,
        "versions": manifest.header.get("provenance", {}).get("versions", {}),
        "references": _references(made["config"]),
    }
    return told


def _references(config: dict[str, Any]) -> list[str]:
    """The papers behind the strategy, its draw and the encoder, as far as they are of one."""
    strategy = config.get("select", {}).get("strategy", "balanced")
    draws = [DRAW] * (strategy in STRATEGIES and STRATEGIES[strategy].order == "draw")
    encoder = ENCODERS.get(config.get("encoder", {}).get("name", ""))
    return [*METHODS.get(strategy, []), *draws, *([encoder] if encoder else [])]


def _listed(counts: Counter[str]) -> list[dict[str, Any]]:
    return [{"license": name or None, "samples": count} for name, count in sorted(counts.items())]


def _readme(content: dict[str, Any]) -> str:
    """For people, in a few lines."""
    counts, select = content["counts"], content["made"]["config"].get("select", {})
    samples = content["made"].get("counts", {}).get("samples")
    of = f" of {samples:,} samples" if samples else ""
    lines = [
        f"# {counts['published']:,} samples chosen by {select.get('strategy', 'curate')}",
        "",
        f"A selection{of}, without pixels. `{SAMPLES_FILE}` names each sample: source where one is known, shard, key,",
        f"label, licence, rank, weight. `{PUBLISHED_FILE}` says how it was made, and has the hashes of both.",
        "With a copy of the same data it becomes a manifest to train from:",
        "",
        "    curate apply THIS_FOLDER archive.url=YOUR_COPY workspace=YOUR_WORKSPACE",
        "",
        "| licence | samples |",
        "|---|---|",
        *(f"| {row['license'] or 'none is stated'} | {row['samples']:,} |" for row in content["licenses"]),
        "",
    ]
    if left := sum(row["samples"] for row in counts["left_out"]):
        lines += [f"{left:,} more were chosen, and are left out for their licences.", ""]
    if content["attribution"]:
        lines += ["Attribution: " + content["attribution"], ""]
    if content["references"]:
        lines += ["After " + "; ".join(content["references"]) + ".", ""]
    return "\n".join(lines)


# what must not go out


@dataclass(frozen=True)
class _Private:
    """What is known to be ours: whole URLs and paths; names of hosts, buckets and users."""

    paths: frozenset[str]
    names: frozenset[str]


def _private(manifest: ManifestReader, storage: Mapping[str, Any] | None) -> _Private:
    """By the manifest's provenance, where it lies, the storage options, and this machine."""
    said = manifest.header.get("provenance", {})
    urls = [*said.get("roots", {}).values(), said.get("references"), said.get("catalog"), manifest.folder.url]
    workspace = open_workspace(manifest, dict(storage or {})).url
    texts = list(_texts(storage or {}))
    urls = [url for url in [*urls, workspace, *(text for text in texts if "://" in text)] if url]
    paths, names = {str(Path.home())}, {socket.gethostname(), *(text for text in texts if "://" not in text)}
    with suppress(OSError, KeyError):  # no such user in a container
        names.add(getpass.getuser())
    for url in urls:
        if is_local(url):
            paths |= {local_path(url), public_url(url)}
        else:
            place = urlsplit(url)
            paths |= {url.rstrip("/"), public_url(url).rstrip("/")}
            names |= {place.hostname or "", place.netloc}
    return _Private(
        frozenset(path for path in paths if len(path) > SHORTEST),
        frozenset(name for name in names if len(name) >= SHORTEST),
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for below in value.values():
            yield from _texts(below)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _texts(below)
    elif isinstance(value, str):
        yield value


class _Guard:
    """Looks for what is private in all that goes out; of RE2's syntax, which knows no looking around."""

    def __init__(self, private: _Private, allow: Iterable[str]) -> None:
        allowed = {name.lower() for name in allow}
        paths = [re.escape(path) for path in private.paths if path.lower() not in allowed]
        names = [re.escape(name) for name in private.names if name.lower() not in allowed]
        found = [f"(?:^|[^a-z0-9_./-]|://)({'|'.join(sorted(paths))})(?:$|[^a-z0-9_])"] * bool(paths)
        found += [f"(?:^|[^a-z0-9])({'|'.join(sorted(names))})(?:$|[^a-z0-9])"] * bool(names)
        self.pattern = "|".join(found)

    def check_column(self, name: str, column: pa.ChunkedArray) -> None:
        """Of a table.

        Raises:
            RequestError: a value has it.
        """
        if self.pattern:
            hit = column.filter(pc.match_substring_regex(column, self.pattern, ignore_case=True))
            if len(hit):
                self._refuse(f"the column {name}", hit[0].as_py())

    def check_json(self, value: Any) -> None:
        """Of a header: its values, and names of keys.

        Raises:
            RequestError: a value has it.
        """
        for text in (*_texts(value), *_names(value)):
            if self.pattern and re.search(self.pattern, text, re.IGNORECASE):
                self._refuse("the header", text)

    def _refuse(self, where: str, text: str) -> None:
        match = re.search(self.pattern, text, re.IGNORECASE)
        found = next(filter(None, match.groups())) if match else text
        raise RequestError(
            f"{where} would publish {found!r} ({text[:200]!r}), a path, host, bucket, user or storage option of yours: "
            f"call it otherwise, or say that it may go out with --allow {found}"
        )


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield str(name)
            yield from _names(below)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _names(below)


# reading one


@dataclass(frozen=True)
class Publication:
    """A publication that is whole.

    Attributes:
        folder: where it lies.
        id: of its content.
        content: of ``published.json``.
    """

    folder: Folder
    id: str
    content: dict[str, Any]


def open_publication(url: str, storage: dict[str, Any] | None = None) -> Publication:
    """Open a publication, and see that every byte of it is as it was published.

    Args:
        url: of its folder, or of ``published.json``.
        storage: fsspec options, as ``runtime.storage``.

    Raises:
        RequestError: there is none, or it is damaged.
    """
    folder = Folder(url.removesuffix(f"/{PUBLISHED_FILE}") if url != PUBLISHED_FILE else ".", storage)
    again = "get it again from whoever published it"
    try:
        text = folder.read(PUBLISHED_FILE).decode()
        header = json.loads(text)
        content = header["content"]
        whole = header["id"] == content_id(content)
        if content["format"] != FORMAT:
            raise RequestError(f"{folder.public()} is of format {content['format']}: take a newer version of curation")
        if not whole or "${" in text:  # which a config would resolve
            raise RequestError(f"{folder.public(PUBLISHED_FILE)} is not as it was published: {again}")
        for name in (SAMPLES_FILE, README_FILE):
            told = content["files"][name]
            if file_digest(folder, name) != (told["size"], told["sha256"]):
                raise RequestError(f"{folder.public(name)} is not as it was published: {again}")
    except (FileNotFoundError, NotADirectoryError) as error:
        files = ", ".join((PUBLISHED_FILE, SAMPLES_FILE, README_FILE))
        raise RequestError(f"{folder.public()} is no whole publication, which has the files {files}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{folder.public(PUBLISHED_FILE)} is no publication of curate: {error}") from error
    return Publication(folder, header["id"], content)
