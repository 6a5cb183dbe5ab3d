"""Random small problems: layers with candidates of every cost and loss, for properties of the policies."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.policies import POLICIES
from lrfgraph.selection.problem import Candidate, CandidateId, Choice, Decision, LayerChoices, Problem

METHODS = ("tucker", "cp", "svd")


def problem(seed: int, layers: int = 3, candidates: int = 4, whole: int = 10) -> Problem:
    """Return a problem whose similarities rise with the cost as they do in life, but not strictly."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(layers):
        parameters, macs = int(rng.integers(50, 500)), int(rng.integers(500, 9000))
        found = []
        for index in range(int(rng.integers(0, candidates + 1))):
            share = float(rng.uniform(0.05, 0.98))
            loss = float((1 - share) ** 2 * rng.uniform(0.2, 1.0))
            found.append(
                Candidate(
                    CandidateId(f"layer{number}", METHODS[int(rng.integers(len(METHODS)))], str(index + 1)),
                    max(int(share * parameters), 1),
                    max(int(rng.uniform(0.1, 1.2) * macs), 1),
                    {"cosine": 1 - loss / 2, "cka": float(1 - loss)},
                    loss,
                    float(loss * rng.uniform(0.5, 2.0) / 2),
                    None if rng.random() < 0.5 else loss * float(rng.uniform(0.1, 10)),
                )
            )
        noise = tuple((int(rng.integers(1, 8)), 8) for _ in range(2))
        made.append(LayerChoices(f"layer{number}", parameters, macs, tuple(found), "", noise))
    totals = (sum(layer.parameters for layer in made) + whole, sum(layer.macs for layer in made) + whole)
    return Problem(tuple(made), *totals)


def options(**given: Any) -> SelectOptions:
    return SelectOptions(**{"policy": "threshold", "min_similarity": 0.9} | given)


def decide(name: str, given: Problem, asked: SelectOptions) -> Decision:
    rule = POLICIES[name].decide
    assert rule is not None
    return rule(given, asked)


def taken(given: Problem, choice: Choice) -> Candidate | None:
    """Return the candidate that a choice takes, as the problem has it."""
    candidates = {candidate.id: candidate for layer in given.layers for candidate in layer.candidates}
    return candidates[choice.id] if choice.id else None


def smallest_share(given: Problem, by: str = "parameters") -> float:
    """Return the least share of the network that any configuration keeps."""
    spent = getattr(given, by)
    for layer in given.layers:
        own = getattr(layer, by)
        spent += min([own, *(getattr(c, by) for c in layer.candidates)]) - own
    return float(spent / getattr(given, by))
