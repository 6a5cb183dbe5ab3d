"""Policy `threshold`: per layer the cheapest candidate that stays similar enough (arXiv 2510.00062)."""

from __future__ import annotations

from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.bisection import has_budget, highest_within
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.problem import Choice, Decision, LayerChoices, Problem, candidate_cost, keep, take

__all__ = ["POLICY"]


def threshold(problem: Problem, options: SelectOptions) -> Decision:
    """Per layer the cheapest candidate of similarity at least `--min-similarity`; equal costs: the more similar one.

    With `--params` or `--macs` the similarity asked for is as high as the budget allows, one for all layers.
    """
    if not has_budget(options):
        return _at(problem, options, options.min_similarity)
    levels = [c.similarity[problem.metric] for layer in problem.layers for c in layer.candidates]
    return highest_within(problem, options, lambda level: _at(problem, options, level), [*levels, 2.0])


def _at(problem: Problem, options: SelectOptions, level: float) -> Decision:
    cost = candidate_cost(options.cost, options.mix, problem)

    def choose(layer: LayerChoices) -> Choice:
        if not layer.candidates:
            return keep(layer, "no candidate is cheaper than the layer")
        good = [c for c in layer.candidates if c.similarity[problem.metric] >= level]
        if not good:
            best = max(c.similarity[problem.metric] for c in layer.candidates)
            return keep(layer, f"no candidate reaches {problem.metric} {level:g} (best {best:.4f})")
        chosen = min(good, key=lambda c: (cost(c), -c.similarity[problem.metric], c.method, c.rank))
        whole = {"parameters": layer.parameters, "macs": layer.macs}.get(options.cost)
        if whole is not None and cost(chosen) >= whole:
            return keep(layer, f"no candidate at {problem.metric} {level:g} has fewer {options.cost}")
        return take(chosen)

    return Decision.of("threshold", problem, [choose(layer) for layer in problem.layers])


POLICY = Policy(
    "threshold",
    decide=threshold,
    options=("min_similarity", "cost", "mix", "params", "macs"),
    implied_by=("min_similarity",),
)
