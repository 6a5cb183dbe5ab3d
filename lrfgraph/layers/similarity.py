"""Similarity of a layer's outputs before and after its kernel is replaced: cosine, relative error, linear CKA.

At the linear output all three follow from the input moments alone; after an activation they are taken on the
sampled rows. All metrics rise towards 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.layers.moments import Moments as InputMoments
from lrfgraph.layers.moments import NoMoments, centred, linear, mean_of

__all__ = ["ACTIVATIONS", "METRICS", "Metric", "Moments", "Reference", "from_moments", "from_rows", "output_error"]

Array = NDArray[np.floating[Any]]


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.logaddexp(x, 0),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "softmax": lambda x: (
        np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
}


@dataclass(frozen=True)
class Reference:
    """What is computed once per layer and serves all its candidates.

    kernel : (groups, width, outputs), BatchNorm folded.  shift : (groups, 1, outputs) bias after folding.
    moments : of the inputs, with the constant.  power : ‖Y‖² per row, bias included.  response : G·[W; b].
    covariant : C·W, C the covariance of the inputs.  own : WᵀCW, (groups, outputs, outputs).
    """

    kernel: Array
    shift: Array
    moments: InputMoments
    power: float
    response: Array
    covariant: Array
    own: Array

    @classmethod
    def of(cls, kernel: Array, shift: Array, moments: InputMoments) -> Reference:
        full = np.concatenate([kernel, shift], axis=1)
        response = moments @ full
        covariant = centred(moments) @ kernel
        power = float(np.sum(full * response))
        return cls(kernel, shift, moments, power, response, covariant, kernel.swapaxes(1, 2) @ covariant)


@dataclass(frozen=True)
class Moments:
    """A candidate's linear output against its layer's, as the input moments tell it.

    The error E = Ŵ − W enters directly, so that nothing cancels where the candidate is nearly exact; G·E is the one
    product as large as the moments that a candidate costs, and every metric is taken from it.
    error : (groups, width, outputs).  spread : G·E.  lost : ‖Y−Ŷ‖².  along : ⟨Y, Ŷ−Y⟩, both a row.
    """

    reference: Reference
    error: Array
    spread: Array
    lost: float
    along: float

    @classmethod
    def of(cls, reference: Reference, error: Array, spread: Array | None = None) -> Moments:
        spread = linear(reference.moments) @ error if spread is None else spread
        lost = max(float(np.vdot(error, spread)), 0.0)
        return cls(reference, error, spread, lost, float(np.sum(reference.response[:, :-1] * error)))


@dataclass(frozen=True)
class Rows:
    """Outputs of sampled rows after the same tap, (n, outputs): the layer's and a candidate's."""

    original: Array
    candidate: Array


@dataclass(frozen=True)
class Metric:
    """A similarity that rises to 1. formula : as people read it.  moments, rows : how it is taken from either."""

    formula: str
    moments: Callable[[Moments], float]
    rows: Callable[[Rows], float]


def _cosine(sums: Moments) -> float:
    power = sums.reference.power
    both = max(power + 2 * sums.along + sums.lost, 0.0)
    return float((power + sums.along) / np.sqrt(power * both) if power > 0 and both > 0 else power == both)


def _cosine_of_rows(rows: Rows) -> float:
    y, z = rows.original, rows.candidate
    norm, other = float(np.linalg.norm(y)), float(np.linalg.norm(z))
    return float(np.sum(y * z)) / (norm * other) if norm * other > 0 else float(norm == other)


def _relative_error(sums: Moments) -> float:
    power = sums.reference.power
    return 1.0 - float(np.sqrt(sums.lost / power)) if power > 0 else float(sums.lost == 0)


def _relative_error_of_rows(rows: Rows) -> float:
    y, z = rows.original, rows.candidate
    norm = float(np.linalg.norm(y))
    return 1.0 - float(np.linalg.norm(y - z)) / norm if norm > 0 else float(np.linalg.norm(z) == 0)


def _cka(sums: Moments) -> float:
    """Of a grouped layer it is taken group by group (moments hold nothing across groups) and averaged."""
    reference, error = sums.reference, sums.error
    kernel, spread = reference.kernel + error, sums.spread
    if not isinstance(reference.moments, NoMoments):
        mean = np.asarray(mean_of(reference.moments))
        spread = spread - mean @ (mean.swapaxes(1, 2) @ error)
    cross = reference.covariant.swapaxes(1, 2) @ kernel
    other = kernel.swapaxes(1, 2) @ (reference.covariant + spread)
    return float(np.mean([_alignment(*each) for each in zip(cross, reference.own, other, strict=True)]))


def _cka_of_rows(rows: Rows) -> float:
    y, z = (outputs - outputs.mean(0) for outputs in (rows.original, rows.candidate))
    return _alignment(y.T @ z, y.T @ y, z.T @ z)


def _alignment(cross: Array, first: Array, second: Array) -> float:
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.sum(cross * cross)) / scale if scale > 0 else float(np.allclose(first, second))


METRICS: dict[str, Metric] = {
    "cosine": Metric("⟨Y,Ŷ⟩ / (‖Y‖·‖Ŷ‖)", _cosine, _cosine_of_rows),
    "relative_error": Metric("1 − ‖Y−Ŷ‖ / ‖Y‖", _relative_error, _relative_error_of_rows),
    "cka": Metric("‖YᵀŶ‖² / (‖YᵀY‖·‖ŶᵀŶ‖), columns centred (linear CKA)", _cka, _cka_of_rows),
}


def from_moments(sums: Moments) -> dict[str, float]:
    """Return every metric of a candidate at the linear output."""
    return {name: metric.moments(sums) for name, metric in METRICS.items()}


def from_rows(original: Array, candidate: Array) -> dict[str, float]:
    """Return every metric of outputs (n, outputs) against the original's, both after the same tap."""
    rows = Rows(original.astype(np.float64), candidate.astype(np.float64))
    return {name: metric.rows(rows) for name, metric in METRICS.items()}


def output_error(error: Array, spread: Array, curvature: Array) -> float:
    """Return ½·tr(H Eᵀ G E), the second-order prediction of the output's KL (K-FAC; METHODS §5.9).

    error : (groups, width, outputs).  spread : G·E.  curvature : (groups, outputs, outputs).
    """
    return 0.5 * float(np.sum((error.swapaxes(1, 2) @ spread) * curvature))
