"""The catalog stage meets what happens to long runs: crashes, deadlines, storage that moves under its feet."""

import gc
import gzip
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.sample import RawSample, Sample
from curation.archive.settings import ArchiveConfig
from curation.catalog import build, encode, fit
from curation.catalog.artefact import load_artefact
from curation.catalog.build import Catalog, build_catalog
from curation.catalog.encode import ShardEncoder
from curation.catalog.plan import plan
from curation.catalog.store import CatalogStore, parquet_bytes
from curation.config import Config, load_config
from curation.errors import CurationError, IncompleteError, RequestError
from curation.runtime import start_ray
from curation.storage import Folder
from tests.recipes import write_rgb_archive, write_sample_archive

SMALL = ("catalog.fit_samples=64", "archive.max_bad_fraction=1", "encoder.filters=8", "runtime.max_actors=1")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_archive(folder, tiles=240)
    return folder / "archive"


def config_of(archive: Path, workspace: Path, *more: str) -> Config:
    return load_config([f"archive.url={archive}", f"workspace={workspace}", *SMALL, *more])


def run(config: Config) -> Catalog:
    return build_catalog(config, list_archive(config.archive.url), None, start_ray(config.runtime))


def embeddings(catalog: Catalog) -> dict[str, np.ndarray]:
    return {name: np.stack(catalog.store.read(name, ["embedding"])["embedding"].to_numpy()) for name in catalog.shards}


@pytest.fixture(scope="module")
def undisturbed(ray_local, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return run(config_of(archive, tmp_path_factory.mktemp("undisturbed")))


def copy_artefact(catalog: Catalog, workspace: Path) -> None:
    """Give another workspace the same fitted encoder, so that only what follows is compared."""
    source = Path(catalog.store.workspace.base) / "encoders"
    for path in source.rglob("*.safetensors"):
        target = workspace / "encoders" / path.relative_to(source)
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())


def test_a_catalog_file_says_what_it_was_made_from(undisturbed, archive):
    shard = undisturbed.shards[0]
    footer = undisturbed.store.footer(shard)
    table = undisturbed.store.read(shard)
    assert footer["kept"] == table.num_rows
    assert footer["artefact"] == undisturbed.artefact.sha256
    assert footer["profile"]["device"] == "cpu"
    lengths = np.linalg.norm(np.stack(table["embedding"].to_numpy()).astype(np.float64), axis=1)
    assert np.allclose(lengths, 1, atol=2e-3)
    first = table.slice(0, 1).to_pylist()[0]
    root = list_archive(str(archive))[0]
    data = root.folder.read_range(shard.removeprefix("root0/"), first["offset"], first["offset"] + first["size"])
    image = next(member for member in first["members"] if member["name"].endswith(".tif"))
    assert (image["offset"], image["size"]) == (first["offset"], first["size"])
    assert data[:2] == b"II"


def test_a_row_does_not_depend_on_its_neighbours(undisturbed, archive, tmp_path):
    """Another order and other companions in the batch: the same bits."""
    single = tmp_path / "single"
    single.mkdir()
    (single / "part.tar").symlink_to(next(iter(sorted(archive.rglob("*.tar")))))
    config = config_of(single, tmp_path / "ws")
    copy_artefact(undisturbed, tmp_path / "ws")
    table = run(config).store.read("root0/part.tar", ["key", "embedding"])
    other = undisturbed.store.read(undisturbed.shards[0], ["key", "embedding"])
    assert table.equals(other)


class KilledOnce(ShardEncoder):
    """Dies by SIGKILL in the middle of its second shard, once a run."""

    def __init__(self, spec, ledger):
        super().__init__(spec, ledger)
        tell = encode.Meter.tell

        def killing(meter):
            flag = Path(spec.store.workspace.base) / "killed"
            done = len(list((Path(spec.store.own.base)).rglob("*.parquet")))
            if done >= 1 and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            tell(meter)

        encode.Meter.tell = killing


def test_a_killed_worker_changes_nothing(undisturbed, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ShardEncoder", KilledOnce)
    copy_artefact(undisturbed, tmp_path)
    catalog = run(config_of(archive, tmp_path))
    assert (tmp_path / "killed").exists()
    assert catalog.counts == undisturbed.counts
    assert catalog.digest == undisturbed.digest
    for name in catalog.shards:
        assert catalog.store.read(name).equals(undisturbed.store.read(name))


POISON = "S2_000136_000008"


def crash_on_one(raw: RawSample, settings: ArchiveConfig) -> Sample:
    """A decoder that takes its process along for one sample of the archive."""
    if raw.key == POISON:
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(raw, settings)


class Crashing(ShardEncoder):
    def __init__(self, spec, ledger):
        super().__init__(spec, ledger)
        self.maker = replace(self.maker, decode=crash_on_one)
        encode._rows_task = encode._rows_task.options(max_retries=0)  # Ray's own tries cost a process each


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_sample_that_kills_its_worker_is_found_and_quarantined(undisturbed, archive, tmp_path, monkeypatch, ahead):
    """Whether encoders decode themselves, or tasks do it for them."""
    monkeypatch.setattr(build, "ShardEncoder", Crashing)
    copy_artefact(undisturbed, tmp_path)
    catalog = run(config_of(archive, tmp_path, f"runtime.decode_ahead={ahead}"))
    quarantined = [row for name in catalog.shards for row in catalog.store.quarantine(name).to_pylist()]
    assert [row["key"] for row in quarantined if row["error"] == "DecoderCrash"] == [POISON]
    assert catalog.counts["read"] == undisturbed.counts["read"]


def test_a_sample_that_kills_the_fit_is_left_out(archive, monkeypatch):
    (root,) = list_archive(str(archive))
    shard = next(shard for shard in root.shards if POISON.encode() in Path(root.folder.full(shard.path)).read_bytes())
    draw = (root.folder, shard, ArchiveConfig(), 100, 1 << 30)
    whole, _, _ = fit._sample_shard._function(*draw)
    monkeypatch.setattr(fit, "decode", crash_on_one)
    samples, reasons, _ = fit._sample_shard._function(*draw, careful=True)
    assert {sample.key for sample in whole} - {sample.key for sample in samples} == {POISON}
    assert "kills the process" in reasons[0]


def test_max_hours_stops_cleanly_and_the_next_run_goes_on(undisturbed, archive, tmp_path):
    copy_artefact(undisturbed, tmp_path)
    with pytest.raises(IncompleteError, match="max_hours"):
        run(config_of(archive, tmp_path, "runtime.max_hours=1e-9"))
    assert run(config_of(archive, tmp_path)).digest == undisturbed.digest


def test_a_shard_that_changes_is_encoded_again_and_the_others_are_not(undisturbed, archive, tmp_path):
    copied, workspace = tmp_path / "archive", tmp_path / "ws"
    shutil.copytree(archive, copied)  # with their times: what is in the catalog is current
    shutil.copytree(undisturbed.store.workspace.base, workspace)
    tars = sorted(copied.rglob("*.tar"))
    files = {path: path.stat().st_mtime_ns for path in (workspace / "catalog").rglob("*.parquet")}
    tars[0].write_bytes(tars[1].read_bytes())
    changed = run(config_of(copied, workspace))
    again = {path: path.stat().st_mtime_ns for path in (workspace / "catalog").rglob("*.parquet")}
    assert files.keys() == again.keys()
    assert {path.name for path in files if files[path] != again[path]} == {f"{tars[0].name}.parquet"}
    assert changed.digest != undisturbed.digest


class Vanishing(ShardEncoder):
    """The first shard is deleted just before it is read."""

    def _encode(self, folder, shard, careful):
        if shard.path.startswith("0"):
            Path(folder.full(shard.path)).unlink(missing_ok=True)
        super()._encode(folder, shard, careful)


def test_a_shard_that_vanishes_is_named_and_nothing_is_published_for_it(undisturbed, archive, tmp_path, monkeypatch):
    copied = tmp_path / "archive"
    copied.mkdir()
    for number, path in enumerate(sorted(archive.rglob("*.tar"))):
        (copied / f"{number}.tar").write_bytes(path.read_bytes())
    copy_artefact(undisturbed, tmp_path / "ws")
    monkeypatch.setattr(build, "ShardEncoder", Vanishing)
    with pytest.raises(IncompleteError, match="root0/0.tar"):
        run(config_of(copied, tmp_path / "ws"))
    names = {path.name for path in (tmp_path / "ws" / "catalog").rglob("*.parquet")}
    assert "0.tar.parquet" not in names and len(names) == 7


def test_a_shared_catalog_is_read_and_never_written(undisturbed, archive, tmp_path):
    shared = Path(undisturbed.store.workspace.base) / "catalog"
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    catalog = run(config_of(archive, tmp_path, f"catalog.url={shared}"))
    assert catalog.digest == undisturbed.digest
    assert not list((tmp_path / "catalog").rglob("*.parquet")) if (tmp_path / "catalog").exists() else True
    assert before == {path: path.stat().st_mtime_ns for path in shared.rglob("*")}


def test_an_outdated_shared_file_is_made_anew_once(undisturbed, archive, tmp_path):
    copied = tmp_path / "archive"
    copied.mkdir()
    for path in archive.rglob("*.tar"):
        target = copied / path.relative_to(archive)
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(path, target)
    touched = sorted(copied.rglob("*.tar"))[0]
    os.utime(touched)
    shared = Path(undisturbed.store.workspace.base) / "catalog"
    config = config_of(copied, tmp_path / "ws", f"catalog.url={shared}")
    first = run(config)
    own = {path: path.stat().st_mtime_ns for path in (tmp_path / "ws" / "catalog").rglob("*.parquet")}
    assert [path.name for path in own] == [f"{touched.name}.parquet"]
    assert first.digest == run(config).digest == undisturbed.digest
    assert own == {path: path.stat().st_mtime_ns for path in own}
    broken = [name for name in undisturbed.shards if undisturbed.store.quarantine(name).num_rows]
    assert broken and all(first.store.quarantine(n).equals(undisturbed.store.quarantine(n)) for n in broken)


class Losing(ShardEncoder):
    """Its decoder loses a sample a shard."""

    def __init__(self, spec, ledger):
        super().__init__(spec, ledger)
        make = self.maker.rows
        object.__setattr__(self, "maker", type("Maker", (), {"rows": lambda _, shard, raw: make(shard, raw)[1:]})())


def test_a_lost_sample_is_an_error_not_a_smaller_catalog(undisturbed, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ShardEncoder", Losing)
    copy_artefact(undisturbed, tmp_path)
    with pytest.raises(CurationError, match="samples were read, but"):
        run(config_of(archive, tmp_path))
    assert not list((tmp_path / "catalog").rglob("*.parquet"))


class Refusing(ShardEncoder):
    """Its encoder cannot be made of what the data have become."""

    @property
    def encoder(self):
        raise RequestError("the vectors are of another length: take a fresh workspace")


def test_what_an_encoder_refuses_is_told_as_such(undisturbed, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ShardEncoder", Refusing)
    copy_artefact(undisturbed, tmp_path)
    with pytest.raises(RequestError, match="take a fresh workspace"):
        run(config_of(archive, tmp_path))


def test_a_shard_that_cannot_be_opened_is_not_one_sample(tmp_path):
    write_rgb_archive(tmp_path / "archive", tiles=300, size=16, shards=3)
    (tmp_path / "archive/zipped.tar").write_bytes(gzip.compress(bytes(4096)))
    config = config_of(tmp_path / "archive", tmp_path / "ws", "archive.max_bad_fraction=0.01")
    catalog = run(config)
    assert (catalog.counts["quarantined"], catalog.counts["read"]) == (1, 301)
    assert "1 of 4 shards have no usable sample, root0/zipped.tar for one" in build.warn_of_lost(catalog)[0]
    with pytest.raises(CurationError, match="1 of 4 shards have no usable sample, more than archive.max_bad_fraction"):
        build.check_bad_fraction(config, catalog.sources, catalog.store.workspace, {})


def test_a_pilot_fits_what_the_run_would(undisturbed, archive, tmp_path):
    config = config_of(archive, tmp_path)
    planned = plan(config, list_archive(config.archive.url), pilot=1)
    assert planned["shards_to_encode"] == planned["shards"] - 1
    assert load_artefact(config, Folder(str(tmp_path))).sha256 == undisturbed.artefact.sha256


def test_files_of_another_numeric_profile_are_refused(undisturbed, archive, tmp_path):
    shutil.copytree(undisturbed.store.workspace.base, tmp_path, dirs_exist_ok=True)
    catalog = run(config_of(archive, tmp_path))  # encodes nothing
    name = catalog.shards[0]
    path = Path(catalog.store.own.base) / catalog.store.path(name)
    footer = catalog.store.footer(name)
    footer["profile"]["capability"] = "NEON"
    catalog.store.publish(name, pq.read_table(path), catalog.store.quarantine(name), footer)
    with pytest.raises(RequestError, match="mix_profiles"):
        run(config_of(archive, tmp_path))
    assert len(run(config_of(archive, tmp_path, "runtime.mix_profiles=true")).profiles) == 2


def test_decoding_in_tasks_gives_the_same_rows(undisturbed, archive, tmp_path):
    gc.collect()  # pytest keeps the log of an earlier test's error, that its stream, and that an encoder with its CPU
    copy_artefact(undisturbed, tmp_path)
    catalog = run(config_of(archive, tmp_path, "runtime.decode_ahead=3"))
    for name in catalog.shards:
        assert catalog.store.read(name).equals(undisturbed.store.read(name))


def test_a_pool_that_does_not_fit_is_refused(ray_local, archive, tmp_path):
    with pytest.raises(RequestError, match="min_actors"):
        run(config_of(archive, tmp_path, "runtime.min_actors=4", "runtime.max_actors=4"))


def test_a_damaged_catalog_file_counts_as_none(tmp_path):
    store = CatalogStore(Folder(str(tmp_path)), "id")
    whole = parquet_bytes(pa.table({"x": [1]}), {"read": 1})
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    damaged = {"a": whole, "b": whole[:-3], "c": whole[:start] + b"\xff" * 20 + whole[start + 20 :], "d": b""}
    for shard, data in damaged.items():
        store.own.publish(store.path(shard), data)
    assert [store.footer(shard) for shard in damaged] == [{"read": 1}, None, None, None]
