"""One layer's refit: rows of what it receives, targets of what it should give, factors and bias that fit.

METHODS §5.6–5.9. All of it in folded space: BatchNorm's scale is part of the last factor, its shift of the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lrfgraph.layers.moments import RowMoments
from lrfgraph.layers.pieces import Piece, compose
from lrfgraph.layers.rows import Sampler, cut, grouped, positions_of
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.network.graph import Call, Graph
from lrfgraph.network.operations import layer_input, linear_output
from lrfgraph.network.repair.tail import Tail, tail_of

__all__ = ["Activations", "FitOptions", "Refit", "Solver", "Substitute", "images_for", "refit_layer"]

BLOCK = 8192
"""Rows whose outputs are made at once."""

ROW_BYTES = 512 << 20
"""What the rows of one layer may take: where they are wide, there are fewer."""

SPREAD = 8
"""Of an image's positions, one in so many becomes a row: those beside it say little that is new."""

LEAST_IMAGES = 64
HELD_OUT = 8
"""The last eighth of the images judges a refit and takes no part in it."""

DAMPING = 0.1
"""Share of the curvature's mean that every direction of the outputs counts besides."""

Solver = Callable[[LayerSpec, Sequence[Piece], Sequence[Array], Array | RowMoments, Array, float], list[Array]]


class Activations(Protocol):
    """What the original network and the compressed one have at a layer, of the first `count` images."""

    @property
    def count(self) -> int: ...

    @property
    def slots(self) -> Container[int]: ...

    def batches(self, slots: Sequence[int]) -> Iterator[tuple[int, int, dict[int, tuple[Array, Array]]]]:
        """Yield the first image, the one after the last and, by slot, the original's and the compressed one's."""
        ...


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


def rows_for(layer: LayerSpec, rows: int) -> int:
    """Return how many rows a layer is refitted from, of those that are asked for."""
    return max(min(rows, ROW_BYTES // (4 * layer.groups * layer.width)), 1)


def images_for(layer: LayerSpec, images: int, rows: int) -> int:
    """Return how many of the images a layer is refitted from: all where one gives few rows, few where it gives many.

    It follows from the layer alone, so that what is refitted does not depend on the machine.
    """
    enough = -(-SPREAD * rows_for(layer, rows) // prod(positions_of(layer)))
    return min(images, max(enough, LEAST_IMAGES))


def refit_layer(
    graph: Graph, call: Call, plan: Substitute, streams: Activations, solve: Solver, options: FitOptions
) -> Refit:
    """Solve for a substitute's factors and bias where both streams stand at its layer."""
    layer = plan.layer
    tail = tail_of(graph, call, layer, not plan.ends_in_core, streams.slots)
    if layer.unrefittable:
        return Refit(plan.weights, None, 0.0, 0.0, True)
    sample = _sample(call, layer, tail, streams, options)
    return _Fit(plan, tail, sample, solve).best(options.rounds, options.ridge)


@dataclass(frozen=True)
class _Sample:
    """Rows x (groups, n, width), targets and shortcuts (groups, n, outputs) at the same places; float32.

    They come image by image, in the images' random order; the first `fitted` are solved for, the rest judges.
    """

    x: Array
    target: Array
    shortcut: Array | None

    @property
    def fitted(self) -> int:
        rows: int = self.x.shape[1]
        return rows - rows // HELD_OUT


class _Fit:
    """The refit of one layer; weights and biases below are folded. Outputs are made block by block of rows."""

    def __init__(self, plan: Substitute, tail: Tail, sample: _Sample, solve: Solver) -> None:
        self.layer, self.plan, self.tail, self.solve = plan.layer, plan, tail, solve
        self.free_bias = plan.layer.bias or bool(plan.layer.batchnorm)
        self.sample, self.cut = sample, sample.fitted
        self.fitted = sample.x[:, : self.cut]
        self.root, self.inverse = _output_roots(plan, tail)
        self.mean = self.fitted.mean(axis=1, keepdims=True, dtype=np.float64) * self.free_bias
        self.moments = self._covariance()

    def _covariance(self) -> Array | RowMoments:
        """Moments of the fitted rows about their mean; of rows fewer than wide no square is made."""
        if self.cut < self.layer.width:
            return RowMoments(self.fitted - self.mean, constant=False)
        raw: Array = self.fitted.swapaxes(1, 2) @ self.fitted
        return np.asarray(raw.astype(np.float64) / self.cut - self.mean.swapaxes(1, 2) @ self.mean)

    def best(self, rounds: int, ridge: float) -> Refit:
        """Solve, then solve again with what the ReLU hides left out; keep whatever does best on the held-out rows."""
        first = _scaled(self.plan, self.tail.scale)
        plain = self._response(first, self.tail.shift, relax=False)
        bias = self._bias(first, plain.mean)
        start = self.tail.shift
        trials = [(self._error(first, start), first, start), (self._error(first, bias), first, bias)]
        for strength in self._ridges(ridge):
            weights, response = first, plain
            for left in reversed(range(rounds + 1 if self.tail.interval else 1)):
                weights = self._solution(weights, response.cross, strength)
                bias = self._bias(weights, response.mean)
                trials.append((self._error(weights, bias), weights, bias))
                if left:
                    response = self._response(weights, bias, relax=True)
        error, weights, bias = min(trials, key=lambda trial: trial[0])
        return Refit(
            tuple(w.astype(np.float32) for w in _unscaled(self.plan, weights, self.tail.scale)),
            self._unfold(bias) if self.free_bias else None,
            trials[0][0],
            error,
            weights is first and bias is start,
        )

    def _solution(self, weights: Sequence[Array], cross: Array, strength: float) -> list[Array]:
        """Solve where errors of the outputs count by the network's curvature: its root is part of the last factor."""
        if self.root is None or self.inverse is None:
            return self.solve(self.layer, self.plan.pieces, weights, self.moments, cross, strength)
        turned = [*weights[:-1], _mix_outputs(weights[-1], self.root)]
        solution = self.solve(self.layer, self.plan.pieces, turned, self.moments, cross @ self.root, strength)
        return [*solution[:-1], _mix_outputs(solution[-1], self.inverse)]

    def _ridges(self, ridge: float) -> list[float]:
        few = self.cut < 8 * self.layer.width
        return [ridge, 10 * ridge, 100 * ridge] if few else [ridge]

    def _matrix(self, weights: Sequence[Array]) -> Array:
        return self.layer.matrix(compose(self.plan.pieces, list(weights)))

    def _bias(self, weights: Sequence[Array], mean: Array) -> Array:
        """Folded bias (groups, 1, outputs) that gives targets of this mean; as it is where the layer has none."""
        return mean - self.mean @ self._matrix(weights) if self.free_bias else self.tail.shift

    def _unfold(self, bias: Array) -> Array:
        """Take BatchNorm's own shift out again: what is left is the bias before it."""
        moved = (bias - self.tail.shift) / np.where(self.tail.scale == 0, 1.0, self.tail.scale)
        return (self.tail.bias + np.where(self.tail.scale == 0, 0.0, moved).reshape(-1)).astype(np.float32)

    def _response(self, weights: Sequence[Array], bias: Array, relax: bool) -> _Response:
        """Sum x·tᵀ and t over the fitted rows; the targets t are relaxed by what the weights give there, or as is."""
        cross = np.zeros((self.layer.groups, self.layer.width, self.sample.target.shape[2]))
        total = np.zeros((self.layer.groups, 1, cross.shape[2]))
        for block in self._blocks(0, self.cut, weights, bias):
            target = self.relaxed_target(block) if relax else block.target
            cross += block.x.swapaxes(1, 2) @ target
            total += target.sum(axis=1, keepdims=True, dtype=np.float64)
        mean = total / self.cut * self.free_bias
        return _Response(cross / self.cut - self.mean.swapaxes(1, 2) @ mean, mean)

    def _blocks(self, start: int, stop: int, weights: Sequence[Array], bias: Array) -> Iterator[_Block]:
        matrix, shift = self._matrix(weights).astype(np.float32), bias.astype(np.float32)
        sample = self.sample
        for first in range(start, stop, BLOCK):
            part = slice(first, min(first + BLOCK, stop))
            shortcut = 0.0 if sample.shortcut is None else sample.shortcut[:, part]
            x = sample.x[:, part]
            yield _Block(x, sample.target[:, part], shortcut, x @ matrix + shift)

    def _error(self, weights: Sequence[Array], bias: Array) -> float:
        """Relative squared error on held-out rows, after the addition and the activation."""
        lost, power = 0.0, 0.0
        for block in self._blocks(self.cut, self.sample.x.shape[1], weights, bias):
            target, error = block.target + block.shortcut, block.outputs + block.shortcut
            if self.tail.interval:
                target, error = np.clip(target, *self.tail.interval), np.clip(error, *self.tail.interval)
            error -= target
            if self.root is not None:
                error, target = (each @ self.root.astype(np.float32) for each in (error, target))
            power += float(np.sum(np.square(target), dtype=np.float64))
            lost += float(np.sum(np.square(error), dtype=np.float64))
        return lost / max(power, 1e-30)

    def relaxed_target(self, block: _Block) -> Array:
        """The targets with what the ReLU cuts off replaced by what the layer gives there anyway, cut off too."""
        if not self.tail.interval:
            return block.target
        low, high = self.tail.interval
        outputs, target = block.outputs + block.shortcut, block.target + block.shortcut
        relaxed = np.where(target <= low, np.minimum(outputs, low), target)
        if np.isfinite(high):
            relaxed = np.where(target >= high, np.maximum(outputs, high), relaxed)
        return np.asarray(relaxed - block.shortcut)


@dataclass(frozen=True)
class _Block:
    """Some rows: x (groups, n, width); target, shortcut and what the layer gives, (groups, n, outputs)."""

    x: Array
    target: Array
    shortcut: Array | float
    outputs: Array


@dataclass(frozen=True)
class _Response:
    """Means over rows, centred where a bias takes the mean up; else `mean` is 0.

    cross : of x·tᵀ, (groups, width, outputs).  mean : of the targets t, (groups, 1, outputs).
    """

    cross: Array
    mean: Array


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
    rows = rows_for(layer, options.rows)
    sampler = Sampler(layer, streams.count, rows, rows, 1 << 40, options.seed)
    total = sampler.drawn[0].size
    x = np.empty((layer.groups, total, layer.width), np.float32)
    target = np.empty((layer.groups, total, layer.outputs), np.float32)
    shortcut = None if tail.shortcut is None else np.empty_like(target)
    slots = [call.inputs[0]] if tail.shortcut is None else [call.inputs[0], tail.shortcut]
    end = 0
    for start, stop, values in streams.batches(slots):
        image, position, _ = sampler.batch(0, start, stop)
        part, end = slice(end, end + len(image)), end + len(image)
        original, compressed = values[call.inputs[0]]
        inputs = np.asarray(layer_input(call.operation, layer, compressed))
        x[:, part] = grouped(layer, cut(layer, inputs, image, position))
        linear, _ = linear_output(call.operation, (original,), {})
        bias = 0.0 if call.operation.bias is None else np.asarray(call.operation.bias)
        at = _at(layer, np.asarray(linear) - bias, image, position) * tail.scale + tail.shift
        if shortcut is not None and tail.shortcut is not None:
            theirs, ours = (_at(layer, each, image, position) for each in values[tail.shortcut])
            at = at + theirs - ours
            shortcut[:, part] = ours
        target[:, part] = at
    return _Sample(x, target, shortcut)


def _at(layer: LayerSpec, outputs: Array, image: NDArray[np.intp], position: NDArray[np.intp]) -> Array:
    """Outputs at sampled places as (groups, n, outputs of the group)."""
    flat = outputs.reshape(outputs.shape[0], -1, layer.groups, layer.outputs)
    return np.moveaxis(flat[image, position], 1, 0)
