"""What people type: every wrong request is one line that says how to mend it; paths are taken as typed."""

import pytest

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
        ("select=best", "balanced, entropy, random, rs_prune"),
        ("encoder=best", "random_conv"),
        ("encoder.nothing=1", "unknown key 'encoder.nothing'"),
        ("select.balance=2", "select.balance"),
        ("cluster.references=frozen", "references.url"),
        ("cluster.references=warm", "frozen, seed or none"),
        ("runtime.max_actors=0", "runtime.max_actors"),
        ("runtime.storage={s3:{secret:hunter2}}", "secret"),
        ("archive.range=[5,1]", "archive.range"),
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
