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

__all__ = ["ACTIVATIONS", "METRICS", "Reference", "from_moments", "from_rows", "output_error"]

Array = NDArray[np.floating[Any]]

METRICS: dict[str, str] = {
    "cosine": "⟨Y,Ŷ⟩ / (‖Y‖·‖Ŷ‖)",
    "relative_error": "1 − ‖Y−Ŷ‖ / ‖Y‖",
    "cka": "‖YᵀŶ‖² / (‖YᵀY‖·‖ŶᵀŶ‖), columns centred (linear CKA)",
}


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
    moments : (groups, width+1, width+1).  power : ‖Y‖² per row, bias included.  response : G·[W; b].
    """

    kernel: Array
    shift: Array
    moments: Array
    power: float
    response: Array

    @classmethod
    def of(cls, kernel: Array, shift: Array, moments: Array) -> Reference:
        full = np.concatenate([kernel, shift], axis=1)
        response = moments @ full
        return cls(kernel, shift, moments, float(np.sum(full * response)), response)


def from_moments(reference: Reference, kernel: Array) -> dict[str, float]:
    """Return every metric of a candidate kernel (groups, width, outputs) at the linear output.

    The error E = Ŵ − W enters directly, so that nothing cancels where the candidate is nearly exact. The linear
    CKA of a grouped layer is taken group by group (moments hold nothing across groups) and averaged.
    """
    error = kernel - reference.kernel
    spread = reference.moments[:, :-1, :-1] @ error
    lost = max(float(np.sum(error * spread)), 0.0)
    along = float(np.sum(reference.response[:, :-1] * error))
    power = reference.power
    both = max(power + 2 * along + lost, 0.0)
    cosine = (power + along) / np.sqrt(power * both) if power > 0 and both > 0 else float(power == both)
    return {
        "cosine": float(cosine),
        "relative_error": 1.0 - float(np.sqrt(lost / power)) if power > 0 else float(lost == 0),
        "cka": _cka_from_moments(reference, kernel),
    }


def _cka_from_moments(reference: Reference, kernel: Array) -> float:
    mean = reference.moments[:, :-1, -1:]
    centred = reference.moments[:, :-1, :-1] - mean @ mean.swapaxes(1, 2)
    values = [
        _cka(w.T @ c @ v, w.T @ c @ w, v.T @ c @ v) for w, v, c in zip(reference.kernel, kernel, centred, strict=True)
    ]
    return float(np.mean(values))


def _cka(cross: Array, first: Array, second: Array) -> float:
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.sum(cross * cross)) / scale if scale > 0 else float(np.allclose(first, second))


def from_rows(original: Array, candidate: Array) -> dict[str, float]:
    """Return every metric of outputs (n, outputs) against the original's, both after the same tap."""
    y, z = original.astype(np.float64), candidate.astype(np.float64)
    norm, other = float(np.linalg.norm(y)), float(np.linalg.norm(z))
    y_c, z_c = y - y.mean(0), z - z.mean(0)
    return {
        "cosine": float(np.sum(y * z)) / (norm * other) if norm * other > 0 else float(norm == other),
        "relative_error": 1.0 - float(np.linalg.norm(y - z)) / norm if norm > 0 else float(other == 0),
        "cka": _cka(y_c.T @ z_c, y_c.T @ y_c, z_c.T @ z_c),
    }


def output_error(error: Array, moments: Array, curvature: Array) -> float:
    """Return ½·tr(H Eᵀ G E), the second-order prediction of the output's KL (K-FAC; METHODS §5.9).

    error : (groups, width, outputs).  moments : with the constant last.  curvature : (groups, outputs, outputs).
    """
    return 0.5 * float(np.sum((error.swapaxes(1, 2) @ moments[:, :-1, :-1] @ error) * curvature))
