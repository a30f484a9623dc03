"""Named curations of one real workspace: what gc leaves of them is whole, down to the archive's bytes."""

import json
import shutil
import time
from pathlib import Path

from curation.manifests.collect import collect
from curation.manifests.diff import diff
from curation.manifests.explain import explain
from curation.manifests.latest import read_latest
from curation.manifests.verify import verify
from curation.storage import Folder
from jobs import select
from tests.conftest import Pruned

TWO_DAYS = 2 * 86_400


def test_a_workspace_of_two_curations(ray_local: None, pruned: Pruned, tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    shutil.copytree(pruned.workspace, folder)
    workspace, manifests = Folder(str(folder)), folder / "manifests"
    first = pruned.folder.name
    assert read_latest(workspace, None).id == first
    assert json.loads((manifests / "latest.json").read_text()) == {"id": first}
    more = select.run([*pruned.arguments, f"workspace={folder}", "name=more", "select.budget=0.3", "cluster.k=9"])
    second = more["manifest"].split("/")[-2]
    assert (read_latest(workspace, None).id, read_latest(workspace, "more").id) == (first, second)

    told = diff(str(manifests / "latest.json"), str(manifests / "latest-more.json"))
    assert told["kept"]["after"] == more["kept"] and told["clusters"] == "other"
    assert {row["name"] for row in told["by"]["class"]["most"]} - {"?"}

    later = time.time() + TWO_DAYS
    assert collect(workspace, 0, remove=True, now=later)["manifests"]["count"] == 0
    (manifests / "latest.json").unlink()
    removed = collect(workspace, 0, remove=True, now=later)
    assert removed["manifests"]["first"] == [first] and removed["left"]["count"] == 0
    assert [name.partition("/")[0] for name in removed["folders"]["first"]] == ["clusters", "reports"]
    whole = verify(str(manifests / "latest-more.json"), deep=True)
    assert whole["problems"] == [] and whole["read"] == more["kept"]
    assert explain(str(manifests / "latest-more.json"), _key(folder, second))["decision"] == "kept"


def _key(folder: Path, id: str) -> str:
    import pyarrow.parquet as pq

    return str(pq.read_table(folder / f"manifests/{id}/manifest.parquet", columns=["key"])["key"][0].as_py())
