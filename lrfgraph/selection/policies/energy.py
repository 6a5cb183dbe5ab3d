"""Policy `energy`: a baseline that looks at the weights alone, one level of kept energy for all layers."""

from __future__ import annotations

from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.bisection import has_budget, highest_within
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.problem import Choice, Decision, LayerChoices, Problem, candidate_cost, keep, take

__all__ = ["POLICY"]


def energy(problem: Problem, options: SelectOptions) -> Decision:
    """Baseline: per layer the cheapest candidate that keeps a common share of the kernel's energy, no activations.

    The share is as high as `--params` or `--macs` allows; without a budget it is `--min-similarity`.
    """
    if not has_budget(options):
        return _at(problem, options, options.min_similarity)
    levels = [1.0 - c.weight_error for layer in problem.layers for c in layer.candidates]
    return highest_within(problem, options, lambda level: _at(problem, options, level), [*levels, 2.0])


def _at(problem: Problem, options: SelectOptions, level: float) -> Decision:
    cost = candidate_cost(options.cost, options.mix, problem)

    def choose(layer: LayerChoices) -> Choice:
        good = [c for c in layer.candidates if 1.0 - c.weight_error >= level]
        if not good:
            return keep(layer, f"no candidate keeps {level:.2%} of the kernel's energy")
        chosen = min(good, key=lambda c: (cost(c), c.weight_error, c.method, c.rank))
        whole = {"parameters": layer.parameters, "macs": layer.macs}.get(options.cost)
        if whole is not None and cost(chosen) >= whole:
            return keep(layer, f"no candidate that keeps {level:.2%} of the kernel's energy has fewer {options.cost}")
        return take(chosen)

    return Decision.of("energy", problem, [choose(layer) for layer in problem.layers])


POLICY = Policy("energy", decide=energy, options=("min_similarity", "cost", "mix", "params", "macs"))
