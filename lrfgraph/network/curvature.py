"""The Fisher factor of each layer's output gradient (METHODS §5.9, after K-FAC): how much an error there matters.

One backward pass over the calibration images gives H = E[g gᵀ] for all layers at once, g being the gradient of
−log p(ŷ) with respect to the layer's linear output and ŷ drawn from the network's own prediction: no labels.
For an output that is no distribution, g is that of a random ±1 projection of the output, scaled by its power, so
that ½·tr(H Eᵀ G E) predicts the relative squared error instead of the KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.network.graph import Call, Graph, feed, flatten, run
from lrfgraph.network.heads import Head
from lrfgraph.network.memory import Traffic, images_in_flight
from lrfgraph.network.operations import linear_output, output_call

__all__ = ["curvature"]


BATCH = 64
MOST_ANSWERS = 256
SOFTNESS = 0.1
"""Mean probability of all but the first answer that a network's own predictions must have to draw from."""


def curvature(
    model: Any,
    layers: Sequence[LayerSpec],
    images: Any,
    head: Head,
    seed: int = 0,
    batch: int | None = None,
    softness: float = SOFTNESS,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Array]:
    """Return H, (groups, outputs, outputs) float64, for every layer: summed over positions, mean over images, shrunk.

    batch : images in flight; as many as `network.memory` says by default.  softness : see `SOFTNESS`; 0 draws from
    the predictions as they are.  Eight parameters, of which a run sets five: the others are what tests and benchmarks
    vary.
    """
    graph = flatten(model)
    answers = _Answers(graph, layers, head)
    traffic = Traffic.of(graph, model, images.shape[1:])
    first = _first_answers(answers, images, images_in_flight(traffic.forward, MOST_ANSWERS))
    batch = batch or images_in_flight(traffic.backward, BATCH)
    temperature = _temperature(first, softness) if answers.tempered else 1.0
    worth = float(np.mean(head.answers.worth(first.astype(np.float64))))
    gradients = _compiled_moments(answers, layers, temperature, worth)
    numbers = head.answers.draw(first.shape)[1:]
    rng = np.random.default_rng(seed)
    sums: list[Array] = [np.zeros((layer.groups, layer.outputs, layer.outputs)) for layer in layers]
    squares: list[Array] = [np.zeros(layer.groups) for layer in layers]
    for start in range(0, len(images), batch):
        stop = min(start + batch, len(images))
        draw = rng.random((stop - start, *numbers)).astype(np.float32)
        for number, (part, square) in enumerate(gradients(images[start:stop], draw)):
            sums[number] += np.asarray(part, dtype=np.float64)
            squares[number] += np.asarray(square, dtype=np.float64)
        if progress:
            progress(stop, len(images), "images")
    shrunk = [_shrunk(total, square, len(images)) for total, square in zip(sums, squares, strict=True)]
    return [h / _spread(layer) for layer, h in zip(layers, shrunk, strict=True)]


def _shrunk(total: Array, square: Array, count: int) -> Array:
    """Return the mean of `count` second moments, shrunk towards a multiple of the identity.

    total : (groups, outputs, outputs), their sum.  square : (groups,), the sum of their squared Frobenius norms.
    """
    h, outputs = total / count, total.shape[-1]
    scale = np.trace(h, axis1=1, axis2=2)[:, None, None] / outputs
    norm = np.square(h).sum(axis=(1, 2))
    chance = (square / count - norm) / max(count - 1, 1)
    distance = norm - outputs * np.square(scale[:, 0, 0])
    share = np.clip(chance / np.maximum(distance, 1e-30), 0.0, 1.0)[:, None, None]
    shrunk: Array = h + share * (scale * np.eye(outputs) - h)
    return shrunk


class _Answers:
    """The network's answers; of choices the logits, which an activation at the end would saturate.

    tempered : whether they are logits that a temperature can soften.
    """

    def __init__(self, graph: Graph, layers: Sequence[LayerSpec], head: Head) -> None:
        self.graph, self.head = graph, head
        self.index = {layer.name: number for number, layer in enumerate(layers)}
        self.last = output_call(graph)
        self.has_open_end = self.last is not None and head.link == _activation_name(self.last.operation)
        self.tempered = head.answers.chosen and (self.has_open_end or head.link == "identity")

    def __call__(self, x: Any, seen: Callable[[int, Any], None]) -> Any:
        """Return the answers to a batch; `seen` is told of each layer's linear output on the way."""

        def handler(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            open_end = self.has_open_end and call is self.last
            if call.path not in self.index and not open_end:
                return call.operation(*args, **kwargs)
            if call.path not in self.index and not hasattr(call.operation, "activation"):
                return args[0]  # a layer that is an activation and nothing else
            linear, finish = linear_output(call.operation, args, kwargs)
            if call.path in self.index:
                seen(self.index[call.path], linear)
            return linear if open_end else finish(linear)

        outputs = run(self.graph, feed(self.graph, x), handler, keep=self.graph.outputs)[self.graph.outputs[0]]
        return self.head.of_tensor(outputs, logits=self.has_open_end)


def _first_answers(answers: _Answers, images: Any, batch: int) -> Array:
    """Return the answers to the first images, `batch` of them at once."""
    stop = min(MOST_ANSWERS, len(images))
    parts = (answers(images[i : min(i + batch, stop)], lambda number, linear: None) for i in range(0, stop, batch))
    return np.concatenate([np.asarray(part) for part in parts])


def _compiled_moments(
    answers: _Answers, layers: Sequence[LayerSpec], temperature: float, worth: float
) -> Callable[[Array, Array], list[tuple[Any, Any]]]:
    """Return a function from a batch and random numbers to `_second_moment` of every layer's gradient."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def moments(x: Any, draw: Any) -> Any:
        outputs: list[tuple[int, Any]] = []

        def seen(number: int, linear: Any) -> None:
            tape.watch(linear)
            outputs.append((number, linear))

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            y = answers(x, seen)
            softened = y / temperature if answers.tempered else y
            loss = temperature * answers.head.answers.surprise(softened, draw, worth)
        slopes = tape.gradient(loss, [z for _, z in outputs], unconnected_gradients="zero")
        totals: list[Any] = [(0.0, 0.0)] * len(layers)
        for (number, _), g in zip(outputs, slopes, strict=True):
            both = _second_moment(layers[number], g)
            totals[number] = tuple(old + new for old, new in zip(totals[number], both, strict=True))
        return totals

    compiled: Callable[[Array, Array], list[tuple[Any, Any]]] = moments
    return compiled


def _activation_name(operation: Any) -> str:
    return str(getattr(getattr(operation, "activation", None), "__name__", type(operation).__name__.lower()))


def _temperature(logits: Array, softness: float) -> float:
    """Return the temperature, at least 1, at which all answers but the first have `softness` of the probability.

    A network that is sure of everything it was trained on has next to no curvature at its own predictions, and a
    thousand draws say little about it; at a higher temperature every class is drawn.
    """
    low, high = 1.0, 256.0
    for _ in range(30):
        middle = float(np.sqrt(low * high))
        shifted = (logits - logits.max(-1, keepdims=True)) / middle
        soft = 1.0 - float(np.mean(1.0 / np.exp(shifted).sum(-1)))
        low, high = (low, middle) if soft > softness else (middle, high)
    return high if softness > 0 and high > 1.001 else 1.0


def _second_moment(layer: LayerSpec, g: Any) -> tuple[Any, Any]:
    """Return Σ g gᵀ over positions and images, (groups, outputs, outputs), and the sum of each image's squared norm.

    The norm of a sum over positions is that of their Gram matrix, which is smaller where positions are fewer.
    """
    import tensorflow as tf

    if layer.data_format == "channels_first":
        g = tf.experimental.numpy.moveaxis(g, 1, -1)
    grid = g.shape[1:-1]
    positions = -1 if None in grid else prod(grid)
    each = tf.reshape(g, (tf.shape(g)[0], positions, layer.groups, layer.outputs))
    if 0 <= positions < layer.outputs:
        gram = tf.einsum("npgo,nqgo->ngpq", each, each)
        total = tf.einsum("npgo,npgq->goq", each, each)
    else:
        gram = tf.einsum("npgo,npgq->ngoq", each, each)
        total = tf.reduce_sum(gram, axis=0)
    return total, tf.reduce_sum(tf.square(gram), axis=(0, 2, 3))


def _spread(layer: LayerSpec) -> float:
    """Return how many outputs there are for each input, where a layer scatters its inputs."""
    return float(prod(layer.strides)) if layer.family.scatters else 1.0
