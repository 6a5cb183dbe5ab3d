"""What a decision is made of: candidates per layer, one choice each, and the reason for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import ConfigurationError

__all__ = [
    "Candidate",
    "Choice",
    "Decision",
    "LayerChoices",
    "Policy",
    "Problem",
    "cost_of",
    "keep",
    "loss_of",
    "totals",
    "undominated_rows",
]


@dataclass(frozen=True)
class Candidate:
    """One (layer, method, rank).

    rank : as written, ``24x31``.  parameters, macs : of the factorized layer, bias apart.
    similarity : by metric name.  distortion : relative squared error of the layer's output.
    weight_error : relative squared error of the kernel itself.
    predicted : the output KL that the layer's error alone would cause, where it is known.
    """

    layer: str
    method: str
    rank: str
    parameters: int
    macs: int
    similarity: Mapping[str, float]
    distortion: float
    weight_error: float = 0.0
    predicted: float | None = None


@dataclass(frozen=True)
class LayerChoices:
    """A layer, what it costs when it is kept, and its candidates (none: `kept` says why).

    noise_ranks : (rank that stands out from noise, full rank) of the kernel's unfolding by inputs and by outputs;
        empty unless the policy `evbmf` asks for them.
    """

    name: str
    parameters: int
    macs: int
    candidates: tuple[Candidate, ...] = ()
    kept: str = ""
    noise_ranks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Problem:
    """All layers and the cost of the whole network (biases, BatchNorm and untouched layers included)."""

    layers: tuple[LayerChoices, ...]
    parameters: int
    macs: int
    metric: str = "cosine"


@dataclass(frozen=True)
class Choice:
    """What becomes of a layer: a candidate, or ``None`` and the reason."""

    layer: str
    candidate: Candidate | None
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """One choice per layer, and what is worth saying about how it was found (objective, gap)."""

    choices: tuple[Choice, ...]
    notes: dict[str, Any] = field(default_factory=dict)


Policy = Callable[[Problem, Any], Decision]


def loss_of(candidate: Candidate) -> float:
    """Predicted output KL where curvature or probes were measured, else the layer's own distortion."""
    return float(candidate.distortion if candidate.predicted is None else candidate.predicted)


def undominated_rows(points: NDArray[np.float64]) -> list[int]:
    """Return, in rising order, the rows of (n, 3) that no other row matches or beats in all columns."""
    alive: list[int] = []
    for index in np.lexsort(points.T[::-1]):
        if not any(np.all(points[j] <= points[index]) for j in alive):
            alive.append(int(index))
    return sorted(alive)


def cost_of(cost: str, mix: float, problem: Problem) -> Callable[[Candidate], float]:
    """Return the cost by which `parameters`, `macs` or their weighted mix orders candidates.

    The mix weighs shares of the whole network: ``mix`` of the parameters' share and ``1 − mix`` of the MACs'.
    """
    orders: dict[str, Callable[[Candidate], float]] = {
        "parameters": lambda c: c.parameters,
        "macs": lambda c: c.macs,
        "mix": lambda c: mix * c.parameters / problem.parameters + (1 - mix) * c.macs / max(problem.macs, 1),
    }
    return orders[cost]


def keep(layer: LayerChoices, reason: str) -> Choice:
    return Choice(layer.name, None, layer.kept or reason)


def totals(problem: Problem, choices: Sequence[Choice]) -> tuple[int, int]:
    """Return parameters and MACs of the whole network under these choices."""
    parameters, macs = problem.parameters, problem.macs
    layers = {layer.name: layer for layer in problem.layers}
    for choice in choices:
        if choice.candidate is not None:
            layer = layers[choice.layer]
            parameters += choice.candidate.parameters - layer.parameters
            macs += choice.candidate.macs - layer.macs
    return parameters, macs


def need(value: Any, option: str, policy: str) -> Any:
    """Return `value`, or say which option the policy cannot do without."""
    if value is None:
        raise ConfigurationError(f"policy {policy!r} needs {option}, received none; give it on the command line")
    return value
