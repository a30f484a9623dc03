"""``curate distill`` from outside: the same images whoever draws them and whatever was killed, and what cannot be."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from curation.config import load_config
from curation.distillation.build import full_disks_told
from curation.distillation.fit import model_folder
from curation.distillation.generate import together
from curation.distillation.pool import Pool
from curation.errors import CurationError, RequestError
from curation.manifests.verify import verify as verify_manifest
from curation.runtime import Resources
from curation.storage import Folder
from jobs import distill, plan, verify
from tests.command import curate, start
from tests.diffusion_recipes import save_model
from tests.recipes import encoded, write_tar
from tests.s3 import s3_server
from tests.scenes import draw

LABELS = {7: "field", 12: "town", 101: "desert", 9: "forest"}  # numbers, as some archives have them, and what they show
COUNTS = {7: 24, 12: 19, 101: 16, 9: 1}  # one of a single sample

SMALL = [
    "catalog.fit_samples=64",
    "encoder.filters=8",
    "runtime.num_cpus=2",
    "distill.ipc=2",
    "distill.size=16",
    "distill.candidates=3",
    "distill.batch=4",
    "distill.checkpoint=3",
    "distill.autoencoder.factor=2",
    "distill.autoencoder.steps=8",
    "distill.autoencoder.batch=8",
    "distill.classifier.steps=6",
    "distill.classifier.batch=8",
    "distill.diffusion.steps=8",
    "distill.diffusion.batch=8",
    "distill.guidance.steps=3",
    "distill.students.seeds=2",
    "distill.students.steps=4",
]


def write_archive(dest: Path, counts: dict[Any, int], shards: int = 2, seed: int = 5) -> Path:
    """JPEG tiles of 32 pixels with labels as they stand in ``counts``, dealt out to some tars."""
    members: list[list[tuple[str, bytes]]] = [[] for _ in range(shards)]
    labels = [label for label, count in counts.items() for _ in range(count)]
    for i, label in enumerate(labels):
        (tile,) = draw(LABELS.get(label, "field"), 1, np.random.default_rng([seed, i]))
        rgb = np.clip(tile[2::-1] / 4000 * 255, 0, 255).astype(np.uint8).transpose(1, 2, 0)[:32, :32]
        said = {} if label is None else {"label": label, "caption": f"A {LABELS.get(label)}, seen from above."}
        members[i % shards] += [(f"{i:04d}.jpg", encoded(rgb)), (f"{i:04d}.json", json.dumps(said).encode())]
    for number, some in enumerate(members):
        write_tar(dest / f"part-{number}.tar", some)
    return dest


def file_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def contents(told: dict[str, Any]) -> dict[str, bytes]:
    """All that a set's manifest vouches for, and the part of its header that must be the same."""
    folder = file_of(told["manifest"]).parent
    header = json.loads((folder / "manifest.json").read_text())
    paths = ["manifest.parquet", *pq.read_table(folder / "files.parquet")["path"].to_pylist()]
    found = {path: (folder / path).read_bytes() for path in paths}
    return found | {"header": json.dumps([header["id"], header["content"]], sort_keys=True).encode()}


class Made:
    """A distilled archive.

    Attributes:
        arguments: what was asked for, but for the workspace.
        workspace: of the run.
        told: its result.
    """

    def __init__(self, folder: Path) -> None:
        archive = write_archive(folder / "archive", COUNTS)
        self.arguments = [f"archive.url={archive}", *SMALL]
        self.workspace = folder / "workspace"
        self.told = self.distill(self.workspace, "runtime.max_actors=1")

    def distill(self, workspace: Path, *more: str) -> dict[str, Any]:
        return distill.run([*self.arguments, f"workspace={workspace}", *more])

    def without_images(self, dest: Path) -> Path:
        """A workspace with all models in which nothing is drawn yet."""
        shutil.copytree(self.workspace, dest)
        shutil.rmtree(dest / "distilled" / self.name)
        return dest

    @property
    def name(self) -> str:
        return file_of(self.told["manifest"]).parent.name


@pytest.fixture(scope="module")
def made(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("distilled"))


def test_a_labelled_archive_becomes_a_few_images_a_class(made: Made) -> None:
    told = made.told
    assert told["classes"] == 4
    assert told["samples"] == told["kept"] + told["dropped"] >= 21
    assert told["kept"] <= 7  # of the class of one there is one
    assert set(told["accuracy"]) == {"distilled", "prototypes", "random", "full"}
    assert verify.run([told["manifest"], "--deep"])["ok"]
    assert "<html" in file_of(told["report"]).read_text()
    folder = file_of(told["manifest"]).parent
    header = json.loads((folder / "manifest.json").read_text())["content"]
    assert any("1 of 4 classes have fewer samples than distill.ipc=2" in said for said in header["warnings"])
    prototypes = pq.read_table(folder / "prototypes.parquet").to_pylist()
    assert [one["label"] for one in prototypes] == ["101", "101", "12", "12", "7", "7", "9"]
    decided = pq.read_table(folder / "decisions" / "part-00000.parquet").to_pylist()
    assert {row["prototype"] for row in decided} == {one["sample_id"] for one in prototypes}
    assert {row["reason"] for row in decided} <= {"chosen", "margin", "leakage"}
    own = {one["key"]: one["label"] for one in prototypes}
    labels = [label for label, count in COUNTS.items() for _ in range(count)]
    assert all(str(labels[int(key)]) == label for key, label in own.items())  # real samples of their class


def test_what_is_there_is_not_made_again(made: Made) -> None:
    before = {path: path.stat().st_mtime_ns for path in (made.workspace / "distilled").rglob("*") if path.is_file()}
    assert made.distill(made.workspace) == made.told
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {"students.json"}
    models = set((made.workspace / "distilled" / "models").rglob("*.safetensors"))
    fewer = made.distill(made.workspace, "distill.ipc=1", "distill.students.seeds=0")
    assert fewer["kept"] <= 4
    assert fewer["accuracy"] is None
    assert set((made.workspace / "distilled" / "models").rglob("*.safetensors")) == models


@pytest.mark.long
def test_a_run_that_was_killed_goes_on_and_ends_the_same_with_two_actors(made: Made, tmp_path: Path) -> None:
    workspace = made.without_images(tmp_path / "workspace")
    process = start("distill", *made.arguments, f"workspace={workspace}", "runtime.max_actors=1")
    try:
        drawn = workspace / "distilled" / made.name / "candidates"
        while not list(drawn.glob("*.safetensors")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (drawn.parent / "manifest.json").exists()
    assert contents(made.distill(workspace, "runtime.max_actors=2")) == contents(made.told)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_another_workspace_and_killed_workers_give_the_same_bytes(made: Made, tmp_path: Path) -> None:
    """A training worker dies past its first checkpoint, then an actor that draws; both begin again by themselves."""
    workspace, killed = tmp_path / "workspace", []

    def kill(pattern: str, name: str) -> None:
        while not list(workspace.glob(pattern)):
            time.sleep(0.01)
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and name in (entry / "cmdline").read_text():
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed.append(name)
            except OSError:
                continue

    def kill_both() -> None:
        kill("distilled/models/*/denoiser/checkpoints/*.pt", "RayTrainWorker")
        kill("distilled/*/candidates/*.safetensors", "_Actor.make")

    thread = threading.Thread(target=kill_both, daemon=True)
    thread.start()
    told = made.distill(workspace, "runtime.max_actors=2")
    thread.join()
    assert "RayTrainWorker" in killed
    assert contents(told) == contents(made.told)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_workspace_in_an_object_store_has_the_same_bytes(made: Made) -> None:
    with s3_server() as server:
        endpoint = f"runtime.storage={{s3:{{endpoint_url:'{server.endpoint}'}}}}"
        outcome = curate("distill", *made.arguments, f"workspace={server.url}/workspace", endpoint, timeout=600)
        assert outcome.status == 0, outcome.stderr
        folder, own = outcome.result["manifest"].rpartition("/")[0], contents(made.told)
        assert folder.rpartition("/")[2] == made.name
        key = folder.removeprefix(f"s3://{server.bucket}/")
        for path in own.keys() - {"header"}:
            assert server.client.get_object(Bucket=server.bucket, Key=f"{key}/{path}")["Body"].read() == own[path]
        assert verify_manifest(outcome.result["manifest"], deep=True, storage=server.storage)["ok"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_training_workers_make_models_of_their_own_again_and_again(made: Made, tmp_path: Path) -> None:
    more = "distill.workers=2", "distill.students.seeds=0"
    first, second = (made.distill(tmp_path / name, *more) for name in ("a", "b"))
    assert contents(first) == contents(second)
    assert contents(first)["manifest.parquet"] != contents(made.told)["manifest.parquet"]


FULL = """
import errno, os
real, made = os.replace, []
def replace(source, target, **more):
    if "/candidates/" in str(target):
        made.append(target)
        if len(made) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
    return real(source, target, **more)
os.replace = replace
"""


@pytest.mark.long
def test_no_space_left_is_one_line_and_what_is_drawn_counts(made: Made, tmp_path: Path) -> None:
    """The disk is full for all processes of the run after two images."""
    (tmp_path / "sitecustomize.py").write_text(FULL)
    workspace = made.without_images(tmp_path / "workspace")
    more = f"workspace={workspace}", "runtime.max_actors=1"
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    outcome = curate("distill", *made.arguments, *more, PYTHONPATH=path)
    assert outcome.status == 1
    said = outcome.stderr.splitlines()[-1]
    assert said.startswith(f"curate: error: no space is left to write on ({workspace.as_uri()}): make some")
    assert "Traceback" not in outcome.stderr
    assert len(list((workspace / "distilled" / made.name / "candidates").glob("*.safetensors"))) == 2
    assert contents(made.distill(workspace)) == contents(made.told)


def _fails(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_only_a_full_disk_is_told_as_one(made: Made, tmp_path: Path) -> None:
    task = ray.remote(_fails)
    with pytest.raises(CurationError, match="no space is left"), full_disks_told(Folder(str(tmp_path))):
        ray.get(task.remote(28))
    with pytest.raises(OSError, match="Permission"), full_disks_told(Folder(str(tmp_path))):
        ray.get(task.remote(13))


def test_the_models_of_others_are_taken(made: Made, tmp_path: Path) -> None:
    """Text-to-image weights: an adapter is trained, classes are told by captions, students tested on other images."""
    weights = save_model(tmp_path / "weights")
    test = write_archive(tmp_path / "test", {7: 9, 101: 7, "unknown": 2}, seed=6)
    more = [f"distill.weights={weights}", "distill.size=null", "distill.diffusion.steps=2", "distill.ipc=1"]
    more += ["distill.captions=aggregated", "distill.guidance.steps=2", f"distill.test.url={test}"]
    told = made.distill(made.workspace, *more)
    assert told["kept"] <= 4
    assert verify.run([told["manifest"], "--deep"])["ok"]
    assert list((made.workspace / "distilled" / "models").glob("*/denoiser/adapter_model.safetensors"))
    folder = file_of(told["manifest"]).parent
    texts = json.loads((folder / "manifest.json").read_text())["content"]["distilled"]["texts"]
    assert texts["101"] == "A satellite image of 101. a desert, seen from above."
    assert json.loads((folder / "students.json").read_text())["tested"] == 16
    with pytest.raises(RequestError, match=r"is for 3 bands, and the archive has 1"):
        distill.run([*made.arguments, *more, "archive.bands=[red]", f"workspace={tmp_path / 'one'}"])


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({None: 12}, "by distill.label=label no sample has one"),
        ({7: 12}, "by distill.label=label all labelled samples are '7'"),
    ],
)
def test_an_archive_without_classes_is_refused(ray_local: None, tmp_path: Path, counts: Any, words: str) -> None:
    archive = write_archive(tmp_path / "archive", counts, shards=1)
    with pytest.raises(RequestError, match=words):
        distill.run([*SMALL, f"archive.url={archive}", f"workspace={tmp_path / 'workspace'}"])


def test_a_size_that_no_latent_has_is_refused(made: Made) -> None:
    with pytest.raises(RequestError, match="distill.size=17: with distill.autoencoder.factor=2 give a multiple of 2"):
        made.distill(made.workspace, "distill.size=17")


def test_the_plan_counts_what_the_run_does(made: Made) -> None:
    told = plan.run([*made.arguments, f"workspace={made.workspace}", "--distill"])["distill"]
    assert (told["classes"], told["images"], told["candidates"]) == (4, 7, 21)
    assert told["images_to_encode"] == 60
    assert told["training_steps"] == {"autoencoder": 8, "classifier": 6, "denoiser": 8, "students": 32}
    assert told["generator_forwards"] == 6 * 3
    assert told["rows_a_forward"] == 8
    assert told["hours"]["total"] > 0
    before = plan.run([*made.arguments, "--distill"])["distill"]  # without a catalog
    assert before["classes"] == 4
    assert before["classes_counted_in"] == "60 samples: there may be more"


def test_there_is_always_room_for_an_actor() -> None:
    runtime = load_config([]).runtime
    for cpus, threads, actors, each in (
        (1, 1, 1, 1.0),
        (2, 1, 2, 1.0),
        (2, 4, 1, 2.0),
        (0.5, 1, 1, 0.5),
        (16, 2, 8, 2.0),
    ):
        pool = Pool.of(runtime, Resources(cpus, 0, "cpu"), threads, 3)
        assert (pool.actors, pool.cpus, pool.gpus) == (actors, each, 0)
    pool = Pool.of(runtime, Resources(16, 4, "cuda"), 1, 3)
    assert (pool.actors, pool.cpus, pool.gpus) == (4, 1, 1)
    assert together(60, 5, 10, 2) == 2  # two prototypes fill a batch
    assert together(60, 5, 64, 2) == 30  # of which each actor has its part
    assert together(60, 1, 10, 2) == 10
    assert together(0, 5, 10, 2) == 1


def test_settings_that_nothing_depends_on_name_no_model(tmp_path: Path) -> None:
    workspace = Folder(str(tmp_path))

    def name(*keys: str) -> str:
        return model_folder(workspace, "denoiser", load_config(list(keys)).distill, ["x"]).base

    assert name() == name("distill.diffusion.rank=7") == name("distill.ipc=3") == name("distill.restarts=0")
    assert len({name(), name("distill.diffusion.snr=1"), name("distill.workers=2"), name("distill.threads=2")}) == 4
