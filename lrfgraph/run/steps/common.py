"""What several steps need: the layer a node is about, the model of an entry, values kept within a process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrfgraph.engine.memory import BoundedCache
from lrfgraph.engine.nodes import Input, Task, digest
from lrfgraph.layers.spec import LayerSpec

__all__ = [
    "float32_network_of",
    "fresh_network_of",
    "geometry",
    "layer_of",
    "layers_of",
    "named_layer",
    "network_of",
    "save_model",
]

MODELS = BoundedCache(128 << 20, keep_last=True)
MODEL_LOCK = threading.Lock()
VARIABLE_BYTES = 128 << 10
"""What a model that has run holds besides the numbers, by variable: 1.2 MB with 10 of them, 5 MB with 56."""

GEOMETRY = (
    "kind",
    "kernel",
    "strides",
    "dilation",
    "padding",
    "output_padding",
    "depthwise",
    "input_shapes",
    "output_shapes",
)


def geometry(layer: LayerSpec) -> dict[str, Any]:
    """Return the part of a layer that its factorization and cost depend on: no name, no position in the network."""
    return {name: getattr(layer, name) for name in GEOMETRY}


def layer_of(params: Mapping[str, Any]) -> LayerSpec:
    return LayerSpec.from_json({"name": "", "class_name": "", **_lists(params["layer"])})


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value


def layers_of(model: Input) -> dict[str, LayerSpec]:
    return {layer["name"]: LayerSpec.from_json(layer) for layer in model.data["layers"]}


def network_of(entry: Input, trust: Mapping[str, Any]) -> Any:
    """Return the Keras model of an entry that holds one, loaded once per process.

    trust : what the recipe allows it to bring, ``custom`` and ``unsafe``, from the node's locators.
    """
    with MODEL_LOCK:
        at = str(entry.file("model.keras")), digest(dict(trust))
        return MODELS.get_or_make(at, lambda: fresh_network_of(entry, trust), _model_bytes)


def float32_network_of(entry: Input, trust: Mapping[str, Any]) -> Any:
    """Return the model as it computes in float32; one that computes in half precision has a second copy for it."""
    from lrfgraph.network.precision import is_half, to_single_precision

    model = network_of(entry, trust)
    if not is_half(model):
        return model
    with MODEL_LOCK:
        at = str(entry.file("model.keras")), digest(dict(trust)), "float32"
        return MODELS.get_or_make(at, lambda: to_single_precision(fresh_network_of(entry, trust)), _model_bytes)


def _model_bytes(model: Any) -> int:
    return 4 * int(model.count_params()) + VARIABLE_BYTES * len(model.variables)


def fresh_network_of(entry: Input, trust: Mapping[str, Any]) -> Any:
    """Load a model that is about to be changed, apart from the copy that others share."""
    from lrfgraph.network.opening.loading import load_model

    return load_model(entry.file("model.keras"), custom=trust["custom"], unsafe=trust["unsafe"])


def save_model(model: Any, folder: Path, name: str = "model.keras") -> Path:
    path = folder / name
    model.save(path)
    return path


def named_layer(task: Task) -> LayerSpec:
    """The layer that a node of a pass over the network is about."""
    by_name = {layer["name"]: layer for layer in task.inputs["model"].data["layers"]}
    return LayerSpec.from_json(by_name[task.locators["layer"]])
