"""Tables beside the archive: CSV and Parquet, joined by key or source id; filters over their columns."""

import datetime
import pickle
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.archive.filter import compile_filter
from curation.archive.tables import Table, TableFilter, lookup, open_tables
from curation.config import load_config
from curation.errors import RequestError
from curation.stages import config_without_urls
from curation.storage import FileInfo, Folder

CSV = "id,cloud_cover,country,note\n007,10,FR,\n7,30,NA,x\n8,,ES,\n,1,FR,\nlast,5,,y\n"


def opened(path: Path | str, key: str = "id", on: str = "key") -> tuple[Table, ...]:
    return open_tables([{"path": str(path), "key": key, "on": on}])


@pytest.fixture
def clouds(tmp_path: Path) -> Path:
    path = tmp_path / "clouds, of [2020].csv"
    path.write_text(CSV)
    return path


@pytest.mark.parametrize("form", ["csv", "parquet", "numbers"])
def test_values_by_key(clouds: Path, tmp_path: Path, form: str) -> None:
    names: list[Any] = ["7", None, "nobody", "8", "007"]
    if form == "numbers":  # a key may be a number in the table
        pq.write_table(pa.table({"id": [7, 8], "cloud_cover": [30.0, None], "country": ["NA", "ES"]}), tmp_path / "x")
        names[-1] = "9"
    elif form == "parquet":
        columns = {"id": ["007", "7", "8", None], "cloud_cover": [10, 30, None, 1], "country": ["FR", "NA", "ES", "FR"]}
        pq.write_table(pa.table(columns), tmp_path / "x")
    (table,) = opened(clouds if form == "csv" else tmp_path / "x")
    found = lookup(table, ["cloud_cover", "country"], pa.chunked_array([names[:2], names[2:]], pa.string())).to_pydict()
    known = form != "numbers"
    assert found["cloud_cover"] == [30, None, None, None, 10 if known else None]
    assert found["country"] == ["NA", None, None, "ES", "FR" if known else None]  # NA is Namibia


def test_a_tile_has_what_its_image_has_unless_it_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,x\nscene,1\nscene_r00000_c00256,2\n")
    names = pa.array(["scene_r00256_c00000", "scene_r00000_c00256", "scene", "other_r00000_c00000", "scene_r1_c1"])
    (table,) = opened(tmp_path / "t.csv")
    assert lookup(table, ["x"], names)["x"].to_pylist() == [1, 2, 1, None, None]
    (table,) = opened(tmp_path / "t.csv", on="source_id")
    assert lookup(table, ["x"], names)["x"].to_pylist() == [None, 2, 1, None, None]


def test_a_table_in_an_object_store(clouds: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    pq.write_table(pa.table({"id": ["7"], "cloud_cover": [30], "country": ["NA"]}), tmp_path / "t.parquet")
    for path in (clouds, tmp_path / "t.parquet"):
        store.pipe_file(f"/bucket/tables/{path.name}", path.read_bytes())
        (table,) = pickle.loads(pickle.dumps(opened(f"memory://bucket/tables/{path.name}")))
        assert lookup(table, ["country"], pa.array(["7", "x"]))["country"].to_pylist() == ["NA", None]
        assert table.digest == opened(path)[0].digest
    with pytest.raises(RequestError, match="there is no file memory://bucket/gone.csv"):
        opened("memory://bucket/gone.csv")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=4), unique=True, max_size=30), st.lists(st.text(max_size=4), max_size=30))
def test_lookup_is_a_dict(tmp_path_factory: pytest.TempPathFactory, known: list[str], asked: list[str]) -> None:
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    pq.write_table(pa.table({"id": pa.array(known, pa.string()), "x": pa.array(range(len(known)))}), path)
    (table,) = opened(path)
    expected = dict(zip(known, range(len(known)), strict=True))
    assert lookup(table, ["x"], pa.array(asked, pa.string()))["x"].to_pylist() == [expected.get(a) for a in asked]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "gone.csv", "key": "id", "on": "key"}, "there is no file .*gone.csv"),
        ({"path": ".", "key": "id", "on": "key"}, "there is no file"),
        ({"path": "t.csv", "key": "name", "on": "key"}, "t.csv has no column 'name'; it has id, x"),
        ({"path": "t.csv", "key": "id", "on": "place"}, "key or source_id"),
        ({"path": "t.csv", "key": "id"}, "is not {path: URL"),
        ("t.csv", "is not {path: URL"),
        ({"path": "empty.csv", "key": "id", "on": "key"}, "empty.csv is no Parquet or CSV table"),
        ({"path": "torn.parquet", "key": "id", "on": "key"}, "torn.parquet is no Parquet or CSV table"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("id,x\na,1\n")
    Path("empty.csv").write_text("")
    Path("torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(RequestError, match=message) as error:
        open_tables([entry])
    assert "\n" not in str(error.value)


def test_a_key_that_comes_twice_and_a_table_that_changes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x\na,1\nb,2\na,3\n")
    with pytest.raises(RequestError, match="t.csv: id 'a' comes twice"):
        lookup(opened(path)[0], ["x"], pa.array(["a"]))
    path.write_text("id,x\na,1\n")
    (table,) = opened(path)
    path.write_text("id,x\na,1000\n")
    with pytest.raises(RequestError, match="has changed since the run began"):
        lookup(table, ["x"], pa.array(["a"]))


def test_a_csv_column_that_begins_empty_is_read_whole(tmp_path: Path) -> None:
    lines = "".join(f"{i},\n" for i in range(400_000))  # more than the first block
    (tmp_path / "t.csv").write_text(f"id,note\n{lines}last,seen\n")
    tables = opened(tmp_path / "t.csv")
    assert lookup(tables[0], ["note"], pa.array(["last", "3"]))["note"].to_pylist() == ["seen", None]
    assert TableFilter(tables, "note == 'seen'").allowed(pa.array(["last", "3"])).tolist() == [True, False]


# filters

ROWS = pa.table(
    {
        "cloud_cover": pa.array([10, 30, None, 5], pa.float64()),
        "country": ["FR", "ES", "FR", None],
        "night": [False, True, False, None],
        "eo:rows": [1, 2, 3, 4],
        "time": pa.array([datetime.datetime(2020, 1, i, 12, tzinfo=datetime.UTC) for i in range(1, 5)]),
        "day": [datetime.date(2020, 1, i) for i in range(1, 5)],
        "it's": ["a`b`", "and", "x", "y"],
    }
)


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("cloud_cover < 20 and country in ['FR','ES'] and not night", [1]),
        ("cloud_cover < 20", [1, 4]),
        ("not cloud_cover < 20", [2]),  # what is not known is not allowed, either way
        ("not (cloud_cover < 20 or night)", []),
        ("country not in ['ES']", [1, 3]),
        ("country in []", []),
        ("`eo:rows` > 2", [3, 4]),
        ("1 < `eo:rows` <= 3", [2, 3]),
        ("cloud_cover >= `eo:rows`", [1, 2, 4]),
        ("20 > cloud_cover", [1, 4]),
        ("cloud_cover > -1 and cloud_cover != 5", [1, 2]),
        ("cloud_cover in (10, -5)", [1]),
        ("night == True or night == False", [1, 2, 3]),
        ("time >= '2020-01-02' and time < '2020-01-04'", [2, 3]),
        ("time == '2020-01-02 12:00:00'", [2]),
        ("day in ['2020-01-03']", [3]),
        ("`it's` in ['a`b`', \"and\"]", [1, 2]),
    ],
)
def test_what_an_expression_means(expression: str, rows: list[int]) -> None:
    assert ROWS.filter(compile_filter(expression, ROWS.schema))["eo:rows"].to_pylist() == rows


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "__import__('os').system('true')",
            "f(1)",
            "country.x == 1",
            "country[0] == 'F'",
            "lambda: night",
            "night if 1",
        ),
        *("cloud_cover", "cloud_cover < 'x'", "country < 3", "country in ['FR', 3]", "cloud_cover in ['x']"),
        *("cloud_cover <", "", "1 < 2", "country == None", "night is True", "cloud_cover < 1 + 1", "-country == 'x'"),
        *("time < 'soon'", "cloud_cover in country", "(" * 500, "not " * 2000 + "night", "night" + " and night" * 2000),
        *("f'{night}'", "night := True", "(x for x in night)", "cloud_cover == 1j", "night\nand night"),
    ],
)
def test_what_no_filter_can_say_is_refused_in_one_line(tmp_path: Path, expression: str) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(ROWS.append_column("id", [["a", "b", "c", "d"]]), path)
    with pytest.raises(RequestError, match="archive.filter") as error:
        TableFilter(opened(path), expression)
    assert "\n" not in str(error.value).replace(expression, "")


def test_an_unknown_column_is_named_with_the_nearest(clouds: Path) -> None:
    with pytest.raises(RequestError, match="no column 'cloudcover'; did you mean 'cloud_cover'?"):
        TableFilter(opened(clouds), "cloudcover < 20")


def test_a_filter_over_two_tables_by_key_and_by_source(clouds: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"product": ["p1", "p2"], "licence": ["open", "closed"]}), tmp_path / "l.parquet")
    entries = [
        {"path": str(clouds), "key": "id", "on": "key"},
        {"path": str(tmp_path / "l.parquet"), "key": "product", "on": "source_id"},
    ]
    tables = open_tables(entries)
    where = TableFilter(tables, "cloud_cover < 20 and licence == 'open'")
    keys = ["007", "007", "7", "8", "nobody", "007"]
    sources = ["p1", "p2", "p1", "p1", "p1", None]
    allowed = where.allowed(pa.array(keys), pa.array(sources))
    assert allowed.tolist() == [True, False, False, False, False, False]
    copy = pickle.loads(pickle.dumps(where))
    assert copy.allowed(pa.array(keys), pa.array(sources)).tolist() == allowed.tolist()
    assert not where.allowed(pa.array(keys)).any()  # without source ids nothing is known to be open
    assert where.allowed(pa.array([], pa.string())).dtype == np.bool_


def test_the_digest_is_of_the_expression_and_of_the_tables_it_looks_at(clouds: Path, tmp_path: Path) -> None:
    def digest(expression: str) -> str:
        other = tmp_path / "other.csv"
        return TableFilter((*opened(clouds), *opened(other, "name")), expression).digest

    (tmp_path / "other.csv").write_text("name,size\na,1\n")
    first = digest("cloud_cover < 20")
    assert digest("cloud_cover < 21") != first
    (tmp_path / "other.csv").write_text("name,size\na,2\n")
    assert digest("cloud_cover < 20") == first
    clouds.write_text(CSV.replace("30", "31"))
    assert digest("cloud_cover < 20") != first


def test_the_manifest_says_which_tables_but_not_where_they_lie(clouds: Path) -> None:
    config = load_config([f"archive.tables=[{{path: '{clouds}', key: id, on: key}}]"])
    tables = open_tables(config.archive.tables)
    said = config_without_urls(config, tables)["archive"]["tables"]
    assert said == [{"path": clouds.name, "key": ["id"], "on": "key", "digest": tables[0].digest}]
    assert config_without_urls(load_config([]), ())["archive"]["tables"] is None


def test_several_columns_name_a_sample(tmp_path: Path) -> None:
    """As Major TOM's metadata do: neither grid cell nor product is alone a name."""
    (tmp_path / "metadata.csv").write_text("grid_cell,product_id,cloud_cover\n1U_1R,a,5\n1U_1R,b,90\n1U_2R,a,7\n")
    entry = {"path": str(tmp_path / "metadata.csv"), "key": ["grid_cell", "product_id"], "on": "key"}
    (table,) = open_tables([entry])
    found = lookup(table, ["cloud_cover"], pa.array(["1U_2R_a", "1U_1R_b", "1U_1R_a_r00000_c00267", "a"]))
    assert found["cloud_cover"].to_pylist() == [7, 90, 5, None]
    with pytest.raises(RequestError, match="no column 'row'"):
        open_tables([{**entry, "key": ["grid_cell", "row"]}])


def test_a_signed_url_of_a_table_is_named_without_its_signature() -> None:
    file = FileInfo("clouds.csv?sig=hunter2", 1, "v")
    table = Table(Folder("https://host/tables"), file, ("id",), "key", pa.schema([]), "d")
    assert table.identity["path"] == "clouds.csv"
