"""Imports go one way through the rooms, and nothing heavy is loaded before it is used."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lrfgraph

PACKAGE = Path(lrfgraph.__file__).parent

ROOMS = (
    "errors",
    "layers",
    "methods",
    "pruning",
    "options",
    "demo",
    "engine",
    "images",
    "selection",
    "network",
    "run",
    "api",
    "report",
    "commands",
    "python",
    "cli",
    "__main__",
)
"""A file imports from its own room and from those before it."""

HEAVY = {
    "tensorflow", "keras", "scipy", "zarr", "dask", "distributed", "h5py", "tensorly", "PIL", "matplotlib", "rich",
    "threadpoolctl", "pandas",
}  # fmt: skip
KERAS_ROOM = "network"
TREES = {
    path: ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.name != "__init__.py"
}
"""What is written in every file of a room."""


def room_of(module: str) -> str:
    return module.split(".")[1]


def module_of(path: Path) -> str:
    return ".".join(("lrfgraph", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full names of the modules that a tree imports (``from a import b`` as ``a.b`` too)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_module_level(tree: ast.Module) -> ast.Module:
    """Return a tree without what runs only when it is called or checked."""

    class Outermost(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.If | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else node

    return Outermost().visit(copy.deepcopy(tree))


def test_every_room_is_listed() -> None:
    assert {room_of(module_of(path)) for path in TREES} == set(ROOMS)


def test_imports_go_one_way() -> None:
    violations = [
        f"{module_of(path)} imports {name}"
        for path, tree in TREES.items()
        for name in imported(tree)
        if name.startswith("lrfgraph.")
        and name != "lrfgraph.__version__"
        and ROOMS.index(room_of(name)) > ROOMS.index(room_of(module_of(path)))
    ]
    assert not violations


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    violations = [
        f"{module_of(path)} imports {name}"
        for path, tree in TREES.items()
        for name in imported(at_module_level(tree))
        if name.split(".")[0] in HEAVY
    ]
    assert not violations


def test_only_network_knows_keras() -> None:
    violations = [
        f"{module_of(path)} imports {name}"
        for path, tree in TREES.items()
        for name in imported(tree)
        if name.split(".")[0] in ("tensorflow", "keras") and room_of(module_of(path)) != KERAS_ROOM
    ]
    assert not violations


def test_engine_knows_neither_keras_nor_low_rank() -> None:
    violations = [
        f"{module_of(path)} imports {name}"
        for path, tree in TREES.items()
        for name in imported(tree)
        if room_of(module_of(path)) == "engine"
        and name.startswith("lrfgraph.")
        and room_of(name) not in ("engine", "errors", "__version__")
    ]
    assert not violations


@pytest.mark.parametrize(
    "module", ["lrfgraph.cli", "lrfgraph.api", "lrfgraph.commands.plan", "lrfgraph.python.compress"]
)
def test_nothing_heavy_is_loaded_with(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


def test_no_file_is_longer_than_a_room() -> None:
    assert not [module_of(path) for path in TREES if len(path.read_text().splitlines()) > 400]
