"""One level for all layers, as high as a budget allows: what the policies without a view of the network share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lrfgraph.errors import ConfigurationError
from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.problem import Decision, Problem

__all__ = ["has_budget", "highest_within"]


def has_budget(options: SelectOptions) -> bool:
    """Whether a share of the parameters or of the MACs is asked for."""
    return options.params is not None or options.macs is not None


def highest_within(
    problem: Problem, options: SelectOptions, decide: Callable[[float], Decision], levels: Iterable[float]
) -> Decision:
    """Return the decision at the highest of `levels` that keeps to ``options.params`` and ``options.macs``.

    A decision may change at the given levels alone, and cost rises with the level: bisection then finds the
    exact one. Raises ConfigurationError where not even the lowest level keeps to the budget.
    """
    ordered = sorted(set(levels))
    best = decide(ordered[0])
    over = _over(problem, options, best)
    if over:
        raise ConfigurationError(
            f"policy {best.policy!r} keeps at least {over}; ask for more, or allow more methods and ranks"
        )
    below, above = 0, len(ordered)
    while above - below > 1:
        middle = (below + above) // 2
        decision = decide(ordered[middle])
        if _over(problem, options, decision):
            above = middle
        else:
            best, below = decision, middle
    return best.noted(level=float(ordered[below]))


def _over(problem: Problem, options: SelectOptions, decision: Decision) -> str:
    """Say which budget a decision breaks and what was asked for, or return ``""``."""
    for option, name, spent, whole in (
        ("params", "parameters", decision.parameters, problem.parameters),
        ("macs", "MACs", decision.macs, problem.macs),
    ):
        share = getattr(options, option)
        if share is not None and spent > share * whole:
            return f"{spent / whole:.3g} of the {name}, received --{option} {share:g}"
    return ""
