"""Policy `budget`: the least predicted distortion of the whole network within a budget (METHODS §5.3).

A multiple-choice knapsack: one candidate, or the layer itself, per layer. Lagrange multipliers (one for
parameters, one for MACs) give a bound and a feasible start, greedy exchanges fill what is left; the gap between
the two is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import ConfigurationError
from lrfgraph.selection.base import Choice, Decision, LayerChoices, Problem, need

__all__ = ["budget", "front", "solve"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Options:
    """A layer's options as arrays: index 0 is to keep it."""

    layer: LayerChoices
    costs: Array  # (options, 2): parameters, MACs
    loss: Array  # (options,)


def budget(problem: Problem, options: Any) -> Decision:
    """Meet ``options.params`` and/or ``options.macs``, shares of the whole network that are kept."""
    if options.params is None and options.macs is None:
        need(None, "--params or --macs (the share kept)", "budget")
    return solve(problem, options.params, options.macs)


def loss_of(candidate: Any) -> float:
    """Predicted output KL where curvature or probes were measured, else the layer's own distortion."""
    return float(candidate.distortion if candidate.predicted is None else candidate.predicted)


def solve(problem: Problem, params: float | None, macs: float | None) -> Decision:
    """Minimise the summed predicted loss subject to kept shares; raises ConfigurationError where none is feasible."""
    table = [_undominated(layer) for layer in problem.layers]
    fixed = np.array([problem.parameters, problem.macs], float) - sum((o.costs[0] for o in table), np.zeros(2))
    limit = np.array([np.inf if share is None else share for share in (params, macs)])
    # Costs are whole numbers, so the budget is one, too (a share may be short of it by a rounding error).
    room = np.floor(limit * np.array([problem.parameters, problem.macs]) + 1e-6) - fixed
    least = sum((o.costs.min(axis=0) for o in table), np.zeros(2))
    for axis, name in enumerate(("parameters", "MACs")):
        if least[axis] > room[axis]:
            share = (least + fixed)[axis] / (problem.parameters, problem.macs)[axis]
            raise ConfigurationError(
                f"no configuration keeps only {limit[axis]:.1%} of the {name}: received {limit[axis]:g}, "
                f"the smallest reachable is {share:.3g}; ask for more, or allow more methods and ranks"
            )
    picks, bound = _lagrange(table, room)
    picks = _fill(table, picks, room)
    value = _value(table, picks)
    choices = tuple(_choice(o, int(k)) for o, k in zip(table, picks, strict=True))
    return Decision(choices, {"objective": value, "bound": bound, "gap": max(value - bound, 0.0)})


def front(problem: Problem, points: int, by: str = "parameters") -> list[Decision]:
    """Return decisions at `points` budgets, evenly spaced in the logarithm from the smallest reachable to all."""
    table = [_undominated(layer) for layer in problem.layers]
    axis = ("parameters", "macs").index(by)
    whole = (problem.parameters, problem.macs)[axis]
    least = whole + sum(float(o.costs[:, axis].min() - o.costs[0, axis]) for o in table)
    shares = np.geomspace(max(least / whole * 1.0001, 1e-6), 0.95, points)
    limits: dict[str, float] = {}
    return [
        solve(problem, **({"params": s, "macs": None} if axis == 0 else {"params": None, "macs": s}), **limits)
        for s in shares
    ]


def _undominated(layer: LayerChoices) -> _Options:
    """Drop candidates that another one beats in parameters, MACs and loss."""
    costs = np.array([[layer.parameters, layer.macs]] + [[c.parameters, c.macs] for c in layer.candidates], float)
    loss = np.array([0.0] + [max(loss_of(c), 0.0) for c in layer.candidates])
    points = np.column_stack([costs, loss])
    order = np.lexsort((points[:, 2], points[:, 1], points[:, 0]))
    alive: list[int] = []
    for index in order:
        if index == 0 or not any(np.all(points[j] <= points[index]) for j in alive):
            alive.append(int(index))
    alive = [0, *sorted(i for i in alive if i)]
    kept = tuple(layer.candidates[i - 1] for i in alive[1:])
    slim = LayerChoices(layer.name, layer.parameters, layer.macs, kept, layer.kept)
    return _Options(slim, costs[alive], loss[alive])


def _lagrange(table: list[_Options], room: Array) -> tuple[NDArray[np.intp], float]:
    """Best feasible picks and best bound over the multipliers: bisection, for two budgets on a grid of ratios."""
    active = np.isfinite(room)
    if not active.any():
        return np.zeros(len(table), dtype=np.intp), 0.0
    scale = np.array([max(sum(o.costs[0, a] for o in table), 1.0) for a in (0, 1)])
    mixes = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    directions = [m for m, a in zip(mixes, active, strict=True) if a]
    if active.all():
        directions += [np.array([w, 1 - w]) for w in np.linspace(0.1, 0.9, 9)]
    best, best_value, bound = None, np.inf, 0.0
    for direction in directions:
        low, high = 0.0, 1.0
        while not _feasible(table, picks := _pick(table, high * direction / scale), room) and high < 1e18:
            high *= 4
        for _ in range(60):
            middle = 0.5 * (low + high)
            picks = _pick(table, middle * direction / scale)
            ok = _feasible(table, picks, room)
            low, high = (low, middle) if ok else (middle, high)
            price = middle * direction / scale
            finite = np.where(active, room, 0.0)
            dual = sum(float((o.loss + o.costs @ price).min()) for o in table) - float(price @ finite)
            bound = max(bound, dual)
            if ok and (value := _value(table, picks)) < best_value:
                best, best_value = picks, value
        picks = _pick(table, high * direction / scale)
        if _feasible(table, picks, room) and (value := _value(table, picks)) < best_value:
            best, best_value = picks, value
    if best is None:  # both budgets bind and no price meets both: the cheapest of all, layer by layer
        best = np.array([int(np.argmin((o.costs / scale).max(axis=1))) for o in table])
        if not _feasible(table, best, room):
            raise ConfigurationError("no configuration meets both budgets at once; relax --params or --macs")
    return best, bound


def _pick(table: list[_Options], price: Array) -> NDArray[np.intp]:
    return np.array([int(np.argmin(o.loss + o.costs @ price)) for o in table], dtype=np.intp)


def _spent(table: list[_Options], picks: NDArray[np.intp]) -> Array:
    return np.asarray(sum((o.costs[k] for o, k in zip(table, picks, strict=True)), np.zeros(2)))


def _feasible(table: list[_Options], picks: NDArray[np.intp], room: Array) -> bool:
    return bool(np.all(_spent(table, picks) <= room + 1e-9))


def _value(table: list[_Options], picks: NDArray[np.intp]) -> float:
    return float(sum(o.loss[k] for o, k in zip(table, picks, strict=True)))


def _fill(table: list[_Options], picks: NDArray[np.intp], room: Array) -> NDArray[np.intp]:
    """Spend what is left: the single exchange that lowers the loss most, until none fits."""
    picks = picks.copy()
    while True:
        left = room - _spent(table, picks)
        best: tuple[float, int, int] | None = None
        for index, options in enumerate(table):
            gain = options.loss[picks[index]] - options.loss
            fits = np.all(options.costs - options.costs[picks[index]] <= left + 1e-9, axis=1) & (gain > 0)
            if fits.any():
                k = int(np.argmax(np.where(fits, gain, -np.inf)))
                if best is None or gain[k] > best[0]:
                    best = (float(gain[k]), index, k)
        if best is None:
            return picks
        picks[best[1]] = best[2]


def _choice(options: _Options, pick: int) -> Choice:
    if pick == 0:
        reason = options.layer.kept or (
            "kept within the budget" if options.layer.candidates else "no candidate is cheaper than the layer"
        )
        return Choice(options.layer.name, None, reason)
    return Choice(options.layer.name, options.layer.candidates[pick - 1])
