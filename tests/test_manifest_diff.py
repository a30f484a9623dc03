"""What came, what went and why: held against a plain comparison of all rows."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.catalog.schema import QUARANTINE_SCHEMA
from curation.errors import RequestError
from curation.manifests.diff import CHANGES, diff
from curation.manifests.schema import KEPT
from tests.command import curate
from tests.lineage_recipes import Lineage, Row, sample, when

HERE = {"west": 11.0, "south": 48.0, "east": 11.1, "north": 48.1}


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return Lineage(tmp_path)


def night(lineage: Lineage) -> tuple[str, str, dict[str, str]]:
    """Yesterday's manifest and today's; why each sample came or went."""
    old, gone, new = "root0/a.tar", "root0/gone.tar", "root0/new.tar"
    known: dict[str, Any] = {"label": "sea", "time": when(5), "footprint": HERE}
    stays = [sample(old, i, "sampled", 1, label="wood") for i in range(4)]
    before = [
        *stays,
        sample(old, 4, "sampled", 1, **known),
        sample(old, 5, "sampled", 1, **known),
        sample(old, 6, "quota", 2, scene="port"),
        sample(old, 7, "duplicate", 2, duplicate_of=stays[0]["sample_id"]),
        sample(old, 8, "sampled", 1),
        sample(old, 9, "entropy", 1),
        sample(gone, 0, "sampled", 0),
        sample(gone, 1, "quota", 0),
    ]
    after = [
        *stays,
        sample(old, 4, "quota", 1, **known),
        sample(old, 5, "duplicate", 1, duplicate_of=stays[1]["sample_id"], **known),
        sample(old, 6, "sampled", 2, scene="port"),
        sample(old, 7, "sampled", 2),
        sample(old, 9, "cloud", 1),
        sample(old, 10, "sampled", 1),
        sample(new, 0, "sampled", 3, label="ice", time=when(11)),
        sample(new, 1, "quota", 3),
    ]
    lineage.catalog([*after, *(row for row in before if row["shard"] == gone)])
    a = lineage.write(before, sources={old: "1", gone: "1"})
    b = lineage.write(after, parent=a, sources={old: "2", new: "1"}, config={"archive": {}, "select": {"budget": 8}})
    why = {
        **{f"{old}-004": "displaced by quota", f"{old}-005": "became a duplicate", f"{old}-008": "sample gone"},
        **{f"{gone}-000": "shard gone", f"{old}-006": "promoted by quota", f"{old}-007": "no longer a duplicate"},
        **{f"{old}-010": "new sample", f"{new}-000": "new shard"},
    }
    return a, b, why


def test_each_sample_that_came_or_went_has_its_reason(lineage: Lineage) -> None:
    a, b, why = night(lineage)
    out = lineage.folder / "out/changed.parquet"
    result = diff(lineage.manifest(a), lineage.manifest(b), str(out))
    assert result["kept"] == {"before": 8, "after": 8, "came": 4, "went": 4}
    assert result["samples"] == {"before": 12, "after": 12, "new": 3, "gone": 3}
    assert result["shards"] == {"before": 2, "after": 2, "new": 1, "gone": 1, "changed": 1}
    told = {**result["why"]["came"], **result["why"]["went"]}
    assert told == Counter(why.values())
    rows = pq.read_table(out)
    assert rows.schema.equals(CHANGES)
    found = {row["key"]: row for row in rows.to_pylist()}
    assert {key: row["why"] for key, row in found.items() if row["change"] in ("came", "went")} == why
    others = {key: (row["change"], row["why"]) for key, row in found.items() if key not in why}
    assert others == {
        "root0/a.tar-009": ("decision", "entropy -> cloud"),
        "root0/gone.tar-001": ("gone", "shard gone"),
        "root0/new.tar-001": ("new", "new shard"),
    }
    dropped = found["root0/a.tar-005"]
    assert dropped["duplicate_of"] == sample("root0/a.tar", 1)["sample_id"]
    assert (dropped["class"], dropped["month"]) == ("sea", "2026-05")
    assert [round(float(degrees)) for degrees in dropped["region"].split()] == [
        pytest.approx(48, abs=5),
        pytest.approx(11, abs=8),
    ]
    assert result["decisions"] == {
        **{"sampled -> quota": 1, "sampled -> duplicate": 1, "quota -> sampled": 1},
        **{"duplicate -> sampled": 1, "entropy -> cloud": 1},
    }


def test_by_shard_cluster_class_region_and_month(lineage: Lineage) -> None:
    a, b, _ = night(lineage)
    result = diff(lineage.manifest(a), lineage.manifest(b))
    by = {name: {row.pop("name"): row for row in told["most"]} for name, told in result["by"].items()}
    assert by["shard"]["root0/new.tar"] == {"came": 1, "went": 0, "before": 0, "after": 1}
    assert by["shard"]["root0/gone.tar"] == {"came": 0, "went": 1, "before": 1, "after": 0}
    assert by["cluster"]["1"] == {"came": 1, "went": 3, "before": 7, "after": 5}
    assert by["class"]["sea"] == {"came": 0, "went": 2, "before": 2, "after": 0}
    assert by["class"]["port"] == {"came": 1, "went": 0, "before": 0, "after": 1}
    assert by["month"] == {
        "2026-05": {"came": 0, "went": 2},
        "2026-11": {"came": 1, "went": 0},
        "?": {"came": 3, "went": 2},
    }
    assert sum(row["went"] for row in by["region"].values()) == 4 and len(by["region"]) == 2
    assert result["header"]["config.select.budget"] == [None, 8]
    assert result["header"]["parent"] == [None, a]
    assert result["clusters"] == "same"


def test_what_cannot_be_read_any_more_is_told_apart(lineage: Lineage) -> None:
    a, b, _ = night(lineage)
    lost = {
        "shard": "root0/a.tar",
        "index": 8,
        "key": "root0/a.tar-008",
        "stage": "decode",
        "error": "E",
        "message": "",
    }
    path = lineage.folder / "quarantine/cat0/root0/a.tar.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(QUARANTINE_SCHEMA.empty_table().from_pylist([lost], QUARANTINE_SCHEMA), path)
    assert diff(lineage.manifest(a), lineage.manifest(b))["why"]["went"]["quarantined now"] == 1


def test_clusters_that_were_fitted_apart_are_not_compared(lineage: Lineage) -> None:
    rows = [sample("root0/a.tar", i, "sampled" if i < 3 else "quota", i % 2) for i in range(6)]
    a = lineage.write(rows)
    moved = [{**row, "cluster": 7, "reason": "sampled" if row["index"] > 2 else "quota"} for row in rows]
    b = lineage.write(moved, clusters="c1")
    result = diff(lineage.manifest(a), lineage.manifest(b))
    assert result["clusters"] == "other"
    assert [row["name"] for row in result["by"]["cluster"]["most"]] == ["after:7", "before:0", "before:1"]
    child = lineage.write(moved, parent=a, clusters="c1")
    assert diff(lineage.manifest(a), lineage.manifest(child))["clusters"] == "carried over"


def test_the_command_prints_a_table_of_bounded_length_and_one_line(lineage: Lineage) -> None:
    rows = [
        sample(f"root0/{shard:04}.tar", i, "sampled" if i else "quota", shard) for shard in range(300) for i in (0, 1)
    ]
    swapped = [{**row, "reason": "quota" if row["index"] else "sampled"} for row in rows]
    a, b = lineage.write(rows), lineage.write(swapped, parts=3, config={str(key): key for key in range(1000)})
    out = curate(
        "diff", lineage.manifest(a), f"{lineage.manifest(b)}/manifest.json", "--out", f"{lineage.folder}/o.parquet"
    )
    assert out.status == 0, out.stderr
    assert len(out.stderr.splitlines()) < 70 and len(out.stdout) < 20_000
    assert "by shard, 300 changed" in out.stderr and "300 came, 300 went" in out.stderr
    assert pq.read_metadata(out.file("table")).num_rows == 600
    assert curate("diff", lineage.manifest(a)).status == 2
    with pytest.raises(RequestError, match="is a folder: give a file's name"):
        diff(lineage.manifest(a), lineage.manifest(b), str(lineage.folder))


REASONS = ("sampled", "required", "quota", "duplicate", "entropy")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**20), parts=st.sampled_from([(1, 1), (3, 3), (2, 5)]), steps=st.integers(1, 3))
def test_as_a_plain_comparison_of_all_rows(seed: int, parts: tuple[int, int], steps: int, tmp_path: Path) -> None:
    """Whatever changes, however decisions are spread over parts and files of ancestors."""
    draw = random.Random(seed)
    lineage = Lineage(tmp_path / f"{seed}-{parts[0]}-{parts[1]}-{steps}")
    rows: dict[tuple[str, int], Row] = {}
    ids: list[str] = []
    for step in range(steps + 1):
        for shard in (f"r/{name}" for name in "abcdef"):
            if draw.random() < 0.2:  # it vanishes, comes or changes
                rows = {at: row for at, row in rows.items() if at[0] != shard}
                for i in range(draw.randrange(6)):
                    rows[shard, i] = sample(shard, i, draw.choice(REASONS), draw.randrange(3), label=draw.choice("xyz"))
        for at in [at for at in rows if draw.random() < 0.3]:
            rows[at] = {**rows[at], "reason": draw.choice(REASONS)}
        known = list(rows.values())
        number = parts[0] if step == 0 else parts[1]
        ids.append(lineage.write(known, ids[-1] if ids else None, number))
    first, last = ({row["sample_id"]: row for row in lineage.rows[id]} for id in (ids[0], ids[-1]))
    out = lineage.folder / "changed.parquet"
    result = diff(lineage.manifest(ids[0]), lineage.manifest(ids[-1]), str(out))
    kept = [{id for id, row in side.items() if row["reason"] in KEPT} for side in (first, last)]
    assert result["kept"] == {
        **{"before": len(kept[0]), "after": len(kept[1])},
        **{"came": len(kept[1] - kept[0]), "went": len(kept[0] - kept[1])},
    }
    changed = {
        id: (first.get(id, {}).get("reason"), last.get(id, {}).get("reason")) for id in first.keys() | last.keys()
    }
    changed = {id: pair for id, pair in changed.items() if pair[0] != pair[1]}
    told = {row["sample_id"]: (row["reason_before"], row["reason_after"]) for row in pq.read_table(out).to_pylist()}
    assert told == changed
    for change, ours in (("came", kept[1] - kept[0]), ("went", kept[0] - kept[1])):
        rows_of = last if change == "came" else first
        for name, key in (("shard", "shard"), ("class", "label"), ("cluster", "cluster")):
            expected = Counter(str(rows_of[id][key]) for id in ours)
            found = {row["name"]: row[change] for row in result["by"][name]["most"] if row[change]}
            assert found == expected, (change, name)
    assert diff(lineage.manifest(ids[-1]), lineage.manifest(ids[-1]))["kept"]["came"] == 0


def test_a_file_of_an_ancestor_that_is_gone_is_named(lineage: Lineage) -> None:
    a, b, _ = night(lineage)
    path = lineage.parts[b][0][0]
    (lineage.folder / "manifests" / path.removeprefix("../")).unlink()
    with pytest.raises(RequestError, match="is gone"):
        diff(lineage.manifest(a), lineage.manifest(b))
