"""Tiles that look like land from above: textures in four Sentinel-2 bands, drawn by numpy, many at once.

Values are surface reflectance times 10,000 in B02, B03, B04, B08 (490, 560,
665, 842 nm). Every scene function takes a count and a generator and gives
``(count, 4, SIDE, SIDE)`` float32; a tile is a crop of it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TILE = 64
MARGIN = 4  # pixels around a tile, so that a shifted copy of it exists
SIDE = TILE + 2 * MARGIN

# Reflectance of what the scenes are made of.
WATER = (420, 340, 200, 110)
SHALLOW = (900, 1050, 700, 250)
MUD = (850, 1050, 950, 420)
FOREST = (240, 430, 270, 2800)
CONIFER = (190, 310, 210, 1900)
GRASS = (420, 760, 560, 3300)
SAND = (1600, 2400, 3300, 4000)
BEACH = (2200, 2700, 3100, 3500)
ROCK = (1050, 1250, 1450, 1800)
SNOW = (6300, 6250, 6100, 5400)
CLOUD = (5300, 5250, 5250, 5400)
ASPHALT = (650, 700, 760, 950)
CONCRETE = (1900, 2000, 2100, 2400)
CROPS = np.array(
    [
        (380, 760, 420, 4300),  # in full leaf
        (330, 640, 380, 3600),
        (620, 1500, 1350, 4200),  # rape in flower
        (900, 1300, 1700, 2500),  # bare soil
        (1150, 1600, 2150, 3000),  # stubble
        (700, 900, 1150, 1900),  # wet soil
        (520, 980, 760, 3400),  # pasture
    ],
    np.float32,
)
ROOFS = np.array(
    [(900, 1000, 1700, 2200), (1000, 1050, 1150, 1400), (2300, 2400, 2500, 2800), (700, 760, 900, 1300), GRASS, FOREST],
    np.float32,
)


def noise(count: int, rng: np.random.Generator, slope: float = 2.0, shortest: float = 2.0) -> Array:
    """Fractal noise of zero mean and unit variance: amplitude falls as frequency to the ``slope`` / 2.

    Waves shorter than ``shortest`` pixels are left out.
    """
    fy = np.fft.fftfreq(SIDE)[:, None]
    fx = np.fft.rfftfreq(SIDE)[None]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = 1
    amplitude = np.where(frequency <= 1 / shortest, frequency ** (-slope / 2), 0)
    amplitude[0, 0] = 0
    phases = rng.standard_normal((count, SIDE, SIDE // 2 + 1, 2), np.float32)
    spectrum = (phases[..., 0] + 1j * phases[..., 1]) * amplitude.astype(np.float32)
    field = np.fft.irfft2(spectrum, s=(SIDE, SIDE)).astype(np.float32)
    return field / field.std(axis=(1, 2), keepdims=True)


def uniform(count: int, rng: np.random.Generator, low: float, high: float) -> Array:
    """One number a tile, ready to be combined with images."""
    return rng.uniform(low, high, (count, 1, 1)).astype(np.float32)


def plane(count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Coordinates in pixels, turned by an angle of each tile's own, from a random origin."""
    angle = uniform(count, rng, 0, 2 * np.pi)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) - SIDE / 2
    u = x * np.cos(angle) + y * np.sin(angle)
    v = y * np.cos(angle) - x * np.sin(angle)
    return u + uniform(count, rng, 0, 1000), v + uniform(count, rng, 0, 1000)


def chance(*keys: NDArray[np.generic]) -> Array:
    """A number in [0, 1) that whole-numbered keys decide: the same everywhere in a cell."""
    mixed = np.uint32(2166136261)
    for key in keys:
        mixed = (mixed ^ key.astype(np.int64).astype(np.uint32)) * np.uint32(16777619)
        mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0x5BD1E995)
    return ((mixed ^ (mixed >> np.uint32(15))) >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)


def ids(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A number a tile that makes its cells differ from those of other tiles."""
    return rng.integers(1 << 30, size=(count, 1, 1))


def step(values: Array, edge: float = 0.0, width: float = 0.2) -> Array:
    """0 below the edge, 1 above, smooth over ``width``."""
    t = np.clip((values - edge) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def paint(material: tuple[int, ...], shade: Array) -> Array:
    """A material, lit by ``shade`` around 1."""
    return np.asarray(material, np.float32)[None, :, None, None] * shade[:, None]


def mix(below: Array, above: Array, share: Array) -> Array:
    """``above`` over ``below`` where ``share`` is 1."""
    return below + (above - below) * share[:, None]


def hillshade(height: Array) -> Array:
    """Light from the north-west on a surface, around 1."""
    dy, dx = np.gradient(height, axis=(1, 2))
    return np.clip(1 - (dx + dy), 0.15, 2.0).astype(np.float32)


# scenes


def ocean(count: int, rng: np.random.Generator) -> Array:
    u, v = plane(count, rng)
    swell = np.sin(u * 2 * np.pi / uniform(count, rng, 5, 14) + noise(count, rng, 3)) * uniform(count, rng, 0, 0.05)
    glint = noise(count, rng, 0.6) * uniform(count, rng, 0.01, 0.08)
    calm = noise(count, rng, 3.4) * uniform(count, rng, 0.01, 0.10)
    water = paint(WATER, (1 + swell + calm) * uniform(count, rng, 0.7, 1.4))
    return water + 500 * np.maximum(glint, 0)[:, None] + 40 * glint[:, None]


def cloud(count: int, rng: np.random.Generator) -> Array:
    ground = ocean(count, rng)
    land = rng.random(count) < 0.5
    ground[land] = fields(int(land.sum()), rng)
    thick = noise(count, rng, 4.2) + 0.35 * noise(count, rng, 2.8) + uniform(count, rng, -0.8, 2.6)
    bright = 0.45 + 0.16 * np.clip(thick, 0, 4) + 0.05 * noise(count, rng, 2.8)
    return mix(ground, paint(CLOUD, bright), step(thick, 0.1, 1.8))


def desert(count: int, rng: np.random.Generator) -> Array:
    u, v = plane(count, rng)
    bend = noise(count, rng, 4.4) * uniform(count, rng, 2, 12)
    phase = (u + bend) / uniform(count, rng, 6, 22)
    ridge = phase - np.floor(phase)
    dune = np.where(ridge < 0.75, ridge / 0.75, (1 - ridge) / 0.25) * uniform(count, rng, 0, 0.35)
    gravel = noise(count, rng, 1.4) * uniform(count, rng, 0.01, 0.05)
    rock = step(noise(count, rng, 4), 1.3, 0.5) * (rng.random((count, 1, 1)) < 0.3)
    sand = paint(SAND, (0.85 + dune + gravel) * uniform(count, rng, 0.8, 1.15))
    return mix(sand, paint(ROCK, 1 + 0.15 * noise(count, rng, 1.5)), rock.astype(np.float32))


def fields(count: int, rng: np.random.Generator) -> Array:
    """Strips of parcels, cut at other places in every strip; rows of the crop inside."""
    u, v = plane(count, rng)
    u = u + 0.8 * noise(count, rng, 3.4)
    v = v + 0.8 * noise(count, rng, 3.4)
    tile = ids(count, rng)
    wide, long = uniform(count, rng, 8, 20), uniform(count, rng, 10, 34)
    strip = np.floor(u / wide)
    cut = v / long + 7 * chance(strip, tile)
    parcel = np.floor(cut)
    crop = (chance(strip, parcel, tile) ** uniform(count, rng, 0.7, 1.6) * len(CROPS)).astype(np.int64)
    shade = 0.85 + 0.3 * chance(parcel, strip, tile + 1)
    rows = np.sin((u + 0.3 * v) * 2 * np.pi / 3.1) * 0.05 * (chance(strip, parcel, tile + 2) < 0.5)
    values = np.moveaxis(CROPS[np.minimum(crop, len(CROPS) - 1)], -1, 1)
    values = values * (shade + rows + 0.05 * noise(count, rng, 1.2))[:, None]
    border = np.minimum((u / wide - strip) * wide, (cut - parcel) * long) < 1.0
    hedge = border & (chance(strip, parcel, tile + 3) < 0.6)
    return mix(values, paint(FOREST, 1 + 0.1 * noise(count, rng, 1)), hedge.astype(np.float32) * 0.7)


def forest(count: int, rng: np.random.Generator) -> Array:
    crowns = noise(count, rng, 0.7, 2.5) * 0.16 + noise(count, rng, 2.6) * 0.12
    share = step(noise(count, rng, 2.4), 0, 1.2)
    trees = mix(paint(FOREST, 1 + crowns), paint(CONIFER, 1 + crowns), share)
    clearing = step(noise(count, rng, 4), 1.6, 0.2)
    open_ground = mix(trees, paint(GRASS, 1 + 0.08 * noise(count, rng, 1.4)), clearing)
    u, v = plane(count, rng)
    path = np.abs(u - u.mean(axis=(1, 2), keepdims=True) + 5 * noise(count, rng, 5)) < 0.6
    return mix(open_ground, paint((800, 1000, 1200, 2200), np.ones_like(u)), path.astype(np.float32) * 0.7)


def town(count: int, rng: np.random.Generator) -> Array:
    """A street grid; blocks of houses between gardens, some parks and halls."""
    u, v = plane(count, rng)
    u, v = u + 0.7 * noise(count, rng, 3.4), v + 0.7 * noise(count, rng, 3.4)
    tile = ids(count, rng)
    wide, long = uniform(count, rng, 8, 15), uniform(count, rng, 9, 20)
    block_u, block_v = np.floor(u / wide), np.floor(v / long)
    house_u, house_v = np.floor(u / 2.3), np.floor(v / 2.6)
    dense = uniform(count, rng, 0.45, 0.95)
    kind = chance(block_u, block_v, tile)
    pick = chance(house_u, house_v, tile)
    roof = np.where(pick < dense, pick / dense * 3.99, 4 + chance(house_v, house_u, tile) * 1.99).astype(np.int64)
    roof = np.where(kind < 0.08, 4, np.where(kind > 0.9, 2, roof))  # parks and halls
    values = np.moveaxis(ROOFS[roof], -1, 1) * (0.8 + 0.4 * chance(house_u, house_v, tile + 1))[:, None]
    street = ((u / wide - block_u) * wide < 1.6) | ((v / long - block_v) * long < 1.6)
    values = mix(values, paint(ASPHALT, 1 + 0.1 * noise(count, rng, 1)), street.astype(np.float32) * 0.85)
    return values * (1 + 0.06 * noise(count, rng, 1))[:, None]


def countryside(count: int, rng: np.random.Generator) -> Array:
    """Fields with woods in them."""
    return mix(fields(count, rng), forest(count, rng), step(noise(count, rng, 4), 0.5, 0.25))


def coast(count: int, rng: np.random.Generator) -> Array:
    u, _ = plane(count, rng)
    shore = (u - u.mean(axis=(1, 2), keepdims=True)) / 12 + 0.7 * noise(count, rng, 4) + uniform(count, rng, -1, 1)
    shallow = mix(ocean(count, rng), paint(SHALLOW, np.ones_like(u)), step(shore, -0.4, 1.0))
    surf = step(shore, -0.12, 0.1) * (1 - step(shore, 0.05, 0.1))
    water = mix(shallow, paint((4000, 4200, 4200, 3800), np.ones_like(u)), surf * uniform(count, rng, 0, 0.8))
    beach = mix(water, paint(BEACH, 1 + 0.06 * noise(count, rng, 1)), step(shore, 0.05, 0.12))
    return mix(beach, countryside(count, rng), step(shore, 0.45, 0.2))


def river(count: int, rng: np.random.Generator) -> Array:
    u, v = plane(count, rng)
    centre = v - v.mean(axis=(1, 2), keepdims=True) + uniform(count, rng, -10, 10)
    bend = np.sin(u * 2 * np.pi / uniform(count, rng, 35, 90)) * uniform(count, rng, 3, 14) + 3 * noise(count, rng, 4.6)
    away = np.abs(centre - bend) - uniform(count, rng, 2, 6)
    land = mix(countryside(count, rng), forest(count, rng), (1 - step(away, 4, 3)) * 0.7)
    bank = mix(land, paint(BEACH, np.full_like(u, 0.8)), (1 - step(away, 1.2, 1)) * 0.6)
    water = paint(MUD, 1 + 0.04 * noise(count, rng, 2)) * uniform(count, rng, 0.6, 1.2)[:, None]
    return mix(bank, water, 1 - step(away, 0, 1.0))


def lake(count: int, rng: np.random.Generator) -> Array:
    shape = noise(count, rng, 4.4) - uniform(count, rng, -0.3, 0.8)
    land = mix(countryside(count, rng), forest(count, rng), uniform(count, rng, 0, 1) * np.ones_like(shape))
    return mix(land, paint(WATER, 1.1 + 0.05 * noise(count, rng, 2)), step(shape, 0, 0.12))


def mountain(count: int, rng: np.random.Generator) -> Array:
    ridges = 0.5 - np.abs(noise(count, rng, 4.2)) + 0.6 * noise(count, rng, 4.6) + 0.06 * noise(count, rng, 2.4)
    light = hillshade(ridges * uniform(count, rng, 2.5, 5.0))
    line = uniform(count, rng, -0.8, 0.8)
    ground = mix(paint(CONIFER, light), paint(ROCK, light), step(ridges + line, -0.6, 0.7))
    return mix(ground, paint(SNOW, 0.35 + 0.4 * light), step(ridges + line, 0.5, 0.3))


def snow(count: int, rng: np.random.Generator) -> Array:
    light = hillshade(noise(count, rng, 4.4) * uniform(count, rng, 1, 3.5))
    white = paint(SNOW, 0.35 + 0.4 * light)
    rock = step(noise(count, rng, 3.6), 1.8, 0.3)
    return mix(white, paint(ROCK, light), rock)


def irrigation(count: int, rng: np.random.Generator) -> Array:
    """Centre pivots: round fields on a grid in the desert."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    pitch = uniform(count, rng, 18, 30)
    u, v = (x + uniform(count, rng, 0, 60)) / pitch, (y + uniform(count, rng, 0, 60)) / pitch
    column, row = np.floor(u), np.floor(v)
    du, dv = u - column - 0.5, v - row - 0.5
    tile = ids(count, rng)
    sector = np.floor((np.arctan2(dv, du) / (2 * np.pi) + chance(column, row, tile)) * 2)
    crop = (chance(column, row, sector * (chance(row, column, tile) < 0.4), tile + 1) * 5).astype(np.int64)
    green = np.moveaxis(CROPS[crop], -1, 1) * (0.9 + 0.1 * np.sin(np.hypot(du, dv) * pitch * 2))[:, None]
    planted = (np.hypot(du, dv) < 0.46) & (chance(column, row, tile + 2) < 0.85)
    return mix(desert(count, rng), green, planted.astype(np.float32))


def airport(count: int, rng: np.random.Generator) -> Array:
    u, v = plane(count, rng)
    u = u - u.mean(axis=(1, 2), keepdims=True)
    v = v - v.mean(axis=(1, 2), keepdims=True) + uniform(count, rng, -8, 8)
    grass = paint(GRASS, 1 + 0.06 * noise(count, rng, 1.6))
    runway = (np.abs(v) < 2.2).astype(np.float32)
    taxi = ((np.abs(v - 10) < 1.1) | ((np.abs((u + 500) % 19) < 1.2) & (v > 0) & (v < 10))).astype(np.float32)
    apron = ((v > 12) & (np.abs(u) < uniform(count, rng, 12, 26)) & (v < 20)).astype(np.float32)
    halls = ((v > 20) & (v < 28) & (np.abs(u) < 26) & (np.floor(u / 7) % 2 == 0)).astype(np.float32)
    ground = mix(grass, town(count, rng), (v > 28).astype(np.float32))
    for share, material in ((apron, CONCRETE), (taxi, ASPHALT), (runway, ASPHALT), (halls, (2600, 2700, 2800, 3100))):
        ground = mix(ground, paint(material, 1 + 0.04 * noise(count, rng, 1)), share)
    stripe = (np.abs(v) < 0.4) & (np.floor(u / 3) % 2 == 0)
    return mix(ground, paint((3500, 3600, 3700, 3800), np.ones_like(u)), stripe.astype(np.float32))


SCENES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "ocean": ocean,
    "cloud": cloud,
    "desert": desert,
    "field": fields,
    "forest": forest,
    "coast": coast,
    "town": town,
    "river": river,
    "mountain": mountain,
    "lake": lake,
    "snow": snow,
    "irrigation": irrigation,
    "airport": airport,
}


def draw(label: str, count: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Tiles of a class with their margins, ``(count, 4, SIDE, SIDE)`` uint16: with haze, light and noise."""
    scene = SCENES[label](count, rng)
    haze = np.array((260, 150, 80, 30), np.float32)[None, :, None, None] * uniform(count, rng, 0, 1)[:, None]
    light = uniform(count, rng, 0.88, 1.12)[:, None]
    sensor = rng.standard_normal(scene.shape, np.float32) * 8
    return np.clip(scene * light + haze + sensor, 1, 16000).astype(np.uint16)
