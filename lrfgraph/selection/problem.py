"""What a decision is made of: candidates per layer, one choice each, and the reason for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import ConfigurationError

__all__ = [
    "Candidate",
    "CandidateId",
    "Choice",
    "Decision",
    "LayerChoices",
    "Problem",
    "candidate_cost",
    "keep",
    "predicted_loss",
    "require",
    "take",
    "totals",
    "undominated_rows",
]


class CandidateId(NamedTuple):
    """A candidate is one (layer, method, rank); its text is for people and names of nodes, never parsed back.

    rank : as written, ``24x31``.  A layer that is kept has neither method nor rank.
    """

    layer: str
    method: str = ""
    rank: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


@dataclass(frozen=True)
class Candidate:
    """A candidate and what is known of it.

    parameters, macs : of the factorized layer, bias apart.  similarity : by metric name.
    distortion : relative squared error of the layer's output.  weight_error : relative squared error of the kernel.
    predicted : the output KL that the layer's error alone would cause, where it is known.
    """

    id: CandidateId
    parameters: int
    macs: int
    similarity: Mapping[str, float]
    distortion: float
    weight_error: float = 0.0
    predicted: float | None = None

    @property
    def layer(self) -> str:
        return self.id.layer

    @property
    def method(self) -> str:
        return self.id.method

    @property
    def rank(self) -> str:
        return self.id.rank


@dataclass(frozen=True)
class LayerChoices:
    """A layer, what it costs when it is kept, and its candidates (none: `kept` says why).

    noise_ranks : (rank that stands out from noise, full rank) of the kernel's unfolding by inputs and by outputs;
        empty unless the policy needs them.
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
    """What becomes of a layer: a candidate with its cost and similarity, or ``id`` None and the reason."""

    layer: str
    id: CandidateId | None = None
    reason: str = ""
    parameters: int = 0
    macs: int = 0
    similarity: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        if self.id is None:
            return {"layer": self.layer, "method": None, "reason": self.reason}
        costs = {"parameters": self.parameters, "macs": self.macs, "reason": ""}
        return {**self.id._asdict(), "similarity": dict(self.similarity), **costs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Choice:
        if data["method"] is None:
            return cls(data["layer"], reason=data["reason"])
        candidate = CandidateId(data["layer"], data["method"], data["rank"])
        return cls(candidate.layer, candidate, "", data["parameters"], data["macs"], data["similarity"])


@dataclass(frozen=True)
class Decision:
    """One choice per layer and what the whole network then costs.

    policy : the one that decided.  notes : what is worth saying about how it was reached (objective, gap).
    """

    policy: str
    choices: tuple[Choice, ...]
    parameters: int
    macs: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, policy: str, problem: Problem, choices: Sequence[Choice], notes: Mapping[str, Any] | None = None
    ) -> Decision:
        return cls(policy, tuple(choices), *totals(problem, choices), notes or {})

    @property
    def configuration(self) -> tuple[CandidateId, ...]:
        """The candidates that are taken; every other layer is kept."""
        return tuple(choice.id for choice in self.choices if choice.id is not None)

    def noted(self, **notes: Any) -> Decision:
        """Return the same decision with more to say about it."""
        return replace(self, notes={**self.notes, **notes})

    def to_json(self) -> dict[str, Any]:
        choices = [choice.to_json() for choice in self.choices]
        totals = {"parameters": self.parameters, "macs": self.macs}
        return {"policy": self.policy, "choices": choices, "notes": dict(self.notes), **totals}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        choices = tuple(map(Choice.from_json, data["choices"]))
        return cls(data["policy"], choices, data["parameters"], data["macs"], data["notes"])


def predicted_loss(candidate: Candidate) -> float:
    """Predicted output KL where curvature or probes were measured, else the layer's own distortion."""
    return float(candidate.distortion if candidate.predicted is None else candidate.predicted)


def undominated_rows(points: NDArray[np.float64]) -> list[int]:
    """Return, in rising order, the rows of (n, 3) that no other row matches or beats in all columns."""
    alive: list[int] = []
    for index in np.lexsort(points.T[::-1]):
        if not any(np.all(points[j] <= points[index]) for j in alive):
            alive.append(int(index))
    return sorted(alive)


def candidate_cost(cost: str, mix: float, problem: Problem) -> Callable[[Candidate], float]:
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
    """Leave a layer as it is."""
    return Choice(layer.name, reason=layer.kept or reason)


def take(candidate: Candidate) -> Choice:
    """Put a candidate in its layer's place."""
    costs = candidate.parameters, candidate.macs
    return Choice(candidate.layer, candidate.id, "", *costs, candidate.similarity)


def totals(problem: Problem, choices: Sequence[Choice]) -> tuple[int, int]:
    """Return parameters and MACs of the whole network under these choices."""
    parameters, macs = problem.parameters, problem.macs
    layers = {layer.name: layer for layer in problem.layers}
    for choice in choices:
        if choice.id is not None:
            layer = layers[choice.layer]
            parameters += choice.parameters - layer.parameters
            macs += choice.macs - layer.macs
    return parameters, macs


def require(value: Any, option: str, policy: str) -> Any:
    """Return `value`, or say which option the policy cannot do without."""
    if value is None:
        raise ConfigurationError(f"policy {policy!r} needs {option}, received none; give it on the command line")
    return value
