"""Sensitivity: how much more, or less, than predicted the network minds a layer's errors (METHODS §5.2).

A few candidates of each layer are probed; factors between them then turn every candidate's predicted loss into what
the probes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lrfgraph.selection.problem import Candidate, CandidateId, predicted_loss, undominated_rows

__all__ = ["PLACES", "calibrated", "to_probe"]

PLACES: dict[int, tuple[float, ...]] = {1: (0.05,), 2: (0.02, 0.1), 3: (0.01, 0.05, 0.2)}
"""Distortions that probes lie next to, by number of probes; more are spread evenly in the logarithm."""

FLOOR = 1e-3
"""Share of the layer's largest probed loss below which probes tell nothing but noise."""


def to_probe(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return up to `count` distinct candidates of one layer, nearest in distortion to where probes tell most.

    Candidates that another one beats in parameters, MACs and loss are passed over: no decision ever takes them.
    """
    left = _undominated(candidates)
    places = PLACES.get(count) or tuple(np.geomspace(PLACES[3][0], PLACES[3][-1], count))
    picks = []
    for place in places:
        if left:
            picks.append(min(left, key=lambda c: abs(np.log(max(c.distortion, 1e-12) / place))))
            left.remove(picks[-1])
    return picks


def _undominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    if not candidates:
        return []
    points = np.array([[c.parameters, c.macs, predicted_loss(c)] for c in candidates])
    return [candidates[index] for index in undominated_rows(points)]


def calibrated(candidates: Sequence[Candidate], measured: Mapping[CandidateId, float]) -> tuple[Candidate, ...]:
    """Return one layer's candidates with the predicted loss that its probes speak for.

    The logarithm of what is measured over what was predicted is interpolated between probes, along the logarithm of
    the prediction, and constant beyond them: a large error costs more than its square where it turns answers over.

    measured : output KL of the probed candidates, of any layer. The prediction is the curvature's where all
    candidates have one, else the distortion. Without a probe, or with probes that distort nothing, nothing changes.
    """
    predicted = all(c.predicted is not None for c in candidates)

    def loss(candidate: Candidate) -> float:
        return predicted_loss(candidate) if predicted else candidate.distortion

    probed = sorted((loss(c), measured[c.id]) for c in candidates if c.id in measured)
    if not probed or probed[-1][0] <= 0:
        return tuple(candidates)
    x, y = np.array(probed).T
    floor = FLOOR * x[-1]
    x = np.maximum(x, floor)
    y = np.maximum(np.maximum.accumulate(y), FLOOR * x)  # more error never costs less
    ratio = np.log(y / x)

    def rescaled(candidate: Candidate) -> Candidate:
        value = loss(candidate)
        return replace(
            candidate, predicted=value * float(np.exp(np.interp(np.log(max(value, floor)), np.log(x), ratio)))
        )

    return tuple(map(rescaled, candidates))
