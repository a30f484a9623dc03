"""Sidecars: what they say stands in the sample, and what cannot be right is told."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.archive.sidecar import gather, read_fields
from curation.errors import BadSample
from tests.archive_tools import decoded
from tests.recipes import encoded, geotiff

IMAGE = encoded(np.full((4, 4, 3), 7, np.uint8), "PNG")


def read_sidecars(data: dict[str, bytes]) -> dict[str, Any]:
    return read_fields(gather(data, {}))


def said(**fields: Any) -> dict[str, Any]:
    return read_sidecars({"json": json.dumps(fields).encode()})


def test_everything_that_can_be_said() -> None:
    sidecar = {
        "label": "river",
        "caption": "a river",
        "time": "2024-05-01T12:30:00+02:00",
        "footprint": [1, 2, 3, 4],
        "licence": "CC-BY-4.0",
        "product_id": "S2A_X",
        "cloud_cover": 12.5,
        "unknown": {"left": "alone"},
    }
    sample = decoded(png=IMAGE, json=json.dumps(sidecar).encode(), cls=b"3", txt=b"another")
    assert sample.label == "river" and sample.caption == "a river"
    assert sample.time == datetime(2024, 5, 1, 10, 30, tzinfo=UTC)
    assert sample.footprint == (1, 2, 3, 4)
    assert sample.license == "CC-BY-4.0" and sample.source_id == "S2A_X"
    assert sample.cloud_fraction == 0.125


def test_nothing_said_is_nothing() -> None:
    nothing = dict.fromkeys(read_sidecars({}))
    assert read_sidecars({}) == nothing
    assert read_sidecars({"json": b"{}", "cls": b" ", "txt": b"", "png": b"x"}) == nothing
    assert read_sidecars({"json": b"[1, 2]"}) == nothing
    assert said(label=None, time="", caption=None) == nothing


def test_cls_and_txt() -> None:
    found = read_sidecars({"CLS": b"12\n", "txt": "\ufeffein Fluß ".encode()})
    assert (found["label"], found["caption"]) == ("12", "ein Fluß")


@pytest.mark.parametrize(
    ("label", "text"), [(3, "3"), (3.0, "3"), (0, "0"), ("07", "07"), (["b", 2], "b; 2"), ([], None)]
)
def test_labels_become_text(label: Any, text: str | None) -> None:
    assert said(label=label)["label"] == text


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("2024-05-01", datetime(2024, 5, 1, tzinfo=UTC)),
        ("2024-05-01T10:00:00Z", datetime(2024, 5, 1, 10, tzinfo=UTC)),
        ("20240501T100000", datetime(2024, 5, 1, 10, tzinfo=UTC)),
        ("2024-05-01 10:00:00.250", datetime(2024, 5, 1, 10, 0, 0, 250_000, tzinfo=UTC)),
        (1714557600, datetime(2024, 5, 1, 10, tzinfo=UTC)),
    ],
)
def test_times_come_to_utc(value: Any, time: datetime) -> None:
    for name in ("time", "datetime", "date"):
        assert said(**{name: value})["time"] == time


@pytest.mark.parametrize(
    "fields",
    [
        {"footprint": [10, 20, 11, 21]},
        {"bbox": ["10", "20", "11", "21"]},
        {"bbox": [10, 20, 0, 11, 21, 5]},
        {"footprint": {"west": 10, "south": 20, "east": 11, "north": 21}},
        {"footprint": "POLYGON ((10 20, 11 20.5, 1.1e1 21, 10 20))"},
        {"geometry": {"type": "Polygon", "coordinates": [[[10, 20], [11, 20], [11, 21], [10, 20]]]}},
        {"footprint": [[10, 20], [11, 20], [11, 21]]},
    ],
)
def test_places_in_their_usual_forms(fields: dict[str, Any]) -> None:
    assert said(**fields)["footprint"] == (10, 20, 11, 21)


def test_points_the_antimeridian_and_the_place_in_a_geotiff() -> None:
    assert said(lon=10, lat="20")["footprint"] == (10, 20, 10, 20)
    assert said(bbox=[179, -1, -179, 1])["footprint"] == (179, -1, -179, 1)
    assert said(footprint="POLYGON ((179 -1, -179 -1, -179 1, 179 1, 179 -1))")["footprint"] == (179, -1, -179, 1)
    image = geotiff(np.ones((1, 10, 10), np.uint8), corner=(5, 6), pixel=(0.1, 0.1))
    assert decoded(tif=image).footprint == pytest.approx((5, 5, 6, 6))
    assert decoded(tif=image, json=b'{"lon": 1, "lat": 2}').footprint == (1, 2, 1, 2)


@pytest.mark.parametrize("step", [360, 180, 90, 10])
@pytest.mark.parametrize("form", ["GeoJSON", "WKT"])
def test_a_footprint_around_the_globe_is_all_longitudes(step: int, form: str) -> None:
    """Whatever points its edges are bent by."""
    lons = range(-180, 181, step)
    ring = [[lon, -60] for lon in lons] + [[lon, 60] for lon in reversed(lons)] + [[-180, -60]]
    wkt = ", ".join(f"{lon} {lat}" for lon, lat in ring)
    fields: dict[str, Any] = {
        "GeoJSON": {"geometry": {"type": "Polygon", "coordinates": [ring]}},
        "WKT": {"footprint": f"POLYGON (({wkt}))"},
    }[form]
    assert said(**fields)["footprint"] == (-180, -60, 180, 60)


def test_a_stac_item() -> None:
    item = {"type": "Feature", "bbox": [1, 2, 3, 4], "properties": {"datetime": "2020-01-01", "eo:cloud_cover": 50}}
    found = said(**item)
    assert (found["footprint"], found["cloud_fraction"]) == ((1, 2, 3, 4), 0.5)
    assert found["time"] == datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "sidecar",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"time": "in spring"}',
        b'{"time": [1]}',
        b'{"time": 1e300}',
        b'{"footprint": [1, 2, 3]}',
        b'{"footprint": [48.1, 200, 48.2, 201]}',
        b'{"footprint": "here"}',
        b'{"footprint": []}',
        b'{"bbox": [1, 5, 2, 4]}',
        b'{"bbox": [NaN, 5, 2, 6]}',
        b'{"lon": "x", "lat": 3}',
        b'{"cloud_fraction": 12}',
        b'{"cloud_cover": -1}',
        b'{"cloud_cover": "none"}',
        b'{"label": {"a": 1}}',
        b'{"label": "\\ud800"}',
        b'{"source_id": [1]}',
    ],
)
def test_a_broken_sidecar_spoils_its_sample(sidecar: bytes) -> None:
    with pytest.raises(BadSample) as caught:
        decoded(png=IMAGE, json=sidecar)
    assert caught.value.kind == "BadSidecar"
    assert caught.value.message.startswith("json: ") and "\n" not in caught.value.message


def test_text_that_is_no_utf8_is_told() -> None:
    for suffix in ("cls", "txt"):
        with pytest.raises(BadSample, match="not UTF-8"):
            read_sidecars({suffix: b"\xff"})


text = st.text("aZ 09-:.,Tü雲\ud800", max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("label", "text", "time", "date", "footprint", "bbox", "geometry", "lon", "lat", "source_id", "cloud_cover")


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from((*FIELDS, "properties")), values))
def test_any_json_is_read_or_told(fields: dict[str, Any]) -> None:
    try:
        found = said(**fields)
    except BadSample as error:
        assert error.kind == "BadSidecar"
        return
    for name in ("label", "caption", "license", "source_id"):
        assert found[name] is None or found[name].encode()
    assert found["time"] is None or found["time"].tzinfo is UTC
    assert found["footprint"] is None or all(abs(side) <= 180 for side in found["footprint"])
