"""Policy `threshold`: per layer the cheapest candidate that stays similar enough (arXiv 2510.00062)."""

from __future__ import annotations

from typing import Any

from lrfgraph.selection.base import Choice, Decision, LayerChoices, Problem, cost_of, keep

__all__ = ["threshold"]


def threshold(problem: Problem, options: Any) -> Decision:
    """Choose by ``options.min_similarity``; equal costs go to the more similar candidate."""
    cost = cost_of(options.cost, options.mix, problem)

    def choose(layer: LayerChoices) -> Choice:
        if not layer.candidates:
            return keep(layer, "no candidate is cheaper than the layer")
        good = [c for c in layer.candidates if c.similarity[problem.metric] >= options.min_similarity]
        if not good:
            best = max(c.similarity[problem.metric] for c in layer.candidates)
            return keep(layer, f"no candidate reaches {problem.metric} {options.min_similarity:g} (best {best:.4f})")
        chosen = min(good, key=lambda c: (cost(c), -c.similarity[problem.metric], c.method, c.rank))
        kept = {"parameters": layer.parameters, "macs": layer.macs}.get(options.cost)
        if kept is not None and cost(chosen) >= kept:
            return keep(layer, f"no candidate at {problem.metric} {options.min_similarity:g} has fewer {options.cost}")
        return Choice(layer.name, chosen)

    return Decision(tuple(choose(layer) for layer in problem.layers))
