"""What several steps need: the layer a node is about, the model of an entry, values kept within a process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrfgraph.engine.memory import BoundedCache
from lrfgraph.engine.nodes import Input
from lrfgraph.layers.spec import LayerSpec

__all__ = ["float32_network_of", "fresh_network_of", "geometry", "layer_of", "layers_of", "network_of", "save_model"]

MODELS = BoundedCache(256 << 20, keep_last=True)
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


def network_of(entry: Input) -> Any:
    """Return the Keras model of an entry that holds one, loaded once per process."""
    with MODEL_LOCK:
        return MODELS.get_or_make(str(entry.file("model.keras")), lambda: fresh_network_of(entry), _model_bytes)


def float32_network_of(entry: Input) -> Any:
    """Return the model as it computes in float32; one that computes in half precision has a second copy for it."""
    from lrfgraph.network.precision import is_half, to_single_precision

    model = network_of(entry)
    if not is_half(model):
        return model
    key = f"{entry.file('model.keras')} in float32"
    with MODEL_LOCK:
        return MODELS.get_or_make(key, lambda: to_single_precision(fresh_network_of(entry)), _model_bytes)


def _model_bytes(model: Any) -> int:
    return 4 * int(model.count_params()) + VARIABLE_BYTES * len(model.variables)


def fresh_network_of(entry: Input) -> Any:
    """Load a model that is about to be changed, apart from the copy that others share."""
    from lrfgraph.network.opening.loading import load_model

    trust = entry.data.get("trust", {})
    return load_model(entry.file("model.keras"), custom=trust.get("custom", ()), unsafe=trust.get("unsafe", False))


def save_model(model: Any, folder: Path, name: str = "model.keras") -> Path:
    path = folder / name
    model.save(path)
    return path
