"""One layer's refit: rows of what it receives, targets of what it should give, factors and bias that fit.

METHODS §5.6–5.9. All of it in folded space: BatchNorm's scale is part of the last factor, its shift of the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfgraph.layers.pieces import Piece, compose
from lrfgraph.layers.rows import Sampler, cut, grouped
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.network.graph import Call, Graph
from lrfgraph.network.operations import layer_input, linear_output
from lrfgraph.network.repair.tail import Tail, tail_of

__all__ = ["Activations", "FitOptions", "Refit", "Solver", "Substitute", "refit_layer"]

BATCH = 256
HELD_OUT = 8
"""The last eighth of the images judges a refit and takes no part in it."""

DAMPING = 0.1
"""Share of the curvature's mean that every direction of the outputs counts besides."""

Solver = Callable[[LayerSpec, Sequence[Piece], Sequence[Array], Array, Array, float], list[Array]]
Activations = Mapping[int, tuple[Array, Array]]
"""By slot, the original network's activations and the compressed one's."""


@dataclass(frozen=True)
class Substitute:
    """A chain in place of a layer.

    curvature : (groups, outputs, outputs), the Fisher factor of the layer's output gradient (K-FAC), which says what
    errors of its outputs cost; ``None``: all alike.  A kept layer is a chain of one piece, itself, whose weights may
    be left out.
    """

    layer: LayerSpec
    pieces: tuple[Piece, ...]
    weights: tuple[Array, ...]
    curvature: Array | None = None

    @property
    def ends_in_core(self) -> bool:
        """Whether the last piece is a core, whose last axis is no output: nothing can be folded into it."""
        return self.pieces[-1].form == "core"


@dataclass(frozen=True)
class Refit:
    """New weights and bias (``None``: the layer has none); held-out error after the activation, relative,
    before and after; `kept` where no refit lowered it."""

    weights: tuple[Array, ...]
    bias: Array | None
    before: float
    after: float
    kept: bool


@dataclass(frozen=True)
class FitOptions:
    """rows : sampled for one layer.  rounds : of relaxing the target behind a ReLU.  ridge : λ in parts of the mean
    diagonal of the moments.  seed : of the sample."""

    rows: int
    rounds: int
    ridge: float
    seed: int


def refit_layer(
    graph: Graph, call: Call, plan: Substitute, streams: Activations, solve: Solver, options: FitOptions
) -> Refit:
    """Solve for a substitute's factors and bias where both streams stand at its layer."""
    layer = plan.layer
    tail = tail_of(graph, call, layer, not plan.ends_in_core, streams)
    if layer.unrefittable:
        return Refit(plan.weights, None, 0.0, 0.0, True)
    sample = _sample(call, layer, tail, streams, options)
    return _Fit(plan, tail, sample, solve).best(options.rounds, options.ridge)


@dataclass(frozen=True)
class _Sample:
    """Rows x (groups, n, width), targets and shortcuts (groups, n, outputs) at the same places.

    They come image by image, in the images' random order; the first `fitted` are solved for, the rest judges.
    """

    x: Array
    target: Array
    shortcut: Array | float

    @property
    def fitted(self) -> int:
        rows: int = self.x.shape[1]
        return rows - rows // HELD_OUT


class _Fit:
    """The refit of one layer; weights and biases below are folded."""

    def __init__(self, plan: Substitute, tail: Tail, sample: _Sample, solve: Solver) -> None:
        self.layer, self.plan, self.tail, self.solve = plan.layer, plan, tail, solve
        self.free_bias = plan.layer.bias or bool(plan.layer.batchnorm)
        self.x, self.target, self.shortcut, self.cut = sample.x, sample.target, sample.shortcut, sample.fitted
        self.fitted = self.x[:, : self.cut]
        self.root, self.inverse = _output_roots(plan, tail)
        self.mean = self._centre(self.fitted)
        self.moments = self._product(self.fitted, self.mean)

    def best(self, rounds: int, ridge: float) -> Refit:
        """Solve, then solve again with what the ReLU hides left out; keep whatever does best on the held-out rows."""
        first = _scaled(self.plan, self.tail.scale)
        bias = self._bias(first, self.target)
        start = self.tail.shift
        trials = [(self._error(first, start), first, start), (self._error(first, bias), first, bias)]
        for strength in self._ridges(ridge):
            weights, target = first, self.target
            for _ in range(rounds + 1 if self.tail.interval else 1):
                weights = self._solution(weights, target, strength)
                bias = self._bias(weights, target)
                trials.append((self._error(weights, bias), weights, bias))
                target = self.relaxed_target(weights, bias)
        error, weights, bias = min(trials, key=lambda trial: trial[0])
        return Refit(
            tuple(w.astype(np.float32) for w in _unscaled(self.plan, weights, self.tail.scale)),
            self._unfold(bias) if self.free_bias else None,
            trials[0][0],
            error,
            weights is first and bias is start,
        )

    def _solution(self, weights: Sequence[Array], target: Array, strength: float) -> list[Array]:
        """Solve where errors of the outputs count by the network's curvature: its root is part of the last factor."""
        cross = self._cross(target)
        if self.root is None or self.inverse is None:
            return self.solve(self.layer, self.plan.pieces, weights, self.moments, cross, strength)
        turned = [*weights[:-1], _mix_outputs(weights[-1], self.root)]
        solution = self.solve(self.layer, self.plan.pieces, turned, self.moments, cross @ self.root, strength)
        return [*solution[:-1], _mix_outputs(solution[-1], self.inverse)]

    def _ridges(self, ridge: float) -> list[float]:
        few = self.fitted.shape[1] < 8 * self.layer.width
        return [ridge, 10 * ridge, 100 * ridge] if few else [ridge]

    def _matrix(self, weights: Sequence[Array]) -> Array:
        return self.layer.matrix(compose(self.plan.pieces, list(weights)))

    def _centre(self, values: Array) -> Array:
        """Mean over rows, (groups, 1, columns); zero where no bias could take it up."""
        if not self.free_bias:
            return np.zeros((values.shape[0], 1, values.shape[2]))
        return np.asarray(values.mean(axis=1, keepdims=True, dtype=np.float64))

    def _product(self, values: Array, centre: Array) -> Array:
        """Mean of x·valuesᵀ over the fitted rows, centred."""
        raw: Array = self.fitted.swapaxes(1, 2) @ values
        return np.asarray(raw.astype(np.float64) / self.cut - self.mean.swapaxes(1, 2) @ centre)

    def _cross(self, target: Array) -> Array:
        fitted = target[:, : self.cut]
        return self._product(fitted, self._centre(fitted))

    def _bias(self, weights: Sequence[Array], target: Array) -> Array:
        """Folded bias (groups, 1, outputs); what it is now where the layer has none to give."""
        if not self.free_bias:
            return self.tail.shift
        return np.asarray(self._centre(target[:, : self.cut]) - self.mean @ self._matrix(weights))

    def _unfold(self, bias: Array) -> Array:
        """Take BatchNorm's own shift out again: what is left is the bias before it."""
        moved = (bias - self.tail.shift) / np.where(self.tail.scale == 0, 1.0, self.tail.scale)
        return (self.tail.bias + np.where(self.tail.scale == 0, 0.0, moved).reshape(-1)).astype(np.float32)

    def _outputs(self, weights: Sequence[Array], bias: Array) -> Array:
        outputs: Array = self.x @ self._matrix(weights).astype(np.float32)
        outputs += bias.astype(np.float32)
        return outputs

    def _error(self, weights: Sequence[Array], bias: Array) -> float:
        """Relative squared error on held-out rows, after the addition and the activation."""
        outputs = self.x[:, self.cut :] @ self._matrix(weights).astype(np.float32) + bias.astype(np.float32)
        shortcut = self.shortcut if isinstance(self.shortcut, float) else self.shortcut[:, self.cut :]
        target, error = self.target[:, self.cut :] + shortcut, outputs + shortcut
        if self.tail.interval:
            target, error = np.clip(target, *self.tail.interval), np.clip(error, *self.tail.interval)
        error -= target
        if self.root is not None:
            error, target = (each @ self.root.astype(np.float32) for each in (error, target))
        power = float(np.sum(np.square(target), dtype=np.float64))
        return float(np.sum(np.square(error), dtype=np.float64)) / max(power, 1e-30)

    def relaxed_target(self, weights: Sequence[Array], bias: Array) -> Array:
        """The target with what the ReLU cuts off replaced by what the layer gives there anyway, cut off too."""
        if not self.tail.interval:
            return self.target
        low, high = self.tail.interval
        outputs, target = self._outputs(weights, bias) + self.shortcut, self.target + self.shortcut
        relaxed = np.where(target <= low, np.minimum(outputs, low), target)
        if np.isfinite(high):
            relaxed = np.where(target >= high, np.maximum(outputs, high), relaxed)
        return np.asarray(relaxed - self.shortcut)


# Folding ------------------------------------------------------------------------------------------------------------


def _scaled(plan: Substitute, scale: Array) -> list[Array]:
    weights: list[Array] = [np.asarray(w, dtype=np.float64) for w in plan.weights]
    return weights if plan.ends_in_core else [*weights[:-1], _scale_outputs(weights[-1], scale)]


def _unscaled(plan: Substitute, weights: Sequence[Array], scale: Array) -> list[Array]:
    if plan.ends_in_core:
        return list(weights)
    return [*weights[:-1], _scale_outputs(weights[-1], 1.0 / np.where(scale == 0, 1.0, scale))]


def _scale_outputs(weight: Array, scale: Array) -> Array:
    return weight * scale.reshape(scale.shape[0], *[1] * (weight.ndim - 2), scale.shape[-1])


def _mix_outputs(weight: Array, matrix: Array) -> Array:
    """Multiply a piece's outputs, the last axis, by one matrix a group."""
    groups, *between, outputs = weight.shape
    return np.asarray(weight.reshape(groups, -1, outputs) @ matrix).reshape(groups, *between, outputs)


def _output_roots(plan: Substitute, tail: Tail) -> tuple[Array | None, Array | None]:
    """Return the root of the curvature at the folded output, damped, and its inverse."""
    if plan.curvature is None or plan.ends_in_core:
        return None, None
    scale = np.where(tail.scale == 0, np.inf, tail.scale)
    folded = plan.curvature / (scale * scale.swapaxes(1, 2))
    values, vectors = np.linalg.eigh(folded)
    mean = values.mean(axis=1, keepdims=True)
    values = np.sqrt(np.maximum(values, 0) + DAMPING * np.where(mean > 0, mean, 1.0))[:, None]
    return (vectors * values) @ vectors.swapaxes(1, 2), (vectors / values) @ vectors.swapaxes(1, 2)


# Rows ---------------------------------------------------------------------------------------------------------------


def _sample(call: Call, layer: LayerSpec, tail: Tail, streams: Activations, options: FitOptions) -> _Sample:
    """Cut the compressed stream's rows and, at the same places, targets and shortcuts."""
    original, compressed = streams[call.inputs[0]]
    count = len(original)
    sampler = Sampler(layer, count, options.rows, options.rows, 1 << 40, options.seed)
    xs, targets, shortcuts = [], [], []
    for start in range(0, count, BATCH):
        stop = min(start + BATCH, count)
        image, position, _ = sampler.batch(0, start, stop)
        inputs = np.asarray(layer_input(call.operation, layer, compressed[start:stop]))
        xs.append(grouped(layer, cut(layer, inputs, image, position)).astype(np.float32))
        linear, _ = linear_output(call.operation, (original[start:stop],), {})
        bias = 0.0 if call.operation.bias is None else np.asarray(call.operation.bias)
        target = _at(layer, np.asarray(linear) - bias, image, position) * tail.scale + tail.shift
        if tail.shortcut is not None:
            ours, theirs = (_at(layer, streams[tail.shortcut][k][start:stop], image, position) for k in (1, 0))
            target = target + theirs - ours
            shortcuts.append(ours)
        targets.append(target.astype(np.float32))
    shortcut = np.concatenate(shortcuts, axis=1) if shortcuts else 0.0
    return _Sample(np.concatenate(xs, axis=1), np.concatenate(targets, axis=1), shortcut)


def _at(layer: LayerSpec, outputs: Array, image: NDArray[np.intp], position: NDArray[np.intp]) -> Array:
    """Outputs at sampled places as (groups, n, outputs of the group)."""
    flat = outputs.reshape(outputs.shape[0], -1, layer.groups, layer.outputs)
    return np.moveaxis(flat[image, position], 1, 0)
