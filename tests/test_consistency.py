"""Agreement of images with texts, classes and other modalities: nobody judges himself, and wrong pairs are told."""

import io
import json
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import rankdata

from curation.archive.listing import list_archive
from curation.archive.tables import open_tables
from curation.catalog.build import build_catalog
from curation.config import load_config
from curation.errors import RequestError
from curation.runtime import start_ray
from curation.scoring.consistency import (
    Pairs,
    by_adapters,
    by_maps,
    by_prototypes,
    class_sums,
    fit_adapters,
    fit_maps,
    fit_prototypes,
    info_nce,
    moments,
    read_consistency,
)
from curation.scoring.consistent import SCHEMA, build_consistency, check_encoder, encode_texts, texts
from curation.scoring.settings import ConsistencyConfig
from curation.scoring.sim import ranks
from curation.storage import Folder
from jobs.consistency import run
from tests.recipes import write_tar

FOLDS = 4


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def groups(n: int, classes: int = 5, dim: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors (n, dim) about a centre a class, their codes, and folds."""
    draw = np.random.default_rng(seed)
    codes = draw.integers(classes, size=n)
    vectors = unit(draw.normal(size=(classes, dim))[codes] + 0.6 * draw.normal(size=(n, dim)))
    return vectors.astype(np.float32), codes, draw.integers(FOLDS, size=n)


def told(agreed: np.ndarray, wrong: np.ndarray) -> float:
    """The probability that a right pair agrees more than a wrong one."""
    right = (rankdata(agreed)[~wrong].sum() - (~wrong).sum() * ((~wrong).sum() + 1) / 2) / (~wrong).sum()
    return float(right / wrong.sum())


# second view


def test_prototypes_against_the_plain_formula():
    vectors, codes, fold = groups(60)
    codes[3] = -1
    found = by_prototypes(fit_prototypes(class_sums(vectors, codes, fold, 5, FOLDS)), vectors, codes, fold)
    assert np.isnan(found[3])
    for i in np.delete(np.arange(60), 3):
        others = (fold != fold[i]) & (codes >= 0)
        prototypes = unit(np.stack([vectors[others & (codes == c)].sum(0) for c in range(5)]).astype(np.float64))
        cosines = prototypes @ vectors[i]
        own = cosines[codes[i]]
        assert abs(found[i] - (own - np.delete(cosines, codes[i]).max())) < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 59), st.integers(0, 4), st.integers(0, 1000))
def test_a_samples_own_label_and_fold_teach_it_nothing(row, label, seed):
    """Other labels within its fold leave a sample's prototypes as they are."""
    vectors, codes, fold = groups(60)
    other = codes.copy()
    other[fold == fold[row]] = np.random.default_rng(seed).integers(5, size=(fold == fold[row]).sum())
    codes[row] = other[row] = label
    one, two = (
        by_prototypes(fit_prototypes(class_sums(vectors, c, fold, 5, FOLDS)), vectors, c, fold)[row]
        for c in (codes, other)
    )
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_wrong_labels_agree_less():
    vectors, codes, fold = groups(800)
    wrong = np.arange(800) % 3 == 0
    codes = np.where(wrong, (codes + 1) % 5, codes)
    found = by_prototypes(fit_prototypes(class_sums(vectors, codes, fold, 5, FOLDS)), vectors, codes, fold)
    assert told(found, wrong) > 0.95


def test_a_class_that_no_other_fold_has():
    vectors, codes, fold = groups(60)
    codes[0] = 5
    found = by_prototypes(fit_prototypes(class_sums(vectors, codes, fold, 6, FOLDS)), vectors, codes, fold)
    assert np.flatnonzero(np.isnan(found)).tolist() == [0]


# modalities


def modalities(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two views of the same hidden numbers, and folds; 12 and 8 dimensions."""
    draw = np.random.default_rng(seed)
    hidden = draw.normal(size=(n, 5))
    one, other = (hidden @ draw.normal(size=(5, d)) + 0.3 * draw.normal(size=(n, d)) + 1 for d in (12, 8))
    return unit(one).astype(np.float32), unit(other).astype(np.float32), draw.integers(FOLDS, size=n)


def test_maps_are_scikit_learns_ridge_on_the_other_folds():
    from sklearn.linear_model import Ridge

    one, other, fold = modalities()
    fitted = fit_maps(moments(one, other, fold, FOLDS), 12, ridge=0.1)
    found = by_maps(fitted, one, other, fold)
    for number in range(FOLDS):
        there, here = fold != number, fold == number
        ways = []
        for x, z in ((one, other), (other, one)):
            x64 = x[there].astype(np.float64)
            penalty = 0.1 * np.trace(np.cov(x64.T, bias=True)) / x.shape[1]
            mapped = Ridge(penalty * there.sum()).fit(x64, z[there]).predict(x[here])
            own = unit(mapped)
            ways.append((own * z[here]).sum(1) - (own @ z[there].T).mean(1))
        np.testing.assert_allclose(found[here], np.mean(ways, axis=0), atol=2e-3)


def test_pairs_that_do_not_belong_together_agree_less():
    one, other, fold = modalities()
    wrong = np.arange(600) % 4 == 0
    other[wrong] = np.roll(other[wrong], 1, axis=0)
    found = by_maps(fit_maps(moments(one, other, fold, FOLDS), 12, 0.1), one, other, fold)
    assert told(found, wrong) > 0.95
    assert found[~wrong].mean() > 0.3 and abs(found[wrong].mean()) < 0.1


def test_moments_add_up():
    one, other, fold = modalities(100)
    parts = [moments(one[rows], other[rows], fold[rows], FOLDS) for rows in (slice(0, 40), slice(40, None))]
    for name, values in moments(one, other, fold, FOLDS).items():
        np.testing.assert_allclose(values, sum(part[name] for part in parts), atol=1e-9)


# text


def test_info_nce_is_the_cross_entropy_where_all_texts_differ():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(6)
    plain = (torch.nn.functional.cross_entropy(logits, truth) + torch.nn.functional.cross_entropy(logits.T, truth)) / 2
    assert torch.isclose(info_nce(logits, torch.eye(6)), plain)
    same = torch.ones(6, 6)  # one text alone: nothing is to be told apart, and the best is to be even
    assert info_nce(torch.zeros(6, 6), same) < info_nce(logits, same)


def text_pairs(n: int = 400) -> tuple[Pairs, np.ndarray]:
    """Images and texts of 5 classes whose spaces are turned against each other; a quarter of the texts is wrong."""
    vectors, codes, fold = groups(n, dim=16)
    wrong = np.arange(n) % 4 == 0
    said = np.where(wrong, (codes + 1 + np.arange(n) % 4) % 5, codes)
    prompts = unit(np.random.default_rng(9).normal(size=(5, 16))).astype(np.float32)
    return Pairs(vectors, prompts[said], said, fold), wrong


@pytest.mark.parametrize("adapter", ["linear", "mlp"])
def test_adapters_learn_which_texts_belong(adapter):
    pairs, wrong = text_pairs()
    agreed = np.zeros(len(wrong))
    before = (pairs.images * pairs.texts).sum(1)
    for number in range(FOLDS):
        own = pairs.fold == number
        fitted = fit_adapters(pairs, ConsistencyConfig(adapter=adapter, steps=80, batch=64, rate=0.008), 0, number)
        agreed[own] = by_adapters(fitted, pairs.images[own], pairs.texts[own], adapter)
    assert told(before, wrong) < 0.7
    assert told(agreed, wrong) > 0.8


def test_without_steps_the_towers_stay_as_they_are():
    pairs, _ = text_pairs(40)
    fitted = fit_adapters(pairs, ConsistencyConfig(steps=0), 0, 1)
    own = pairs.fold == 1
    mean = pairs.texts[~own].mean(0)
    found = by_adapters(fitted, pairs.images[own], pairs.texts[own], "linear")
    np.testing.assert_allclose(found, (pairs.images[own] * (pairs.texts[own] - mean)).sum(1), atol=1e-5)


def test_a_pair_does_not_teach_its_own_fold():
    pairs, _ = text_pairs(80)
    changed = pairs._replace(texts=np.where(pairs.fold[:, None] == 2, -pairs.texts, pairs.texts))
    how = ConsistencyConfig(steps=5, batch=16)
    one, other = (fit_adapters(p, how, 0, 2) for p in (pairs, changed))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    one, other = (fit_adapters(p, how, 0, 1) for p in (pairs, changed))
    assert not all(np.array_equal(one[name], other[name]) for name in one)


def test_which_text_a_sample_has():
    captions, labels = ["a port", None, "", None], ["harbour", "forest", "lake", None]
    assert texts(captions, labels, ["caption", "label"]) == [
        ("caption", "a port"), ("label", "forest"), ("label", "lake"), ("", "")
    ]  # fmt: skip
    assert texts(captions, labels, ["label"])[0] == ("label", "harbour")
    assert texts(captions, labels, ["caption"])[1] == ("", "")


def test_texts_are_forwarded_in_one_shape():
    class Towers:
        batch, dim, shapes = 4, 3, []

        def encode_text(self, prompts: list[str]) -> np.ndarray:
            self.shapes.append(len(prompts))
            return np.array([[len(prompt), 1, 0] for prompt in prompts], np.float32)

    towers = Towers()
    assert encode_texts(towers, ["a" * n for n in range(6)])[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert towers.shapes == [4, 4]
    assert encode_texts(towers, []).shape == (0, 3)


@pytest.mark.parametrize("wrong", [
    {"source": "clip"}, {"text": []}, {"text": ["title"]}, {"templates": ["no place"]}, {"templates": []},
    {"modalities": ["s1"]}, {"folds": 1}, {"adapter": "deep"}, {"sample": 1}, {"steps": -1}, {"batch": 1},
    {"rate": 0.0}, {"temperature": 0.0}, {"ridge": float("inf")},
])  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(RequestError, match=f"consistency.{next(iter(wrong))}"):
        ConsistencyConfig(**wrong)


# the stage

THREE = "{" + ",".join(f"{name}:{{name:random_conv}}" for name in "abc") + "}"
PARTS = {"one": "[red]", "other": "[green,blue]"}

COLOURS = {
    "red field": (200, 40, 40),
    "green wood": (40, 160, 60),
    "blue lake": (40, 60, 200),
    "grey town": (128, 128, 128),
}


def tiny_clip(folder: Path) -> Path:
    """A random checkpoint of a tiny CLIP, with its config, as ``local-dir:`` takes it."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    torch.save(open_clip.model.CLIP(**config).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four colours in three shards: ten and ten with a caption, all but every tenth with a label, some wrong."""
    folder = tmp_path_factory.mktemp("consistent")
    names, draw = list(COLOURS), np.random.default_rng(0)
    for shard in range(3):
        members = []
        for i in range(shard, 160, 3):
            colour = np.array(COLOURS[names[i % 4]])
            buffer = io.BytesIO()
            pixels = np.clip(colour + draw.normal(0, 25, (32, 32, 3)) + draw.normal(0, 12, 3), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            told = names[(i + is_wrong(i) * (1 + i // 7 % 3)) % 4]
            said = {"kind": "tile"} | ({"label": told} if i % 10 else {})
            if i // 10 % 2 == 0:
                said["caption"] = f"an image of a {told}"
            members += [(f"k{i:03}.png", buffer.getvalue()), (f"k{i:03}.json", json.dumps(said).encode())]
        write_tar(folder / f"archive/part-{shard}.tar", members)
    tiny_clip(folder / "clip")
    rows = [f"k{i:03},,tile" for i in range(160)]
    (folder / "labels.csv").write_text("\n".join(["key,nothing,same", *rows]))
    return folder


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose catalog, of random features, is made by the first test that needs it."""
    return tmp_path_factory.mktemp("conv")


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of the tiny CLIP."""
    return tmp_path_factory.mktemp("clipped")


def is_wrong(i: int) -> int:
    return int(i % 7 == 0)


def arguments(archive: Path, workspace: Path, *more: str) -> list[str]:
    """With small settings."""
    small = ["catalog.fit_samples=48", "runtime.max_actors=1", "consistency.folds=3"]
    return [f"archive.url={archive}/archive", f"workspace={workspace}", *small, *more]


CONV = ("encoder.filters=8", "encoder.dim=16", "encoder.size=32")


def built(asked: list[str]) -> Folder:
    config = load_config(asked)
    resources = start_ray(config.runtime)
    roots = list_archive(config.archive.url, settings=config.archive)
    tables = open_tables(config.archive.tables, None)
    return build_consistency(config, build_catalog(config, roots, None, resources), resources, tables)


def rows_of(folder: Folder) -> pa.Table:
    return pq.read_table(pa.BufferReader(folder.read("part-00000.parquet")))


def clip(archive: Path) -> list[str]:
    weights = f"encoder.checkpoint={archive}/clip/open_clip_pytorch_model.bin"
    return ["encoder=open_clip", f"encoder.architecture='local-dir:{archive}/clip'", weights, "encoder.batch=16"]


def wrongs(table: pa.Table) -> np.ndarray:
    """Which rows have a wrong label: shard s holds tiles s, s + 3, and so on."""
    places = zip(table["shard"].to_pylist(), table["index"].to_pylist(), strict=True)
    return np.array([is_wrong(int(shard[-5]) + 3 * index) for shard, index in places], bool)


def test_second_view_over_a_catalog(ray_local, archive, conv):
    asked = arguments(archive, conv, *CONV, "consistency.source=second_view")
    folder = built(asked)
    table = rows_of(folder)
    assert table.schema.equals(SCHEMA) and table.num_rows == 160
    known = table["consistency"].is_valid().to_numpy()
    assert known.sum() == 144 and set(table["source"].to_pylist()) == {"second_view", None}
    agreed = table["agreement"].to_numpy()[known]
    assert told(agreed, wrongs(table)[known]) > 0.95
    about = json.loads(folder.read("consistency.json"))
    assert (about["scored"], about["rows"], about["sources"]) == (144, 160, {"second_view": 144})
    assert 0.75 < about["positive"] < 0.95
    ordered = read_consistency(folder)
    assert ordered.shape == (160,) and ordered.dtype == np.float32 and np.isnan(ordered).sum() == 16
    rows = table.sort_by([("shard", "ascending"), ("index", "ascending")])["consistency"].to_pylist()
    assert [None if np.isnan(value) else value for value in ordered] == rows
    before = folder.read("part-00000.parquet")
    for name in ("consistency.json", "part-00000.parquet", "agreement/part-00000.parquet"):
        folder.remove(name)
    assert built(asked).read("part-00000.parquet") == before  # it goes on from the fit, to the same bytes


def test_text_over_a_catalog(ray_local, archive, clipped):
    more = ["consistency.steps=150", "consistency.batch=64", "consistency.rate=0.01"]
    folder = built(arguments(archive, clipped, *clip(archive), *more))
    table = rows_of(folder)
    about = json.loads(folder.read("consistency.json"))
    assert about["sources"] == {"caption": 80, "label": 72}
    assert np.array_equal(table["consistency"].is_null(), table["source"].is_null())
    known = table["agreement"].is_valid().to_numpy()
    assert told(table["consistency"].to_numpy()[known], wrongs(table)[known]) > 0.8


def test_ranks_are_within_classes(ray_local, archive, clipped):
    """Here by labels alone: each class has the same ranks."""
    asked = [*clip(archive), "consistency.steps=0", "consistency.text=[label]"]
    table = rows_of(built(arguments(archive, clipped, *asked)))
    known = table["consistency"].is_valid().to_numpy()
    assert set(np.array(table["source"].to_pylist(), object)[known]) == {"label"}
    values, agreed = table["consistency"].to_numpy()[known], table["agreement"].to_numpy()[known]
    assert abs(values.mean() - 0.5) < 1e-6
    assert (np.bincount(np.rint(values * 144).astype(int) // 36) >= 30).all()
    assert len(np.unique(ranks(agreed))) > 100


@pytest.mark.parametrize("encoder, message", [
    (["encoder=timm"], "encoder=timm has no text tower"),
    (["consistency.source=modalities"], "takes two parts of encoder=joined.*and this encoder is random_conv"),
    (["consistency.source=modalities", "encoder=joined", f"encoder.parts={THREE}"], "has the parts a, b, c: name two"),
])  # fmt: skip
def test_encoders_that_do_not_fit(encoder, message):
    with pytest.raises(RequestError, match=message) as error:
        check_encoder(load_config(encoder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source, label, message", [
    ("second_view", "nothing", "no sample has a label: give labels"),
    ("second_view", "same", "all labelled samples are 'tile'"),
    ("text", "nothing", "there is no caption nor label"),
])  # fmt: skip
def test_archives_that_say_nothing(ray_local, archive, conv, clipped, source, label, message):
    asked = [f"consistency.source={source}", f"score.label={label}", "consistency.text=[label]"]
    asked.append(f"archive.tables=[{{path: {archive}/labels.csv, key: key, on: key}}]")
    workspace, encoder = (clipped, clip(archive)) if source == "text" else (conv, CONV)
    with pytest.raises(RequestError, match=message) as error:
        built(arguments(archive, workspace, *encoder, *asked))
    assert "\n" not in str(error.value)


def test_modalities_over_a_catalog(ray_local, archive, tmp_path):
    """Red against green and blue, as if they were two sensors."""
    parts = [f"{name}:{{name:random_conv,bands:{bands},filters:8,dim:16,size:32}}" for name, bands in PARTS.items()]
    asked = ["encoder=joined", f"encoder.parts={{{','.join(parts)}}}", "consistency.source=modalities"]
    folder = built(arguments(archive, tmp_path, *asked))
    table = rows_of(folder)
    assert set(table["source"].to_pylist()) == {"modality"} and table["consistency"].null_count == 0
    assert json.loads(folder.read("consistency.json"))["positive"] > 0.8


def test_the_command(ray_local, archive, conv):
    done = run(arguments(archive, conv, *CONV, "consistency.source=second_view", "seed=1"))
    assert (done["samples"], done["scored"], done["sources"]) == (160, 144, {"second_view": 144})
    assert len(read_consistency(Folder(done["consistency"].removeprefix("file://")))) == 160
