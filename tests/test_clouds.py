"""Clouds and validity: mask bands are found, taken off, brought to the grid, and read for what they mean."""

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from curation.archive.clouds import classes, detect
from curation.archive.decode import decode
from curation.archive.sample import RawSample, Sample
from curation.archive.settings import ArchiveConfig, CloudsConfig, RadiometryConfig
from curation.archive.tiling import tiles
from curation.config import load_config
from curation.errors import BadSample
from tests.archive_tools import decoded, raw
from tests.containers import store, zip_store
from tests.recipes import geotiff

GROUND = np.random.default_rng(0).integers(300, 3000, (2, 32, 32)).astype(np.uint16)


def optical(**masks: bytes) -> RawSample:
    return raw(B04_tif=geotiff(GROUND[:1]), B08_tif=geotiff(GROUND[1:]), **masks)


def mask(values: dict[int, slice], side: int = 32, dtype: str = "uint8") -> bytes:
    """Rows of a mask: ``{value: rows}``; 5 elsewhere in nothing (0)."""
    made = np.zeros((1, side, side), dtype)
    for value, rows in values.items():
        made[0, rows] = value
    return geotiff(made)


def rows(sample: Sample) -> tuple[list[int], list[int]]:
    """Rows that are cloudy, and rows that are invalid, in their first column."""
    assert sample.clouds is not None
    return np.flatnonzero(sample.clouds[:, 0]).tolist(), np.flatnonzero(~sample.mask[:, 0]).tolist()


def test_a_scene_classification_of_coarser_pixels_masks_and_tells_clouds() -> None:
    scl = {4: slice(0, 16), 3: slice(2, 3), 8: slice(4, 5), 9: slice(6, 7), 10: slice(8, 9), 1: slice(10, 11)}
    sample = decode(optical(SCL_tif=mask({**scl, 0: slice(12, 13), 11: slice(14, 15)}, side=16)), ArchiveConfig())
    assert sample.bands == ("B04", "B08") and sample.pixels.shape == (2, 32, 32)
    cloudy, invalid = rows(sample)
    assert cloudy == [4, 5, 8, 9, 12, 13, 16, 17] and invalid == [20, 21, 24, 25]
    assert sample.cloud_fraction == pytest.approx(8 / 28)


@pytest.mark.parametrize(
    ("name", "values", "dtype", "cloudy", "invalid"),
    [
        ("MSK_CLDPRB", {39: slice(0, 2), 40: slice(2, 4), 100: slice(4, 6)}, "uint8", [2, 3, 4, 5], []),
        ("CLD", {80: slice(0, 2)}, "uint8", [0, 1], []),
        ("CLP", {101: slice(0, 2), 103: slice(2, 4)}, "uint8", [2, 3], []),
        ("CLM", {1: slice(0, 2), 255: slice(4, 5)}, "uint8", [0, 1], [4]),
        ("QA60", {1 << 10: slice(0, 1), 1 << 11: slice(2, 3), 1 << 9: slice(4, 5)}, "uint16", [0, 2], []),
        (
            "QA_PIXEL",  # values as USGS gives them: fill, clear land, cloud, shadow, cirrus, dilated
            {21824: slice(0, 32), 1: slice(0, 1), 22280: slice(2, 3), 23888: slice(4, 5), 54596: slice(6, 7)},
            "uint16",
            [2, 4, 6],
            [0],
        ),
    ],
)
def test_known_masks_are_read_by_their_name(
    name: str, values: dict[int, slice], dtype: str, cloudy: list[int], invalid: list[int]
) -> None:
    item = optical()
    item.data[f"{name}.tif"] = mask(values, dtype=dtype)
    assert rows(decode(item, ArchiveConfig())) == (cloudy, invalid)


def test_the_classes_of_a_cloud_mask_are_told_by_all_that_the_fit_saw() -> None:
    item = optical(cloud_mask_tif=b"")
    item.data = {**optical().data, "cloud_mask.tif": mask({1: slice(0, 1), 2: slice(1, 2), 3: slice(2, 3)})}
    undecided = decode(item, ArchiveConfig())
    assert undecided.clouds is None and undecided.bands == ("B04", "B08")
    assert undecided.hints["cloud_values"] == (0, 1, 2, 3)
    assert (classes([]), classes([0, 1, 2, 3, 255]), classes([0, 1, 3, 4])) == (None, "four", "seven")
    four = decode(item, ArchiveConfig(clouds=CloudsConfig(found="four")))
    seven = decode(item, ArchiveConfig(clouds=CloudsConfig(found="seven")))
    assert rows(four) == ([0, 1, 2], []) and rows(seven) == ([2], [])


def test_masks_among_the_bands_of_one_file_by_description_or_by_given_names() -> None:
    stacked = np.concatenate([GROUND, np.zeros((1, 32, 32), np.uint16)])
    stacked[2, :3] = 9
    named = decode(raw(tif=geotiff(stacked, ("B04", "B08", "SCL"))), ArchiveConfig())
    given = decode(raw(tif=geotiff(stacked)), ArchiveConfig(band_names=["B04", "B08", "SCL"]))
    for sample in (named, given):
        assert sample.bands == ("B04", "B08") and sample.clouds is not None and sample.clouds[:3].all()
        assert not sample.mask[5:].any()  # 0 is no data


@pytest.mark.parametrize(
    ("rule", "cloudy"), [({"values": [7]}, [2, 3]), ({"bits": [1, 2]}, [2, 3, 4]), ({"above": 6}, [2, 3, 5])]
)
def test_a_mask_of_ones_own(rule: dict[str, object], cloudy: list[int]) -> None:
    values = {7: slice(2, 4), 2: slice(4, 5), 8: slice(5, 6)}
    item = optical()
    item.data["quality.tif"] = mask(values)
    settings = ArchiveConfig(clouds=CloudsConfig(band="quality", **rule))  # type: ignore[arg-type]
    assert rows(decode(item, settings)) == (cloudy, [])


def test_pixels_count_for_more_than_what_is_said() -> None:
    item = optical(json=b'{"cloud_cover": 80}')
    assert decode(item, ArchiveConfig()).cloud_fraction == 0.8
    item.data["SCL.tif"] = mask({4: slice(0, 32), 9: slice(0, 8)})
    sample = decode(item, ArchiveConfig())
    assert sample.cloud_fraction == 0.25
    fractions = [tile.cloud_fraction for tile in tiles(sample, 16, None)]
    assert fractions == [0.5, 0.5, 0, 0]


def test_masks_alone_are_no_image_and_must_cover_the_same_ground() -> None:
    with pytest.raises(BadSample, match="NoImage.*SCL"):
        decode(raw(SCL_tif=mask({4: slice(0, 32)})), ArchiveConfig())
    with pytest.raises(BadSample, match="BandMismatch.*SCL"):
        decode(optical(SCL_tif=geotiff(np.zeros((1, 32, 8), np.uint8))), ArchiveConfig())


# the detector


@pytest.fixture
def omnicloudmask(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """A stand-in of the same signature: bright red is thick cloud, NIR below 500 a shadow, 0 is no data."""
    calls: list[np.ndarray] = []

    def predict_from_array(
        input_array: np.ndarray,
        patch_size: int = 1000,
        patch_overlap: int = 300,
        inference_device: str | None = None,
        model_version: float | None = None,
    ) -> np.ndarray:
        assert input_array.ndim == 3 and len(input_array) == 3 and min(input_array.shape[1:]) >= 32
        assert patch_overlap < patch_size <= min(input_array.shape[1:])
        calls.append(input_array)
        classes = np.where(input_array[0] > 6000, 1, np.where(input_array[2] < 500, 3, 0))
        return np.where((input_array == 0).all(axis=0), 0, classes)[None].astype(np.uint8)

    module = ModuleType("omnicloudmask")
    module.predict_from_array = predict_from_array  # type: ignore[attr-defined]
    module.__spec__ = __import__("importlib").machinery.ModuleSpec("omnicloudmask", None)
    monkeypatch.setitem(sys.modules, "omnicloudmask", module)
    return calls


def test_the_detector_looks_where_there_is_no_mask(omnicloudmask: list[np.ndarray]) -> None:
    pixels = np.full((4, 20, 40), 2000, np.uint16)
    pixels[2, :4], pixels[3, 10:12], pixels[:, 19] = 9000, 100, 0
    item = raw(tif=geotiff(pixels, ("B02", "B03", "B04", "B08"), "0"))
    settings = load_config(["archive.clouds.detector=omnicloudmask"]).archive
    settings = replace(settings, radiometry=RadiometryConfig("sentinel2", found={"": {"offset": 0}}))
    sample = decode(item, settings)
    assert sample.clouds is not None and np.flatnonzero(sample.clouds[:, 7]).tolist() == [0, 1, 2, 3, 10, 11]
    assert sample.cloud_fraction == pytest.approx(6 / 19) and omnicloudmask[0].shape == (3, 50, 50)
    masked = raw(tif=item.data["tif"])
    masked.data = {"a.tif": item.data["tif"], "SCL.tif": geotiff(np.full((1, 20, 40), 4, np.uint8))}
    assert decode(masked, replace(settings, members=["a.tif", "SCL.tif"])).cloud_fraction == 0
    assert len(omnicloudmask) == 1


def test_without_red_green_and_infrared_the_detector_says_nothing(omnicloudmask: list[np.ndarray]) -> None:
    assert detect(np.ones((2, 40, 40)), np.ones((40, 40), bool), ("VV", "VH")) is None
    assert not omnicloudmask


def test_a_mask_inside_a_zipped_zarr_counts() -> None:
    """TerraMesh: the mask lies in the member beside the bands."""
    cloudy = np.zeros((1, 32, 32), np.uint8)
    cloudy[0, :8], cloudy[0, 8:12] = 1, 3
    files = store(
        {"bands": (GROUND[None], ("time", "band", "y", "x"), {}), "cloud_mask": (cloudy, ("time", "y", "x"), {})}
    )
    sample = decoded({"clouds": CloudsConfig(found="four")}, zarr_zip=zip_store(files))
    assert sample.bands == ("b1", "b2") and sample.clouds is not None
    np.testing.assert_array_equal(sample.clouds, cloudy[0] > 0)
    assert sample.cloud_fraction == 12 / 32
    tile = next(tiles(sample, 16, None))
    assert tile.cloud_fraction == 12 / 16
