"""Probes: what the whole network's output says to one layer replaced by one candidate (METHODS §5.2).

One pass serves all probes: at a probed layer the original's live values are at hand, and only the calls from there
on run again, once per candidate. No labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrfgraph.layers.pieces import Piece, native_kernel
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.network.graph import Graph, feed, flatten, run
from lrfgraph.network.heads import Head
from lrfgraph.network.memory import Traffic, images_in_flight
from lrfgraph.network.operations import kernel_variable

__all__ = ["Probe", "probe"]

LIVE_BYTES = 256_000_000
"""Bytes that the original's live values may take at a probed layer."""

BATCH = 128
"""Images that run through a suffix at once, at most."""

Values = dict[int, Any]


@dataclass(frozen=True)
class Probe:
    """A layer and the chain that takes its place."""

    layer: LayerSpec
    pieces: tuple[Piece, ...]
    weights: tuple[Array, ...]


def probe(
    model: Any,
    probes: Sequence[Probe],
    images: Any,
    head: Head,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[float]:
    """Return each probe's mean KL(original ‖ replaced), or the relative squared error of values.

    images : (n, …), array-like; slices of several inputs are tuples.  A layer that is called several times is
    replaced everywhere.
    """
    graph = flatten(model)
    batch = images_in_flight(Traffic.of(graph, model, images.shape[1:]).forward, BATCH)
    forward = _Forward(graph, batch)
    at: dict[int, list[int]] = {}
    for number, one in enumerate(probes):
        at.setdefault(forward.first(one.layer.name), []).append(number)
    kernels = [native_kernel(one.layer, one.pieces, one.weights) for one in probes]
    size = forward.chunk(images[:1], max(at))
    distance, power = np.zeros(len(probes)), 0.0
    for start in range(0, len(images), size):
        live, position = feed(forward.graph, images[start : start + size]), 0
        original = forward.outputs(live, 0)
        power += float(np.sum(head.answers.worth(head.of_array(original))))
        for index in sorted(at):
            live, position = forward.advance(live, position, index), index
            with forward.restored(index) as variable:
                for number in at[index]:
                    variable.assign(kernels[number])
                    distance[number] += float(np.sum(head.divergences(forward.outputs(live, index), original)[0]))
        if progress:
            progress(min(start + size, len(images)), len(images), "images")
    return [float(each) for each in np.maximum(distance / max(power, 1e-30), 0.0)]


class _Forward:
    """Runs parts of a network, keeping only values that are still read."""

    def __init__(self, graph: Graph, batch: int) -> None:
        self.graph, self.uses, self.batch = graph, graph.last_use(), batch

    def first(self, path: str) -> int:
        """Return the index of a layer's first call."""
        return next(call.index for call in self.graph.calls if call.path == path)

    def advance(self, values: Values, position: int, index: int) -> Values:
        """Run the calls from `position` up to `index` and return what is still read from there on."""
        values = dict(values)
        for call in self.graph.calls[position:index]:
            run(self.graph, values, calls=[call])
            for slot in {*call.inputs, *call.outputs}:
                if self.uses.get(slot, -1) <= call.index:
                    del values[slot]
        return values

    def outputs(self, live: Values, index: int) -> Array:
        """Return the network's outputs from the values that are alive at the call `index`, batch by batch."""
        outputs = []
        for start in range(0, len(next(iter(live.values()))), self.batch):
            values = {slot: value[start : start + self.batch] for slot, value in live.items()}
            end = self.advance(values, index, len(self.graph.calls))[self.graph.outputs[0]]
            outputs.append(np.asarray(end).astype(np.float32))
        return np.concatenate(outputs)

    @contextmanager
    def restored(self, index: int) -> Iterator[Any]:
        """Hand out the kernel of the layer called at `index`; it has its old value again afterwards."""
        variable = kernel_variable(self.graph.calls[index].operation)
        old = np.asarray(variable)
        try:
            yield variable
        finally:
            variable.assign(old)

    def chunk(self, image: Any, last: int) -> int:
        """Return how many images keep the live values up to the call `last` within `LIVE_BYTES`; one image tells."""
        values: Values = feed(self.graph, image)
        most = sum(np.asarray(value).nbytes for value in values.values())
        for index in range(last):
            values = self.advance(values, index, index + 1)
            most = max(most, sum(np.asarray(value).nbytes for value in values.values()))
        return max(LIVE_BYTES // max(most, 1), 1)
