"""Lists of samples as people have them: Parquet or CSV, by key, id, source or area and time."""

import datetime
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import RequestError
from curation.selection.lists import parse_list
from tests.selection_recipes import make_workspace


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return make_workspace(tmp_path_factory.mktemp("workspace"), shards=3, rows=20, clusters=2).samples


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def found(catalog: pa.Table, data: bytes) -> list[str]:
    return catalog["key"].filter(pa.array(parse_list("list", data).match(catalog))).to_pylist()


def test_by_key_id_and_source(catalog: pa.Table) -> None:
    rows = catalog.to_pylist()[4:6]
    keys = [row["key"] for row in rows]
    assert found(catalog, f"key,why\n{keys[0]},x\nnobody,y\n{keys[1]},\n".encode()) == keys
    assert found(catalog, parquet(pa.table({"sample_id": [row["sample_id"] for row in rows]}))) == keys
    same = [row["key"] for row in catalog.to_pylist() if row["source_id"] == rows[0]["source_id"]]
    assert found(catalog, f"source_id\n{rows[0]['source_id']}\n".encode()) == same
    assert len(same) > 1


def test_the_finest_column_counts(catalog: pa.Table) -> None:
    row = catalog.to_pylist()[0]
    table = pa.table({"key": [row["key"]], "source_id": [row["source_id"]], "label": ["x"]})
    assert parse_list("list", parquet(table)).columns == ("key",)
    assert found(catalog, parquet(table)) == [row["key"]]


def test_keys_that_look_like_numbers_stay_texts() -> None:
    catalog = pa.table({"key": ["007", "7", "1e3", None]})
    assert parse_list("list", b"key\n007\n1e3\n").match(catalog).tolist() == [True, False, True, False]


def test_by_area_and_time(catalog: pa.Table) -> None:
    # shard n lies at n degrees east, index i at i degrees north, in month n + 1 on day i + 1 at noon
    assert found(catalog, b"west,south,east,north\n0.9,4.9,1.2,6.1\n") == ["dir/001_0005", "dir/001_0006"]
    assert found(catalog, b"west,south,east,north\n1.5,0,1.9,1\n") == ["dir/001_0000", "dir/001_0001"]  # touches
    assert found(catalog, b"west,south,east,north\n1.6,0,1.9,1\n") == []
    both = b"west,south,east,north,start,end\n-10,-10,0.6,90,2020-01-02,2020-01-03\n1.7,0,2,1.2,,2020-03-01\n"
    assert found(catalog, both) == ["dir/000_0001", "dir/000_0002", "dir/002_0000"]
    exact = b"west,south,east,north,start,end\n-10,-10,9,90,2020-01-02 12:00:00,2020-01-03 11:00:00\n"
    assert found(catalog, exact) == ["dir/000_0001"]
    zone = datetime.timezone(datetime.timedelta(hours=2))
    moment = datetime.datetime(2020, 1, 2, 14, tzinfo=zone)
    sides = {"west": [-10], "south": [-10], "east": [9], "north": [90]}
    assert found(catalog, parquet(pa.table({**sides, "start": [moment], "end": [moment]}))) == ["dir/000_0001"]


def test_an_area_across_the_date_line() -> None:
    footprint = [{"west": w, "south": 0.0, "east": w + 1, "north": 1.0} for w in (178.5, -179.5, 0.0, 170.0)]
    none = [{"west": None, "south": None, "east": None, "north": None}, None]
    catalog = pa.table({"footprint": [*footprint, *none], "time": pa.nulls(6, pa.timestamp("us", tz="UTC"))})
    listed = parse_list("list", b"west,south,east,north\n179,-1,-179,2\n")
    assert listed.match(catalog).tolist() == [True, True, False, False, False, False]
    timed = parse_list("list", b"west,south,east,north,start\n179,-1,-179,2,2020-01-01\n")
    assert not timed.match(catalog).any()


@pytest.mark.parametrize("data", [b"name\nx\n", b"west,south\n1,2\n", b"", b"PAR1 torn", b"key\nx,y,z\n"])
def test_what_is_no_list_is_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        parse_list("my list.csv", data)
    assert "my list.csv" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("area", "named"),
    [
        ((172, -20, 178, -10), [True, True, False]),
        ((175, -20, -175, -10), [True, True, True]),
        ((-175, -20, -172, -10), [True, False, True]),
        ((179.5, -20, -179.5, -10), [True, False, False]),
        ((-170, -20, -160, -10), [True, False, False]),  # edges that meet touch
        ((-160, -20, 160, -10), [False, False, False]),
        ((-180, -90, 180, 90), [True, True, True]),
    ],
)
def test_footprints_that_cross_the_antimeridian(area: tuple[float, ...], named: list[bool]) -> None:
    sides = ("west", "south", "east", "north")
    boxes = [(170.0, -20.0, -170.0, -10.0), (171.0, -20.0, 179.0, -10.0), (-179.0, -20.0, -171.0, -10.0)]
    places = pa.array([dict(zip(sides, box, strict=True)) for box in [*boxes, (None,) * 4]])
    catalog = pa.table({"footprint": places, "time": pa.nulls(4, pa.timestamp("us", tz="UTC"))})
    listed = f"west,south,east,north\n{','.join(map(str, area))}\n".encode()
    assert parse_list("list", listed).match(catalog).tolist() == [*named, False]
