"""Policy `given`: a configuration written by hand is taken as it is."""

from __future__ import annotations

from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.problem import Decision, Problem, keep, take

__all__ = ["POLICY"]


def given(problem: Problem, options: SelectOptions) -> Decision:
    """What `--configuration` says: each layer's only candidate; a layer without one is kept."""
    choices = [
        take(layer.candidates[0]) if layer.candidates else keep(layer, "kept by the configuration")
        for layer in problem.layers
    ]
    return Decision.of("given", problem, choices)


POLICY = Policy(
    "given", decide=given, needs=frozenset({"curvature"}), implied_by=("configuration",), public=False
)  # the curvature is repair's: it says which errors of a layer's outputs count
