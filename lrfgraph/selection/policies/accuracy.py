"""Policy `accuracy`: the smallest configuration whose measured drop stays within a limit."""

from __future__ import annotations

from math import log2

from lrfgraph.errors import ConfigurationError
from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.front import FINEST, Budgets, Front, Search, limit_note
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.recovery import LEAST, recovered

__all__ = ["POLICY"]

START = 16
"""Where a search begins: share 0.95^17, about 0.42."""

DOUBLING = 4.5
"""Steps in which the drop doubles, about; only a first guess."""


def accuracy(budgets: Budgets, options: SelectOptions) -> Front:
    """The smallest configuration whose accuracy on validation stays within `--max-drop`, as it is delivered.

    The curve from budget to drop after repair is nearly monotone: the search closes in from both sides, guessing where
    the logarithm of the drop crosses the limit. Where the network is fine-tuned afterwards, trials of that tell how
    much smaller it may be.
    """
    search, limit = Search(budgets, options.cost), options.max_drop
    low, high, step = -1, FINEST + 1, START
    while high - low > 1:
        point = search.at(step)
        low, high = (step, high) if point is not None and point.drop <= limit else (low, step)
        step = _next(search, low, high, limit)
    passing = [point for point in search.points() if point.drop <= limit]
    points = search.points()
    if budgets.trial is not None and points:
        start = max((point.step for point in passing), default=-1)
        best, trials = recovered(search, budgets.trial, start, limit)
        points = tuple(sorted((*search.points(), *trials), key=lambda point: (point.step, point.trained)))
        passing = passing if best is None else [best]
    if not passing:
        largest = max(search.require_points(), key=lambda point: point.parameters)
        loss = f"{largest.drop:.2f} ± {largest.drop_se:.2f} points on validation"
        raise ConfigurationError(
            f"no configuration loses at most {limit:g} points: even the largest one measured loses {loss}; "
            "raise --max-drop"
        )
    chosen = min(passing, key=search.size)
    notes = (limit_note(chosen, limit),) if budgets.trial is None else ()  # else what follows decides
    return Front(chosen, points, notes, limit)


def _next(search: Search, low: int, high: int, limit: float) -> int:
    """Guess the next step strictly between a good one and a bad one (either may be unknown)."""
    target = log2(max(limit, LEAST))
    below, above = (search.at(low) if low >= 0 else None), (search.at(high) if high <= FINEST else None)
    start, end = (log2(max(point.drop, LEAST)) if point is not None else None for point in (below, above))
    if start is not None and end is not None and end > start:
        guess = low + (high - low) * (target - start) / (end - start)
    elif start is not None and high > FINEST:
        guess = low + max(DOUBLING * (target - start), 2)
    elif end is not None and low < 0:
        guess = high - max(DOUBLING * (end - target), 2)
    else:
        guess = (low + high) / 2
    return min(max(round(guess), low + 1), high - 1)


POLICY = Policy(
    "accuracy",
    search=accuracy,
    needs=frozenset({"curvature", "images"}),
    without_images="threshold",
    options=("max_drop", "cost"),
    implied_by=("max_drop",),
    refines=True,
    trials=True,
)
