"""What numbers mean: reflectance and decibels come out right, and metadata that lie are found out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.archive.audit import audit, contradiction
from curation.archive.decode import conform, decode
from curation.archive.radiometry import (
    Evidence,
    declared_offset,
    evidence,
    fixed_range,
    in_decibels,
    state,
)
from curation.archive.sample import RawSample, Sample
from curation.archive.settings import ArchiveConfig, CloudsConfig, RadiometryConfig
from curation.catalog.fit import _look_at, _settle, fixed_ranges
from curation.config import load_config
from curation.errors import BadSample, RequestError
from tests.archive_tools import raw
from tests.radiometry_recipes import (
    DARK,
    backscatter,
    in_units,
    reflectance_dn,
    s2_members,
)
from tests.recipes import BANDS, geotiff

NEW, OLD = {"s2:processing_baseline": "05.09"}, {"s2:processing_baseline": "02.11"}


def archive_config(kind: object = "sentinel2", **more: object) -> ArchiveConfig:
    return ArchiveConfig(radiometry=RadiometryConfig(kind=kind, **more))  # type: ignore[arg-type]


def tile(label: str, seed: int, offset: int, said: dict[str, object] | None = None) -> RawSample:
    return raw(**{name.partition(".")[2]: data for name, data in s2_members("key", label, seed, offset, said)})


def seen(raws: list[RawSample], config: ArchiveConfig, shard: str = "a.tar") -> list[Evidence]:
    return [one for item in raws for one in evidence(shard, decode(item, config), config.radiometry)]


def settle(config: ArchiveConfig, told: list[Evidence]) -> ArchiveConfig:
    made = audit(told, config.radiometry)
    assert made.problem is None
    return replace(config, radiometry=replace(config.radiometry, found=made.found))


def dark(n: int, offset: int, said: dict[str, object] | None = None) -> list[RawSample]:
    return [tile(DARK[i % len(DARK)], i, offset, said) for i in range(n)]


def truth(n: int) -> list[np.ndarray]:
    return [reflectance_dn(DARK[i % len(DARK)], i) / np.float32(10000) for i in range(n)]


# what the metadata say


@pytest.mark.parametrize(
    ("said", "offset"),
    [
        ({}, None),
        ({"datetime": "2023-01-01"}, None),  # the date says nothing
        ({"processing_baseline": "03.01"}, 0),
        ({"processing_baseline": 4.0}, -1000),
        ({"s2:processing_baseline": "05.11"}, -1000),
        ({"PROCESSING_BASELINE": "N0400"}, -1000),
        ({"product_id": "S2A_MSIL2A_20190416T100031_N0211_R122_T33TUL_20190416T115012"}, 0),
        ({"source_id": "S2A_MSIL2A_20190416T100031_N0500_R122_T33TUL_20230616T115012"}, -1000),  # reprocessed
        ({"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": True}, 0),
        ({"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": False}, -1000),
        ({"processing_baseline": "unknown"}, None),
    ],
)
def test_the_offset_is_declared_by_the_processing_baseline(said: dict[str, object], offset: int | None) -> None:
    assert declared_offset(said) == offset


# Sentinel-2


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("offset", [0, 1000])
def test_either_state_comes_out_as_the_same_reflectance(offset: int, said: bool) -> None:
    """By the baseline, or, where none is declared, by what the pixels of the archive show."""
    raws = dark(10, offset, (NEW if offset else OLD) if said else None)
    config = settle(archive_config(), seen(raws, archive_config()))
    for item, reflectance in zip(raws, truth(10), strict=True):
        sample = decode(item, config)
        assert (sample.pixels.dtype, sample.radiometry) == (np.float32, "reflectance")
        np.testing.assert_allclose(sample.pixels, reflectance, atol=1e-6)


def test_two_declared_states_make_one_archive() -> None:
    raws = dark(6, 0, OLD) + dark(6, 1000, NEW)
    config = settle(archive_config(), seen(raws, archive_config()))
    assert config.radiometry.found is not None and config.radiometry.found[""]["mixed"]  # each sample's own counts
    for item, reflectance in zip(raws, truth(6) * 2, strict=True):
        np.testing.assert_allclose(decode(item, config).pixels, reflectance, atol=1e-6)


def test_no_data_and_saturated_pixels_are_masked() -> None:
    pixels = np.full((3, 8, 8), 600, np.uint16)
    pixels[0, 0, 0], pixels[1, 0, 1], pixels[2, 0, 2] = 0, 65535, 0
    item = raw(tif=geotiff(pixels, ("B02", "B03", "B10")))
    sample = decode(item, archive_config(offset=0, found={"": {"offset": 0}}))
    assert sample.mask[0, :4].tolist() == [False, False, True, True]  # of the cirrus band 0 is a value
    with pytest.raises(BadSample, match="no pixel is valid"):
        decode(raw(tif=geotiff(np.zeros((2, 8, 8), np.uint16), ("B02", "B03"))), archive_config())


def test_pictures_and_archives_without_a_kind_stay_as_they_are() -> None:
    (item,) = dark(1, 0)
    sample = decode(item, ArchiveConfig())
    assert (sample.pixels.dtype, sample.radiometry) == (np.uint16, "unknown")
    picture = np.full((3, 8, 8), 60, np.uint8)
    sample = decode(raw(tif=geotiff(picture, ("red", "green", "blue"))), archive_config(found={}))
    assert (sample.pixels.dtype, sample.radiometry) == (np.uint8, "unknown")
    assert not in_decibels(("gray",), "uint8", "db").any() and fixed_range(("gray",), "uint8", "db") == [None]
    said = decode(raw(tif=geotiff(picture), json=b'{"radiometry": "toa"}'), ArchiveConfig())
    assert said.radiometry == "toa"


# the audit


@pytest.mark.parametrize(
    ("offset", "said", "words"),
    [
        (0, NEW, "10 of 10 tiles declared with the offset -1000 have DN below 500: bad.tar"),
        (1000, OLD, "10 of 20 tiles declared without the offset of -1000 have it by their pixels"),
        (1000, None, "tiles with and without the offset of -1000 are mixed and nothing is declared"),
    ],
)
def test_what_contradicts_the_pixels_is_refused_with_the_shards_and_the_remedy(
    offset: int, said: dict[str, object] | None, words: str
) -> None:
    config = archive_config()
    told = seen(dark(10, offset, said), config, "bad.tar") + seen(dark(10, 0, said and OLD), config, "good.tar")
    problem = audit(told, config.radiometry).problem
    assert problem is not None and words in problem and "bad.tar" in problem and "\n" not in problem
    assert "archive.radiometry.offset=0 or -1000" in problem and "archive.radiometry.conflict=fix" in problem


@pytest.mark.parametrize(("offset", "said"), [(0, NEW), (1000, OLD), (1000, None)])
def test_fix_decides_by_the_pixels_of_each_sample(offset: int, said: dict[str, object] | None) -> None:
    config = archive_config(conflict="fix")
    raws = dark(10, offset, said) + dark(10, 0, said and OLD)
    config = settle(config, seen(raws, config))
    for item, reflectance in zip(raws, truth(10) * 2, strict=True):
        np.testing.assert_allclose(decode(item, config).pixels, reflectance, atol=1e-6)


def test_the_table_shows_groups_counts_and_dark_ends() -> None:
    config = archive_config()
    table = audit(seen(dark(10, 1000, NEW), config) + seen(dark(6, 0), config), config.radiometry).table
    rows = {row["declared_offset"]: row for row in table}
    assert rows[-1000]["tiles"] == 10 and rows[-1000]["below_500"] == 0 and 1000 < rows[-1000]["dark_p5"] < 1400
    assert rows[None]["tiles"] == 6 and rows[None]["below_500"] == 6 and rows[None]["dark_p50"] < 500


@pytest.mark.parametrize("label", ["desert", "snow", "cloud"])
def test_bright_tiles_contradict_nothing(label: str) -> None:
    """Sand and snow without the offset are as bright as darker ground with it."""
    config = archive_config()
    told = seen([tile(label, i, 0, OLD) for i in range(30)], config)
    assert audit(told, config.radiometry).problem is None


def test_bright_tiles_prove_nothing() -> None:
    config = archive_config()
    undeclared = seen([tile("desert", i, 0) for i in range(30)], config)
    problem = audit(undeclared, config.radiometry).problem
    assert problem is not None and "nothing says" in problem and "archive.radiometry.offset=0 or -1000" in problem
    made = audit(undeclared + seen(dark(10, 0), config), config.radiometry)
    assert made.problem is None and made.found[""]["offset"] == 0


def test_an_archive_of_all_classes_without_the_offset_is_not_accused() -> None:
    config = archive_config()
    labels = ("ocean", "cloud", "desert", "field", "forest", "coast", "mountain", "town", "snow")
    raws = [tile(labels[i % len(labels)], i, 0) for i in range(90)]
    made = audit(seen(raws, config), config.radiometry)
    assert made.problem is None and made.found[""]["offset"] == 0


def test_numbers_of_another_scale_are_refused_until_it_is_named() -> None:
    raws = []
    for i in range(8):
        pixels = np.rint(reflectance_dn(DARK[i % 3 + 1], i) * 6.5535).astype(np.uint16)
        raws.append(raw(tif=geotiff(pixels, BANDS)))
    problem = audit(seen(raws, archive_config()), archive_config().radiometry).problem
    assert problem is not None and "archive.radiometry.scale" in problem
    config = settle(archive_config(scale=65535), seen(raws, archive_config(scale=65535)))
    np.testing.assert_allclose(decode(raws[0], config).pixels, reflectance_dn(DARK[1], 0) / 1e4, atol=1e-5)


def test_a_sample_of_another_state_than_the_archives_is_quarantined() -> None:
    """The fit looks at some tiles; one in another state beyond them is found out when its turn comes."""
    config = settle(archive_config(), seen(dark(10, 1000), archive_config()))
    (stranger,) = dark(1, 0)
    with pytest.raises(BadSample, match="WrongRadiometry.*would make negative"):
        decode(stranger, config)
    assert contradiction(seen([stranger], archive_config()), config.radiometry) is not None
    assert contradiction(seen(dark(10, 1000), archive_config()), config.radiometry) is None
    sample = decode(tile("forest", 0, 1000), config)
    with pytest.raises(BadSample, match="its numbers are reflectance, the archive's are unknown"):
        conform(sample, BANDS, "float32", "unknown")


@settings(max_examples=25, deadline=None)
@given(offset=st.sampled_from([0, 1000]), first=st.integers(0, 50), lies=st.booleans())
def test_fix_finds_the_state_of_a_uniform_archive_whatever_is_declared(offset: int, first: int, lies: bool) -> None:
    config = archive_config(conflict="fix")
    said = NEW if (offset == 1000) != lies else OLD
    raws = [tile(DARK[i % 4], first + i, offset, said) for i in range(6)]
    config = settle(config, seen(raws, config))
    for i, item in enumerate(raws):
        np.testing.assert_allclose(decode(item, config).pixels, reflectance_dn(DARK[i % 4], first + i) / 1e4, atol=1e-6)


# Sentinel-1


def s1(units: str, seed: int = 0) -> RawSample:
    return raw(tif=geotiff(in_units(backscatter(seed), units), ("VV", "VH")))


@pytest.mark.parametrize(("stored", "told"), [("db", "auto"), ("linear", "auto"), ("amplitude", "amplitude")])
def test_every_unit_comes_out_as_decibels(stored: str, told: str) -> None:
    config = archive_config("sentinel1", units=told)
    config = settle(config, seen([s1(stored, i) for i in range(4)], config))
    sample = decode(s1(stored), config)
    assert sample.radiometry == "db"
    np.testing.assert_allclose(sample.pixels, in_units(backscatter(0), "db"), atol=1e-3)


def test_digital_numbers_are_a_state_of_their_own() -> None:
    config = archive_config("sentinel1")
    config = settle(config, seen([s1("digital", i) for i in range(4)], config))
    sample = decode(s1("digital"), config)
    assert config.radiometry.found == {"": {"units": "digital", "suspect": {}}}
    assert sample.radiometry == "db_uncalibrated" and fixed_range(("VV",), "float32", sample.radiometry) == [None]
    power = backscatter(0)
    bright = sample.mask & (power > 0.01).all(axis=0)
    expected = in_units(power, "db") + 20 * np.log10(400)
    np.testing.assert_allclose(sample.pixels[:, bright], expected[:, bright], atol=0.3)


def test_numbers_without_a_logarithm_are_masked() -> None:
    power = backscatter(0)
    power[0, 5, 5], power[1, 6, 6] = 0, -1e-4
    sample = decode(raw(tif=geotiff(power, ("VV", "VH"))), archive_config("sentinel1", units="linear", found={}))
    assert not sample.mask[5, 5] and not sample.mask[6, 6] and sample.mask.sum() == 64 * 64 - 2
    assert np.isfinite(sample.pixels).all()


def test_mixed_units_are_refused_or_decided_by_sample() -> None:
    refusing, fixing = archive_config("sentinel1"), archive_config("sentinel1", conflict="fix")
    raws = [s1("db", i) for i in range(6)] + [s1("linear", i) for i in range(4)]
    problem = audit(seen(raws, refusing), refusing.radiometry).problem
    assert problem is not None and "6 tiles db" in problem and "4 tiles linear" in problem
    config = settle(fixing, seen(raws, fixing))
    for i, item in enumerate(raws):
        np.testing.assert_allclose(decode(item, config).pixels, in_units(backscatter(i % 6), "db"), atol=1e-3)
    alone = settle(refusing, seen(raws[:6], refusing))
    with pytest.raises(BadSample, match="WrongRadiometry.*linear"):
        decode(raws[-1], alone)


def test_units_that_cannot_be_told_are_asked_for() -> None:
    config = archive_config("sentinel1")
    middle = [raw(tif=geotiff(np.full((1, 8, 8), 5, np.float32), ("VV",)))]
    problem = audit(seen(middle, config), config.radiometry).problem
    assert problem is not None and "archive.radiometry.units" in problem


# modalities


def test_each_modality_has_its_own_meaning() -> None:
    kind = {"S2L2A": "sentinel2", "S1GRD": "sentinel1"}
    config = ArchiveConfig(radiometry=RadiometryConfig(kind=kind))

    def joined(i: int) -> RawSample:
        both = raw()
        both.members = raw(tif=b"x").members
        optical = geotiff(reflectance_dn("forest", i) + np.uint16(1000), BANDS)
        both.data = {"S2L2A.tif": optical, "S1GRD.tif": geotiff(in_units(backscatter(i), "linear"), ("vv", "vh"))}
        return both

    config = replace(config, members=["S2L2A.tif", "S1GRD.tif"])
    made = settle(config, seen([joined(i) for i in range(6)], config))
    assert made.radiometry.found is not None
    assert {p: f.get("offset", f.get("units")) for p, f in made.radiometry.found.items()} == {
        "S2L2A": -1000,
        "S1GRD": "linear",
    }
    sample = decode(joined(0), made)
    assert sample.radiometry == "S2L2A: reflectance, S1GRD: db"
    assert sample.bands == ("S2L2A.B02", "S2L2A.B03", "S2L2A.B04", "S2L2A.B08", "S1GRD.vv", "S1GRD.vh")
    np.testing.assert_allclose(sample.pixels[:4], reflectance_dn("forest", 0) / 1e4, atol=1e-6)
    np.testing.assert_allclose(sample.pixels[4:], in_units(backscatter(0), "db"), atol=1e-3)
    np.testing.assert_array_equal(in_decibels(sample.bands, "float32", sample.radiometry), [False] * 4 + [True] * 2)
    limits = fixed_ranges([sample], made, "float32")
    np.testing.assert_allclose(limits, [[0, 0.6]] * 4 + [[-25, 5], [-32, -2]])


def test_a_band_without_a_state_keeps_its_fitted_range() -> None:
    config = archive_config({"S2": "sentinel2"}, found={"S2": {"offset": 0}})
    pixels = np.stack([np.full((8, 8), 0.2), np.linspace(0, 900, 64).reshape(8, 8)]).astype(np.float32)
    sample = Sample("k", 0, pixels, np.ones((8, 8), bool), ("S2.B04", "DEM"), raw(tif=b"x").members[0])
    sample.radiometry = "S2: reflectance"
    limits = fixed_ranges([sample], config, "float32")
    assert limits[0].tolist() == pytest.approx([0, 0.6]) and 800 < limits[1, 1] <= 900
    assert state(sample.bands, "float32", config.radiometry) == "S2: reflectance"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            archive_config({"S2L2A": "sentinel2"}),
            "archive.radiometry.kind: no band is called S2L2A.…; the archive has B02",
        ),
        (ArchiveConfig(clouds=CloudsConfig(band="quality", values=[1])), "archive.clouds.band=quality: no tile"),
    ],
)
def test_what_no_tile_has_is_refused(settings: ArchiveConfig, words: str) -> None:
    tile_seen = _look_at("a.tar", decode(tile("forest", 0, 0), settings), settings)
    with pytest.raises(RequestError) as error:
        _settle(settings, [tile_seen])
    assert words in str(error.value)


# requests


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("archive.radiometry.kind=landsat", "choose sentinel2 or sentinel1"),
        ("archive.radiometry.kind={S2:optical}", "choose sentinel2 or sentinel1"),
        ("archive.radiometry.offset=none", "give auto, 0 or -1000"),
        ("archive.radiometry.units=power", "choose auto, db, linear, amplitude, digital"),
        ("archive.radiometry.conflict=guess", "choose refuse, fix, ignore"),
        ("archive.radiometry.scale=0", "archive.radiometry.scale must be positive"),
        ("archive.radiometry.looks=0", "archive.radiometry.looks must be positive"),
        ("archive.clouds.band=x", "archive.clouds.band needs archive.clouds.values, bits or above"),
        ("archive.clouds.values=[1]", "need archive.clouds.band"),
        ("archive.clouds.detector=fmask", "choose omnicloudmask"),
        ("archive.clouds.detector=omnicloudmask", "curation[clouds]"),
    ],
)
def test_wrong_settings_are_one_line(override: str, says: str) -> None:
    with pytest.raises(RequestError) as error:
        load_config([override])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_settings_as_they_are_typed() -> None:
    config = load_config(
        ["archive.radiometry.kind={S2L2A:sentinel2,S1GRD:sentinel1}", "archive.radiometry.offset=-1000"]
    )
    assert config.archive.radiometry.kind == {"S2L2A": "sentinel2", "S1GRD": "sentinel1"}
    assert config.archive.radiometry.offset == -1000
