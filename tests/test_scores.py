"""Scores by labels: the formulas against plain ones, planted faults found, and a stage that resumes."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import timm
import torch
from PIL import Image, ImageFilter
from scipy.spatial.distance import jensenshannon
from scipy.stats import rankdata, spearmanr

from curation.archive.listing import list_archive
from curation.archive.tables import open_tables
from curation.catalog.build import Catalog, build_catalog
from curation.catalog.labels import Labels
from curation.clustering.build import build_clusters
from curation.config import Config, load_config
from curation.errors import RequestError
from curation.evaluation.samples import gather
from curation.runtime import start_ray
from curation.scoring import build
from curation.scoring.build import SCHEMA, build_scores
from curation.scoring.experts import Labelled, body_of, check_network, expert_arrays
from curation.scoring.settings import ScoreConfig
from curation.scoring.sim import (
    SCORES,
    Dynamics,
    agreement,
    brightness,
    correlation,
    integrity,
    ranks,
    separability,
    sim,
    softmax,
    texture,
    to_centres,
)
from curation.storage import Folder
from tests.recipes import write_tar
from tests.test_network import stripes

RNG = np.random.default_rng(0)


# formulas


def test_separability_against_a_plain_one():
    features, codes = RNG.random((50, 6)).astype(np.float32), np.arange(50) % 4
    centres = [features[codes == c].astype(float).mean(0) for c in range(4)]
    plain = []
    for x, own in zip(features.astype(float), codes, strict=True):
        d = [1 - x @ c / np.linalg.norm(x) / np.linalg.norm(c) for c in centres]
        plain.append(min(v for c, v in enumerate(d) if c != own) / (d[own] + 0.1))
    assert np.allclose(separability(*to_centres(features, codes, 4), 0.1), plain, rtol=1e-6)
    assert np.allclose(integrity(features), np.linalg.norm(features, axis=1))


def test_agreement_is_one_less_the_jensen_shannon_divergence():
    p, q = (softmax(RNG.normal(size=(20, 5)).astype(np.float32) * 3) for _ in range(2))
    assert np.allclose(agreement([p, q]), 1 - jensenshannon(p, q, base=2, axis=1) ** 2, atol=1e-9)
    sure = np.eye(3, dtype=np.float32)
    assert np.allclose(agreement(sure[:, None]), 0)  # three experts, each sure of something else
    assert np.allclose(agreement([p, p, p]), 1)
    assert (agreement([p]) == 1).all()


def test_sim_is_made_of_the_terms_it_is_given():
    a, b = RNG.random(9), RNG.random(9) * 50 - 3
    low, high = (a - a.min()) / np.ptp(a), (b - b.min()) / np.ptp(b)
    assert np.allclose(sim({"a": a, "b": b}), low * high)
    assert np.allclose(sim({"a": a, "b": b}, "sum"), (low + high) / 2)
    assert np.allclose(sim({"a": a, "same": np.ones(9)}), low)
    with pytest.raises(ValueError, match="combine"):
        sim({"a": a}, "mean")


def test_ranks_against_scipy():
    values, groups = RNG.integers(0, 8, 60).astype(float), RNG.integers(0, 3, 60)
    assert np.allclose(ranks(values), (rankdata(values) - 0.5) / 60)
    for group in range(3):
        own = values[groups == group]
        assert np.allclose(ranks(values, groups)[groups == group], (rankdata(own) - 0.5) / len(own))
    assert len(ranks(np.zeros(0))) == 0
    other = RNG.random(60)
    assert correlation(values, other) == pytest.approx(spearmanr(values, other).statistic)
    assert correlation(values, np.ones(60)) is None


def test_dynamics_of_a_run_that_is_written_down():
    """Two rows, three passes of which two count: one forgets, the other learns; a third one never does."""
    dynamics = Dynamics(np.array([0, 1, 0]), epochs=2, early=1)
    passes = [[[2.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]], [[0.0, 9.0], [9.0, 0.0]]]
    for epoch, logits in enumerate(passes):
        dynamics(epoch, np.array([1, 0]), np.float32(logits)[::-1])
    p = softmax(np.float32(passes).reshape(-1, 2)).reshape(3, 2, 2)
    assert dynamics.forgetting.tolist() == [1, 0, 2]
    assert np.allclose(dynamics.el2n[:2], [np.linalg.norm(p[0, 0] - [1, 0]), np.linalg.norm(p[0, 1] - [0, 1])])
    assert np.allclose(dynamics.aum[:2], [sum(p[e, 0, 0] - p[e, 0, 1] for e in (0, 1)),
                                      sum(p[e, 1, 1] - p[e, 1, 0] for e in (0, 1))])  # fmt: skip


def test_brightness_and_texture():
    tiles = np.zeros((2, 3, 8, 8), np.uint8)
    tiles[1, :, ::2] = 100
    assert brightness(tiles).tolist() == [0, 50]
    assert texture(tiles).tolist() == [0, 50]


# experts


def test_planted_faults_score_lower():
    tiles, codes = stripes(300)
    wrong, blurred = np.arange(0, 300, 10), np.arange(5, 300, 10)
    for row in blurred:
        bands = [Image.fromarray(band).filter(ImageFilter.GaussianBlur(4)) for band in tiles[row]]
        tiles[row] = np.stack([np.asarray(band) for band in bands])
    codes[wrong] = (codes[wrong] + 1) % 3
    settings = ScoreConfig(size=24, experts=2, epochs=5, batch=32)
    found = [expert_arrays(tiles, codes, 3, settings, 0, expert) for expert in range(2)]
    assert not np.array_equal(found[0]["el2n"], found[1]["el2n"])  # each has its own seed
    mean = {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}
    agreed = agreement(one["probabilities"] for one in found)
    apart = np.mean([separability(one["own_distance"], one["other_distance"], 0.1) for one in found], axis=0)
    score = sim({"s": apart, "e": mean["integrity"], "c": agreed})
    clean = np.setdiff1d(np.arange(300), np.concatenate([wrong, blurred]))
    assert score[wrong].mean() < 0.7 * score[clean].mean()
    assert score[blurred].mean() < 0.9 * score[clean].mean()
    assert mean["aum"][wrong].mean() < mean["aum"][clean].mean()
    assert mean["el2n"][wrong].mean() > mean["el2n"][clean].mean()


def test_models_that_somebody_trained(tmp_path):
    model = timm.create_model("test_resnet", in_chans=4, num_classes=7)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    settings = ScoreConfig(size=24, network="test_resnet", checkpoints=[str(tmp_path / "a.pth")], epochs=1)
    assert len(check_network(settings, 4)) == 1
    begun = body_of(settings, 2)(4)
    theirs = model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in begun.state_dict().items())
    tiles, codes = stripes(40)
    assert expert_arrays(tiles, codes, 3, settings, 0, 0)["probabilities"].shape == (40, 3)
    assert check_network(ScoreConfig(size=24, network="test_resnet"), 4) == []
    with pytest.raises(RequestError, match="score.checkpoints=.*no such local file"):
        check_network(ScoreConfig(network="test_resnet", checkpoints=[str(tmp_path / "b.pth")]), 4)
    with pytest.raises(RequestError, match="score.network=none is neither"):
        check_network(ScoreConfig(network="none"), 4)


@pytest.mark.parametrize("wrong", [{"terms": []}, {"terms": ["sim"]}, {"combine": "max"}, {"experts": 0},
                                   {"eps": 0.0}, {"checkpoints": ["x.pth"]}, {"size": 4}])  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(RequestError, match=f"score.{next(iter(wrong))}"):
        ScoreConfig(**wrong)


def test_labels_that_teach_nothing(monkeypatch):
    with pytest.raises(RequestError, match="no sample has one: give labels in sidecars"):
        build._check(ScoreConfig(), Counter(), 100)
    with pytest.raises(RequestError, match="all 9 labelled samples are 'sea'"):
        build._check(ScoreConfig(), Counter(sea=9), 100)
    with pytest.raises(RequestError, match="lower score.size"):
        build._check(ScoreConfig(), Counter(a=1 << 20, b=1 << 20), 48 * 48 * 3)
    build._check(ScoreConfig(), Counter(a=1 << 19, b=1 << 19), 48 * 48 * 3)


# the stage


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Three shards of 8-bit tiles; every ninth has no label."""
    folder = tmp_path_factory.mktemp("labelled")
    tiles, codes = stripes(120, bands=3)
    table = ["key,ground"]
    for shard in range(3):
        members = []
        for i in range(shard, 120, 3):
            buffer = io.BytesIO()
            Image.fromarray(tiles[i].transpose(1, 2, 0)).save(buffer, "PNG")
            said = {} if i % 9 == 0 else {"label": f"c{codes[i]}"}
            members += [(f"k{i:03}.png", buffer.getvalue()), (f"k{i:03}.json", json.dumps(said).encode())]
            table.append(f"k{i:03},{'left' if i < 60 else 'right'}")
        write_tar(folder / f"archive/part-{shard}.tar", members)
    (folder / "table.csv").write_text("\n".join(table[:80]))
    return folder


def config_of(archive: Path, workspace: Path, *more: str) -> Config:
    arguments = [f"archive.url={archive}/archive", f"workspace={workspace}", "catalog.fit_samples=48"]
    small = ["encoder.filters=8", "encoder.dim=16", "runtime.max_actors=1", "cluster.k=4"]
    return load_config([*arguments, *small, "score.experts=2", "score.epochs=2", "score.size=24", *more])


@pytest.fixture(scope="module")
def scored(ray_local, archive, tmp_path_factory) -> tuple[Config, Catalog, Folder]:
    config = config_of(archive, tmp_path_factory.mktemp("scored"))
    resources = start_ray(config.runtime)
    roots = list_archive(config.archive.url)
    catalog = build_catalog(config, roots, None, resources)
    return config, catalog, build_scores(config, roots, catalog, resources)


def part_of(folder: Folder, path: str = "part-00000.parquet") -> pa.Table:
    return pq.read_table(pa.BufferReader(folder.read(path)))


def test_parts_lie_parallel_to_the_assignments(scored, tmp_path):
    config, catalog, folder = scored
    clusters = Folder(str(tmp_path))
    build_clusters(catalog, "none", config.cluster, 0, clusters, start_ray(config.runtime))
    assigned, part = part_of(clusters, "assignments/part-00000.parquet"), part_of(folder)
    assert part.schema.equals(SCHEMA)
    assert part.select(SCHEMA.names[:3]).equals(assigned.select(SCHEMA.names[:3]))
    labels = pa.concat_tables(catalog.store.read(s, ["sample_id", "label"]) for s in catalog.shards)
    assert labels["sample_id"].equals(part["sample_id"])
    known = labels["label"].is_valid().to_numpy()
    assert 0 < known.sum() < 120
    names = labels["label"].to_numpy()[known].astype(str)
    for score in SCORES:
        assert part[score].is_valid().to_numpy().tolist() == known.tolist()
        values = part[score].to_numpy()[known]
        assert np.allclose(part[f"{score}_rank"].to_numpy()[known], (rankdata(values) - 0.5) / len(values))
        for name in set(names):
            within = part[f"{score}_class_rank"].to_numpy()[known][names == name]
            assert np.allclose(within, (rankdata(values[names == name]) - 0.5) / len(within))
    about = json.loads(folder.read("score.json"))
    assert about["labelled"] == known.sum()
    assert about["classes"] == Counter(names)
    assert set(about["integrity_correlation"]) == {"brightness", "texture"}
    assert len(about["accuracy"]) == 2


def test_it_goes_on_from_what_is_there(scored, archive, monkeypatch):
    config, catalog, folder = scored
    experts = catalog.store.workspace.child(f"experts/{json.loads(folder.read('score.json'))['experts']}")
    files = [(folder, name) for name in ("part-00000.parquet", "labelled.parquet", "score.json")]
    files += [(experts, name) for name in ("00.safetensors", "01.safetensors")]
    before = [where.read(name) for where, name in files]
    first = experts.info("00.safetensors")
    for where, name in files:
        if name != "00.safetensors":
            where.remove(name)
    resources, roots = start_ray(config.runtime), list_archive(config.archive.url)
    again = build_scores(config, roots, catalog, resources)
    assert again.base == folder.base
    assert [where.read(name) for where, name in files] == before
    assert experts.info("00.safetensors") == first  # an expert that has left its file is not trained again
    trained = [experts.info(name) for name in ("00.safetensors", "01.safetensors")]
    other = build_scores(config_of(archive, Path(config.workspace), "score.eps=1"), roots, catalog, resources)
    assert other.base != folder.base and other.read("part-00000.parquet") != before[0]
    assert [experts.info(name) for name in ("00.safetensors", "01.safetensors")] == trained  # nor for another SIM


def test_what_decides_the_id(scored, archive, tmp_path, monkeypatch):
    """Everything that moves a score does, and the number of workers does not."""
    config, catalog, folder = scored
    roots, resources = list_archive(config.archive.url), start_ray(config.runtime)
    seen = {folder.base}

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    made = []
    monkeypatch.setattr(Folder, "child", lambda self, path: made.append(path) or stop())
    for more in ("score.terms=[separability]", "score.combine=sum", "score.eps=0.2", "seed=1", "runtime.num_cpus=7"):
        with pytest.raises(KeyboardInterrupt):
            build_scores(config_of(archive, Path(config.workspace), more), roots, catalog, resources)
    assert len({*made[:-1], *(f"scores/{base.rpartition('/')[2]}" for base in seen)}) == 5
    assert made[-1] == f"scores/{folder.base.rpartition('/')[2]}"


def test_labels_of_a_table(scored, archive):
    _, catalog, _ = scored
    (table,) = open_tables([{"path": str(archive / "table.csv"), "key": "key", "on": "key"}])
    labelled = Labelled(catalog.store, catalog.shards, Labels("ground", table), classes=("left", "right"))
    codes = np.concatenate([labelled.codes(shard) for shard in catalog.shards])
    keys = [k for s in catalog.shards for k in catalog.store.read(s, ["key"])["key"].to_pylist()]
    listed = {line.split(",")[0]: line.split(",")[1] for line in (archive / "table.csv").read_text().splitlines()[1:]}
    assert [{-1: None, 0: "left", 1: "right"}[code] for code in codes] == [listed.get(key) for key in keys]
    samples, _, labelled = gather(None, catalog.store, catalog.shards, Labels("ground", table))  # for a comparison
    assert ray.get(samples).labels.to_pylist() == [listed.get(key) for key in keys]
    assert labelled == sum(key in listed for key in keys)
    with pytest.raises(RequestError, match="score.label: archive.tables have no column 'grund'; did you mean 'ground'"):
        config = load_config(["archive.url=x", "score.label=grund"])
        build_scores(config, [], catalog, None, [table])
