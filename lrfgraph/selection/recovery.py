"""How much smaller a configuration may be because the whole network is fine-tuned after it; pure.

What a fine-tuning brings back is learned from short trials of it at one or two budgets: it takes nearly the same part
of what repair left, whatever the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

from lrfgraph.selection.front import FINEST, Point, Search

__all__ = ["LEAST", "MOST_TRIALS", "recovered"]

MOST_TRIALS = 3

FIRST = 4
"""Steps of the grid from the configuration that repair alone keeps within the limit to the first trial: the loss there
is nearly twice as high."""

SLOPE = 0.154
"""What the logarithm of the loss grows by from one step of the grid to the next where nothing was measured."""

REST = 0.8
"""Part of what a trial still loses that the whole fine-tuning leaves of it, at most: 0.5 to 0.76 were measured."""

LEAST = 0.05
"""Points below which one drop is as good as another."""


def recovered(
    search: Search, trial: Callable[[int], Point | None], start: int, limit: float
) -> tuple[Point | None, tuple[Point, ...]]:
    """Return the smallest configuration that is expected to lose at most `limit` points, and all trials.

    search : what was measured after repair.  trial : measures a budget after repair and a short fine-tuning.
    start : step of the smallest configuration that repair alone keeps within the limit, −1 where there is none.
    The first is ``None`` where no trial smaller than that one lets expect as much.
    """
    trials: dict[int, Point] = {}
    low, high, step = start, search.smallest() + 1, start + FIRST
    while len({search.size(point) for point in trials.values()}) < MOST_TRIALS:  # budgets may come to one configuration
        step = min(max(step, low + 1), high - 1)
        if not low < step < high or search.at(step) is None:
            break
        point = trial(step)
        if point is None:
            break
        trials[step] = point
        low, high = (step, high) if REST * point.drop <= limit else (low, step)
        step = _crossing(search, trials, limit)
    passing = [point for point in trials.values() if REST * point.drop <= limit]
    best = min(passing, key=search.size, default=None)
    return best, tuple(point for _, point in sorted(trials.items()))


def _crossing(search: Search, trials: dict[int, Point], limit: float) -> int:
    """Return the last step at which the whole fine-tuning is expected to keep to the limit.

    The part that is left of the loss after repair is interpolated between trials and is that of the nearest beyond
    them; the loss after repair is interpolated in its logarithm.
    """
    losses = {step: log(max(point.drop, LEAST)) for step, point in search.measured.items() if point is not None}
    parts = {step: log(max(point.drop, LEAST)) - _at(losses, step, SLOPE) for step, point in trials.items()}
    target = log(max(limit, LEAST) / REST)
    within = [step for step in range(FINEST + 1) if _at(losses, step, SLOPE) + _at(parts, step, 0.0) <= target]
    return max(within, default=0)


def _at(known: dict[int, float], step: int, slope: float) -> float:
    """Interpolate between the nearest known steps; beyond them go on from the last with a slope."""
    below = max((other for other in known if other <= step), default=None)
    above = min((other for other in known if other >= step), default=None)
    if below is None or above is None:
        edge = min(known) if below is None else max(known)
        return known[edge] + slope * (step - edge)
    share = (step - below) / max(above - below, 1)
    return known[below] + share * (known[above] - known[below])
