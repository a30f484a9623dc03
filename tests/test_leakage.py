"""What a benchmark shares with the kept samples: by footprint, at agreeing times, and by embedding."""

import csv
import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.catalog.schema import FOOTER
from curation.errors import RequestError
from curation.manifests.leakage import find_leaks
from curation.manifests.reading import open_workspace
from curation.manifests.schema import Manifest
from curation.storage import Folder
from jobs.leakage import run
from tests.command import curate
from tests.selection_recipes import DIM, HEADER, Workspace, make_workspace

CONTENT = {**HEADER["content"], "artefact": "made-of"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> tuple[Workspace, Manifest]:
    """Footprints of half a degree, each on a degree of its own; some times are unknown."""
    folder = tmp_path_factory.mktemp("workspace")
    samples = make_workspace(folder).samples
    when = [None if k % 5 == 0 else value for k, value in enumerate(samples["time"].to_pylist())]
    workspace = make_workspace(folder, time=when)
    return workspace, workspace.select(budget=200, header={**HEADER, "content": CONTENT})


def kept(made: tuple[Workspace, Manifest]) -> list[dict[str, Any]]:
    """Catalog rows of the kept samples, by rank of their ids."""
    workspace, manifest = made
    ids = set(workspace.read(manifest)["sample_id"].to_pylist())
    return sorted(
        (row for row in workspace.samples.to_pylist() if row["sample_id"] in ids), key=lambda r: r["sample_id"]
    )


def others(made: tuple[Workspace, Manifest]) -> list[dict[str, Any]]:
    ids = {row["sample_id"] for row in kept(made)}
    return [row for row in made[0].samples.to_pylist() if row["sample_id"] not in ids]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def moved(row: dict[str, Any], east: float, **more: Any) -> dict[str, Any]:
    """A benchmark's tile: a sample's own area, so much further east."""
    box = row["footprint"]
    return {**box, "west": box["west"] + east, "east": box["east"] + east, "name": row["key"] + "'", **more}


def leaks_of(result: dict[str, Any]) -> list[dict[str, str]]:
    with open(unquote(urlsplit(result["table"]).path)) as file:
        return list(csv.DictReader(file))


def test_overlaps_are_told_the_largest_first(made: tuple[Workspace, Manifest], tmp_path: Path) -> None:
    mine, free = kept(made), others(made)
    tiles = [moved(mine[0], 0.4), moved(mine[1], 0.1), moved(mine[1], 0.2), moved(mine[2], 0.5), moved(free[0], 0.0)]
    result = find_leaks(made[1].url, write_csv(tmp_path / "bench.csv", tiles))
    assert (result["tiles"], result["kept"], result["overlapping"], result["alike"]) == (5, 200, 2, None)
    assert [(row["sample_id"], row["overlaps"]) for row in result["worst"]] == [
        (mine[1]["sample_id"], mine[1]["key"] + "'"),
        (mine[0]["sample_id"], mine[0]["key"] + "'"),
    ]
    assert [row["overlap"] for row in result["worst"]] == pytest.approx([0.8, 0.2])
    table = leaks_of(result)
    assert [row["key"] for row in table] == [row["key"] for row in result["worst"]]
    assert f"/reports/{Path(made[1].folder).name}/leakage-" in result["table"]
    assert find_leaks(made[1].url, str(tmp_path / "bench.csv")) == result
    assert find_leaks(made[1].url, str(tmp_path / "bench.csv"), overlap=0.5)["overlapping"] == 1


def test_a_benchmark_of_points_shares_the_tiles_that_they_lie_in(
    made: tuple[Workspace, Manifest], tmp_path: Path
) -> None:
    row = kept(made)[0]
    x, y = row["footprint"]["west"] + 0.2, row["footprint"]["south"] + 0.2
    points = [{"west": x + far, "south": y, "east": x + far, "north": y, "key": "007"} for far in (0.0, 0.5)]
    result = find_leaks(made[1].url, write_csv(tmp_path / "points.csv", points))
    assert [(leak["key"], leak["overlap"], leak["overlaps"]) for leak in result["worst"]] == [(row["key"], 1.0, "007")]


def test_a_benchmark_without_any_overlap_is_clean(made: tuple[Workspace, Manifest], tmp_path: Path) -> None:
    result = find_leaks(made[1].url, write_csv(tmp_path / "bench.csv", [moved(row, 0.0) for row in others(made)]))
    assert (result["overlapping"], result["leaking"], result["worst"], result["table"]) == (0, 0, [], None)


def test_times_must_agree_where_the_benchmark_has_them(made: tuple[Workspace, Manifest], tmp_path: Path) -> None:
    timed = [row for row in kept(made) if row["time"]]
    timeless = next(row for row in kept(made) if not row["time"])
    day = datetime.timedelta(days=1)
    dates = {0: timed[0]["time"], 1: timed[1]["time"] + 2 * day, 2: timed[2]["time"] + day}
    tiles = [moved(timed[k], 0.0, time=when.isoformat()) for k, when in dates.items()]
    tiles.append(moved(timeless, 0.0, time=timed[0]["time"].isoformat()))
    result = find_leaks(made[1].url, write_csv(tmp_path / "dates.csv", tiles))
    expected = {timed[0]["key"], timed[2]["key"], timeless["key"]}  # an unknown time may be any
    assert {row["key"] for row in result["worst"]} == expected
    date = timed[0]["time"].date().isoformat()
    spans = [
        moved(timed[0], 0.0, start="2019-01-01", end=date),
        moved(timed[1], 0.0, start="2018-01-01", end="2018-12-31"),
    ]
    result = find_leaks(made[1].url, write_csv(tmp_path / "spans.csv", spans))
    assert [row["key"] for row in result["worst"]] == [timed[0]["key"]]


def write_catalog(folder: Path, rows: list[dict[str, Any]], footer: dict[str, Any] | None) -> str:
    """A benchmark as another catalog has it: in folders, with footers."""
    table = pa.Table.from_pylist(rows, schema=make_schema())
    if footer is not None:
        table = table.replace_schema_metadata({FOOTER: json.dumps(footer)})
    (folder / "deep").mkdir(parents=True)
    pq.write_table(table.slice(0, 2), folder / "a.parquet")
    pq.write_table(table.slice(2), folder / "deep/b.parquet")
    return str(folder)


def make_schema() -> pa.Schema:
    sides = pa.struct([(side, pa.float64()) for side in ("west", "south", "east", "north")])
    return pa.schema([("key", pa.string()), ("footprint", sides), ("embedding", pa.list_(pa.float16(), DIM))])


def bench_rows(made: tuple[Workspace, Manifest]) -> list[dict[str, Any]]:
    """One tile like a kept sample elsewhere, one at the place of another, one like nothing."""
    mine = kept(made)
    nowhere = {"west": 100.0, "south": 0.0, "east": 101.0, "north": 1.0}
    like = np.array(mine[3]["embedding"], np.float32) + np.float32(0.01)
    unlike = np.full(DIM, 1, np.float16) * np.array([1, -1] * (DIM // 2), np.float16)
    return [
        {"key": "like", "footprint": nowhere, "embedding": like.astype(np.float16)},
        {"key": "there", "footprint": mine[4]["footprint"], "embedding": unlike},
        {"key": "far", "footprint": None, "embedding": -unlike},
    ]


def test_another_catalog_is_compared_by_embedding_too(made: tuple[Workspace, Manifest], tmp_path: Path) -> None:
    rows, mine = bench_rows(made), kept(made)
    own, bench = (np.array([row["embedding"] for row in some], np.float64) for some in (mine, rows))
    cosine = (own @ bench.T) / np.linalg.norm(own, axis=1)[:, None] / np.linalg.norm(bench, axis=1)
    expected = {mine[k]["sample_id"]: cosine[k].max() for k in np.flatnonzero(cosine.max(axis=1) >= 0.99)}
    assert mine[3]["sample_id"] in expected
    made_of = {"catalog_id": "cat", "artefact": "made-of"}
    result = find_leaks(made[1].url, write_catalog(tmp_path / "bench", rows, made_of))
    assert (result["overlapping"], result["alike"]) == (1, len(expected))
    assert result["worst"][0]["overlaps"] == "there"
    found = {row["sample_id"]: row["cosine"] for row in result["worst"] if row["like"] == "like"}
    assert found == pytest.approx({name: value for name, value in expected.items() if name in found}, abs=1e-6)
    assert mine[3]["sample_id"] in found


def test_embeddings_of_another_encoder_are_not_compared(
    made: tuple[Workspace, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = bench_rows(made)
    result = find_leaks(
        made[1].url, write_catalog(tmp_path / "bench", rows, {"catalog_id": "cat", "artefact": "other"})
    )
    assert (result["overlapping"], result["alike"]) == (1, None)
    assert "encoded otherwise than the archive: only footprints are compared" in caplog.text
    bare = [{**row, "footprint": None} for row in rows]
    with pytest.raises(RequestError, match="was encoded otherwise than the manifest's archive"):
        find_leaks(made[1].url, write_catalog(tmp_path / "bare", bare, {"catalog_id": "other", "artefact": "made-of"}))
    pq.write_table(pa.table({"embedding": pa.array([[1.0, 2.0]])}), tmp_path / "short.parquet")
    with pytest.raises(RequestError, match="embeddings have 2 numbers, the archive's 8"):
        find_leaks(made[1].url, str(tmp_path / "short.parquet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lon,lat\n1,2\n", "needs columns west, south, east, north in degrees, or embedding; it has lon, lat"),
        ("west,south,east,north\n", "has no rows"),
        ("west,south,east,north\n0,1,2,3\n0,95,1,96\n", "tile 2 is no area in degrees"),
        ("west,south,east,north\n0,x,2,3\n", "is no Parquet or CSV table"),
        ("west,south,east,north,time\n0,1,2,3,soon\n", "is no Parquet or CSV table"),
        ("west,embedding\n0,1\n", "embedding is not of lists of numbers"),
    ],
)
def test_what_is_no_benchmark_is_refused(
    made: tuple[Workspace, Manifest], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "bench.csv").write_text(text)
    with pytest.raises(RequestError, match=message) as error:
        find_leaks(made[1].url, str(tmp_path / "bench.csv"))
    assert "\n" not in str(error.value)


def test_without_footprints_catalog_or_table_it_says_so(made: tuple[Workspace, Manifest], tmp_path: Path) -> None:
    bench = write_csv(tmp_path / "bench.csv", [{"west": 0, "south": 0, "east": 1, "north": 1}])
    with pytest.raises(RequestError, match="there is no such table, nor a folder of Parquet files"):
        find_leaks(made[1].url, str(tmp_path / "gone.csv"))
    number = made[0].samples.num_rows
    bare = make_workspace(tmp_path / "bare", footprint=[None] * number)
    with pytest.raises(RequestError, match="none of the 120 kept samples has a footprint to compare"):
        find_leaks(bare.select(budget=120).url, bench)
    moved_away = tmp_path / "moved/manifests"
    moved_away.mkdir(parents=True)
    (made[0].folder / made[1].folder).rename(moved_away / "here")
    try:
        with pytest.raises(RequestError, match="no catalog of .*give the manifest that lies in its workspace"):
            find_leaks(str(moved_away / "here"), bench)
    finally:
        (moved_away / "here").rename(made[0].folder / made[1].folder)


def test_the_command_fails_where_anything_leaks(made: tuple[Workspace, Manifest], tmp_path: Path) -> None:
    row = kept(made)[0]
    bench = write_csv(tmp_path / "of, [all].csv", [moved(row, 0.1)])
    leaking = curate("leakage", made[1].url, "--against", bench)
    assert (leaking.status, leaking.result["overlapping"]) == (1, 1)
    assert "curate: error: 1 of 200 kept samples leak (1 overlap the benchmark): file://" in leaking.stderr
    assert f"  0.800       -  {row['key']}, {row['key']}'" in leaking.stderr
    clean = curate("leakage", made[1].url, "--against", bench, "select.place.overlap=0.9")
    assert (clean.status, clean.result["leaking"]) == (0, 0)


@pytest.mark.parametrize("arguments", [[], ["manifest"], ["manifest", "--against"], ["--against", "table"]])
def test_the_command_says_what_it_takes(arguments: list[str]) -> None:
    says = "--against needs the benchmark's table" if arguments[1:] == ["--against"] else "MANIFEST --against TABLE"
    with pytest.raises(RequestError, match=says):
        run(arguments)


@pytest.mark.parametrize(
    ("where", "workspace"), [("memory://ws/manifests/id", "memory://ws"), ("memory://x", "memory://x")]
)
def test_a_manifests_workspace_is_opened_with_its_own_options(where: str, workspace: str) -> None:
    manifest: Any = SimpleNamespace(folder=Folder(where))
    found = open_workspace(manifest, {"workspace": {"skip_instance_cache": True}})
    assert (found.url, found.options["memory"]) == (workspace, {"skip_instance_cache": True})
