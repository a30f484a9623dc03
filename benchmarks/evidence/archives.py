"""Archives whose flaws are known, made from labelled scenes such as the AID dev shards.

``python -m benchmarks.evidence.archives TAR… DESTINATION`` writes WebDataset tars below three folders, which share no
scene:

- ``archive/``: a long tail (exponential, the last class has ``--tail`` times the first's scenes; which class comes
  where is drawn, and none has more than there are), each scene in about ``--copies`` near-duplicates (shifted and
  encoded again, and every other one relit, mirrored or turned), and a share ``--flat`` of tiles without content
  (smooth colour, little noise, no label);
- ``references/``: the bank, ``--bank`` scenes of each class;
- ``test/``: ``--test`` scenes of each class.

Sidecars have ``label`` (flat tiles none) and ``source_id``, the scene, which copies share. With ``--label-noise`` and
``--blur`` shares of the archive's samples have another class's label (the right one is ``true_label``) and are blurred
(``blurred``). All tiles are cut ``2 * SHIFT`` pixels smaller than the scenes, so that a shift moves in real pixels.

``--split tune`` takes one half of each class's scenes and ``report`` the other, whatever the seed, so that what is
tuned on one is reported on the other. Everything is drawn by hashes of the scene and ``--seed``: the same options give
the same bytes.
"""

import argparse
import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

SHIFT = 4  # pixels either way, at most
GAIN, OFFSET = 0.15, 12.0  # of a relit tile, at most either way; the offset in levels
QUALITY = 60, 92  # of the JPEG
BLUR = 2.5  # pixels, standard deviation
SHARD = 500  # samples

Member = tuple[str, bytes, dict[str, Any]]  # key, JPEG, sidecar


@dataclass(frozen=True)
class Recipe:
    """The options of the command line, which describes them."""

    split: str = "all"
    seed: int = 0
    bank: int = 15
    test: int = 30
    head: int | None = None
    tail: float = 0.02
    copies: int = 3
    flat: float = 0.05
    half_bank: bool = False
    label_noise: float = 0.0
    blur: float = 0.0

    def draw(self, *what: object) -> np.random.Generator:
        """A generator of its own for each ``what``."""
        text = " ".join(map(str, (self.seed, *what)))
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))


@dataclass(frozen=True)
class Scene:
    """A labelled image as the source tars have it."""

    name: str
    label: str
    data: bytes


@dataclass(frozen=True)
class Plan:
    """Which scenes go where, and the classes of the archive from the first to the last."""

    archive: list[Scene]
    references: list[Scene]
    test: list[Scene]
    order: list[str]


def read(tars: Iterable[Path]) -> list[Scene]:
    """Every labelled image, by name."""
    scenes = []
    for path in tars:
        with tarfile.open(path) as tar:
            members = {info.name: tar.extractfile(info) for info in tar if info.isfile()}
            for name, file in members.items():
                stem = name.removesuffix(".json")
                if stem != name and file and (picture := members.get(f"{stem}.jpg")):
                    scenes.append(Scene(stem, json.loads(file.read())["label"], picture.read()))
    return sorted(scenes, key=lambda scene: scene.name)


def plan(scenes: list[Scene], recipe: Recipe) -> Plan:
    """Deal each class's scenes, in the order of their hashes, to bank, test and archive.

    Raises:
        SystemExit: a class has too few.
    """
    classes: dict[str, list[Scene]] = defaultdict(list)
    for scene in sorted(scenes, key=lambda scene: recipe.draw("deal", scene.name).random()):
        if recipe.split in ("all", _half(scene)):
            classes[scene.label].append(scene)
    order = sorted(classes, key=lambda label: recipe.draw("order", label).random())
    taken = recipe.bank + recipe.test
    rooms = [len(some) - taken for some in classes.values()]
    head = int(np.median(rooms)) if recipe.head is None else recipe.head
    if min(rooms) < 1:
        raise SystemExit(f"a class has only {min(rooms) + taken} scenes: lower --bank or --test")
    known = order[::2] if recipe.half_bank else order  # every other one, so that it lacks of head and tail alike
    steps = np.linspace(0, 1, len(order))
    archive = [
        scene
        for label, size in zip(order, np.maximum(1, np.rint(head * recipe.tail**steps)).astype(int), strict=True)
        for scene in classes[label][taken : taken + size]
    ]
    references = [scene for label in known for scene in classes[label][: recipe.bank]]
    test = [scene for label in order for scene in classes[label][recipe.bank : taken]]
    return Plan(archive, references, test, order)


def _half(scene: Scene) -> str:
    """Alike for every seed."""
    return "tune" if hashlib.sha256(scene.name.encode()).digest()[0] % 2 else "report"


def archive(plan: Plan, recipe: Recipe) -> Iterator[Member]:
    """All samples of the archive, in the order of their keys, which tell nothing."""
    samples = []
    for scene in plan.archive:
        spread = int(recipe.copies > 1)
        versions = recipe.copies + int(recipe.draw("versions", scene.name).integers(-spread, spread + 1))
        samples += [(_key(recipe, scene.name, i), scene, i) for i in range(versions)]
    count = round(recipe.flat / (1 - recipe.flat) * len(samples))
    flat = [(_key(recipe, "flat", i), None, i) for i in range(count)]
    for key, scene, i in sorted([*samples, *flat], key=lambda item: item[0]):
        draw = recipe.draw("sample", key)
        if scene is None:
            yield key, _encode(_flat(draw), draw), {"source_id": f"flat_{i}"}
            continue
        said: dict[str, Any] = {"label": scene.label, "source_id": scene.name}
        picture = _copy(scene, draw) if i else _cut(scene, 0, 0)
        wrong, blurred = draw.random() < recipe.label_noise, draw.random() < recipe.blur
        if wrong:
            others = [label for label in plan.order if label != scene.label]
            said |= {"label": others[draw.integers(len(others))], "true_label": scene.label}
        if blurred:
            picture, said["blurred"] = picture.filter(ImageFilter.GaussianBlur(BLUR)), True
        yield key, _encode(picture, draw), said


def untouched(scenes: Iterable[Scene]) -> Iterator[Member]:
    """Scenes as they are, but for the margin that all tiles lose."""
    for scene in scenes:
        buffer = io.BytesIO()
        _cut(scene, 0, 0).save(buffer, "JPEG", quality=95)
        yield scene.name, buffer.getvalue(), {"label": scene.label, "source_id": scene.name}


def write(members: Iterable[Member], folder: Path) -> Counter[str]:
    """WebDataset tars of `SHARD` samples; the number of samples of each label (flat tiles: '')."""
    folder.mkdir(parents=True)
    counts: Counter[str] = Counter()
    shard: list[Member] = []

    def publish() -> None:
        with tarfile.open(folder / f"{folder.name}-{(counts.total() - 1) // SHARD:03d}.tar", "w") as tar:
            for key, picture, said in shard:
                for end, data in (("jpg", picture), ("json", json.dumps(said, sort_keys=True).encode())):
                    info = tarfile.TarInfo(f"{key}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        shard.clear()

    for member in members:
        shard.append(member)
        counts[member[2].get("label", "")] += 1
        if len(shard) == SHARD:
            publish()
    if shard:
        publish()
    return counts


def _key(recipe: Recipe, *what: object) -> str:
    return f"{int(recipe.draw('key', *what).integers(2**62)):016x}"


def _cut(scene: Scene, down: int, right: int) -> Image.Image:
    """The scene without a margin of `SHIFT`, moved."""
    with Image.open(io.BytesIO(scene.data)) as picture:
        width, height = picture.size
        box = SHIFT + right, SHIFT + down, width - SHIFT + right, height - SHIFT + down
        return picture.convert("RGB").crop(box)


def _copy(scene: Scene, draw: np.random.Generator) -> Image.Image:
    """A near-duplicate, before it is encoded again."""
    down, right = draw.integers(-SHIFT, SHIFT + 1, 2).tolist()
    pixels = np.asarray(_cut(scene, down, right))
    if draw.random() < 0.5:
        lit = pixels * (1 + draw.uniform(-GAIN, GAIN)) + draw.uniform(-OFFSET, OFFSET)
        pixels = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
    if draw.random() < 0.5:
        pixels = np.rot90(pixels[:, ::-1] if draw.random() < 0.5 else pixels, int(draw.integers(4)))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _flat(draw: np.random.Generator, side: int = 142) -> Image.Image:
    """Open water, sand or cloud: one colour with a faint slope and a sensor's noise."""
    colour = np.array([(20, 50, 80), (200, 180, 140), (235, 235, 240)][draw.integers(3)]) + draw.normal(0, 8, 3)
    slope = np.linspace(-1, 1, side)
    light = draw.uniform(-4, 4) * slope[:, None] + draw.uniform(-4, 4) * slope
    pixels = colour + light[..., None] + draw.normal(0, 1, (side, side, 3))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _encode(picture: Image.Image, draw: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(draw.integers(*QUALITY, endpoint=True)))
    return buffer.getvalue()


def build(tars: list[Path], destination: Path, recipe: Recipe) -> dict[str, Any]:
    """Write the three folders; what was written, in numbers.

    Raises:
        SystemExit: the destination is there already, or a class has too few scenes.
    """
    if destination.exists():
        raise SystemExit(f"{destination} exists: remove it, or name another folder")
    made = plan(read(tars), recipe)
    samples = write(archive(made, recipe), destination / "archive")
    return {
        "samples": samples.total(),
        "scenes": len(made.archive),
        "flat": samples[""],
        "largest_class": max(samples[label] for label in made.order),
        "smallest_class": min(samples[label] for label in made.order),
        "references": write(untouched(made.references), destination / "references").total(),
        "test": write(untouched(made.test), destination / "test").total(),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+", type=Path, help="source tars: KEY.jpg and KEY.json with a label")
    parser.add_argument("destination", type=Path, help="folder to make")
    parser.add_argument("--split", choices=["tune", "report", "all"], default="all", help="which half of the scenes")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn")
    parser.add_argument("--bank", type=int, default=15, help="scenes of each class set apart as references")
    parser.add_argument("--test", type=int, default=30, help="scenes of each class to test on")
    parser.add_argument(
        "--head", type=int, help="scenes of the first class (default: what bank and test leave of most)"
    )
    parser.add_argument("--tail", type=float, default=0.02, help="the last class's share of that; 1: no tail")
    parser.add_argument("--copies", type=int, default=3, help="versions of each scene, one more or less; 1: no copies")
    parser.add_argument("--flat", type=float, default=0.05, help="share of tiles without content")
    parser.add_argument("--half-bank", action="store_true", help="every other class is missing in the bank")
    parser.add_argument("--label-noise", type=float, default=0.0, help="share of samples with another class's label")
    parser.add_argument("--blur", type=float, default=0.0, help="share of blurred samples")
    options = vars(parser.parse_args())
    tars, destination = options.pop("tars"), options.pop("destination")
    print(json.dumps({**build(tars, destination, Recipe(**options)), "recipe": options}))


if __name__ == "__main__":
    main()
