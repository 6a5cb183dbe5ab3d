"""Policy `budget`: the least predicted loss of the whole network within a budget (METHODS §5.3)."""

from __future__ import annotations

from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.knapsack import solve
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.problem import Decision, Problem, require

__all__ = ["POLICY"]


def budget(problem: Problem, options: SelectOptions) -> Decision:
    """The least predicted loss of the whole network that keeps to `--params` and/or `--macs`."""
    if options.params is None and options.macs is None:
        require(None, "--params or --macs (the share kept)", "budget")
    return solve(problem, options.params, options.macs)


POLICY = Policy(
    "budget",
    decide=budget,
    needs=frozenset({"curvature"}),
    options=("params", "macs"),
    implied_by=("params", "macs"),
    refines=True,
)
