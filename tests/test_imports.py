"""Imports run one way, as docs/design.md says."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import curation

PACKAGE = Path(curation.__file__).resolve().parent


def imports(body: list[ast.stmt]) -> Iterator[str]:
    """What a module imports when it is imported itself; not what it imports later, or for types."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not counted"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Try):
            yield from imports([*node.body, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from imports([*node.body, *node.orelse])


def graph() -> dict[str, set[str]]:
    """Of each module of the package the others that it imports."""
    paths = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    modules = {path: name.removesuffix(".__init__") for path, name in paths.items()}
    known = {*modules.values()} - {"curation"}
    found = {path: set(imports(ast.parse(path.read_text()).body)) for path in modules}
    return {
        module: {name if name in known else name.rpartition(".")[0] for name in found[path]} & known
        for path, module in modules.items()
    }


def imported_by(folder: str) -> set[str]:
    """Folders and modules of the package that those of one folder import, but for itself."""
    found = {name for module, names in graph().items() if module.split(".")[1:2] == [folder] for name in names}
    return {name.split(".")[1] for name in found} - {folder}


def test_no_modules_import_each_other() -> None:
    assert "curation.manifests.build" in graph()["curation.stages"]
    TopologicalSorter(graph()).prepare()  # raises where there is a cycle


def test_the_lower_folders_know_nobody_above_them() -> None:
    assert imported_by("storage") == {"errors"}
    assert imported_by("archive") == {"errors", "storage"}
    assert imported_by("selection") == {"errors", "scoring"}  # names of scores, and how alike two tiles are
