"""Policy `evbmf`: a baseline that takes the ranks at which a kernel's unfoldings stand out from noise."""

from __future__ import annotations

import numpy as np

from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank
from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.bisection import has_budget, highest_within
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.problem import Candidate, Choice, Decision, LayerChoices, Problem, keep, take

__all__ = ["POLICY"]

METHODS_OF_RANK = tuple(name for name, method in METHODS.items() if method.ranks_by_unfolding)
"""The methods whose ranks are those of the unfoldings (Kim et al., ICLR 2016)."""

FACTORS = tuple(float(f) for f in np.geomspace(1 / 256, 256, 193))


def evbmf(problem: Problem, options: SelectOptions) -> Decision:
    """Baseline: `tucker` and `svd` at the ranks that variational Bayes tells from noise, weights alone, at least 1.

    With `--params` or `--macs` all ranks are scaled by one factor, as large as the budget allows.
    """
    if not has_budget(options):
        return _at(problem, 1.0)
    return highest_within(problem, options, lambda factor: _at(problem, factor), FACTORS)


def _at(problem: Problem, factor: float) -> Decision:
    def choose(layer: LayerChoices) -> Choice:
        fitting = [c for c in layer.candidates if c.method in METHODS_OF_RANK]
        if not fitting or not layer.noise_ranks:
            return keep(layer, f"has no candidate of the methods whose ranks evbmf finds: {', '.join(METHODS_OF_RANK)}")
        target = [min(max(rank * factor, 1.0), full) for rank, full in layer.noise_ranks]
        if all(rank >= full for rank, (_, full) in zip(target, layer.noise_ranks, strict=True)):
            return keep(layer, "evbmf asks for the full rank")
        return take(min(fitting, key=lambda c: (_distance(c, target), c.parameters, c.method)))

    return Decision.of("evbmf", problem, [choose(layer) for layer in problem.layers])


def _distance(candidate: Candidate, target: list[float]) -> float:
    """How far a candidate's ranks lie from those of the inputs' and the outputs' unfolding, as a ratio."""
    ranks = parse_rank(candidate.rank)
    return sum(abs(float(np.log(r / w))) for r, w in zip(ranks, target[-len(ranks) :], strict=True))


POLICY = Policy("evbmf", decide=evbmf, needs=frozenset({"noise"}), options=("params", "macs"))
