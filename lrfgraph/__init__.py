"""Low-rank compression of trained Keras CNNs as an incremental task graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrfgraph.options.recipe import Recipe
    from lrfgraph.python.compress import compress, inspect, plan, prune, train
    from lrfgraph.report.result import Result

__all__ = ["Recipe", "Result", "__version__", "compress", "inspect", "plan", "prune", "train"]

__version__ = "0.1.0"

_HOMES = {"Recipe": "lrfgraph.options.recipe", "Result": "lrfgraph.report.result"}
_HOMES |= dict.fromkeys(("compress", "inspect", "plan", "prune", "train"), "lrfgraph.python.compress")


def __getattr__(name: str) -> Any:
    # Loaded when first used: the command line's --help imports none of it.
    if name not in _HOMES:
        raise AttributeError(f"module 'lrfgraph' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
