"""The multiple-choice knapsack: the least predicted loss of the whole network within a budget (METHODS §5.3).

One candidate, or the layer itself, per layer, solved to the optimum. Where a network has
few layers, prices (Lagrange multipliers) leave a third of the objective on the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import ConfigurationError
from lrfgraph.selection.problem import (
    Choice,
    Decision,
    LayerChoices,
    Problem,
    keep,
    predicted_loss,
    take,
    undominated_rows,
)

__all__ = ["LayerOptions", "choice_of", "room", "solve", "undominated"]

GAP = 1e-4
"""Share of the objective that may be left."""

NODES = 100_000
"""Branches that are looked at, at most; what is then left is in the reported gap."""

Array = NDArray[np.float64]


SMALL, TINY = 1e-2, 1e-300
"""Share of the largest loss below which the objective sets the solver's scale, and what counts as zero."""


@dataclass(frozen=True)
class LayerOptions:
    """A layer's options as arrays: index 0 is to keep it, the others are its candidates in order."""

    layer: LayerChoices
    costs: Array  # (options, 2): parameters, MACs
    loss: Array  # (options,)


def solve(problem: Problem, params: float | None, macs: float | None) -> Decision:
    """Minimise the summed predicted loss subject to kept shares; raises ConfigurationError where none is feasible."""
    table = [undominated(layer) for layer in problem.layers]
    free, limit = room(problem, table, params, macs), (params, macs)
    least = sum((o.costs.min(axis=0) for o in table), np.zeros(2))
    for axis, name in enumerate(("parameters", "MACs")):
        if least[axis] > free[axis]:
            share = (least + _fixed(problem, table))[axis] / (problem.parameters, problem.macs)[axis]
            raise ConfigurationError(
                f"no configuration keeps only {limit[axis]:.1%} of the {name}: received {limit[axis]:g}, "
                f"the smallest reachable is {share:.3g}; ask for more, or allow more methods and ranks"
            )
    picks, bound = _optimum(table, free)
    value = float(sum(o.loss[k] for o, k in zip(table, picks, strict=True)))
    choices = tuple(choice_of(o, int(k)) for o, k in zip(table, picks, strict=True))
    notes = {"objective": value, "bound": bound, "gap": max(value - bound, 0.0)}
    return Decision.of("budget", problem, choices, notes)


def room(problem: Problem, table: Sequence[LayerOptions], params: float | None, macs: float | None) -> Array:
    """Return the (parameters, MACs) that the layers of `table` may take together, ``inf`` where nothing is asked."""
    limit = np.array([np.inf if share is None else share for share in (params, macs)])
    # Costs are whole numbers, so the budget is one, too (a share may be short of it by a rounding error).
    return np.asarray(np.floor(limit * np.array([problem.parameters, problem.macs]) + 1e-6) - _fixed(problem, table))


def _fixed(problem: Problem, table: Sequence[LayerOptions]) -> Array:
    """Return what the network costs apart from the layers of `table`."""
    whole = np.array([problem.parameters, problem.macs], float)
    return np.asarray(whole - sum((o.costs[0] for o in table), np.zeros(2)))


def undominated(layer: LayerChoices) -> LayerOptions:
    """Drop candidates that another one beats in parameters, MACs and loss."""
    costs = np.array([[layer.parameters, layer.macs]] + [[c.parameters, c.macs] for c in layer.candidates], float)
    loss = np.array([0.0] + [max(predicted_loss(c), 0.0) for c in layer.candidates])
    finite = np.flatnonzero(np.isfinite(loss))
    points = np.column_stack([costs, loss])
    alive = [0, *(int(i) for i in finite[undominated_rows(points[finite])] if i)]
    candidates = tuple(layer.candidates[i - 1] for i in alive[1:])
    slim = LayerChoices(layer.name, layer.parameters, layer.macs, candidates, layer.kept)
    return LayerOptions(slim, costs[alive], loss[alive])


def _optimum(table: list[LayerOptions], room: Array) -> tuple[NDArray[np.intp], float]:
    """Return one pick a layer and a lower bound of what any picks lose, by branch and bound (HiGHS)."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers = np.repeat(np.arange(len(table)), [len(options.loss) for options in table])
    one_each = LinearConstraint((layers == np.arange(len(table))[:, None]).astype(float), 1, 1)
    loss = np.concatenate([options.loss for options in table])
    costs = np.concatenate([options.costs for options in table])
    axes = np.flatnonzero(np.isfinite(room))
    scale = np.maximum(np.abs(room[axes]), 1.0)
    unit, bound, asked = max(float(loss.max()), TINY), None, room[axes]
    while True:
        within = LinearConstraint(costs[:, axes].T / scale[:, None], -np.inf, asked / scale)
        solution = milp(
            loss / unit,
            integrality=np.ones(len(loss)),
            bounds=Bounds(0, 1),
            constraints=[one_each, within] if axes.size else [one_each],
            # its presolve saves nothing here, and now and then writes to the standard output
            options={"mip_rel_gap": GAP, "node_limit": NODES, "presolve": False},
        )
        if solution.x is None:
            raise ConfigurationError("no configuration meets both budgets at once; relax --params or --macs")
        chosen = np.array([int(np.argmax(np.where(layers == index, solution.x, -1.0))) for index in range(len(table))])
        value = float(loss[chosen].sum())
        if TINY < value < SMALL * unit:  # the solver's absolute tolerances would decide
            unit = value
            continue
        bound = max(float(solution.mip_dual_bound) * unit, 0.0) if bound is None else bound
        over = costs[chosen].sum(axis=0)[axes] - room[axes]
        if not (over > 0).any():
            return chosen - np.flatnonzero(np.diff(layers, prepend=-1)), bound
        asked = asked - np.maximum(over, 0.0)  # the solver takes a millionth of the budget for nothing


def choice_of(options: LayerOptions, pick: int) -> Choice:
    """Turn a pick (0: keep the layer) into the layer's choice."""
    if pick == 0:
        reason = "needed within the budget" if options.layer.candidates else "no candidate is cheaper than the layer"
        return keep(options.layer, reason)
    return take(options.layer.candidates[pick - 1])
