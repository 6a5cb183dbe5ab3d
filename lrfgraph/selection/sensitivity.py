"""Sensitivity: how much more, or less, than predicted the network minds a layer's errors (METHODS §5.2).

A few candidates of each layer are probed; one factor per layer then turns every candidate's predicted loss into
what the probes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lrfgraph.selection.problem import Candidate, CandidateId, predicted_loss, undominated_rows

__all__ = ["PLACES", "calibrated", "sensitivity", "to_probe"]

PLACES: dict[int, tuple[float, ...]] = {1: (0.05,), 2: (0.02, 0.1), 3: (0.01, 0.05, 0.2)}
"""Distortions that probes lie next to, by number of probes; more are spread evenly in the logarithm."""

FLOOR = 1e-3
"""Distortion below which a probe's weight grows no further."""

RELATIVE_FLOOR = FLOOR / 0.2
"""The same for a predicted KL, which has no scale of its own: relative to the layer's most distorted probe."""


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


def sensitivity(losses: Sequence[float], measured: Sequence[float], floor: float) -> float:
    """Fit ``measured = a·loss`` and return a, each probe weighing about as much as any other.

    Weights are 1/(loss² + floor²): the fit is of ratios, except for losses so small that noise would decide.
    """
    x, y = np.asarray(losses, float), np.asarray(measured, float)
    weights = 1.0 / np.maximum(x * x + floor * floor, 1e-300)
    return float(np.sum(weights * x * y) / max(np.sum(weights * x * x), 1e-300))


def calibrated(candidates: Sequence[Candidate], measured: Mapping[CandidateId, float]) -> tuple[Candidate, ...]:
    """Return one layer's candidates with the predicted loss that its probes speak for.

    measured : output KL of the probed candidates, of any layer. The loss is the curvature's prediction where all
    candidates have one, else the distortion. Without a probe, or with probes that distort nothing, nothing changes.
    """
    probed = [c for c in candidates if c.id in measured]
    predicted = all(c.predicted is not None for c in candidates)
    losses = [predicted_loss(c) if predicted else c.distortion for c in probed]
    if not probed or max(losses) <= 0:
        return tuple(candidates)
    floor = RELATIVE_FLOOR * max(losses) if predicted else FLOOR
    slope = sensitivity(losses, [measured[c.id] for c in probed], floor)
    return tuple(replace(c, predicted=slope * (predicted_loss(c) if predicted else c.distortion)) for c in candidates)
