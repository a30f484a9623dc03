"""Nights on a small cluster whose nodes die and whose store fails, beside the same nights undisturbed.

``python -m benchmarks.evidence.nights 'SHARDS_GLOB' --work W`` cuts WebDataset tars into `ARRIVALS` smaller ones, which
come to an archive in an S3 server night by night; ``curate prune`` runs on the first night and ``curate recurate`` on
the others, on three Ray nodes of one CPU each. The disturbed series reaches S3 through a proxy. What is done to it is
done when the night's first catalog file is on its way, so in mid-run:

- ``node``: SIGKILL to a worker node that is encoding; it comes back after the run.
- ``storage``: for `OUTAGE` seconds every request is answered 503.
- ``head``: SIGKILL to the head node. The run fails; head and workers are started anew, and the command is given again.

Each morning the manifest in force must be the undisturbed one: id, header and every file that belongs to it.
"""

import argparse
import glob
import io
import json
import posixpath
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from benchmarks.output import print_result
from tests.command import Outcome, curate
from tests.faulty_proxy import Seen, Watched, watched
from tests.s3 import s3_server
from tests.small_cluster import Cluster, small_cluster

ARRIVALS = (3, 2, 3, 2, 2, 2, 2)  # shards a night; of the fourth one takes the place of an older one
OUTAGE = 12.0  # seconds; a request is tried for 22
MOMENT = re.compile("/catalog/|/decisions/")  # decisions: where all was encoded before the head died
LIMIT = 540.0  # seconds that a run may take

Job = Callable[[str, Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Night:
    """What a night brings.

    Attributes:
        put: local files by their name in the archive; one that is there already is replaced.
        gone: names that vanish.
        done: what is done to each attempt, ``""`` for nothing; only the last succeeds.
    """

    put: dict[str, Path]
    gone: tuple[str, ...] = ()
    done: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Morning:
    """The manifest in force: its id, ``content`` of its header as written, and its files by their paths."""

    id: str
    content: str
    files: dict[str, bytes]


@dataclass
class Site:
    """An archive that grows, and a workspace beside it.

    Attributes:
        url: of the folder that has both.
        settings: arguments of every job.
    """

    url: str
    storage: dict[str, dict[str, Any]]
    settings: Sequence[str]

    def __post_init__(self) -> None:
        protocol = self.url.split("://", 1)[0] if "://" in self.url else "file"
        self.fs = fsspec.filesystem(protocol, use_listings_cache=False, **self.storage.get(protocol, {}))

    @property
    def arguments(self) -> list[str]:
        """Of every job."""
        said = (f"{name}:{{{','.join(f'{k}:{v!r}' for k, v in of.items())}}}" for name, of in self.storage.items())
        storage = [f"runtime.storage={{{','.join(said)}}}"] if self.storage else []
        return [f"archive.url={self.url}/archive", f"workspace={self.url}/workspace", *storage, *self.settings]

    def arrive(self, night: Night) -> None:
        """Bring the archive to the night's state."""
        self.fs.makedirs(f"{self.url}/archive", exist_ok=True)
        for name, path in night.put.items():
            self.fs.put_file(str(path), f"{self.url}/archive/{name}")
        for name in night.gone:
            self.fs.rm_file(f"{self.url}/archive/{name}")

    def latest(self) -> str | None:
        """Id of the manifest in force."""
        path = f"{self.url}/workspace/manifests/latest.json"
        return str(json.loads(self.fs.cat_file(path))["id"]) if self.fs.exists(path) else None

    def morning(self) -> Morning:
        """What is in force, read whole."""
        id, folder = self.latest(), f"{self.url}/workspace/manifests"
        assert id is not None, "no manifest is in force"
        header = json.loads(self.fs.cat_file(f"{folder}/{id}/manifest.json"))
        listed = pq.read_table(io.BytesIO(self.fs.cat_file(f"{folder}/{id}/files.parquet")))["path"].to_pylist()
        paths = [posixpath.normpath(f"{id}/{path}") for path in [*listed, "files.parquet"]]
        return Morning(
            id, json.dumps(header["content"]), {path: self.fs.cat_file(f"{folder}/{path}") for path in paths}
        )


# what is done to a run


@dataclass
class Strike:
    """A fault of the proxy that acts once, when the run's first file is written, and then may refuse for a while.

    Attributes:
        act: says what it did, or None where it is to be asked again at the next file.
        outage: seconds that every request is answered 503, from then on.
        at: when it acted, by the monotonic clock.
    """

    act: Callable[[], str | None]
    outage: float = 0.0
    said: str | None = None
    refused: int = 0
    at: float = field(default=0.0, init=False)
    until: float = field(default=0.0, init=False)

    def __call__(self, one: Seen) -> str | None:
        """What is wrong with a request."""
        if self.said is None and one.method == "PUT" and MOMENT.search(one.path) and (said := self.act()):
            self.said, self.at = said, time.monotonic()
            self.until = self.at + self.outage
        if time.monotonic() >= self.until:
            return None
        self.refused += 1
        return "unavailable"


@dataclass
class Rough:
    """A site on a cluster that comes to harm.

    Attributes:
        proxy: that the site's storage leads to.
        outage: seconds of 503.
    """

    site: Site
    cluster: Cluster
    proxy: Watched
    outage: float = OUTAGE

    def night(self, job: str, done: Sequence[str]) -> dict[str, Any]:
        """Run a job as often as there is something to be done to it; result, seconds and what was done."""
        told: list[str] = []
        seconds: list[float] = []
        for attempt, what in enumerate(done):
            before, strike, began = self.site.latest(), self._strike(what), time.monotonic()
            self.proxy.fault = strike or (lambda _: None)
            outcome = run_on(self.cluster, job, self.site.arguments)
            self.proxy.fault = lambda _: None
            seconds.append(round(time.monotonic() - began, 1))
            if strike:
                assert strike.said, f"nothing was done to the run:\n{outcome.stderr}"
                told.append(strike.said + (f" ({strike.refused} requests)" if strike.refused else ""))
            if attempt < len(done) - 1:
                assert outcome.status and strike, "the run should have failed"
                after = time.monotonic() - strike.at
                assert self.site.latest() == before, "a run that failed put something in force"
                told.append(f"status {outcome.status} after {after:.0f} s")
                print(outcome.stderr, file=sys.stderr)
                self.cluster.kill()
                self.cluster.start()
            else:
                assert outcome.status == 0, f"status {outcome.status}:\n{outcome.stderr}"
        for node in self.cluster.workers:
            if not node.processes():
                self.cluster.join(node)
        return {"result": outcome.result, "seconds": seconds, "done": told}

    def _strike(self, what: str) -> Strike | None:
        if what == "node":
            return Strike(self._kill_worker)
        if what == "storage":
            return Strike(lambda: f"503 for {self.outage:g} s", self.outage)
        return Strike(self._kill_head) if what == "head" else None

    def _kill_worker(self) -> str | None:
        for node in self.cluster.workers:
            if node.busy("ShardEncoder"):  # else at the next file
                node.kill()
                return f"{node.name} killed"
        return None

    def _kill_head(self) -> str:
        self.cluster.head.kill()
        return "head killed"


def run_on(cluster: Cluster, job: str, arguments: Sequence[str]) -> Outcome:
    """A job as a process of its own, on a cluster."""
    return curate(job, *arguments, f"runtime.address={cluster.address}", timeout=LIMIT, **cluster.environment)


# the nights


def live_through(nights: Sequence[Night], calm: Site, run: Job, rough: Rough) -> list[dict[str, Any]]:
    """All nights, both ways; a row each.

    Args:
        nights: in their order.
        calm: where nothing is done to a run.
        run: a job there.
        rough: where something is.

    Raises:
        AssertionError: on some morning the two manifests differ.
    """
    rows = []
    there: set[str] = set()
    for number, night in enumerate(nights, 1):
        job = "recurate" if there else "prune"
        calm.arrive(night)
        rough.site.arrive(night)
        began = time.monotonic()
        result = run(job, calm.arguments)
        seconds = round(time.monotonic() - began, 1)
        disturbed = rough.night(job, night.done)
        check_same(calm.morning(), rough.site.morning())
        rows.append(
            {
                "night": number,
                "job": job,
                "new": len(night.put.keys() - there),
                "changed": len(night.put.keys() & there),
                "gone": len(night.gone),
                **{key: result.get(key) for key in ("samples", "kept", "came", "went", "drift")},
                "seconds": seconds,
                "disturbed_seconds": disturbed["seconds"],
                "done": disturbed["done"],
                "manifest": calm.latest(),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        there = (there | night.put.keys()) - {*night.gone}
    return rows


def check_same(calm: Morning, rough: Morning) -> None:
    """Two manifests are one.

    Raises:
        AssertionError: they differ; it says in what.
    """
    if calm.content != rough.content:
        ours, theirs = json.loads(calm.content), json.loads(rough.content)
        differing = {key: (ours.get(key), theirs.get(key)) for key in ours if ours.get(key) != theirs.get(key)}
        raise AssertionError(f"the headers differ: {differing}")
    assert calm.id == rough.id
    assert calm.files.keys() == rough.files.keys()
    differing_files = [path for path in calm.files if calm.files[path] != rough.files[path]]
    assert not differing_files, f"these differ: {differing_files}"


def cut(sources: Iterable[str], count: int, folder: Path) -> list[Path]:
    """As many tars of about as many samples each, in the order of the sources' members."""
    samples: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {}
    for source in sources:
        with tarfile.open(source) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None, f"{member.name} is no file"
                samples.setdefault(member.name.partition(".")[0], []).append((member, file.read()))
    keys = list(samples)
    paths = [folder / f"shard-{number:03}.tar" for number in range(count)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for key in keys[len(keys) * number // count : len(keys) * (number + 1) // count]:
                for member, data in samples[key]:
                    tar.addfile(member, io.BytesIO(data))
    return paths


def seven(paths: Sequence[Path]) -> list[Night]:
    """The nights of the evidence, from as many shards as arrive."""
    done = {2: ("node",), 4: ("storage",), 5: ("head", "")}
    nights, left = [], list(paths)
    for index, count in enumerate(ARRIVALS):
        put = {path.name: path for path in left[:count]}
        del left[:count]
        if index == 3:  # the last to come takes the place of the first that ever came
            put[paths[0].name] = put.popitem()[1]
        gone = (paths[1].name,) if index == 6 else ()
        nights.append(Night(put, gone, done.get(index, ("",))))
    return nights


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| night | new, changed, gone shards | samples | kept | came, went | far, share shift "
        "| undisturbed | disturbed | done to it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        drift = row["drift"] or {}
        moved = f"{drift['far_share']:.3f}, {drift['share_shift']:.3f}" if drift else ""
        came = f"{row['came']}, {row['went']}" if row["came"] is not None else ""
        seconds = " + ".join(f"{value:g}" for value in row["disturbed_seconds"])
        shards = f"{row['new']}, {row['changed']}, {row['gone']}"
        lines.append(
            f"| {row['night']} | {shards} | {row['samples']:,} | {row['kept']:,} | {came} | {moved} "
            f"| {row['seconds']:g} s | {seconds} s | {'; '.join(row['done'])} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="a glob of WebDataset tars")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what they are cut into")
    parser.add_argument("settings", nargs="*", help="of every job, as key=value")
    options = parser.parse_intermixed_args()
    options.work.mkdir(parents=True, exist_ok=True)
    paths = cut(sorted(glob.glob(options.shards)), sum(ARRIVALS), options.work)
    with s3_server() as server, watched(server) as proxy, small_cluster() as cluster:
        calm = Site(f"{server.url}/calm", server.storage, options.settings)
        rough = Rough(Site(f"{server.url}/rough", proxy.storage, options.settings), cluster, proxy)

        def run(job: str, arguments: Sequence[str]) -> dict[str, Any]:
            outcome = run_on(cluster, job, arguments)
            assert outcome.status == 0, outcome.stderr
            return outcome.result

        rows = live_through(seven(paths), calm, run, rough)
    print(table(rows))
    ratio = sum(sum(row["disturbed_seconds"]) for row in rows) / sum(row["seconds"] for row in rows)
    print_result(ratio, nights=rows)


if __name__ == "__main__":
    main()
