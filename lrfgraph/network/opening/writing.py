"""A Keras model that a program holds, as a file: what a run stands on lies on disk, and is known by its content."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lrfgraph.errors import ModelError
from lrfgraph.network.opening.archive import one_line
from lrfgraph.network.sources import is_library

__all__ = ["custom_names", "is_keras_model", "write_model"]


def is_keras_model(value: Any) -> bool:
    """Say whether a value is a Keras model; Keras is not imported for it."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.Model)


def custom_names(model: Any) -> tuple[str, ...]:
    """Return the classes of a model's layers that are not Keras' own, as ``package.module:Name``.

    Raises ModelError for one that no module has: other processes, and later runs, could not open the model.
    """
    names: dict[str, None] = {}
    for layer in model._flatten_layers(include_self=False):
        cls = type(layer)
        if is_library(cls):
            continue
        if cls.__module__ == "__main__" or getattr(sys.modules.get(cls.__module__), cls.__name__, None) is not cls:
            raise ModelError(
                f"layer {layer.name} is of class {cls.__qualname__} in {cls.__module__}, which cannot be imported from "
                "elsewhere; define it in a module of its own"
            )
        names[f"{cls.__module__}:{cls.__name__}"] = None
    return tuple(names)


def write_model(model: Any, path: Path) -> None:
    """Write a model as a ``.keras`` file; raises ModelError where Keras cannot."""
    try:
        model.save(path)
    except OSError:
        raise
    except Exception as error:  # Keras raises nearly anything
        raise ModelError(f"model {model.name} cannot be saved ({one_line(error)}); mend it, or give a file") from None
