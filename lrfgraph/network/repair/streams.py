"""Repair: refit every replaced layer to what the original network does, in order, on what it now receives.

Two streams of activations walk through the network side by side, the original's and the compressed one's. At a
replaced layer the factors and the bias are solved for so that, from the compressed stream's inputs, the layer
gives the original stream's outputs, corrected for what the other input of a residual addition already got wrong,
and only where a ReLU lets it through. No labels, no gradients of the loss (METHODS §5.6–5.8).

The streams are cut into chunks of images. Early layers are refitted from few images, which give rows enough: images
that a later layer needs besides start from the first layer when it is that one's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrfgraph.layers.pieces import native_kernel
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.network.graph import Call, Handler, feed, flatten, run
from lrfgraph.network.memory import Traffic, images_in_flight
from lrfgraph.network.operations import exchange_weights, first_call, kernel_variable
from lrfgraph.network.repair.fit import Activations, FitOptions, Refit, Solver, Substitute, images_for, refit_layer
from lrfgraph.network.repair.shelf import Shelf, Waiting

__all__ = ["FitOptions", "Refit", "Streams", "Substitute"]

BATCH = 256
"""Images of a chunk, at most."""


@dataclass
class _Chunk:
    """Some of the images, all of whose values stand before the same call.

    values : by slot, the original stream's and the compressed one's; the same one while they have not parted.
    """

    start: int
    stop: int
    values: dict[int, tuple[Waiting, Waiting]] = field(default_factory=dict)


class Streams:
    """Both streams, standing somewhere in the network; layers are refitted in program order.

    They can be taken up again: the refits so far say which prefix the compressed stream belongs to.
    images : (n, …), array-like; slices of several inputs are tuples.  max_memory : bytes that waiting activations may
    take before they go to a file in the folder `scratch`.
    """

    def __init__(
        self,
        model: Any,
        images: Any,
        max_memory: int | None = None,
        scratch: Callable[[], Path] | None = None,
    ) -> None:
        self.graph, self.images = flatten(model), images
        self.uses = self.graph.last_use()
        self.shelf = Shelf(max_memory, scratch)
        self.size = images_in_flight(Traffic.of(self.graph, model, tuple(images.shape[1:])).forward, BATCH)
        self.chunks: list[_Chunk] = []
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
        count = images_for(plan.layer, len(self.images), options.rows)
        self.go_to(call.index, count)
        if not plan.weights:
            plan = replace(plan, weights=(_own_kernel(call, plan.layer),))
        refit = refit_layer(self.graph, call, plan, self.activations(count), solve, options)
        self.adopt(plan, refit)
        return refit

    def go_to(self, index: int, count: int | None = None) -> None:
        """Run all calls before `index` on both streams, keeping only what is still read after them.

        count : images that must stand there; all that walked so far walk on.  The whole set by default.
        """
        for chunk in self.chunks:
            self._walk(chunk, self.position, index)
        self.position = index
        stop = len(self.images) if count is None else count
        while (start := self.chunks[-1].stop if self.chunks else 0) < stop:
            chunk = _Chunk(start, min(start + self.size, len(self.images)))
            for slot, array in feed(self.graph, self.images[chunk.start : chunk.stop]).items():
                waiting = self.shelf.put(np.asarray(array, np.float32))
                chunk.values[slot] = waiting, waiting
            self._walk(chunk, 0, index)
            self.chunks.append(chunk)

    def activations(self, count: int) -> Activations:
        """Return what both streams have in hand of the first `count` images."""
        return _Activations(self, count)

    def _walk(self, chunk: _Chunk, start: int, index: int) -> None:
        """Run a chunk's streams through the calls from `start` up to `index`."""
        calls = self.graph.calls[start:index]
        if not calls:
            return
        written = {slot for call in calls for slot in call.outputs}
        alive = [slot for slot in sorted(written) if self.uses.get(slot, -1) >= index]
        read = {slot for call in calls for slot in call.inputs} - written
        parted = any(call.path in self.refits for call in calls) or any(
            chunk.values[slot][0] is not chunk.values[slot][1] for slot in read
        )
        original = self._run(calls, {slot: chunk.values[slot][0] for slot in read}, alive)
        compressed = original
        if parted:
            with self._exchanged(calls) as handler:
                compressed = self._run(calls, {slot: chunk.values[slot][1] for slot in read}, alive, handler)
        chunk.values.update((slot, (original[slot], compressed[slot])) for slot in alive)
        for slot in [slot for slot in chunk.values if self.uses.get(slot, -1) < index]:
            first, second = chunk.values.pop(slot)
            for waiting in (first,) if first is second else (first, second):
                self.shelf.drop(waiting)

    def _run(
        self, calls: Sequence[Call], inputs: Mapping[int, Waiting], alive: Sequence[int], handler: Handler | None = None
    ) -> dict[int, Waiting]:
        values: dict[int, Any] = {slot: self.shelf.get(waiting) for slot, waiting in inputs.items()}
        run(self.graph, values, handler, calls, keep=alive)
        return {slot: self.shelf.put(np.asarray(values.pop(slot), np.float32)) for slot in alive}

    @contextmanager
    def _exchanged(self, calls: Sequence[Call]) -> Iterator[Handler]:
        """Put the refitted layers among `calls` in place of the original's, and these back afterwards."""
        refits = {call.path: self.refits[call.path] for call in calls if call.path in self.refits}
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

        try:
            yield handler
        finally:
            for path, weights in originals.items():
                exchange_weights(operations[path], *weights)


@dataclass(frozen=True)
class _Activations:
    """What both streams have in hand of the first `count` images."""

    streams: Streams
    count: int

    @property
    def slots(self) -> frozenset[int]:
        return frozenset(self.streams.chunks[0].values)

    def batches(self, slots: Sequence[int]) -> Iterator[tuple[int, int, dict[int, tuple[Array, Array]]]]:
        """Yield the first image, the one after the last, and both streams' values of each slot."""
        get = self.streams.shelf.get
        for chunk in self.streams.chunks:
            stop = min(chunk.stop, self.count)
            if chunk.start < stop:
                part = slice(stop - chunk.start)
                pairs = {slot: chunk.values[slot] for slot in slots}
                yield chunk.start, stop, {slot: (get(a)[part], get(b)[part]) for slot, (a, b) in pairs.items()}


def _own_kernel(call: Call, layer: LayerSpec) -> Array:
    kernel = np.asarray(kernel_variable(call.operation), np.float32)
    return layer.family.order.canonical(kernel, layer.groups)
