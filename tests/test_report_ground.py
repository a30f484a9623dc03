"""The map of footprints, and how far clusters follow the incidence angle."""

import numpy as np
import pytest

from curation.report.data import Tile
from curation.report.ground import ground_map, incidence_share


def tile(west: float, south: float, east: float, north: float, kept: bool = False) -> Tile:
    box = {"west": west, "south": south, "east": east, "north": north}
    reason = "sampled" if kept else "quota"
    return Tile("", "root0/a.tar", "key", reason, 0, 0.1, 1.0, None, None, None, None, footprint=box)


def test_footprints_are_drawn_where_they_lie() -> None:
    tiles = [tile(10, 40, 11, 41), tile(12, 40, 13, 41, kept=True), tile(10, 44, 11, 45)]
    found = ground_map([*tiles, Tile("", "", "", "quota", 0, 0, 0, None, None, None, None)])
    assert found is not None and (found["kept"], found["unknown"]) == (1, 1)
    kept = found["boxes"][-1]
    assert kept["kept"]  # drawn last, on top
    west_south, west_north = (box for box in found["boxes"] if not box["kept"])
    assert west_south["x"] == west_north["x"] < kept["x"]
    assert west_north["y"] < west_south["y"] == kept["y"]
    ratio = (kept["x"] - west_south["x"]) / (west_south["y"] - west_north["y"])
    assert ratio == pytest.approx(2 * np.cos(np.radians(42.5)) / 4, rel=0.01)  # degrees of longitude are shorter there
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 1000 for box in found["boxes"])


def test_an_archive_across_the_antimeridian_is_drawn_in_one_piece() -> None:
    tiles = [tile(178, -17, 179, -16), tile(179.5, -17, -179.5, -16), tile(-179, -17, -178, -16)]
    found = ground_map(tiles)
    assert found is not None
    places = [box["x"] for box in found["boxes"]]
    assert places == sorted(places)
    assert max(box["width"] for box in found["boxes"]) < 400  # the middle one does not go round the world
    assert [name for _, name in found["meridians"]].count("180°") == 1
    assert any(name.endswith("W") for _, name in found["meridians"])


def test_clusters_that_follow_the_beam() -> None:
    rng = np.random.default_rng(5)

    def share(cluster_of_beam: bool) -> float | None:
        beams = rng.choice([23.0, 36.0], 600)
        clusters = (
            np.where(beams > 30, 10, 0) + rng.integers(0, 10, 600) if cluster_of_beam else rng.integers(0, 20, 600)
        )
        tiles = [
            Tile("", "", "", "quota", int(c), 0, 0, None, None, None, None, incidence_angle=float(b))
            for c, b in zip(clusters, beams, strict=True)
        ]
        return incidence_share(tiles)

    follows, ignores = share(True), share(False)
    assert follows is not None and follows > 0.99
    assert ignores is not None and ignores < 0.03  # eta squared alone would say 19 / 599 of pure chance, and more
    assert incidence_share([]) is None


def test_dates_of_one_place_are_one_box() -> None:
    found = ground_map([*(tile(10, 40, 11, 41, kept=day == 3) for day in range(12)), tile(12, 40, 13, 41)])
    assert found is not None and (found["tiles"], found["kept"], len(found["boxes"])) == (13, 1, 2)
    assert found["boxes"][-1]["kept"] and found["boxes"][-1]["title"].endswith("kept · 12 tiles here, 1 kept")
