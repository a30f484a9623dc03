"""Imports run one way, as docs/design.md says."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import curation

PACKAGE = Path(curation.__file__).resolve().parent


def imports_of_modules() -> dict[str, set[str]]:
    """What each module imports of the package when it is imported itself; not what it imports later, or for types."""
    paths = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    names = {path: name.removesuffix(".__init__") for path, name in paths.items()}
    graph = {}
    for path, module in names.items():
        found = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "curation":
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in names.values() else node.module for name in whole}
        graph[module] = found - {"curation"}
    return graph


def folders(graph: dict[str, set[str]], folder: str) -> set[str]:
    """Folders and modules of the package that those of one folder import, but for itself."""
    found = {name for module, imports in graph.items() if module.split(".")[1:2] == [folder] for name in imports}
    return {name.split(".")[1] for name in found} - {folder}


def test_no_modules_import_each_other() -> None:
    graph = imports_of_modules()
    assert "curation.manifests.build" in graph["curation.stages"]
    TopologicalSorter(graph).prepare()  # raises where there is a cycle


def test_the_lower_folders_know_nobody_above_them() -> None:
    graph = imports_of_modules()
    assert folders(graph, "storage") == {"errors"}
    assert folders(graph, "archive") == {"errors", "storage"}
    assert folders(graph, "selection") == {"errors", "scoring"}  # the names of scores, which may be asked for
    assert {name for name in graph["curation.selection.settings"] if "scoring" in name} == {"curation.scoring.sim"}
