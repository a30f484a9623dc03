"""Requests that cannot be: status 2, one line, and nothing written."""

import os

import pytest

from tests.command import curate
from tests.recipes import write_rgb_archive


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["archive.url={none}"], "none"),
        (["select.budget=-3"], "select.budget=-3"),
        (["archive.bands=[B99]"], "no band B99"),
        (["archive.range=[[0,1],[0,1]]"], "archive.range"),
        (["references.url={none}"], "none"),
        (["select.budget=100000"], "100000"),
        (["workspace=/proc/nowhere"], "cannot write"),
        (
            ["archive.url=s3://no-such-bucket-anywhere/x", "runtime.storage={s3:{endpoint_url:'http://127.0.0.1:9'}}"],
            "",
        ),
        (["unknown.key=1"], "unknown key"),
        (["archive.url={references: {archive}}"], "another name"),
        (["runtime.device=cuda"], "GPU"),
    ],
)
def test_a_wrong_request(sample_archive, tmp_path, overrides, says):
    workspace = tmp_path / "ws"
    none = tmp_path / "none"
    given = [
        text.format(none=none, archive=sample_archive) if "{none}" in text or "{archive}" in text else text
        for text in overrides
    ]
    outcome = curate("prune", f"archive.url={sample_archive / 'archive'}", f"workspace={workspace}", *given)
    assert outcome.status == (2 if "s3://" not in given[0] else outcome.status)
    assert outcome.status in (1, 2)
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert says in outcome.stderr.splitlines()[-1]
    assert not (workspace / "manifests").exists()


def test_a_bank_of_other_bands_is_refused(sample_archive, tmp_path):
    write_rgb_archive(tmp_path / "bank")
    outcome = curate(
        "prune",
        f"archive.url={sample_archive / 'archive'}",
        f"references.url={tmp_path / 'bank'}",
        f"workspace={tmp_path / 'ws'}",
    )
    assert outcome.status == 2
    assert "bank" in outcome.stderr.splitlines()[-1]


def test_help_and_unknown_jobs():
    assert curate("--help").status == 0
    assert curate("prune", "--help").status == 0
    unknown = curate("prunne")
    assert unknown.status == 2
    assert "prune" in unknown.stderr


def test_an_unwritable_workspace(sample_archive, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    outcome = curate("prune", f"archive.url={sample_archive / 'archive'}", f"workspace={tmp_path / 'ws'}")
    assert outcome.status == 2
