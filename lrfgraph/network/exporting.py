"""A compressed model written to files, and the files proved by a fresh process that knows nothing of this package."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lrfgraph.errors import ModelError, OutputError
from lrfgraph.layers.spec import Array
from lrfgraph.network.counting import count, static_shapes
from lrfgraph.network.graph import flatten, input_structure
from lrfgraph.network.opening.archive import one_line
from lrfgraph.network.opening.loading import load_model, locate_operations
from lrfgraph.network.precision import rounding

__all__ = ["FORMATS", "export", "save", "verify_files"]


def save(model: Any, folder: Path) -> tuple[Path, ...]:
    """Write a model in every format into `folder`; raises OutputError."""
    paths = tuple(folder / name for name in FORMATS)
    with _quiet():
        for path in paths:
            try:
                FORMATS[path.name](model, path)
            except (OSError, ValueError, TypeError) as error:
                raise OutputError(f"{path}: cannot be written ({one_line(error)})") from error
    return paths


def _save_keras(model: Any, path: Path) -> None:
    model.save(path)


def _save_h5(model: Any, path: Path) -> None:
    model.save(path)
    _locate_operations_in(path)


FORMATS: dict[str, Callable[[Any, Path], None]] = {"compressed.keras": _save_keras, "compressed.h5": _save_h5}
"""The files that a compressed model is written to, and how each is written; Keras reads all of them."""


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
counts = {}
for name in task["files"]:
    model = keras.models.load_model(
        os.path.join(folder, name), compile=False, custom_objects=objects, safe_mode=not task["unsafe"])
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    outputs = keras.tree.flatten(model(keras.tree.pack_sequence_as(structure, arrays), training=False))
    for i, output in enumerate(outputs):
        array = np.asarray(output)
        array = array.astype("float32") if array.dtype.kind == "V" else array  # bfloat16, which no file knows
        np.save(os.path.join(task["arrays"], f"{name}.{i}.npy"), array, allow_pickle=False)
    counts[name] = {"parameters": int(model.count_params()), "outputs": len(outputs)}
print(json.dumps(counts))
"""


def export(
    model: Any, folder: Path, trust: Mapping[str, Any] | None = None, image_shape: Sequence[int] | None = None
) -> tuple[tuple[Path, ...], dict[str, Any], tuple[str, ...]]:
    """Write a model in every format that gives the same model back; returns the files, `verify_files`, and notes.

    What Keras writes and does not read is left out, with a note; raises ModelError where nothing is left.
    """
    paths = save(model, folder)
    try:
        return paths, verify_files(model, paths, trust, image_shape=image_shape), ()
    except ModelError as error:
        refusal = error
    good, reasons = [], []
    for path in paths:
        try:
            verify_files(model, [path], trust, image_shape=image_shape)
            good.append(path)
        except ModelError as error:
            reasons.append(f"{path.name} is left out: {error}")
            path.unlink()
    if not good:
        raise refusal
    return tuple(good), verify_files(model, good, trust, image_shape=image_shape), tuple(reasons)


def verify_files(
    model: Any,
    paths: Sequence[Path],
    trust: Mapping[str, Any] | None = None,
    x: Any = None,
    tolerance: float = 1e-6,
    image_shape: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Reload the written files in a fresh process that cannot import lrfgraph, and compare their outputs.

    paths : of the files, in one folder.  x : input (an array, or the structure the model takes); random numbers if
    left out.  trust : ``custom`` and ``unsafe`` as `load_model` takes them.  image_shape : at which MACs are counted
    where the model takes any size.
    Returns ``parameters`` and ``macs`` counted on the written file and ``difference``, the largest over all files,
    relative to the output's scale.  Raises ModelError where a file does not reload or the outputs differ by more than
    `tolerance`, or the rounding of half precision.
    """
    import keras

    trust = trust or {}
    values = [np.asarray(v) for v in keras.tree.flatten(_random_input(model) if x is None else x)]
    packed = keras.tree.pack_sequence_as(input_structure(model), values)
    expected = [np.asarray(y).astype(np.float64) for y in keras.tree.flatten(model(packed, training=False))]
    tolerance = max(tolerance, 4 * rounding(model))
    with tempfile.TemporaryDirectory() as arrays:
        for index, value in enumerate(values):
            np.save(Path(arrays) / f"{index}.npy", value, allow_pickle=False)
        counts = _reload(paths, Path(arrays), len(values), trust)
        worst = 0.0
        for name, counted in counts.items():
            outputs = [np.load(Path(arrays) / f"{name}.{i}.npy", allow_pickle=False) for i in range(counted["outputs"])]
            difference = max(_difference(y, z) for y, z in zip(expected, outputs, strict=True))
            if not difference <= tolerance:
                raise ModelError(
                    f"{paths[0].parent / name}: its outputs differ by {difference:.1e} of their scale once reloaded"
                )
            worst = max(worst, difference)
    parameters = {counted["parameters"] for counted in counts.values()}
    if len(parameters) != 1:
        raise ModelError(f"{paths[0].parent}: the written files have different parameter counts {sorted(parameters)}")
    reloaded = load_model(paths[0], custom=trust.get("custom", ()), unsafe=bool(trust.get("unsafe", False)))
    macs = count(reloaded, tuple(image_shape) if image_shape else None).macs
    return {"parameters": parameters.pop(), "macs": macs, "difference": worst}


def _reload(paths: Sequence[Path], arrays: Path, inputs: int, trust: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Run the fresh process on inputs in `arrays`, where it leaves its outputs; return counts by file."""
    custom = [text.split(":") for text in trust.get("custom", ())]
    task = {
        "files": [path.name for path in paths],
        "arrays": str(arrays),
        "inputs": inputs,
        "custom": custom,
        "unsafe": bool(trust.get("unsafe", False)),
        "path": sys.path if custom else [],
    }
    process = _fresh_process([_FRESH, str(paths[0].parent), json.dumps(task)])
    if process.returncode:
        reason = process.stderr.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        names = ", ".join(path.name for path in paths)
        raise ModelError(f"{names} cannot be read in a fresh process ({one_line(reason[0])})")
    counts: dict[str, dict[str, int]] = json.loads(process.stdout.strip().splitlines()[-1])
    return counts


def _fresh_process(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program, its text and its arguments, in a Python of its own."""
    return subprocess.run([sys.executable, "-I", "-c", *arguments], capture_output=True, text=True, check=False)


def _difference(expected: Array, received: Array) -> float:
    if expected.shape != received.shape:
        return float("inf")
    scale = float(np.max(np.abs(expected), initial=0.0)) or 1.0
    return float(np.max(np.abs(expected - received), initial=0.0)) / scale


def _random_input(model: Any, images: int = 4) -> list[Array]:
    graph = flatten(model)
    shapes = static_shapes(graph, model)
    rng = np.random.default_rng(0)
    return [
        rng.random((tensor.shape[0] or images, *shapes[slot][1:])).astype(tensor.dtype)
        for slot, tensor in zip(graph.inputs, model.inputs, strict=True)
    ]
