"""Exchanges: one layer gets a better candidate, another pays for it, the budget is kept (METHODS §5.5).

The knapsack takes the layers' losses to add up. In a repaired network they do not quite, so exchanges that cost
next to nothing by prediction are worth a trial; whoever has the network judges them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfgraph.selection.policies.budget import LayerOptions, choice_of, room, undominated
from lrfgraph.selection.problem import Choice, Problem

__all__ = ["Exchange", "exchanges", "next_exchange", "ranks_of"]

SMALLEST = 0.02
"""Share of the whole predicted loss that an exchange must take off the layer it betters: less drowns in noise."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Exchange:
    """A configuration next to the present one.

    up, down : the layer that is bettered and the one that pays.  choices : of all layers, after it.
    objective : the whole predicted loss after it.  increase : by how much that is more than before.
    """

    up: str
    down: str
    choices: tuple[Choice, ...]
    objective: float
    increase: float

    @property
    def ranks(self) -> tuple[tuple[str, str] | None, ...]:
        """What becomes of each layer, in short: (method, rank), or ``None`` where it is kept."""
        return ranks_of(self.choices)


def ranks_of(choices: Sequence[Choice]) -> tuple[tuple[str, str] | None, ...]:
    return tuple(None if c.candidate is None else (c.candidate.method, c.candidate.rank) for c in choices)


def exchanges(
    problem: Problem, choices: Sequence[Choice], params: float | None = None, macs: float | None = None
) -> list[Exchange]:
    """Return for every pair of layers the exchange of least predicted increase within the budget, least first.

    choices : one a layer, in the problem's order.  params, macs : the shares kept, as in `budget.solve`.
    """
    table = [undominated(layer) for layer in problem.layers]
    picks = [_pick_of(options, choice) for options, choice in zip(table, choices, strict=True)]
    spent = sum((o.costs[k] for o, k in zip(table, picks, strict=True)), np.zeros(2))
    left = room(problem, table, params, macs) - spent
    before = float(sum(o.loss[k] for o, k in zip(table, picks, strict=True)))
    found = []
    for a, up in enumerate(table):
        for b, down in enumerate(table):
            best = None if a == b else _best(up, picks[a], down, picks[b], left, SMALLEST * before)
            if best is None:
                continue
            changed = list(choices)
            changed[a], changed[b] = choice_of(up, best[0]), choice_of(down, best[1])
            found.append(Exchange(up.layer.name, down.layer.name, tuple(changed), before + best[2], best[2]))
    return sorted(found, key=lambda exchange: exchange.increase)


def next_exchange(
    found: Sequence[Exchange],
    tried: Collection[tuple[tuple[str, str] | None, ...]],
    failures: Mapping[tuple[str, str], int],
) -> Exchange | None:
    """Return the exchange to try next, or ``None``: the one whose layers failed least so far, then the cheapest.

    tried : ranks of the configurations that were measured.  failures : trials that did not pay, by (layer, ``up`` or
    ``down``): what a layer's trial said is not asked again before other layers had their turn.
    """

    def order(exchange: Exchange) -> tuple[int, float]:
        return failures.get((exchange.up, "up"), 0) + failures.get((exchange.down, "down"), 0), exchange.increase

    return min((exchange for exchange in found if exchange.ranks not in tried), key=order, default=None)


def _pick_of(options: LayerOptions, choice: Choice) -> int:
    return 0 if choice.candidate is None else 1 + options.layer.candidates.index(choice.candidate)


def _best(
    up: LayerOptions, now_up: int, down: LayerOptions, now_down: int, left: Array, least: float
) -> tuple[int, int, float] | None:
    """Return the two layers' new options and the increase of the loss, or ``None`` where none fits."""
    gain, pay = up.loss - up.loss[now_up], down.loss - down.loss[now_down]
    extra = (up.costs - up.costs[now_up])[:, None] + (down.costs - down.costs[now_down])[None]
    fits = np.all(extra <= left + 1e-9, axis=2) & (gain < -least)[:, None] & (pay > 0)[None]
    if not fits.any():
        return None
    increase = np.where(fits, gain[:, None] + pay[None], np.inf)
    one, other = np.unravel_index(int(np.argmin(increase)), increase.shape)
    return int(one), int(other), float(increase[one, other])
