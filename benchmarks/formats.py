"""Each format that archives come in: samples/s of our reader and decoder over the fastest plain loop of its users.

The plain loops only fetch pixels; ours also finds masks, places and
footprints. All run on one core, by turns, on files that lie in the page cache,
and must read the same pixels; speeds are per second of processor time.
``ratio`` is the median of ours over the fastest of theirs, of the format where
it is least. Peak memory of the reader is that of a process of its own, on a
shard of the usual size and on one ten times as large.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zarr

from benchmarks import formats_containers, formats_scenes
from benchmarks.formats_base import Format, Pixels
from benchmarks.output import print_result
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample
from curation.archive.settings import ArchiveConfig
from curation.archive.tiling import tiles
from curation.runtime import limit_threads


def ours(settings: ArchiveConfig, folder: Path) -> Pixels:
    """All samples of an archive, read and decoded as the pipeline does."""
    for root in list_archive(str(folder), settings=settings):
        for shard in root.shards:
            for raw in read_shard(root.folder, shard, settings):
                assert isinstance(raw, RawSample), raw
                for sample in tiles(decode(raw, settings), settings.tile.size, settings.tile.stride):
                    yield sample.pixels


def take(loop: Callable[[Path], Pixels], folder: Path) -> tuple[float, int, int]:
    """Seconds of processor time, samples, and a checksum over some of their pixels."""
    start, count, total = time.process_time(), 0, 0
    for pixels in loop(folder):
        count += 1
        total += int(pixels[:, ::37, ::41].sum())
    return time.process_time() - start, count, total


def speeds(kind: Format, repeats: int) -> dict[str, float]:
    """Samples a second of each loop, and ours over the fastest of theirs; medians of alternating runs."""
    loops = {"ours": partial(ours, kind.settings), **kind.plain}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind.write(folder, kind.size)
        seen = {name: take(loop, folder)[1:] for name, loop in loops.items()}  # warms the caches, too
        assert len(set(seen.values())) == 1, f"the loops read different samples: {seen}"
        count = seen["ours"][0]
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(repeats):
            for name in list(loops)[:: 1 if turn % 2 else -1]:
                rates[name].append(count / take(loops[name], folder)[0])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(kind.plain, key=lambda name: medians[name])
    ratio = statistics.median(mine / theirs for mine, theirs in zip(rates["ours"], rates[best], strict=True))
    return {"samples": count, **medians, "ratio": ratio}


def _peak_so_far() -> float:
    """Peak resident megabytes of this process; ``ru_maxrss`` would count its parent's before the exec."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak(name: str, kind: Format, times: int) -> float:
    """Peak resident megabytes of a fresh process that reads an archive."""
    with tempfile.TemporaryDirectory() as folder:
        kind.write(Path(folder), kind.memory * times)
        command = [sys.executable, "-m", "benchmarks.formats", "--read", name, folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main() -> None:
    """Measure every format, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("CURATION_BENCHMARK_DATA", "../shared/data"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of formats")
    parser.add_argument("--read", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    limit_threads(1)
    zarr.config.set({"threading.max_workers": 1})
    formats = {
        **formats_scenes.FORMATS,
        **formats_scenes.real_scenes(Path(options.data)),
        **formats_containers.FORMATS,
    }
    if options.read:
        name, folder = options.read
        take(partial(ours, formats[name].settings), Path(folder))
        print(_peak_so_far())
        return
    figures: dict[str, dict[str, float]] = {}
    for name, kind in formats.items():
        if options.only and name not in options.only:
            continue
        figures[name] = speeds(kind, options.repeats)
        if kind.memory:
            figures[name] |= {"megabytes": peak(name, kind, 1), "megabytes_at_10x": peak(name, kind, 10)}
        print(name, figures[name], file=sys.stderr)
    print_result(min(found["ratio"] for found in figures.values()), formats=figures)


if __name__ == "__main__":
    main()
