"""Curvature: H is what the definition says, and what it predicts is what happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.moments import linear
from lrfgraph.layers.similarity import output_error
from lrfgraph.network.curvature import SOFTNESS, _temperature, curvature
from lrfgraph.network.describing import describe
from lrfgraph.network.graph import Call, flatten, run
from lrfgraph.network.heads import HEADS
from lrfgraph.network.operations import linear_output
from lrfgraph.network.recording import record
from lrfgraph.options.recipe import RecordOptions
from tests.network.models import randomize, shared

SEED = 7


def net(head: str) -> Any:
    """Non-overlapping patches, so that errors at neighbouring positions are independent (as K-FAC has it)."""
    import keras

    k = keras.layers
    x = keras.Input((6, 6, 2))
    y = k.Conv2D(5, 2, strides=2, activation="relu", name="conv")(x)
    y = k.Dense(8, name="hidden")(k.Flatten()(y))
    y = k.BatchNormalization(name="norm")(y)
    y = k.Dense(4, name="head", activation="softmax" if head == "softmax" else None)(k.ReLU()(y))
    return randomize(keras.Model(x, y), 3)


def test_a_layers_linear_output_leaves_the_layer_as_it_is() -> None:
    import keras

    during = []

    class Watched(keras.layers.Dense):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            during.append(layer.activation)
            return super().call(x)

    layer = Watched(20, activation="relu")
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    y = np.asarray(layer(x))
    linear, finish = linear_output(layer, (x,), {})
    assert during == [keras.activations.relu] * 2  # another thread may be running the layer at this moment
    assert np.asarray(linear).min() < 0
    np.testing.assert_array_equal(np.asarray(finish(linear)), y)


@pytest.mark.parametrize("head", ["softmax", "logits", "values"])
def test_a_layers_curvature_does_not_depend_on_what_else_is_asked_for(head: str) -> None:
    model = net(head)
    layers = [layer for layer in describe(model).layers if layer.kind]
    images = images_of(64)
    whole = curvature(model, layers, images, HEADS[head], SEED, softness=0)
    assert len(layers) == 3
    for layer, h in zip(layers, whole, strict=True):
        np.testing.assert_allclose(
            curvature(model, [layer], images, HEADS[head], SEED, softness=0)[0], h, rtol=1e-6, atol=1e-9
        )


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 6, 6, 2)).astype("float32")


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def jacobian(model: Any, path: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs before the softmax (n, k), and how they change with one layer's linear output: (n, k, positions, o)."""
    import tensorflow as tf

    program, watched = flatten(model), []

    def handler(call: Call, args: Any, kwargs: Any) -> Any:
        if call.path not in (path, "head"):
            return call.operation(*args, **kwargs)
        linear, finish = linear_output(call.operation, args, kwargs)
        if call.path == path:
            tape.watch(linear)
            watched.append(linear)
        return linear if call.path == "head" else finish(linear)

    with tf.GradientTape(persistent=True) as tape:
        y = run(program, {program.inputs[0]: tf.constant(x)}, handler)[program.outputs[0]]
    found = np.asarray(tape.batch_jacobian(y, watched[0]))
    return np.asarray(y), found.reshape(len(x), y.shape[1], -1, found.shape[-1])


def ledoit_wolf(each: np.ndarray) -> np.ndarray:
    """Mean of every image's second moments (n, o, o), shrunk by b²/d² of Ledoit and Wolf (2004), section 3.2."""
    count, outputs = each.shape[:2]
    h = each.mean(0)
    target = np.trace(h) / outputs * np.eye(outputs)
    share = np.square(each - h).sum() / (count * (count - 1)) / np.square(h - target).sum()
    return h + min(share, 1.0) * (target - h)


@pytest.mark.parametrize("outputs", [4, 30])
def test_images_fewer_than_outputs_do_not_leave_outputs_that_nothing_matters_to(outputs: int) -> None:
    import keras

    x = keras.Input((6,))
    y = keras.layers.Dense(outputs, activation="softmax", name="head")(keras.layers.Dense(9, name="hidden")(x))
    model = randomize(keras.Model(x, y), 3)
    layers = [layer for layer in describe(model).layers if layer.kind]
    images = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
    for h in curvature(model, layers, images, HEADS["softmax"], SEED):
        assert np.linalg.eigvalsh(h[0]).min() > 0.01 * np.trace(h[0]) / h.shape[1]


@pytest.mark.parametrize("head", ["softmax", "logits"])
@pytest.mark.parametrize("path", ["conv", "hidden", "head"])
def test_h_equals_explicit_gradients_of_every_image(head: str, path: str) -> None:
    model, x = net(head), images_of(40)
    layer = next(layer for layer in describe(model).layers if layer.name == path)
    (ours,) = curvature(model, [layer], x, HEADS[head], SEED, batch=64, softness=0)
    logits, slope = jacobian(model, path, x)
    p = softmax(logits.astype(np.float64))
    draw = np.random.default_rng(SEED).random(len(x)).astype(np.float32)
    chosen = np.argmax(np.cumsum(p, 1) >= draw[:, None], axis=1)
    g = np.einsum("nk,nkso->nso", p - np.eye(4)[chosen], slope)
    np.testing.assert_allclose(ours, ledoit_wolf(np.einsum("nso,nsp->nop", g, g))[None], rtol=2e-3, atol=1e-6)


def test_h_of_values_is_that_of_signed_sums_over_the_outputs_power() -> None:
    model, x = net("values"), images_of(40)
    layer = next(layer for layer in describe(model).layers if layer.name == "hidden")
    (ours,) = curvature(model, [layer], x, HEADS["values"], SEED, batch=64)
    y, slope = jacobian(model, "hidden", x)
    signs = np.where(np.random.default_rng(SEED).random(y.shape).astype(np.float32) < 0.5, -1, 1)
    g = np.einsum("nk,nkso->nso", signs, slope) / np.sqrt(0.5 * np.mean(np.sum(y * y, axis=1)))
    np.testing.assert_allclose(ours, ledoit_wolf(np.einsum("nso,nsp->nop", g, g))[None], rtol=2e-3, atol=1e-6)


def perturbed(model: Any, layer: Any, kernel: np.ndarray, error: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Outputs with one layer's kernel moved by `error`, (groups, width, outputs)."""
    operation = model.get_layer(layer.name)
    operation.kernel.assign(layer.family.order.native(kernel + error.reshape(layer.kernel)))
    made = np.asarray(model(x, training=False), np.float64)
    operation.kernel.assign(layer.family.order.native(kernel))
    return made


def kl(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.mean(np.sum(first * (np.log(first) - np.log(second)), axis=1)))


@pytest.mark.parametrize("head", ["softmax", "logits", "values"])
@pytest.mark.parametrize("path", ["conv", "hidden", "head"])
def test_the_prediction_is_what_a_small_error_does(head: str, path: str) -> None:
    """½·tr(H Eᵀ G E) within a factor of two of the measured KL, or relative squared error."""
    model, x = net(head), images_of(600)
    described = describe(model)
    index, layer = next((i, layer) for i, layer in enumerate(described.layers) if layer.name == path)
    kernel = described.arrays[f"layers/{index}/kernel"].astype(np.float64)
    (h,) = curvature(model, [layer], x, HEADS[head], SEED, softness=0)
    (recorded,) = record(model, [layer], x, RecordOptions(moment_rows=10**6))
    assert recorded.moments is not None
    original = np.asarray(model(x, training=False), np.float64)
    rng, ratios = np.random.default_rng(0), []
    for _ in range(6):
        error = 0.02 * rng.normal(size=(layer.groups, layer.width, layer.outputs))
        made = perturbed(model, layer, kernel, error, x)
        if head == "values":
            measured = float(np.sum((made - original) ** 2) / np.sum(original**2))
        else:
            measured = kl(*((original, made) if head == "softmax" else (softmax(original), softmax(made))))
        ratios.append(output_error(error, linear(recorded.moments) @ error, h) / measured)
    assert 0.5 < np.exp(np.mean(np.log(ratios))) < 2.0


def test_all_layers_at_once_equal_each_alone_and_calls_add_up() -> None:
    model = shared()
    x = np.random.default_rng(2).normal(size=(12, 8, 8, 3)).astype("float32")
    layers = [layer for layer in describe(model).layers if layer.kind]
    seen: list[tuple[int, int]] = []
    together = curvature(
        model, layers, x, HEADS["values"], SEED, batch=5, progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen == [(5, 12), (10, 12), (12, 12)]
    for layer, h in zip(layers, together, strict=True):
        (alone,) = curvature(model, [layer], x, HEADS["values"], SEED, batch=5)
        np.testing.assert_allclose(h, alone, rtol=1e-4)
        assert h.shape == (layer.groups, layer.outputs, layer.outputs)
        assert np.linalg.eigvalsh(h).min() >= -1e-6 * np.linalg.eigvalsh(h).max()


def test_a_network_that_is_sure_of_itself_is_made_unsure() -> None:
    rng = np.random.default_rng(0)
    logits = 40 * np.eye(5)[rng.integers(0, 5, 200)] + rng.normal(size=(200, 5))
    temperature = _temperature(logits, SOFTNESS)
    soft = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    soft /= soft.sum(-1, keepdims=True)
    assert temperature > 5
    np.testing.assert_allclose(1 - soft.max(-1).mean(), SOFTNESS, rtol=1e-3)
    assert _temperature(logits / 40, SOFTNESS) == 1.0  # soft enough as it is
    assert _temperature(logits, 0.0) == 1.0


@pytest.mark.parametrize("head", ["softmax", "values"])
def test_how_many_images_are_in_flight_changes_nothing_but_rounding(head: str) -> None:
    """The power that values are measured against is that of many images, not of those beside one."""
    model, images = net(head), images_of(40)
    layers = [layer for layer in describe(model).layers if layer.kind]
    whole, pairs = (curvature(model, layers, images, HEADS[head], SEED, batch=batch) for batch in (None, 2))
    for one, other in zip(whole, pairs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6 * np.abs(one).max())
