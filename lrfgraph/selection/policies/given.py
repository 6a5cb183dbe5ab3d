"""Policy `given`: a configuration written by hand is taken as it is."""

from __future__ import annotations

from typing import Any

from lrfgraph.selection.problem import Choice, Decision, Problem, keep

__all__ = ["given"]


def given(problem: Problem, options: Any) -> Decision:
    """Take each layer's only candidate; a layer without one is kept."""
    return Decision(
        tuple(
            Choice(layer.name, layer.candidates[0]) if layer.candidates else keep(layer, "kept by the configuration")
            for layer in problem.layers
        )
    )
