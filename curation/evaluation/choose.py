"""``curate choose``: how stable a selection is over seeds, K and encoders, and how redundant the archive.

It trains nothing, and tells how far a choice is made by the data and how far by luck, not what it is worth.
"""

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curation.catalog.artefact import portable_encoder
from curation.catalog.build import Catalog
from curation.catalog.store import CatalogStore, chunks
from curation.clustering.assign import embeddings
from curation.clustering.kmeans import default_k
from curation.clustering.nearest import one_thread
from curation.config import Config, described_encoder, options_of, to_dict
from curation.errors import CurationError, RequestError
from curation.evaluation.page import write_choice
from curation.evaluation.selections import Selected, select_budgets
from curation.evaluation.stability import kinds_agreement, overlap, recommend
from curation.evaluation.verdicts import plain, share
from curation.manifests.exchange import submit
from curation.manifests.request import check_budget
from curation.manifests.schema import HEADER_FILE, ROWS_FILE, json_bytes
from curation.selection.sampling import sortable, split_ids
from curation.stages import Run, config_without_urls
from curation.storage import Folder

log = logging.getLogger("curation")

SHARDS = 64  # read in one task
LOOKED_AT = 2000  # samples whose nearest neighbours are told
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ALIKE = 0.99  # cosine from which two samples count as next to the same

Rows = NDArray[np.int64]
Key = tuple[str, int, int]  # encoder, K, seed


def choose(run: Run) -> dict[str, Any]:
    """Sweep, and recommend.

    Returns:
        The result line: ``choice``, ``report``, ``noise``, ``encoder``, ``k``, ``budget``, ``advice``.

    Raises:
        RequestError: a setting cannot be had.
    """
    return _Choice(run).publish()


class _Choice:
    """A choice under way: every selection that was asked for, as rows of one order of the samples."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.settings = run, run.config, run.config.choose
        self.encoders = _encoders(self.config)
        catalogs = {
            name: replace(run, config=replace(self.config, encoder=encoder)).catalog()
            for name, encoder in self.encoders.items()
        }
        self.catalog: Catalog = next(iter(catalogs.values()))
        self.count = self.catalog.counts["kept"]
        for name, catalog in catalogs.items():
            if catalog.counts["kept"] != self.count:
                raise RequestError(f"choose.encoders: {name} has vectors of other samples than the first: leave it out")
        usual = default_k(self.count)
        ks = self.settings.k or sorted({max(1, usual // 2), usual, min(2 * usual, self.count)})
        made_of = [[c.store.catalog_id, c.artefact.sha256, c.digest, c.bank_digest] for c in catalogs.values()]
        swept = [ks, self.settings.budgets, self.settings.seeds, self.config.seed]
        rest: list[Any] = [to_dict(self.config.select), to_dict(self.config.cluster), self.config.references_mode()]
        lists = [run.list_digest(name) for name in ("exclude", "require")]
        rest += [lists] if any(lists) else []
        self.name = hashlib.sha256(json.dumps([made_of, swept, rest]).encode()).hexdigest()[:16]
        self.below = f"choices/{self.name}"
        self.ids = submit(_ids, self.catalog.store, list(self.catalog.shards))
        self.selected: dict[Key, Selected] = {}
        seeds = range(self.config.seed, self.config.seed + self.settings.seeds)
        for encoder, catalog in catalogs.items():
            for k in ks:
                for seed in seeds:
                    self.selected[encoder, k, seed] = self._select(encoder, catalog, k, seed)
        self.refused = {b: one.refused[b] for one in self.selected.values() for b in one.refused}
        self.budgets = sorted(set(self.settings.budgets) - set(self.refused))
        if not self.budgets:
            raise RequestError(next(iter(self.refused.values())))

    def _select(self, encoder: str, catalog: Catalog, k: int, seed: int) -> Selected:
        cluster = replace(self.config.cluster, k=k, levels=None)
        config = replace(self.config, encoder=self.encoders[encoder], cluster=cluster, seed=seed)
        return select_budgets(self.run, catalog, config, self.settings.budgets, self.below, f"{encoder}-k{k}")

    def publish(self) -> dict[str, Any]:
        """Measure, recommend, write; the result line."""
        workspace = self.run.workspace
        folders = {path for one in self.selected.values() for path in one.manifests.values()}
        ranked = {path: submit(_ranked, workspace.child(path), self.ids) for path in folders}
        kinds = {key: submit(_kinds, self._clusters(one), self.ids) for key, one in self.selected.items()}
        stability = [row for budget in self.budgets for row in self._stability(budget, ranked, kinds)]
        chosen = recommend([row for row in stability if row["over"] == "seeds"])
        told = {
            "id": self.name,
            "samples": self.count,
            "config": {
                "choose": {**to_dict(self.settings), "encoders": list(self.encoders)},
                "select": config_without_urls(self.config, self.run.tables)["select"],
                "seed": self.config.seed,
            },
            "encoders": {
                name: portable_encoder(replace(self.config, encoder=encoder)) for name, encoder in self.encoders.items()
            },
            "stability": stability,
            "redundancy": self._redundancy(),
            "quotas": [self._quotas(encoder, k) for encoder, k in dict.fromkeys((e, k) for e, k, _ in self.selected)],
            "refused": {f"{budget:g}": reason for budget, reason in self.refused.items()},
            **chosen,
        }
        told["advice"] = advice(told)
        workspace.publish(f"{self.below}/choice.json", json_bytes(plain(told)))
        report = write_choice(workspace, told)
        log.info("\n%s\n\n%s\nreport    %s", _table(stability), told["advice"], report)
        return {
            "choice": workspace.public(f"{self.below}/choice.json"),
            "report": report,
            **chosen,
            "advice": told["advice"],
        }

    def _clusters(self, one: Selected) -> Folder:
        return self.run.workspace.child(f"clusters/{one.clusters}")

    def _stability(self, budget: float, ranked: Mapping[str, Any], kinds: Mapping[Key, Any]) -> list[dict[str, Any]]:
        """Means over pairs of different seeds: of one setting, and of settings that differ in one thing."""
        count = check_budget(budget, self.count)
        rows = {key: ranked[one.manifests[budget]] for key, one in self.selected.items()}
        pairs: dict[tuple[str, str, int], list[Any]] = {}
        for one, other in combinations(self.selected, 2):
            if one[2] == other[2]:
                continue  # the same draw makes them alike, whatever the clusters
            differs = [name for name, a, b in zip(("encoder", "k"), one, other, strict=False) if a != b]
            if len(differs) > 1:
                continue
            over = differs[0] if differs else "seeds"
            third = next(k for k in self.selected if k[:2] == one[:2] and k[2] not in (one[2], other[2]))
            task = submit(_pair, rows[one], rows[other], kinds[third], count, self.count)
            where = one[:2] if over == "seeds" else ("" if over == "encoder" else one[0], 0 if over == "k" else one[1])
            pairs.setdefault((over, *where), []).append(task)
        return [
            {"over": over, "encoder": encoder, "k": k, "budget": budget, "pairs": len(tasks), **_mean(ray.get(tasks))}
            for (over, encoder, k), tasks in pairs.items()
        ]

    def _redundancy(self) -> dict[str, Any]:
        """Share of copies, and how near the nearest other sample is, in the first encoder's space."""
        manifest = next(iter(next(iter(self.selected.values())).manifests.values()))
        header = json.loads(self.run.workspace.child(manifest).read(HEADER_FILE))
        copies = header["content"].get("selection", {}).get("duplicates")
        chosen = submit(_some, self.catalog.store, list(self.catalog.shards), self.ids)
        parts = [submit(_nearest, chosen, self.catalog.store, list(s)) for s in chunks(self.catalog.shards, SHARDS)]
        cosines = ray.get(submit(_largest, *parts))
        return {
            "copies_share": None if copies is None else copies["found"] / self.count,
            "looked_at": len(cosines),
            "nearest_cosine": dict(zip(map(str, QUANTILES), np.quantile(cosines, QUANTILES).tolist(), strict=True)),
            "next_to_the_same": float(np.mean(cosines >= ALIKE)),
        }

    def _quotas(self, encoder: str, k: int) -> dict[str, Any]:
        """How the first seed's clusters are filled, and what they explain."""
        one = self.selected[encoder, k, self.config.seed]
        tables = {b: submit(_kept_of, self.run.workspace.child(one.manifests[b])) for b in self.budgets}
        counts = {budget: ray.get(task) for budget, task in tables.items()}
        return {"encoder": encoder, "k": k, **_spread(self._clusters(one), counts, self.count)}


def _encoders(config: Config) -> dict[str, dict[str, Any]]:
    """The encoders that are swept, by a name each."""
    if config.choose.encoders is None:
        return {str(config.encoder["name"]): config.encoder}
    found: dict[str, dict[str, Any]] = {}
    for said in config.choose.encoders:
        if isinstance(said, str) and said == config.encoder["name"]:
            encoder = config.encoder
        elif isinstance(said, str) and said in options_of("encoder"):
            encoder = described_encoder("choose.encoders", {"name": said})
        else:
            encoder = described_encoder("choose.encoders", said)
        name = str(encoder["name"])
        found[name if name not in found else f"{name}-{len(found) + 1}"] = encoder
    return found


def _mean(pairs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([pair[name] for pair in pairs])) for name in pairs[0]}


# tasks


def _ids(store: CatalogStore, shards: list[str]) -> NDArray[np.bytes_]:
    """All ids, sorted: the order that rows are numbered by."""
    return np.sort(np.concatenate([sortable(*split_ids(store.read(s, ["sample_id"])["sample_id"])) for s in shards]))


def _rows_of(ids: NDArray[np.bytes_], some: NDArray[np.bytes_]) -> Rows:
    rows = np.searchsorted(ids, some)
    if (ids[np.minimum(rows, len(ids) - 1)] != some).any():
        raise CurationError("two encoders have vectors of different samples: choose.encoders cannot compare them")
    return rows.astype(np.int64)


def _ranked(manifest: Folder, ids: NDArray[np.bytes_]) -> Rows:
    with manifest.open(manifest.info(ROWS_FILE)) as file:
        table = pq.read_table(file, columns=["sample_id", "rank"]).sort_by("rank")
    return _rows_of(ids, sortable(*split_ids(table["sample_id"])))


def _kinds(clusters: Folder, ids: NDArray[np.bytes_]) -> NDArray[np.int32]:
    """The cluster of every row."""
    kinds = np.zeros(len(ids), np.int32)
    for file in clusters.list("assignments"):
        with clusters.open(file) as source:
            table = pq.read_table(source, columns=["sample_id", "cluster"])
        kinds[_rows_of(ids, sortable(*split_ids(table["sample_id"])))] = table["cluster"].to_numpy()
    return kinds


def _pair(one: Rows, other: Rows, kinds: NDArray[np.int32], count: int, samples: int) -> dict[str, float]:
    found = overlap(one[:count], other[:count], samples)
    agreement = kinds_agreement(one[:count], other[:count], kinds)
    return {"jaccard": found.jaccard, "chance": found.chance, "beyond": found.beyond, "kinds": agreement}


def _some(
    store: CatalogStore, shards: list[str], everything: NDArray[np.bytes_]
) -> tuple[NDArray[np.bytes_], NDArray[np.float32]]:
    """Ids and vectors of `LOOKED_AT` samples: those of the lowest ids, which are hashes."""
    last = everything[min(LOOKED_AT, len(everything)) - 1]
    ids, vectors = [], []
    for shard in shards:
        table = store.read(shard, ["sample_id", "embedding"])
        own = sortable(*split_ids(table["sample_id"]))
        ids.append(own[own <= last])
        vectors.append(embeddings(table)[own <= last].astype(np.float32))
    return np.concatenate(ids), np.concatenate(vectors)


def _nearest(chosen: tuple[NDArray[np.bytes_], NDArray[np.float32]], store: CatalogStore, shards: list[str]) -> Any:
    """The largest cosine of each chosen sample with another one of some shards."""
    import faiss

    ids, vectors = chosen
    best = np.full(len(ids), -1.0)
    for shard in shards:
        table = store.read(shard, ["sample_id", "embedding"])
        own = sortable(*split_ids(table["sample_id"]))
        if not len(own):
            continue
        with one_thread():
            cosine, found = faiss.knn(
                vectors, embeddings(table).astype(np.float32), min(2, len(own)), metric=faiss.METRIC_INNER_PRODUCT
            )
        best = np.maximum(best, np.where(own[found] == ids[:, None], -1.0, cosine).max(axis=1))
    return best


def _largest(*parts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.minimum(np.maximum.reduce(parts), 1.0))


def _kept_of(manifest: Folder) -> Rows:
    """The clusters of the kept samples, in the order of their rank."""
    with manifest.open(manifest.info(ROWS_FILE)) as file:
        table = pq.read_table(file, columns=["cluster", "rank"]).sort_by("rank")
    return np.asarray(table["cluster"].to_numpy(), np.int64)


def _spread(clusters: Folder, kept: Mapping[float, Rows], samples: int) -> dict[str, Any]:
    """How far apart members lie, and at each budget the quotas' quantiles and the clusters reached."""
    columns = ["size", "distance_mean", "distance_std"]
    table = pq.read_table(io.BytesIO(clusters.read("centroids.parquet")), columns=columns)
    size, mean, std = (table[name].to_numpy().astype(np.float64) for name in columns)
    budgets = []
    for budget, of in kept.items():
        quota = np.bincount(of[: check_budget(budget, samples)], minlength=len(size))[size > 0]
        budgets.append(
            {
                "budget": budget,
                "reached": float(np.mean(quota > 0)),
                "quota": np.quantile(quota, QUANTILES).tolist(),
                "kept_share": np.quantile(quota / size[size > 0], QUANTILES).tolist(),
            }
        )
    # vectors are of unit length: a squared distance to the centroid is 2 - 2 cos
    return {"within": float((size * (mean**2 + std**2)).sum() / size.sum()), "budgets": budgets}


# words


def advice(told: Mapping[str, Any]) -> str:
    """What to do, in a few sentences."""
    mine = [row for row in told["stability"] if row["over"] == "seeds"]
    copies = told["redundancy"]["copies_share"]
    redundant = "" if copies is None else f" {100 * copies:.3g} % of the samples are near-duplicates of others."
    if told["noise"]:
        best = max(mine, key=lambda row: row["beyond"])
        return (
            f"The choice would be mostly noise: two repetitions share {100 * best['jaccard']:.3g} % of what either "
            f"keeps where chance gives {100 * best['chance']:.3g} %, and do not favour the same kinds (agreement at "
            f"most {max(row['kinds'] for row in mine):.2f}). Draw at random, or keep everything.{redundant}"
        )
    (best,) = (row for row in mine if all(row[key] == told[key] for key in ("encoder", "k", "budget")))
    return (
        f"Take cluster.k={told['k']} with {told['encoder']}, and {share(told['budget'])}: two repetitions share "
        f"{100 * best['jaccard']:.3g} % of what either keeps where chance gives {100 * best['chance']:.3g} %, and the "
        f"kinds that they favour agree to {best['kinds']:.2f}.{redundant} Stable is not yet good: curate compare tells "
        "what it is worth."
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"{'over':8} {'encoder':16} {'k':>6} {'budget':>8} {'overlap':>8} {'chance':>8} {'beyond':>8} {'kinds':>7}"
    ]
    for row in rows:
        k = row["k"] or ""
        figures = f"{row['jaccard']:8.3f} {row['chance']:8.3f} {row['beyond']:8.3f} {row['kinds']:7.2f}"
        lines.append(f"{row['over']:8} {row['encoder'][:16]:16} {k:>6} {share(row['budget']):>8} {figures}")
    return "\n".join(lines)
