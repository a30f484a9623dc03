"""What people type: every wrong request is one line that says how to mend it; paths are taken as typed."""

import hashlib

import pytest

from curation.catalog.artefact import catalog_id
from curation.config import load_config
from curation.errors import RequestError


def test_the_documented_defaults_hold():
    config = load_config([])
    assert (config.encoder["name"], config.select.strategy, config.select.budget, config.seed) == (
        "random_conv",
        "balanced",
        0.15,
        0,
    )


@pytest.mark.parametrize(
    "path", ["/data/a, b", "/data/[x]", "s3://b/k=v", "100%", "{a}", "ä ö/東京", "'quoted'", "a\\b", "${x}", "*.tar"]
)
def test_paths_are_taken_as_typed(path):
    config = load_config([f"archive.url={path}", f"workspace={path}", f"select.exclude={path}"])
    assert (config.archive.url, config.workspace, config.select.exclude) == (path, path, path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("select.budgt=1", "did you mean 'select.budget'"),
        ("nothing=1", "unknown key 'nothing'"),
        ("select.budget=-0.1", "select.budget=-0.1"),
        ("select.budget=0", "select.budget=0"),
        ("select.budget=1.5", "whole number"),
        ("select.budget=abc", "select.budget"),
        ("select=best", "balanced, ccs, el2n, entropy, facility_location"),
        ("encoder=best", "random_conv"),
        ("encoder.nothing=1", "unknown key 'encoder.nothing'"),
        ("select.balance=2", "select.balance"),
        ("cluster.references=frozen", "references.url"),
        ("cluster.references=warm", "frozen, seed or none"),
        ("runtime.max_actors=0", "runtime.max_actors"),
        ("runtime.storage={s3:{secret:hunter2}}", "secret"),
        ("runtime.storage={s3:5}", "runtime.storage.s3 is no mapping"),
        ("runtime.storage=5", "full_key: runtime.storage"),
        ("runtime.num_cpus=0", "runtime.num_cpus must be positive"),
        ("runtime.min_actors=0", "runtime.min_actors must be positive"),
        ("runtime.gpus_per_actor=0", "runtime.gpus_per_actor=0"),
        ("runtime.gpus_per_actor=-1", "runtime.gpus_per_actor=-1"),
        ("runtime.gpus_per_actor=1.5", "whole number, or a fraction"),
        ("runtime.gpus_per_actor=inf", "runtime.gpus_per_actor=inf"),
        ("runtime.decode_ahead=-1", "runtime.decode_ahead"),
        ("runtime.max_hours=0", "runtime.max_hours must be positive"),
        ("runtime.max_hours=nan", "runtime.max_hours must be positive"),
        ("catalog.fit_samples=0", "catalog.fit_samples must be positive"),
        ("select.min_valid=-0.1", "select.min_valid=-0.1: give a share"),
        ("select.max_cloud=20", "select.max_cloud=20.0: give a share between 0 and 1"),
        ("select.splits={test: 0.6,validation: 0.4}", "together below 1"),
        ("select.splits={test: 10}", "together below 1"),
        ("select.splits=0.1", "select.splits"),
        ("select.block_km=0.5", "select.block_km=0.5: give 1 to 10000"),
        ("select.splits={train: 0.8,test: 0.1}", "training is what it leaves"),
        ("select.region_km=nan", "select.region_km=nan: give 50 to 10000"),
        ("select.by=[year,year]", "name each key once"),
        ("archive.filter=cloud_cover < 20", "add archive.tables"),
        ("seed=-1", "seed=-1: give a whole number, 0 or above"),
        ("encoder.seed=-1", "encoder.seed=-1: give a whole number, 0 or above"),
        ("encoder.threads=0", "encoder.threads=0: give a whole number, 1 or above"),
        ("encoder.batch=-2", "encoder.batch=-2: give a whole number, 1 or above"),
        ("encoder.batch=many", "encoder.batch=many"),
        ("select.budget=inf", "select.budget=inf: give a fraction"),
        ("select.budget=nan", "select.budget=nan: give a fraction"),
        ("select.representativeness=nan", "select.representativeness"),
        ("select.clusters.weight={3:inf}", "select.clusters.weight"),
        ("select.strategy=best", "select.strategy=best: choose balanced, rs_prune"),
        ("select.score=best", "select.score=best: choose separability"),
        ("select.ccs.beta=1", "select.ccs.beta=1: give a share from 0"),
        ("select.ccs.strata=0", "select.ccs.strata=0: give 1"),
        ("select.sims.low=1.5", "select.sims.low=1.5: give a number from 0 to 1"),
        ("select.sims.sigma=0", "select.sims.sigma=0: give a positive number"),
        ("select.margin.alpha=nan", "select.margin.alpha=nan: give a number"),
        ("cluster.tol=-1", "cluster.tol"),
        ("cluster.levels=[0,5]", "cluster.levels"),
        ("plan.gpu_hour=-1", "plan.gpu_hour=-1"),
        ("archive.range=[5,1]", "archive.range"),
        ("archive.range=[]", "archive.range=[]: give [low, high]"),
        ("archive.range=[[]]", "give [low, high]"),
        ("archive.range=[0,x]", "give [low, high]"),
        ("archive.range=[[0,1],5]", "give [low, high]"),
        ("workspace", "key=value"),
        ("select.budget=[1", "[1"),
    ],
)
def test_a_wrong_request_is_one_line_with_status_2(override, says):
    with pytest.raises(RequestError) as error:
        load_config([override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["runtime.min_actors=3", "runtime.max_actors=2"], "runtime.max_actors"),
        (["select=rs_prune", "select.budget=0.4"], "lower select.budget, or raise select.entropy.keep"),
        (["select.entropy.keep=0.1", "select.budget=0.15"], "lower select.budget, or raise select.entropy.keep"),
        (["encoder=precomputed", "select=rs_prune"], "reads no pixels"),
        (["encoder=precomputed", "select=entropy"], "reads no pixels"),
        (["encoder=precomputed", "select.entropy.keep=0.5"], "reads no pixels"),
        (["encoder=precomputed", "encoder.threads=0"], "encoder.threads=0"),
        (["encoder=timm", "encoder.batch=0"], "encoder.batch=0"),
        (["select=k_center", "select.unit=source_id"], "cannot keep units whole: take one of balanced"),
        (["select=oracle", "select.place.overlap=0.5", "select.place.keep=unit"], "cannot keep units whole"),
        (["select=hierarchical", "select.clusters.weight={3: 2}"], "has no quotas by weight"),
    ],
)
def test_keys_that_do_not_go_together_are_one_line(overrides, says):
    with pytest.raises(RequestError) as error:
        load_config(overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["select=rs_prune", "select.budget=0.3"],
        ["select=rs_prune", "select.budget=5000"],
        ["select=rs_prune", "select.budget=0.4", "select.entropy.keep=null"],
        ["encoder=precomputed", "select=rs_prune", "select.entropy.keep=null"],
        ["encoder=precomputed", "select=random"],
        ["encoder=open_clip", "archive.range=[0,10000]"],
        ["archive.range=[[0,1],[0,2.5]]", "archive.nodata=nan"],
        ["select=facility_location", "select.clusters.weight={3: 0}"],
        ["select=hierarchical", "select.unit=source_id", "select.by=[season]"],
        ["runtime.gpus_per_actor=0.25", "runtime.decode_ahead=0", "cluster.levels=[3,9]"],
    ],
)
def test_what_can_be_done_is_let_through(overrides):
    load_config(overrides)


def test_what_must_be_given_is_asked_for():
    with pytest.raises(RequestError, match="archive.url=URL"):
        load_config([]).require("archive.url")


def test_the_bank_is_frozen_for_the_published_method_and_a_seed_otherwise():
    assert load_config([]).references_mode() == "none"
    assert load_config(["references.url=x"]).references_mode() == "seed"
    assert load_config(["references.url=x", "select=rs_prune"]).references_mode() == "frozen"
    assert load_config(["references.url=x", "cluster.references=none"]).references_mode() == "none"


def test_cluster_edits_and_storage_options_are_dictionaries():
    config = load_config(["select.clusters.weight={3:0.5}", "runtime.storage={s3:{anon:true}}"])
    assert config.select.clusters.weight == {3: 0.5}
    assert config.runtime.storage == {"s3": {"anon": True}}


def test_a_file_fills_mappings_and_chooses_presets_and_the_command_line_goes_over_it(tmp_path):
    file = tmp_path / "archive.yaml"
    file.write_text("""
archive: {url: s3://b/tiles, fields: {time: acquired}}
select: {exclude: bench.csv, budget: 0.2, balance: 0.9, splits: {test: 0.1}, clusters: {weight: {3: 0.5}}}
encoder: {name: timm, architecture: resnet18}
runtime: {storage: {s3: {anon: true}}, autoscale: {CPU: 8}}
""")
    config = load_config([f"config={file}"])
    assert config.archive.fields == {"time": "acquired"} and config.select.splits == {"test": 0.1}
    assert config.select.clusters.weight == {3: 0.5} and config.runtime.storage == {"s3": {"anon": True}}
    assert (config.encoder["name"], config.encoder["architecture"]) == ("timm", "resnet18")
    over = load_config([f"config={file}", "select=rs_prune", "encoder=random_conv", "select.budget=0.1"])
    assert (over.select.strategy, over.select.balance, over.select.entropy.keep) == ("rs_prune", 1.0, 0.3)  # its own
    assert (over.select.exclude, over.select.budget, over.encoder["name"]) == ("bench.csv", 0.1, "random_conv")
    again = load_config([f"config={file}", "encoder=timm"])
    assert again.encoder["architecture"] == "resnet18"
    assert load_config([f"config={file}", "++select.budget=0.3"]).select.budget == 0.3
    file.write_text("archive:\nselect: rs_prune\nencoder: open_clip")
    chosen = load_config([f"config={file}"])
    assert (chosen.select.strategy, chosen.encoder["name"]) == ("rs_prune", "open_clip")
    file.write_text("select: {name: rs_prune, budget: 0.3}")
    both = load_config([f"config={file}"]).select
    assert (both.strategy, both.entropy.keep, both.budget) == ("rs_prune", 0.3, 0.3)
    for text, says in (
        ("encoder: {filterz: 8}", "unknown key 'encoder.filterz' for encoder=random_conv"),
        ("select: rs_prun", "select=rs_prun: no such option"),
        ("archive: {urll: x}", "urll"),
        ("selct: {budget: 0.9}", "unknown key 'selct'; did you mean 'select'"),
        ("encoder: [random_conv]", "write encoder: {key: value"),
        ("encoder: {name: 3}", "write encoder: {key: value"),
        ("archive: tiles", "archive has no keys: write archive: {key: value"),
        ("select.budget: 0.3", "unknown key 'select.budget'"),
    ):
        file.write_text(text)
        with pytest.raises(RequestError, match=says):
            load_config([f"config={file}"])


@pytest.mark.parametrize(
    ("key", "says"),
    [("archive.scene=(.*)_(B\\d+)\\.tif", "give it the group"), ("archive.name_pattern=(", "is no regular expression")],
)
def test_patterns_are_checked_though_they_are_taken_as_typed(key, says):
    with pytest.raises(RequestError, match=says):
        load_config([key])


def test_random_and_entropy_compare_themselves_over_everything_and_balance_nothing():
    for preset in ("random", "entropy"):
        select = load_config([f"select={preset}"]).select
        assert (select.min_valid, select.max_cloud) == (None, None)
        with pytest.raises(RequestError, match="has no use for select.by"):
            load_config([f"select={preset}", "select.by=[season]"])
    for preset in ("balanced", "rs_prune"):
        select = load_config([f"select={preset}", "select.by=[season,region]"]).select
        assert (select.min_valid, select.max_cloud, select.by) == (0.5, 0.5, ["season", "region"])


def test_a_filter_is_taken_as_typed_and_tables_do_not_change_the_catalog():
    said = "cloud_cover < 20 and country in ['FR', \"ES\"]"
    tables = "archive.tables=[{path: s3://bucket/clouds.parquet, key: id, on: source_id}]"
    config = load_config([tables, f"archive.filter={said}"])
    assert config.archive.filter == said
    assert config.archive.tables == [{"path": "s3://bucket/clouds.parquet", "key": "id", "on": "source_id"}]
    assert catalog_id(load_config([tables])) == catalog_id(load_config([]))


def test_of_weights_the_content_counts_and_is_read_once(tmp_path, monkeypatch):
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))

    def with_weights(name, content):
        (tmp_path / name).write_bytes(content)
        config = load_config(["encoder=timm", "encoder.architecture=resnet18", f"encoder.checkpoint={tmp_path / name}"])
        return {catalog_id(config) for _ in range(3)}

    (first,) = with_weights("a.pt", b"some weights")
    assert read == [str(tmp_path / "a.pt")]
    assert with_weights("b.pt", b"some weights") == {first}
    assert with_weights("a.pt", b"other, longer weights") != {first} and len(read) == 3
