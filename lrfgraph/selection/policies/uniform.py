"""Policy `uniform`: a baseline that cuts every layer to the same share."""

from __future__ import annotations

from lrfgraph.errors import ConfigurationError
from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.bisection import has_budget, highest_within
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.problem import Candidate, Choice, Decision, LayerChoices, Problem, keep, take

__all__ = ["POLICY"]


def uniform(problem: Problem, options: SelectOptions) -> Decision:
    """Baseline: every layer is cut to the same share, by the candidate of least distortion that costs no more.

    The share, of parameters or (where `--macs` alone is given) of MACs, is as high as the budget allows.
    """
    if not has_budget(options):
        raise ConfigurationError(
            "policy 'uniform' needs --params or --macs (the share kept), received none; give it on the command line"
        )
    by = "macs" if options.params is None else "parameters"

    def share(layer: LayerChoices, candidate: Candidate) -> float:
        return float(getattr(candidate, by)) / max(float(getattr(layer, by)), 1.0)

    def choose(layer: LayerChoices, level: float) -> Choice:
        cheap = [c for c in layer.candidates if share(layer, c) <= level]
        if not layer.candidates:
            return keep(layer, "no candidate is cheaper than the layer")
        if level >= 1.0:
            return keep(layer, "every layer may keep all it has")
        if cheap:
            return take(min(cheap, key=lambda c: (c.distortion, c.parameters, c.method, c.rank)))
        return take(min(layer.candidates, key=lambda c: (share(layer, c), c.distortion)))

    levels = [share(layer, c) for layer in problem.layers for c in layer.candidates]
    return highest_within(
        problem,
        options,
        lambda level: Decision.of("uniform", problem, [choose(layer, level) for layer in problem.layers]),
        [*(level for level in levels if level < 1.0), 1.0],
    )


POLICY = Policy("uniform", decide=uniform, options=("params", "macs"))
