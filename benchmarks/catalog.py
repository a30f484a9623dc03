"""The whole catalog stage on Ray, over a tight loop that does the same work in one process a core without Ray.

The work: read tars, decode GeoTIFFs, features, entropy, signature, Parquet.
``ratio`` is our images/s over the loop's, median of paired runs, start-up of
both included (Ray itself runs already, as on a cluster).
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from benchmarks.output import print_result
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.catalog.artefact import Artefact
from curation.catalog.build import build_catalog
from curation.catalog.encode import ShardRows, _chunks, row_maker
from curation.catalog.fit import load_or_fit
from curation.catalog.store import CatalogStore
from curation.config import Config, load_config
from curation.encoders.base import build_encoder
from curation.runtime import limit_threads, start_ray
from curation.storage import Folder
from tests.recipes import write_sample_archive


def make_archive(folder: Path, shards: int, tiles: int) -> None:
    """``shards`` tars of ``tiles`` different tiles each, the same bytes under several names."""
    write_sample_archive(folder / "made", tiles=8 * tiles)
    made = sorted((folder / "made" / "archive").rglob("*.tar"))
    (folder / "archive").mkdir()
    for position in range(shards):
        os.link(made[position % len(made)], folder / "archive" / f"{position:04}.tar")


def ours(config: Config) -> float:
    """Seconds that the catalog stage takes; the artefact is there already."""
    shutil.rmtree(Path(config.workspace or "") / "catalog", ignore_errors=True)
    resources = start_ray(config.runtime)
    roots = list_archive(config.archive.url)
    start = time.perf_counter()
    build_catalog(config, roots, None, resources)
    return time.perf_counter() - start


def loop(config: Config, artefact: Artefact, store: CatalogStore, processes: int) -> float:
    """Seconds that plain processes take, each with its share of the shards."""
    shutil.rmtree(Path(config.workspace or "") / "loop", ignore_errors=True)
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray does for its workers; numpy looks at it when it is imported
    start = time.perf_counter()
    workers = [
        context.Process(target=_loop, args=(config, artefact, store, part, processes)) for part in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return time.perf_counter() - start


def _loop(config: Config, artefact: Artefact, store: CatalogStore, part: int, parts: int) -> None:
    limit_threads(1)
    encoder = build_encoder(config.encoder, artefact.arrays, artefact.bands, artefact.dtype, "cpu", 1)
    maker = row_maker(config, artefact, encoder)
    for root in list_archive(config.archive.url):
        for shard in root.shards[part::parts]:
            rows = ShardRows(encoder)
            for chunk in _chunks(read_shard(root.folder, shard, config.archive)):
                for result in maker.rows(shard.name, chunk):
                    rows.add(result)
            table, quarantined = rows.finish(shard.name)
            store.publish(shard.name, table, quarantined, {"rows": table.num_rows})


def main() -> None:
    """Run both sides in turn and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=80)
    parser.add_argument("--tiles", type=int, default=500, help="a shard")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    processes = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_archive(folder, options.shards, options.tiles)
        config = load_config([f"archive.url={folder / 'archive'}", f"workspace={folder / 'workspace'}"])
        start_ray(config.runtime)
        artefact = load_or_fit(config, list_archive(config.archive.url), Folder(str(folder / "workspace")), None)
        store = CatalogStore(Folder(str(folder / "workspace" / "loop")), "loop")
        samples = options.shards * options.tiles
        pairs: list[dict[str, Any]] = []
        for _ in range(options.repeats):
            seconds, plain = ours(config), loop(config, artefact, store, processes)
            pairs.append({"ours": samples / seconds, "loop": samples / plain, "ratio": plain / seconds})
            print(pairs[-1], file=sys.stderr)
        ray.shutdown()
    print_result(
        ratio=statistics.median(pair["ratio"] for pair in pairs),
        images_per_second=statistics.median(pair["ours"] for pair in pairs),
        loop_images_per_second=statistics.median(pair["loop"] for pair in pairs),
        samples=samples,
        shards=options.shards,
        processes=processes,
        pairs=pairs,
    )


if __name__ == "__main__":
    main()
