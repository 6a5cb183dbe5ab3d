"""What a model file would run is refused before anything reads it, unless the user named it or trusts the file.

The configuration is judged as JSON: classes that carry code, classes nobody knows, models that live in Python code.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lrfgraph.engine.nodes import digest
from lrfgraph.errors import ModelError
from lrfgraph.network.opening.archive import one_line
from lrfgraph.network.sources import LIBRARIES

__all__ = ["Config", "absent", "as_dict", "code_digest", "custom_objects", "entries", "screen"]

Config = dict[str, Any]

RUNS_CODE = {  # classes whose configuration carries code, or names files that do
    "Lambda",
    "TFSMLayer",
    "TorchModuleWrapper",
    "JaxLayer",
    "FlaxLayer",
    "__lambda__",
    "__typespec__",
    "__callable__",
}
OLD_OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "ClassMethod", "InstanceProperty")
FUNCTION_MODULES = (
    "builtins",
    "keras.activations",
    "keras.initializers",
    "keras.regularizers",
    "keras.ops",
    "keras.src",
)
PLAIN = {
    "__keras_tensor__",
    "__tensor__",
    "__numpy__",
    "__bytes__",
    "__ellipsis__",
    "__slice__",
    "__tuple__",
    "function",
}
GRAPHS = {"Sequential", "Functional"}
NAMESPACES = ("layers", "models", "initializers", "regularizers", "constraints", "activations", "dtype_policies")


def custom_objects(custom: Sequence[str]) -> dict[str, Any]:
    """Import ``package.module:Name``; raises ModelError saying which part is not there."""
    objects = {}
    for text in custom:
        module, _, name = text.partition(":")
        if not module or not name:
            raise ModelError(f"--custom {text!r}: expected package.module:Name")
        try:
            objects[name] = getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise ModelError(f"--custom {text!r}: {module} cannot be imported ({one_line(error)})") from error
        except AttributeError as error:
            raise ModelError(f"--custom {text!r}: {module} has no {name}") from error
    return objects


def code_digest(custom: Sequence[str]) -> str:
    """Return the digest of the files of ``package.module:Name``, and of all that they import beside them.

    Nothing is imported. What is installed is a library, whose version is written beside the results.
    """
    texts: dict[str, str] = {}
    pending = [text.partition(":")[0] for text in custom]
    while pending:
        module = pending.pop()
        known = module in texts or module.split(".")[0] in LIBRARIES
        path = None if known else _source_file(module)
        if path is not None:
            texts[module] = path.read_text(encoding="utf-8", errors="replace")
            pending += _imported(texts[module], module, path.name == "__init__.py")
    return digest(texts)


def absent(text: str) -> str:
    """Say what is not there of ``package.module:function``, ``""`` where it is, or may be; nothing is imported."""
    module, _, name = text.partition(":")
    if module in sys.modules:
        return "" if hasattr(sys.modules[module], name) else f"{module} has no function {name}"
    path = _source_file(module)
    if path is None:
        top = module.partition(".")[0]
        return "" if top in sys.modules or find_spec(top) else f"{module} cannot be imported (there is no such module)"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except SyntaxError as error:
        return f"{path} is no Python ({error.msg}, line {error.lineno})"
    dynamic = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    names = set(_bound(tree))
    return "" if dynamic or name in names or "__getattr__" in names else f"{module} has no function {name}"


def _bound(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module's statements bind, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _source_file(module: str) -> Path | None:
    """Return the file of a module that is not installed, without importing the packages it is in."""
    for folder in map(Path, sys.path):
        stem = folder.joinpath(*module.split("."))
        for path in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if path.is_file():
                return None if {"site-packages", "dist-packages"} & set(path.parts) else path
    return None


def _imported(text: str, module: str, package: bool) -> Iterator[str]:
    """Yield the names of the modules that a source may import, packages around them included.

    package : whether the source is a package's own, from which one dot means the package itself.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = module.split(".")
            parent = around[: len(around) - node.level + package] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in filter(None, names):
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def entries(config: Config) -> Iterator[tuple[Config, str]]:
    """Yield every serialized object in a configuration and the name of the layer it belongs to."""
    pending: list[tuple[Any, str]] = [(config, str(config["class_name"]))]
    while pending:
        value, owner = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str):
                inner = value.get("config")
                name = inner.get("name") if isinstance(inner, dict) else None
                owner = name if isinstance(name, str) and value["class_name"] not in PLAIN else owner
                yield value, owner
            pending += [(item, owner) for item in value.values()]
        elif isinstance(value, list):
            pending += [(item, owner) for item in value]


def as_dict(value: Any) -> Config:
    return value if isinstance(value, dict) else {}


def _known(entry: Config, objects: Mapping[str, Any]) -> bool:
    """Whether a serialized object is one of Keras' own or was supplied."""
    import keras

    name, registered = entry["class_name"], entry.get("registered_name")
    if name in objects or registered in objects or keras.saving.get_registered_object(registered or "") is not None:
        return True
    module = entry.get("module")
    if name == "function":
        function = entry.get("config")
        return function in objects or (isinstance(module, str) and module.startswith(FUNCTION_MODULES))
    if "module" not in entry:
        return name in PLAIN | GRAPHS or any(hasattr(getattr(keras, space), name) for space in NAMESPACES)
    return name in PLAIN or (isinstance(module, str) and module.split(".")[0] == "keras")


def screen(config: Config, objects: Mapping[str, Any], unsafe: bool, path: Path | str) -> None:
    """Refuse what would run code and what nobody knows, before Keras reads the configuration."""
    class_name = config["class_name"]
    if not (class_name in GRAPHS and str(config["module"]).startswith("keras")) and class_name not in objects:
        raise ModelError(
            f"{path}: {class_name} is a subclassed model, whose layers live in Python code and not in the file; save "
            "a Functional or Sequential model with the same weights"
        )
    for entry, owner in entries(config):
        name = entry["class_name"]
        if name in RUNS_CODE and not unsafe:
            raise ModelError(
                f"{path}: layer {owner} is a {name.strip('_')} and would run code from the file; replace it by "
                "a built-in layer (Rescaling for a scaling), or trust the file with --unsafe"
            )
        if name in OLD_OPERATIONS:
            what = as_dict(entry.get("config")).get("function", name)
            raise ModelError(
                f"{path}: layer {owner} is the TensorFlow operation {what}, which Keras 3 does not read; replace it "
                "by a layer (Add, Activation, ReLU, …) and save again"
            )
        if not (_known(entry, objects) or name in RUNS_CODE):
            what = entry["config"] if name == "function" else name
            raise ModelError(f"{path}: layer {owner} needs {what}; supply it with --custom package.module:{what}")
