"""Refinement: exchanges between layers, tried on the whole repaired network (METHODS §5.5).

A trial costs a repair from the first exchanged layer on and a measurement, both cached nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lrfgraph.engine.nodes import Ref
from lrfgraph.network.evaluating import gain
from lrfgraph.network.heads import head_of
from lrfgraph.run import nodes as pipeline
from lrfgraph.run.search import Bench, Found, grid_share, within_limit
from lrfgraph.run.steps.decisions import decision_data, problem_of
from lrfgraph.selection import Choice, Decision, Problem
from lrfgraph.selection.exchanges import Exchange, exchanges, next_exchange, ranks_of

__all__ = ["Refined", "refine", "refine_found"]

SURE = 2.0
"""Standard errors of the paired difference by which the KL must fall for an exchange to be kept."""


@dataclass(frozen=True)
class Refined:
    """The better configuration, its measurement and what to say about it."""

    decision: dict[str, Any]
    measured: Ref
    note: str


def refine(
    bench: Bench,
    decision: dict[str, Any],
    params: float | None,
    macs: float | None,
    allowed: Callable[[dict[str, Any], Ref], bool] = lambda decision, measured: True,
) -> Refined | None:
    """Try ``select.refine`` exchanges and keep those after which the network is nearer to the original.

    decision : of policy `budget` for these kept shares.  allowed : whether a measured configuration is one at all,
    whatever its KL.  ``None`` where nothing is to be tried or outputs were too large to be kept.
    """
    trials, walk = bench.network.recipe.select.refine, bench.walk
    if not trials:
        return None
    node = pipeline.budget_node(bench.network, bench.scores, params=params, macs=macs)
    problem = problem_of(node.params, {name: walk.data(ref) for name, ref in bench.scores.items()})
    choices, best, measured = _choices(problem, decision), decision, bench.judge(decision)
    first = walk.data(measured).get("kl", 0.0)
    original, present = walk.outputs(bench.baseline), walk.outputs(measured)
    if original is None or present is None:
        return None
    tried, failures, kept, done = {ranks_of(choices)}, Counter[tuple[str, str]](), 0, 0
    while done < trials:
        exchange = next_exchange(exchanges(problem, choices, params, macs), tried, failures)
        if exchange is None:
            break
        tried.add(exchange.ranks)
        done += 1
        rival = decision_data(problem, Decision(exchange.choices, _notes(decision, exchange)))
        judged = bench.judge(rival)
        made = walk.outputs(judged)
        assert made is not None
        lower, noise = gain(present, made, original, head_of(bench.network.head, bench.network.activation))
        if lower > SURE * noise and allowed(rival, judged):
            choices, best, measured, present = exchange.choices, rival, judged, made
            kept += 1
        else:
            failures.update([(exchange.up, "up"), (exchange.down, "down")])
    last = walk.data(measured).get("kl", 0.0)
    note = f"{kept} of {done} exchanges between layers kept: KL to the original {first:.4f} before, {last:.4f} after"
    return Refined(best, measured, note)


def refine_found(bench: Bench, found: Found) -> Found:
    """Refine what a search came to; the drop may not grow beyond the limit, or beyond what it was."""
    share, step = grid_share(found.chosen.step), found.chosen.step
    limit = max(bench.network.recipe.select.max_drop, found.chosen.drop)

    def allowed(decision: dict[str, Any], measured: Ref) -> bool:
        return bench.point(step, decision, measured).drop <= limit

    params, macs = (share, None) if bench.axis == "params" else (None, share)
    refined = refine(bench, found.decision, params, macs, allowed)
    if refined is None:
        return found
    chosen = bench.point(step, refined.decision, refined.measured)
    points = tuple(chosen if point.step == step else point for point in found.points)
    notes = (within_limit(chosen, bench.network.recipe.select.max_drop), refined.note)
    return replace(found, decision=refined.decision, chosen=chosen, points=points, notes=notes)


def _choices(problem: Problem, decision: dict[str, Any]) -> tuple[Choice, ...]:
    by_name = {layer.name: {(c.method, c.rank): c for c in layer.candidates} for layer in problem.layers}
    return tuple(
        Choice(c["layer"], by_name[c["layer"]][c["method"], c["rank"]] if c["method"] else None, c["reason"])
        for c in decision["choices"]
    )


def _notes(decision: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
    gap = max(exchange.objective - decision["notes"]["bound"], 0.0)
    return {**decision["notes"], "objective": exchange.objective, "gap": gap}
