"""Sampled rows and second moments of the inputs of every layer asked for, in one pass over the calibration images."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from lrfgraph.layers.rows import Sampler, add_moments, cut
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.network.graph import Call, Graph, feed, flatten, run
from lrfgraph.network.operations import layer_input
from lrfgraph.options.recipe import RecordOptions

__all__ = ["Recording", "record"]

BATCH_BYTES = 128 * 1024**2
MOST = 256
"""Images that run at once, at most."""

ROWS_IN_MEMORY = 64 * 1024**2
"""Rows of all layers together that wait in memory; more wait in a file."""


@dataclass(frozen=True)
class Recording:
    """rows : (n, S, channels) float32.  moments : (groups, width+1, width+1) float64, mean of x xᵀ with the
    constant 1 last, or ``None`` where fewer rows than the width were seen.  count : rows in the moments."""

    rows: Array
    moments: Array | None
    count: int


def record(
    model: Any,
    layers: Sequence[LayerSpec],
    images: Any,
    options: RecordOptions | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    scratch: Callable[[], Path] | None = None,
) -> Iterator[Recording]:
    """Stream `images` (n, …), array-like, preprocessed, through `model` once and sample every layer of `layers`.

    The recordings come one by one, in the order of `layers`: rows of all layers of a large network are gigabytes.
    scratch : folder in which they wait, made when it is asked for; the system's by default.
    """
    import tensorflow as tf

    options, graph = options or RecordOptions(), flatten(model)
    numbers = {layer.name: index for index, layer in enumerate(layers)}
    calls = _needed(graph, numbers)
    sampling = options.rows, options.moment_rows, options.max_rows_bytes, options.seed
    samplers = [Sampler(layer, len(images), *sampling) for layer in layers]
    waiting = _Rows(scratch)
    totals = [
        _empty_moments(layer) if _enough(layer, sampler) else None
        for layer, sampler in zip(layers, samplers, strict=True)
    ]
    counts = [0] * len(layers)

    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def inputs_of(batch: Any) -> list[Any]:
        recorded: list[Any] = []

        def handler(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if call.path in numbers:
                recorded.append(layer_input(call.operation, layers[numbers[call.path]], args[0]))
            return call.operation(*args, **kwargs)

        run(graph, feed(graph, batch), handler, calls, keep=())
        return recorded

    order = _call_order(calls, numbers)
    size = _batch_size(graph, images)
    for start in range(0, len(images), size):
        stop = min(start + size, len(images))
        for (index, call), x in zip(order, inputs_of(images[start:stop]), strict=True):
            layer = layers[index]
            image, position, stored = samplers[index].batch(call, start, stop)
            cuts = cut(layer, x.numpy(), image, position)
            waiting.add(index, cuts[stored])
            total = totals[index]
            if total is not None:
                add_moments(total, layer, cuts)
                counts[index] += len(cuts)
        if progress:
            progress(stop, len(images), "images")
    for index, total in enumerate(totals):
        moments = None if total is None else total / counts[index]
        totals[index] = None
        yield Recording(waiting.take(index), moments, counts[index])


@dataclass(eq=False)
class _Rows:
    """Rows of several layers, piece by piece: in memory while they are few, then in one file that has no name."""

    scratch: Callable[[], Path] | None
    pieces: dict[int, list[Array | tuple[int, tuple[int, ...]]]] = field(default_factory=dict)
    size: int = 0
    file: IO[bytes] | None = None

    def add(self, index: int, rows: Array) -> None:
        """Append rows (n, S, channels) of a layer."""
        self.size += rows.nbytes
        pieces = self.pieces.setdefault(index, [])
        if self.size <= ROWS_IN_MEMORY:
            pieces.append(rows)
            return
        if self.file is None:
            folder = self.scratch() if self.scratch else None
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as rows wait
            weakref.finalize(self, self.file.close)
        pieces.append((self.file.tell(), rows.shape))
        self.file.write(np.ascontiguousarray(rows, np.float32).data)

    def take(self, index: int) -> Array:
        """Return all rows of a layer; they are not kept."""
        return np.concatenate(
            [self._read(*piece) if isinstance(piece, tuple) else piece for piece in self.pieces.pop(index)]
        )

    def _read(self, at: int, shape: tuple[int, ...]) -> Array:
        assert self.file is not None
        rows: Array = np.empty(shape, np.float32)
        self.file.seek(at)
        self.file.readinto(rows.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return rows


def _needed(graph: Graph, numbers: dict[str, int]) -> list[Call]:
    """Return the calls up to the last recorded one: what comes after it need not run."""
    last = max(call.index for call in graph.calls if call.path in numbers)
    return [call for call in graph.calls if call.index <= last]


def _call_order(calls: Sequence[Call], numbers: dict[str, int]) -> list[tuple[int, int]]:
    """(layer, which of its calls) in the order in which the calls run."""
    calls_before: dict[int, int] = {}
    order = []
    for call in calls:
        if call.path in numbers:
            index = numbers[call.path]
            order.append((index, calls_before.get(index, 0)))
            calls_before[index] = calls_before.get(index, 0) + 1
    return order


def _enough(layer: LayerSpec, sampler: Sampler) -> bool:
    return sum(drawn.size for drawn in sampler.drawn) > layer.width


def _empty_moments(layer: LayerSpec) -> Array:
    return np.zeros((layer.groups, layer.width + 1, layer.width + 1))


def _batch_size(graph: Graph, images: Array) -> int:
    """As many images as keep the recorded inputs of one batch within `BATCH_BYTES`."""
    per_image = sum(4 * int(np.prod([n or 64 for n in shape[1:]])) for shape in graph.shapes.values())
    return int(np.clip(BATCH_BYTES // max(per_image, 1), 1, MOST))
