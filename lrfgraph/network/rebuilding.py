"""A configuration turned into a model of plain Keras layers, everything it does not name untouched."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lrfgraph.errors import LayerError, ModelError, OutputError
from lrfgraph.layers.spec import Array
from lrfgraph.network.counting import count, static_shapes
from lrfgraph.network.graph import flatten, input_structure
from lrfgraph.network.keras_layers import Chain, Made, make_layers
from lrfgraph.network.opening.archive import one_line
from lrfgraph.network.opening.loading import load_model, locate_operations

__all__ = ["FILES", "Chain", "count", "rebuild", "save", "verify_files"]

FILES = ("compressed.keras", "compressed.h5")


def rebuild(model: Any, chains: Mapping[str, Chain]) -> Any:
    """Return a new model in which every layer that `chains` names (by its path) is its chain.

    Nested models stay nested, shared layers shared, inputs and outputs keep their structure.  Raises LayerError where
    a path is unknown or a chain does not fit its layer.
    """
    program = flatten(model)
    paths = {call.path: call.operation for call in program.calls}
    unknown = [path for path in chains if path not in paths]
    if unknown:
        raise LayerError(f"{unknown[0]}: the model has no such layer; choose from {', '.join(list(paths)[:8])} …")
    names = {name for path in paths for name in path.split("/")}
    wanted = {}
    for path, chain in chains.items():
        operation = paths[path]
        shape = next(program.shapes[c.inputs[0]] for c in program.calls if c.operation is operation)
        wanted[id(operation)] = make_layers(operation, chain, shape, names)
    cloner = _Cloner(wanted)
    rebuilt = cloner.graph(model)
    cloner.fill()
    return rebuilt


class _Cloner:
    """Clones graphs of layers, each layer once however often it is used, and fills the clones with weights."""

    def __init__(self, wanted: Mapping[int, Made]) -> None:
        self.wanted = wanted
        self.clones: dict[int, Any] = {}
        self.pairs: list[tuple[Any, Any]] = []

    def graph(self, model: Any) -> Any:
        import keras

        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        rebuilt = keras.models.clone_model(model, call_function=_call, clone_function=self.operation)
        rebuilt.trainable = model.trainable if not model.trainable else rebuilt.trainable
        return rebuilt

    def _sequential(self, model: Any) -> Any:
        import keras

        layers: list[Any] = []
        first = model._layers[0]
        if isinstance(first, keras.layers.InputLayer):
            layers.append(keras.Input(batch_shape=first.batch_shape, dtype=first.dtype, name=first.name))
        for layer in model.layers:
            made = self.operation(layer)
            layers += made.layers if isinstance(made, Made) else [made]
        rebuilt = keras.Sequential(layers, name=model.name)
        if not rebuilt.built:
            rebuilt.build(model.input_shape)
        return rebuilt

    def operation(self, operation: Any) -> Any:
        import keras

        key = id(operation)
        if key in self.wanted:
            return self.wanted[key]
        if key not in self.clones:
            if isinstance(operation, keras.Sequential) or hasattr(operation, "_nodes_by_depth"):
                self.clones[key] = self.graph(operation)
            else:
                self.clones[key] = type(operation).from_config(operation.get_config())
                self.pairs.append((operation, self.clones[key]))
        return self.clones[key]

    def fill(self) -> None:
        for old, new in self.pairs:
            for source, target in zip(getattr(old, "variables", ()), getattr(new, "variables", ()), strict=True):
                target.assign(source)
        for made in self.wanted.values():
            for layer, weights in zip(made.layers, made.weights, strict=True):
                if weights:
                    layer.set_weights(weights)


def _call(operation: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(operation, Made):
        return operation(*args, **kwargs)
    value = args[0] if args else kwargs["inputs"]
    for layer in operation.layers:
        value = layer(value)
    return value


# files --------------------------------------------------------------------------------------------------------------


def save(model: Any, folder: Path) -> tuple[Path, ...]:
    """Write ``compressed.keras`` and ``compressed.h5`` into `folder`; raises OutputError."""
    written = tuple(folder / name for name in FILES)
    with _quiet():
        for path in written:
            try:
                model.save(path)
                if path.suffix == ".h5":
                    _locate_operations_in(path)
            except (OSError, ValueError, TypeError) as error:
                raise OutputError(f"{path}: cannot be written ({one_line(error)})") from error
    return written


def _locate_operations_in(path: Path) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        if locate_operations(config):
            del file.attrs["model_config"]
            file.attrs["model_config"] = json.dumps(config).encode()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warning that HDF5 is a legacy format: it is asked for."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


_FRESH = """
import importlib, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.modules["lrfgraph"] = None
folder, task = sys.argv[1], json.loads(sys.argv[2])
sys.path += task["path"]
import numpy as np
import keras
objects = {n: getattr(importlib.import_module(m), n) for m, n in task["custom"]}
arrays = [np.load(os.path.join(task["arrays"], f"{i}.npy"), allow_pickle=False) for i in range(task["inputs"])]
found = {}
for name in task["files"]:
    model = keras.models.load_model(
        os.path.join(folder, name), compile=False, custom_objects=objects, safe_mode=not task["unsafe"])
    taken = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    outputs = keras.tree.flatten(model(keras.tree.pack_sequence_as(taken, arrays), training=False))
    for i, output in enumerate(outputs):
        np.save(os.path.join(task["arrays"], f"{name}.{i}.npy"), np.asarray(output), allow_pickle=False)
    found[name] = {"parameters": int(model.count_params()), "outputs": len(outputs)}
print(json.dumps(found))
"""


def verify_files(
    model: Any,
    folder: Path,
    trust: Mapping[str, Any] | None = None,
    x: Any = None,
    tolerance: float = 1e-6,
    image_shape: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Reload both written files in a fresh process that cannot import lrfgraph, and compare their outputs.

    x : input (an array, or the structure the model takes); random numbers if left out.  trust : ``custom`` and
    ``unsafe`` as `load_model` takes them.  image_shape : at which MACs are counted where the model takes any size.
    Returns ``parameters`` and ``macs`` counted on the written file and ``difference``, the largest over both files,
    relative to the output's scale.  Raises ModelError where a file does not reload or the outputs differ by more than
    `tolerance`.
    """
    import keras

    trust = trust or {}
    values = [np.asarray(v) for v in keras.tree.flatten(_random_input(model) if x is None else x)]
    packed = keras.tree.pack_sequence_as(input_structure(model), values)
    expected = [np.asarray(y) for y in keras.tree.flatten(model(packed, training=False))]
    with tempfile.TemporaryDirectory() as arrays:
        for index, value in enumerate(values):
            np.save(Path(arrays) / f"{index}.npy", value, allow_pickle=False)
        custom = [text.split(":") for text in trust.get("custom", ())]
        task = {
            "files": FILES,
            "arrays": arrays,
            "inputs": len(values),
            "custom": custom,
            "unsafe": bool(trust.get("unsafe", False)),
            "path": sys.path if custom else [],
        }
        command = [sys.executable, "-I", "-c", _FRESH, str(folder), json.dumps(task)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise ModelError(f"{folder}: the written files do not reload in a fresh process ({one_line(reason[0])})")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        worst = 0.0
        for name, told in found.items():
            outputs = [np.load(Path(arrays) / f"{name}.{i}.npy", allow_pickle=False) for i in range(told["outputs"])]
            difference = max(_difference(y, z) for y, z in zip(expected, outputs, strict=True))
            if not difference <= tolerance:
                raise ModelError(
                    f"{folder / name}: its outputs differ by {difference:.1e} of their scale once reloaded"
                )
            worst = max(worst, difference)
    parameters = {told["parameters"] for told in found.values()}
    if len(parameters) != 1:
        raise ModelError(f"{folder}: the two written files have different parameter counts {sorted(parameters)}")
    reloaded = load_model(folder / FILES[0], custom=trust.get("custom", ()), unsafe=bool(trust.get("unsafe", False)))
    macs = count(reloaded, tuple(image_shape) if image_shape else None).macs
    return {"parameters": parameters.pop(), "macs": macs, "difference": worst}


def _difference(expected: Array, received: Array) -> float:
    if expected.shape != received.shape:
        return float("inf")
    scale = float(np.max(np.abs(expected), initial=0.0)) or 1.0
    return float(np.max(np.abs(expected.astype(np.float64) - received), initial=0.0)) / scale


def _random_input(model: Any, images: int = 4) -> list[Array]:
    program = flatten(model)
    shapes = static_shapes(program, model)
    rng = np.random.default_rng(0)
    return [
        rng.random((tensor.shape[0] or images, *shapes[slot][1:])).astype(tensor.dtype)
        for slot, tensor in zip(program.inputs, model.inputs, strict=True)
    ]
