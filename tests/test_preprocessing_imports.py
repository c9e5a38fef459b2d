"""Modules of `preprocessing` import one another without a circle, and nobody uses a module's private names."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "preprocessing"
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(path: Path) -> list[tuple[str, str]]:
    """Module and name of all `from` imports within the package, in functions as well."""
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom))
    return [(node.module or "", alias.name) for node in nodes for alias in node.names if node.module in FILES]


def test_modules_import_one_another_without_a_circle() -> None:
    graph = {name: {module for module, _ in imports(path)} - {"preprocessing"} for name, path in FILES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", FILES)
def test_no_private_name_is_imported(name: str) -> None:
    assert not [imported for imported in imports(FILES[name]) if imported[1].startswith("_")]


@pytest.mark.parametrize("room", ["readers", "sources", "phantom"])
def test_a_room_is_entered_by_its_public_names(room: str) -> None:
    """Boxes and masks beside films are a door of their own: with the classes of boxes they bring the cache's format."""
    inside, doors = f"preprocessing.{room}", {f"preprocessing.{room}", "preprocessing.sources.annotations"}
    for name, path in FILES.items():
        if not name.startswith(inside):
            assert {module for module, _ in imports(path) if module.startswith(inside)} <= doors, name
