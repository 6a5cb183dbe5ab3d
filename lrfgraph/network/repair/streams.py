"""Repair: refit every replaced layer to what the original network does, in order, on what it now receives.

Two streams of activations walk through the network side by side, the original's and the compressed one's. At a
replaced layer the factors and the bias are solved for so that, from the compressed stream's inputs, the layer
gives the original stream's outputs, corrected for what the other input of a residual addition already got wrong,
and only where a ReLU lets it through. No labels, no gradients of the loss (METHODS §5.6–5.8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lrfgraph.layers.pieces import native_kernel
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.network.graph import Call, feed, flatten, run
from lrfgraph.network.operations import exchange_weights, first_call, kernel_variable
from lrfgraph.network.repair.fit import BATCH, FitOptions, Refit, Solver, Substitute, refit_layer

__all__ = ["FitOptions", "Refit", "Streams", "Substitute"]

LIVE = 4
"""Activations of one shape that are alive at once, about: two streams, a layer's input and its output."""


class Streams:
    """Both streams, standing somewhere in the network; layers are refitted in program order.

    They can be taken up again: the refits so far say which prefix the compressed stream belongs to.
    images : (n, …), of several inputs a tuple of arrays.
    """

    def __init__(
        self,
        model: Any,
        images: Any,
        max_memory: int | None = None,
        scratch: Callable[[], Path] | None = None,
    ) -> None:
        self.graph = flatten(model)
        self.uses = self.graph.last_use()
        self.space = _Space(max_memory, scratch)
        self.values: dict[int, tuple[Array, Array]] = {
            slot: (array, array) for slot, array in feed(self.graph, images).items()
        }
        self.position = 0
        self.refits: dict[str, tuple[Substitute, Refit]] = {}

    def can_go_on(self, prefix: Mapping[str, Refit], path: str) -> bool:
        """Whether the refits so far are exactly `prefix` and the layer `path` still lies ahead."""
        same = self.refits.keys() == prefix.keys() and all(
            len(prefix[name].weights) == len(mine.weights)
            and all(np.array_equal(a, b) for a, b in zip(mine.weights, prefix[name].weights, strict=True))
            and (mine.bias is prefix[name].bias or np.array_equal(mine.bias, prefix[name].bias))  # type: ignore[arg-type]
            for name, (_, mine) in self.refits.items()
        )
        first = next((call.index for call in self.graph.calls if call.path == path), -1)
        return same and first >= self.position

    def adopt(self, plan: Substitute, refit: Refit) -> None:
        """Take over a layer that was refitted before."""
        self.refits[plan.layer.name] = (plan, refit)

    def refit(self, plan: Substitute, solve: Solver, options: FitOptions) -> Refit:
        """Walk up to the layer and solve for its factors and bias."""
        call = first_call(self.graph, plan.layer.name)
        self.go_to(call.index)
        if not plan.weights:
            plan = replace(plan, weights=(_own_kernel(call, plan.layer),))
        refit = refit_layer(self.graph, call, plan, self.values, solve, options)
        self.adopt(plan, refit)
        return refit

    def go_to(self, index: int) -> None:
        """Run all calls before `index` on both streams, keeping only what is still read after them."""
        calls = self.graph.calls[self.position : index]
        if not calls:
            return
        written = {slot for call in calls for slot in call.outputs}
        alive = [slot for slot in sorted(written) if self.uses.get(slot, -1) >= index]
        read = {slot for call in calls for slot in call.inputs} - written
        parted = any(call.path in self.refits for call in calls) or any(
            self.values[slot][0] is not self.values[slot][1] for slot in read
        )
        original = self._run(calls, read, alive, 0)
        compressed = self._run(calls, read, alive, 1) if parted else original
        self.values.update((slot, (original[slot], compressed[slot])) for slot in alive)
        for slot in [slot for slot in self.values if self.uses.get(slot, -1) < index]:
            pair = self.values.pop(slot)
            if slot not in self.graph.inputs:  # the images are the caller's, not ours to write over
                self.space.give_back(pair)
        self.position = index

    def _run(self, calls: Sequence[Call], read: set[int], alive: Sequence[int], which: int) -> dict[int, Array]:
        """Run one stream through `calls`, batch by batch; the compressed one with the refitted layers in place."""
        outputs: dict[int, Array] = {}
        count = len(next(iter(self.values.values()))[0])
        refits = {call.path: self.refits[call.path] for call in calls if which and call.path in self.refits}
        operations = {call.path: call.operation for call in calls if call.path in refits}
        originals = {
            path: exchange_weights(operations[path], native_kernel(plan.layer, plan.pieces, refit.weights), refit.bias)
            for path, (plan, refit) in refits.items()
        }

        def handler(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = call.operation(*args, **kwargs)
            if call.path in refits and call.operation.bias is None and refits[call.path][1].bias is not None:
                out = out + refits[call.path][1].bias  # a BatchNorm takes it up when the model is rebuilt
            return out

        for start in range(0, count, BATCH):
            values = {slot: self.values[slot][which][start : start + BATCH] for slot in read}
            run(self.graph, values, handler, calls)
            for slot in alive:
                out = np.asarray(values[slot])
                if start == 0:
                    outputs[slot] = self.space.take((count, *out.shape[1:]))
                outputs[slot][start : start + BATCH] = out
        for path, weights in originals.items():
            exchange_weights(operations[path], *weights)
        return outputs


def _own_kernel(call: Call, layer: LayerSpec) -> Array:
    kernel = np.asarray(kernel_variable(call.operation), np.float32)
    return layer.family.order.canonical(kernel, layer.groups)


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
