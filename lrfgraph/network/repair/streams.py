"""Repair: refit every replaced layer to what the original network does, in order, on what it now receives.

Two streams of activations walk through the network side by side, the original's and the compressed one's. At a
replaced layer the factors and the bias are solved for so that, from the compressed stream's inputs, the layer
gives the original stream's outputs, corrected for what the other input of a residual addition already got wrong,
and only where a ReLU lets it through. No labels, no gradients of the loss (METHODS §5.6–5.8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.layers.pieces import Piece, compose, native_kernel
from lrfgraph.layers.rows import Sampler, cut, grouped
from lrfgraph.layers.spec import Array, LayerSpec, canonical
from lrfgraph.network.curvature import linear_output
from lrfgraph.network.graph import Call, Program, flatten, run
from lrfgraph.network.recording import layer_input

__all__ = ["Refitted", "Replaced", "Walk", "assign", "kernel_variable", "shift_batchnorm"]

BATCH = 256
HELD_OUT = 8
"""The last eighth of the images judges a refit and takes no part in it."""

DAMPING = 0.1
"""Share of the curvature's mean that every direction of the outputs counts besides."""

LIVE = 4
"""Activations of one shape that are alive at once, about: two streams, a layer's input and its output."""

Solver = Callable[[LayerSpec, Sequence[Piece], Sequence[Array], Array, Array, float], list[Array]]


@dataclass(frozen=True)
class Replaced:
    """A layer that is replaced by a chain; curvature, (groups, outputs, outputs), says which errors of its outputs the
    network minds (`None`: all alike). A kept layer is a chain of one piece, itself, whose weights may be left out."""

    layer: LayerSpec
    pieces: tuple[Piece, ...]
    weights: tuple[Array, ...]
    curvature: Array | None = None


@dataclass(frozen=True)
class Refitted:
    """New weights and bias (``None``: the layer has none); held-out error after the activation, relative,
    before and after; `kept` where no refit lowered it."""

    weights: tuple[Array, ...]
    bias: Array | None
    before: float
    after: float
    kept: bool


@dataclass(frozen=True)
class _Tail:
    """A layer's own bias and what follows it: a folded BatchNorm (scale, and shift with the bias in it), an addition
    whose other input is at hand, the interval that a ReLU lets through."""

    bias: Array
    scale: Array
    shift: Array
    shortcut: int | None
    rectified: tuple[float, float] | None


class Walk:
    """Both streams, standing somewhere in the network; layers are refitted in program order.

    A walk can be taken up again: what it has found so far says which prefix its compressed stream belongs to.
    """

    def __init__(
        self,
        model: Any,
        images: Array,
        max_memory: int | None = None,
        scratch: Callable[[], Path] | None = None,
    ) -> None:
        self.program = flatten(model)
        self.uses = self.program.last_use()
        self.space = _Space(max_memory, scratch)
        self.streams: dict[int, tuple[Array, Array]] = {self.program.inputs[0]: (images, images)}
        self.position = 0
        self.found: dict[str, tuple[Replaced, Refitted]] = {}

    def at(self, path: str) -> Call:
        """Return the first call of a layer."""
        return next(call for call in self.program.calls if call.path == path)

    def can_go_on(self, prefix: Mapping[str, Refitted], path: str) -> bool:
        """Whether this walk's past is exactly `prefix` and the layer `path` still lies ahead."""
        same = self.found.keys() == prefix.keys() and all(
            len(prefix[name].weights) == len(mine.weights)
            and all(np.array_equal(a, b) for a, b in zip(mine.weights, prefix[name].weights, strict=True))
            and (mine.bias is prefix[name].bias or np.array_equal(mine.bias, prefix[name].bias))  # type: ignore[arg-type]
            for name, (_, mine) in self.found.items()
        )
        return same and self.at(path).index >= self.position

    def know(self, plan: Replaced, refitted: Refitted) -> None:
        """Take over a layer that was refitted before."""
        self.found[plan.layer.name] = (plan, refitted)

    def refit(self, plan: Replaced, solve: Solver, rows: int, rounds: int, ridge: float, seed: int) -> Refitted:
        """Walk up to the layer and solve for its factors and bias."""
        call = self.at(plan.layer.name)
        self._go_to(call.index)
        if not plan.weights:
            plan = replace(plan, weights=(_own_kernel(call, plan.layer),))
        refitted = _refit(self.program, call, plan, self.streams, solve, rows, rounds, ridge, seed)
        self.know(plan, refitted)
        return refitted

    def _go_to(self, index: int) -> None:
        """Run all calls before `index` on both streams, keeping only what is still read after them."""
        calls = self.program.calls[self.position : index]
        if not calls:
            return
        made = {slot for call in calls for slot in call.outputs}
        alive = [slot for slot in sorted(made) if self.uses.get(slot, -1) >= index]
        read = {slot for call in calls for slot in call.inputs} - made
        parted = any(call.path in self.found for call in calls) or any(
            self.streams[slot][0] is not self.streams[slot][1] for slot in read
        )
        original = self._run(calls, read, alive, 0)
        compressed = self._run(calls, read, alive, 1) if parted else original
        self.streams.update((slot, (original[slot], compressed[slot])) for slot in alive)
        for slot in [slot for slot in self.streams if self.uses.get(slot, -1) < index]:
            pair = self.streams.pop(slot)
            if slot not in self.program.inputs:  # the images are the caller's, not ours to write over
                self.space.give_back(pair)
        self.position = index

    def _run(self, calls: Sequence[Call], read: set[int], alive: Sequence[int], which: int) -> dict[int, Array]:
        """Run one stream through `calls`, batch by batch; the compressed one with the refitted layers in place."""
        made: dict[int, Array] = {}
        count = len(next(iter(self.streams.values()))[0])
        replaced = {call.path: self.found[call.path] for call in calls if which and call.path in self.found}
        operations = {call.path: call.operation for call in calls if call.path in replaced}
        kept = {
            path: _swap(operations[path], native_kernel(plan.layer, plan.pieces, new.weights), new.bias)
            for path, (plan, new) in replaced.items()
        }

        def handler(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = call.operation(*args, **kwargs)
            if call.path in replaced and call.operation.bias is None and replaced[call.path][1].bias is not None:
                out = out + replaced[call.path][1].bias  # a BatchNorm takes it up when the model is rebuilt
            return out

        for start in range(0, count, BATCH):
            values = {slot: self.streams[slot][which][start : start + BATCH] for slot in read}
            run(self.program, values, handler, calls)
            for slot in alive:
                out = np.asarray(values[slot])
                if start == 0:
                    made[slot] = self.space.take((count, *out.shape[1:]))
                made[slot][start : start + BATCH] = out
        for path, old in kept.items():
            _swap(operations[path], *old)
        return made


def _own_kernel(call: Call, layer: LayerSpec) -> Array:
    return canonical(layer.family, np.asarray(kernel_variable(call.operation), np.float32), layer.groups)


class _Space:
    """Where live activations are kept: in memory while they fit, in files after that. Arrays are used again."""

    def __init__(self, limit: int | None, scratch: Callable[[], Path] | None) -> None:
        self.limit, self.scratch, self.count = limit, scratch, 0
        self.spare: dict[tuple[int, ...], list[Array]] = {}

    def take(self, shape: tuple[int, ...]) -> Array:
        """Return an array of unspecified content."""
        if self.spare.get(shape):
            return self.spare[shape].pop()
        size = 4 * int(np.prod(shape))
        if self.limit is not None and self.scratch is not None and size * LIVE > self.limit:
            self.count += 1
            path = self.scratch() / f"stream-{self.count}.raw"
            with path.open("w+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so here; a mapping would kill us
                mapped = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
            path.unlink()  # the mapping lives on; nothing is left behind whatever happens
            return mapped
        return np.empty(shape, np.float32)

    def give_back(self, pair: tuple[Array, Array]) -> None:
        """Keep the arrays of a value that nobody reads any more, a few of each shape."""
        first, second = pair
        for array in (first,) if first is second else pair:
            if (array.flags.writeable and array.base is None) or isinstance(array, np.memmap):
                spare = self.spare.setdefault(array.shape, [])
                if len(spare) < LIVE:
                    spare.append(array)


def _swap(operation: Any, kernel: Array | None, bias: Array | None) -> tuple[Array | None, Array | None]:
    """Put another kernel and bias into a layer, whose outputs are then those of the chain; return the old ones."""
    if kernel is None:
        return None, None
    variable = kernel_variable(operation)
    old = np.asarray(variable), (np.asarray(operation.bias) if operation.bias is not None else None)
    variable.assign(kernel)
    if bias is not None and operation.bias is not None:
        operation.bias.assign(bias)
    return old


def kernel_variable(operation: Any) -> Any:
    """Return the variable of a layer that factorization replaces."""
    for name in ("pointwise_kernel", "depthwise_kernel"):
        if hasattr(operation, name) and not (name == "depthwise_kernel" and hasattr(operation, "pointwise_kernel")):
            return getattr(operation, name)
    return operation.kernel


def assign(model: Any, path: str, kernel: Array, bias: Array | None) -> None:
    """Give a layer that is kept its refitted kernel and bias."""
    layer = _layer(model, path)
    kernel_variable(layer).assign(kernel)
    if bias is not None and layer.bias is not None:
        layer.bias.assign(bias)


def shift_batchnorm(model: Any, path: str, bias: Array) -> None:
    """Let a BatchNorm take up a bias that the layer before it has no variable for: its moving mean falls by it."""
    _layer(model, path).moving_mean.assign_sub(bias)


def _layer(model: Any, path: str) -> Any:
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


# One layer ----------------------------------------------------------------------------------------------------------


def _refit(
    program: Program,
    call: Call,
    plan: Replaced,
    streams: Mapping[int, tuple[Array, Array]],
    solve: Solver,
    rows: int,
    rounds: int,
    ridge: float,
    seed: int,
) -> Refitted:
    layer, tail = plan.layer, _tail(program, call, plan, streams)
    if layer.family == "transposed" or layer.data_format == "channels_first":
        return Refitted(plan.weights, None, 0.0, 0.0, True)  # outputs overlap: no row has a target of its own
    x, target, shortcut = _sample(call, layer, tail, streams, rows, seed)
    fitted = x.shape[1] - x.shape[1] // HELD_OUT  # rows come image by image, in the images' random order
    problem = _Fit(layer, plan, tail, x, target, shortcut, fitted, _has_bias(call, layer), solve)
    return problem.best(rounds, ridge)


def _has_bias(call: Call, layer: LayerSpec) -> bool:
    return layer.bias or bool(layer.batchnorm)


class _Fit:
    """The refit of one layer in folded space: BatchNorm's scale is part of the last factor, its shift of the bias."""

    def __init__(
        self,
        layer: LayerSpec,
        plan: Replaced,
        tail: _Tail,
        x: Array,
        target: Array,
        shortcut: Array | float,
        fitted: int,
        free_bias: bool,
        solve: Solver,
    ) -> None:
        self.layer, self.plan, self.tail, self.solve, self.free_bias = layer, plan, tail, solve, free_bias
        self.x, self.target, self.shortcut, self.cut = x, target, shortcut, fitted
        self.fitted = x[:, :fitted]
        self.root, self.inverse = _output_roots(plan, tail)
        self.mean = self._centre(self.fitted)
        self.moments = self._product(self.fitted, self.mean)

    def best(self, rounds: int, ridge: float) -> Refitted:
        """Solve, then solve again with what the ReLU hides left out; keep whatever does best on the held-out rows."""
        first = _scaled(self.plan, self.tail.scale)
        bias = self._bias(first, self.target)
        start = self.tail.shift
        tried = [(self._error(first, start), first, start), (self._error(first, bias), first, bias)]
        for strength in self._ridges(ridge):
            weights, target = first, self.target
            for _ in range(rounds + 1 if self.tail.rectified else 1):
                weights = self._solved(weights, target, strength)
                bias = self._bias(weights, target)
                tried.append((self._error(weights, bias), weights, bias))
                target = self._let_through(weights, bias)
        error, weights, bias = min(tried, key=lambda item: item[0])
        kept = weights is first and bias is start
        return Refitted(
            tuple(w.astype(np.float32) for w in _unscaled(self.plan, weights, self.tail.scale)),
            self._unfold(bias) if self.free_bias else None,
            tried[0][0],
            error,
            kept,
        )

    def _solved(self, weights: Sequence[Array], target: Array, strength: float) -> list[Array]:
        """Solve where errors of the outputs count by the network's curvature: its root is part of the last factor."""
        cross = self._cross(target)
        if self.root is None or self.inverse is None:
            return self.solve(self.layer, self.plan.pieces, weights, self.moments, cross, strength)
        turned = [*weights[:-1], _mixed(weights[-1], self.root)]
        found = self.solve(self.layer, self.plan.pieces, turned, self.moments, cross @ self.root, strength)
        return [*found[:-1], _mixed(found[-1], self.inverse)]

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

    def _made(self, weights: Sequence[Array], bias: Array) -> Array:
        made: Array = self.x @ self._matrix(weights).astype(np.float32)
        made += bias.astype(np.float32)
        return made

    def _error(self, weights: Sequence[Array], bias: Array) -> float:
        """Relative squared error on held-out rows, after the addition and the activation."""
        made = self.x[:, self.cut :] @ self._matrix(weights).astype(np.float32) + bias.astype(np.float32)
        shortcut = self.shortcut if isinstance(self.shortcut, float) else self.shortcut[:, self.cut :]
        wanted, got = self.target[:, self.cut :] + shortcut, made + shortcut
        if self.tail.rectified:
            wanted, got = np.clip(wanted, *self.tail.rectified), np.clip(got, *self.tail.rectified)
        got -= wanted
        if self.root is not None:
            got, wanted = (each @ self.root.astype(np.float32) for each in (got, wanted))
        power = float(np.sum(np.square(wanted), dtype=np.float64))
        return float(np.sum(np.square(got), dtype=np.float64)) / max(power, 1e-30)

    def _let_through(self, weights: Sequence[Array], bias: Array) -> Array:
        """The target with what the ReLU cuts off replaced by what the layer makes there anyway, cut off too."""
        if not self.tail.rectified:
            return self.target
        low, high = self.tail.rectified
        made, wanted = self._made(weights, bias) + self.shortcut, self.target + self.shortcut
        relaxed = np.where(wanted <= low, np.minimum(made, low), wanted)
        if np.isfinite(high):
            relaxed = np.where(wanted >= high, np.maximum(made, high), relaxed)
        return np.asarray(relaxed - self.shortcut)


def _scaled(plan: Replaced, scale: Array) -> list[Array]:
    weights: list[Array] = [np.asarray(w, dtype=np.float64) for w in plan.weights]
    return weights if plan.pieces[-1].form == "core" else [*weights[:-1], _times(weights[-1], scale)]


def _unscaled(plan: Replaced, weights: Sequence[Array], scale: Array) -> list[Array]:
    if plan.pieces[-1].form == "core":
        return list(weights)
    return [*weights[:-1], _times(weights[-1], 1.0 / np.where(scale == 0, 1.0, scale))]


def _times(weight: Array, scale: Array) -> Array:
    return weight * scale.reshape(scale.shape[0], *[1] * (weight.ndim - 2), scale.shape[-1])


def _mixed(weight: Array, matrix: Array) -> Array:
    """Multiply a piece's outputs, the last axis, by one matrix a group."""
    groups, *between, outputs = weight.shape
    return np.asarray(weight.reshape(groups, -1, outputs) @ matrix).reshape(groups, *between, outputs)


def _output_roots(plan: Replaced, tail: _Tail) -> tuple[Array | None, Array | None]:
    """Return the root of the curvature at the folded output, damped, and its inverse."""
    if plan.curvature is None or plan.pieces[-1].form == "core":
        return None, None
    scale = np.where(tail.scale == 0, np.inf, tail.scale)
    folded = plan.curvature / (scale * scale.swapaxes(1, 2))
    values, vectors = np.linalg.eigh(folded)
    mean = values.mean(axis=1, keepdims=True)
    values = np.sqrt(np.maximum(values, 0) + DAMPING * np.where(mean > 0, mean, 1.0))[:, None]
    return (vectors * values) @ vectors.swapaxes(1, 2), (vectors / values) @ vectors.swapaxes(1, 2)


def _tail(program: Program, call: Call, plan: Replaced, streams: Mapping[int, tuple[Array, Array]]) -> _Tail:
    """Follow the layer's output through BatchNorm and addition to the activation, as far as it goes alone."""
    layer = plan.layer
    shape = (layer.groups, 1, layer.outputs)
    scale, shift = np.ones(shape), np.zeros(shape)
    slot, following = call.outputs[0], _only_reader(program, call.outputs[0])
    bias = (
        np.asarray(call.operation.bias, np.float64)
        if call.operation.bias is not None
        else np.zeros(layer.groups * layer.outputs)
    )
    if following is not None and layer.batchnorm == following.path and plan.pieces[-1].form != "core":
        norm = following.operation
        gamma = np.asarray(norm.gamma, np.float64) if norm.scale else 1.0
        beta = np.asarray(norm.beta, np.float64) if norm.center else 0.0
        factor = gamma / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
        factor = np.broadcast_to(factor, bias.shape)
        scale = np.where(np.abs(factor) < 1e-6 * np.abs(factor).max(), 0.0, factor).reshape(shape)
        shift = ((bias - np.asarray(norm.moving_mean, np.float64)) * factor + beta).reshape(shape)
        slot, following = following.outputs[0], _only_reader(program, following.outputs[0])
    else:
        shift = bias.reshape(shape)
    shortcut = None
    if (
        layer.activation == "linear"
        and following is not None
        and type(following.operation).__name__ == "Add"
        and len(following.inputs) == 2
    ):
        other = following.inputs[1] if following.inputs[0] == slot else following.inputs[0]
        if other != slot and other in streams and program.shapes[other] == program.shapes[slot]:
            shortcut, following = other, _only_reader(program, following.outputs[0])
        else:
            following = None
    return _Tail(bias, scale, shift, shortcut, _rectifier(call, following))


def _only_reader(program: Program, slot: int) -> Call | None:
    readers = [call for call in program.calls if slot in call.inputs]
    return readers[0] if len(readers) == 1 and slot not in program.outputs else None


def _rectifier(call: Call, following: Call | None) -> tuple[float, float] | None:
    """Return what interval the activation lets through, for the ReLU family, else ``None``."""
    name = getattr(getattr(call.operation, "activation", None), "__name__", "linear")
    if name == "linear" and following is not None:
        operation = following.operation
        name = getattr(getattr(operation, "activation", None), "__name__", type(operation).__name__.lower())
        if type(operation).__name__ == "ReLU":
            plain = operation.negative_slope == 0 and operation.threshold == 0
            high = np.inf if operation.max_value is None else float(operation.max_value)
            return (0.0, high) if plain else None
    return {"relu": (0.0, np.inf), "relu6": (0.0, 6.0)}.get(name)


def _sample(
    call: Call, layer: LayerSpec, tail: _Tail, streams: Mapping[int, tuple[Array, Array]], rows: int, seed: int
) -> tuple[Array, Array, Array | float]:
    """Cut the compressed stream's rows and, at the same places, targets and shortcut: (groups, n, …) each."""
    original, compressed = streams[call.inputs[0]]
    count = len(original)
    sampler = Sampler(layer, count, rows, rows, 1 << 40, seed)
    xs, targets, shortcuts = [], [], []
    for start in range(0, count, BATCH):
        stop = min(start + BATCH, count)
        image, position, _ = sampler.batch(0, start, stop)
        seen = np.asarray(layer_input(call.operation, layer, compressed[start:stop]))
        xs.append(grouped(layer, cut(layer, seen, image, position)).astype(np.float32))
        linear, _ = linear_output(call.operation, (original[start:stop],), {})
        bias = 0.0 if call.operation.bias is None else np.asarray(call.operation.bias)
        made = _at(layer, np.asarray(linear) - bias, image, position) * tail.scale + tail.shift
        if tail.shortcut is not None:
            ours, theirs = (_at(layer, streams[tail.shortcut][k][start:stop], image, position) for k in (1, 0))
            made = made + theirs - ours
            shortcuts.append(ours)
        targets.append(made.astype(np.float32))
    shortcut = np.concatenate(shortcuts, axis=1) if shortcuts else 0.0
    return np.concatenate(xs, axis=1), np.concatenate(targets, axis=1), shortcut


def _at(layer: LayerSpec, outputs: Array, image: NDArray[np.intp], position: NDArray[np.intp]) -> Array:
    """Outputs at sampled places as (groups, n, outputs of the group)."""
    flat = outputs.reshape(outputs.shape[0], -1, layer.groups, layer.outputs)
    return np.moveaxis(flat[image, position], 1, 0)
