"""Exchanges: one layer gets a better candidate, another pays for it, the budget is kept (METHODS §5.5).

The knapsack takes the layers' losses to add up. In a repaired network they do not quite, so exchanges that cost
next to nothing by prediction are worth a trial, judged on the whole repaired network by whoever has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lrfgraph.selection.knapsack import LayerOptions, choice_of, room, undominated
from lrfgraph.selection.problem import CandidateId, Choice, Decision, Problem

__all__ = ["Exchange", "Judge", "Refinement", "exchanges", "next_exchange", "refine"]

SMALLEST = 0.02
"""Share of the whole predicted loss that an exchange must take off the layer it betters: less drowns in noise."""

SURE = 2.0
"""Standard errors of the paired difference by which the KL must fall for an exchange to be kept."""

Array = NDArray[np.float64]
Measured = TypeVar("Measured")


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
    def configuration(self) -> tuple[CandidateId, ...]:
        return _configuration(self.choices)


@dataclass(frozen=True)
class Judge(Generic[Measured]):
    """How configurations are judged, by whoever can measure them.

    measure : a configuration, repaired.  kl : its distance to the original.  gain : by how much the second of two is
    nearer to the original than the first, and the standard error of that; ``None`` where that was not kept.
    allowed : whether a measured configuration is one at all, whatever its distance.
    """

    measure: Callable[[Decision], Measured]
    kl: Callable[[Measured], float]
    gain: Callable[[Measured, Measured], tuple[float, float] | None]
    allowed: Callable[[Decision, Measured], bool] = lambda decision, measured: True


@dataclass(frozen=True)
class Refinement(Generic[Measured]):
    """The better configuration, its measurement and what to say about it."""

    decision: Decision
    measured: Measured
    note: str


def refine(
    problem: Problem,
    decision: Decision,
    trials: int,
    judge: Judge[Measured],
    params: float | None = None,
    macs: float | None = None,
) -> Refinement[Measured] | None:
    """Try exchanges, up to `trials`, and keep those after which the network is nearer to the original.

    decision : of the knapsack for these kept shares.  ``None`` where nothing is to be tried or cannot be compared.
    """
    if not trials:
        return None
    best, measured = decision, judge.measure(decision)
    first = judge.kl(measured)
    if judge.gain(measured, measured) is None:
        return None
    tried, failures, exchanged, done = {best.configuration}, Counter[tuple[str, str]](), 0, 0
    while done < trials:
        exchange = next_exchange(exchanges(problem, best.choices, params, macs), tried, failures)
        if exchange is None:
            break
        tried.add(exchange.configuration)
        done += 1
        rival = Decision.of(decision.policy, problem, exchange.choices, _notes(decision, exchange))
        judged = judge.measure(rival)
        gain = judge.gain(measured, judged)
        assert gain is not None
        lower, noise = gain
        if lower > SURE * noise and judge.allowed(rival, judged):
            best, measured = rival, judged
            exchanged += 1
        else:
            failures.update([(exchange.up, "up"), (exchange.down, "down")])
    last = judge.kl(measured)
    note = (
        f"{exchanged} of {done} exchanges between layers kept: KL to the original {first:.4f} before, {last:.4f} after"
    )
    return Refinement(best, measured, note)


def _notes(decision: Decision, exchange: Exchange) -> dict[str, float]:
    gap = max(exchange.objective - decision.notes["bound"], 0.0)
    return {**decision.notes, "objective": exchange.objective, "gap": gap}


def _configuration(choices: Sequence[Choice]) -> tuple[CandidateId, ...]:
    return tuple(choice.id for choice in choices if choice.id is not None)


def exchanges(
    problem: Problem, choices: Sequence[Choice], params: float | None = None, macs: float | None = None
) -> list[Exchange]:
    """Return for every pair of layers the exchange of least predicted increase within the budget, least first.

    choices : one a layer, in the problem's order.  params, macs : the shares kept, as in `knapsack.solve`.
    """
    table = [undominated(layer) for layer in problem.layers]
    picks = [_pick_of(options, choice) for options, choice in zip(table, choices, strict=True)]
    spent = sum((o.costs[k] for o, k in zip(table, picks, strict=True)), np.zeros(2))
    left = room(problem, table, params, macs) - spent
    before = float(sum(o.loss[k] for o, k in zip(table, picks, strict=True)))
    possible = []
    for a, up in enumerate(table):
        for b, down in enumerate(table):
            best = None if a == b else _best(up, picks[a], down, picks[b], left, SMALLEST * before)
            if best is None:
                continue
            changed = list(choices)
            changed[a], changed[b] = choice_of(up, best[0]), choice_of(down, best[1])
            possible.append(Exchange(up.layer.name, down.layer.name, tuple(changed), before + best[2], best[2]))
    return sorted(possible, key=lambda exchange: exchange.increase)


def next_exchange(
    possible: Sequence[Exchange],
    tried: Collection[tuple[CandidateId, ...]],
    failures: Mapping[tuple[str, str], int],
) -> Exchange | None:
    """Return the exchange to try next, or ``None``: the one whose layers failed least so far, then the cheapest.

    tried : the configurations that were measured.  failures : trials that did not pay, by (layer, ``up`` or
    ``down``): what a layer's trial said is not asked again before other layers had their turn.
    """

    def order(exchange: Exchange) -> tuple[int, float]:
        return failures.get((exchange.up, "up"), 0) + failures.get((exchange.down, "down"), 0), exchange.increase

    return min((e for e in possible if e.configuration not in tried), key=order, default=None)


def _pick_of(options: LayerOptions, choice: Choice) -> int:
    return 0 if choice.id is None else 1 + [c.id for c in options.layer.candidates].index(choice.id)


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
