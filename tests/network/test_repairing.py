"""Repair: lower errors where that is possible, nothing changed where it is not, streams that can be taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.pieces import compose, whole
from lrfgraph.methods import METHODS
from lrfgraph.methods.refit import refit
from lrfgraph.network.curvature import curvature
from lrfgraph.network.describing import Description, describe
from lrfgraph.network.heads import HEADS
from lrfgraph.network.operations import assign_weights, shift_batchnorm
from lrfgraph.network.rebuilding import Chain, rebuild
from lrfgraph.network.repair.fit import LEAST_IMAGES, images_for, rows_for
from lrfgraph.network.repair.streams import FitOptions, Refit, Streams, Substitute
from tests.network.models import randomize

IMAGES = 160
SOLVE = partial(refit, steps=40)
LOW = {"stem": ("svd_channel", (3,)), "inner": ("tucker", (3, 4)), "outer": ("cp", (6,)), "head": ("svd", (2,))}


def net(activation: str = "relu") -> Any:
    """Convolutions with BatchNorm and without bias, with bias, a residual addition before the activation."""
    import keras

    k = keras.layers
    x = keras.Input((8, 8, 6))
    a = k.BatchNormalization(name="norm1")(k.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(x))
    a = k.Activation(activation, name="act1")(a)
    b = k.BatchNormalization(name="norm2")(k.Conv2D(6, 3, padding="same", use_bias=False, name="inner")(a))
    b = k.Activation(activation, name="act2")(b)
    b = k.Conv2D(6, 3, padding="same", name="outer")(b)
    c = k.ReLU(max_value=6.0, name="act3")(k.Add(name="add")([a, b]))
    y = k.Dense(5, name="head")(k.Flatten()(k.AveragePooling2D(2)(c)))
    return randomize(keras.Model(x, y), 4)


def images_of(count: int = IMAGES, seed: int = 2) -> np.ndarray:
    """Smooth images, so that neighbouring pixels say something about each other."""
    raw = np.random.default_rng(seed).normal(size=(count, 10, 10, 6))
    smooth = sum(raw[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 3
    return smooth.astype("float32")


def replaced(described: Description, name: str, method: str, rank: tuple[int, ...] | None) -> Substitute:
    index, layer = next((i, layer) for i, layer in enumerate(described.layers) if layer.name == name)
    table = METHODS[method]
    rank = table.full_rank(layer) if rank is None else rank
    assert rank is not None
    prepared = table.prepare(layer, described.arrays[f"layers/{index}/kernel"].astype(np.float64))
    return Substitute(layer, table.pieces(layer, rank), table.factorize(layer, prepared, rank))


def plans_of(model: Any) -> list[Substitute]:
    described = describe(model)
    return [replaced(described, name, *how) for name, how in LOW.items()]


def repair(streams: Streams, plans: Sequence[Substitute], rounds: int = 2) -> list[Refit]:
    return [streams.refit(plan, SOLVE, FitOptions(4000, rounds, 1e-3, 0)) for plan in plans]


def rebuilt(model: Any, plans: Sequence[Substitute], found: Sequence[Refit | None]) -> Any:
    """The model of plain layers that a configuration and its repair stand for."""
    chains, shifts = {}, {}
    for plan, new in zip(plans, found, strict=True):
        bias = new.bias if new else None
        if bias is not None and not plan.layer.bias:
            shifts[plan.layer.batchnorm], bias = bias, None
        chains[plan.layer.name] = Chain("any", plan.pieces, new.weights if new else plan.weights, bias)
    made = rebuild(model, chains)
    for path, bias in shifts.items():
        shift_batchnorm(made, path, bias)
    return made


def outputs(model: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(model(x, training=False), np.float64)


def relative(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sum((made - wanted) ** 2) / np.sum(wanted**2))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_repair_lowers_the_error_of_every_layer_and_of_the_whole(activation: str) -> None:
    model, fresh = net(activation), images_of(60, 3)
    plans = plans_of(model)
    found = repair(Streams(model, images_of()), plans)
    for new in found:
        assert not new.kept
        assert 0 < new.after < new.before
    wanted = outputs(model, fresh)
    plain = relative(outputs(rebuilt(model, plans, [None] * 4), fresh), wanted)
    assert relative(outputs(rebuilt(model, plans, found), fresh), wanted) < 0.7 * plain


def test_rounds_after_a_relu_let_it_cut_off_more() -> None:
    """The first layer's held-out error after its ReLU: rounds may only lower it."""
    model = net()
    (plan, *_) = plans_of(model)
    none, two = (repair(Streams(model, images_of()), [plan], rounds)[0] for rounds in (0, 2))
    assert two.after < none.after < two.before == none.before


def test_the_rebuilt_network_is_the_compressed_stream() -> None:
    """A BatchNorm takes up the bias of a convolution that has none; the original is left as it was."""
    model, images = net(), images_of()
    before, seen = [np.asarray(v).copy() for v in model.variables], images.copy()
    plans, streams = plans_of(model), Streams(model, images)
    found = repair(streams, plans)
    streams.go_to(len(streams.graph.calls))
    (slot,) = streams.graph.outputs
    _, stop, values = next(streams.activations(IMAGES).batches([slot]))
    assert stop == IMAGES
    original, compressed = values[slot]
    np.testing.assert_allclose(original, outputs(model, images), atol=1e-5)
    np.testing.assert_allclose(compressed, outputs(rebuilt(model, plans, found), images), atol=2e-4)
    assert found[0].bias is not None
    assert np.abs(found[0].bias).max() > 1e-3
    assert all(np.array_equal(a, np.asarray(v)) for a, v in zip(before, model.variables, strict=True))
    assert np.array_equal(images, seen)


def test_kept_layers_are_refitted_to_what_they_receive() -> None:
    """Behind a replaced layer they take up its errors; before it there is nothing to mend."""
    model, images = net(), images_of()
    described = describe(model)
    layers = {layer.name: layer for layer in described.layers}
    (plan,) = (plan for plan in plans_of(model) if plan.layer.name == "inner")
    streams = Streams(model, images)
    before, change, after = (
        streams.refit(each, SOLVE, FitOptions(4000, 2, 1e-3, 0))
        for each in (
            Substitute(layers["stem"], (whole(layers["stem"]),), ()),
            plan,
            Substitute(layers["outer"], (whole(layers["outer"]),), ()),
        )
    )
    assert before.kept
    assert before.before == before.after == pytest.approx(0.0, abs=1e-9)
    assert after.after < 0.9 * after.before
    made = rebuilt(model, [plan], [change])
    error = np.square(outputs(made, images) - outputs(model, images)).mean()
    assert after.bias is not None
    assign_weights(made, "outer", layers["outer"].family.order.native(after.weights[0]), after.bias)
    assert np.square(outputs(made, images) - outputs(model, images)).mean() < error


def test_streams_taken_up_again_equal_those_from_the_start() -> None:
    model, images = net(), images_of()
    plans = plans_of(model)
    whole = repair(Streams(model, images), plans)
    for known in (1, 3):
        again = Streams(model, images)
        for plan, new in zip(plans[:known], whole[:known], strict=True):
            again.adopt(plan, new)
        for ours, theirs in zip(repair(again, plans[known:]), whole[known:], strict=True):
            for a, b in zip(ours.weights, theirs.weights, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            assert ours.after == pytest.approx(theirs.after, rel=1e-3)


def test_streams_go_on_only_from_their_own_past() -> None:
    model = net()
    plans, streams = plans_of(model), Streams(model, images_of())
    assert streams.can_go_on({}, "stem")
    first, second = repair(streams, plans[:2])
    past = {"stem": first, "inner": second}
    assert streams.can_go_on(past, "outer")
    assert streams.can_go_on(past, "inner")
    assert not streams.can_go_on(past, "stem")
    assert not streams.can_go_on({"stem": first}, "outer")
    moved = Refit((first.weights[0] + 1e-3, *first.weights[1:]), first.bias, 0, 0, False)
    assert not streams.can_go_on(past | {"stem": moved}, "outer")
    assert not streams.can_go_on(past, "a layer of an equal network under another name")


def test_an_exact_replacement_changes_nothing() -> None:
    model, images = net(), images_of()
    described = describe(model)
    plans = [
        replaced(described, n, m, None) for n, m in (("stem", "svd_channel"), ("inner", "tucker"), ("head", "svd"))
    ]
    found = repair(Streams(model, images), plans)
    for plan, new in zip(plans, found, strict=True):
        assert new.before < 1e-10
        assert new.after <= new.before
        kernels = [compose(plan.pieces, [w.astype(np.float64) for w in ws]) for ws in (plan.weights, new.weights)]
        np.testing.assert_allclose(*kernels, atol=1e-4)
    np.testing.assert_allclose(outputs(rebuilt(model, plans, found), images), outputs(model, images), atol=1e-3)


def test_a_refit_that_does_not_help_is_not_taken() -> None:
    model = net()
    plan = replaced(describe(model), "head", "svd", (4,))

    def spoil(layer: Any, pieces: Any, weights: Any, moments: Any, cross: Any, ridge: float) -> list[np.ndarray]:
        return [100 * np.ones_like(w) for w in weights]

    found = Streams(model, images_of()).refit(plan, spoil, FitOptions(4000, 2, 1e-3, 0))
    assert found.after <= found.before
    for new, old in zip(found.weights, plan.weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_curvature_says_which_outputs_matter() -> None:
    """With H the refit favours what the network minds: the output's error falls below that of the plain refit."""
    model, images = net(), images_of()
    plans = plans_of(model)[2:3]
    (h,) = curvature(model, [plans[0].layer], images, HEADS["values"])
    minding = [Substitute(plan.layer, plan.pieces, plan.weights, h) for plan in plans]
    wanted = outputs(model, images)
    plain, weighted = (
        relative(outputs(rebuilt(model, each, repair(Streams(model, images), each, 0)), images), wanted)
        for each in (plans, minding)
    )
    assert weighted < plain


def test_streams_that_do_not_fit_in_memory_live_in_files(tmp_path: Path) -> None:
    model, images = net(), images_of()
    plans = plans_of(model)
    roomy = repair(Streams(model, images), plans[:2])
    streams = Streams(model, images, 100_000, lambda: tmp_path)
    tight = repair(streams, plans[:2])
    assert streams.shelf.in_file > 0
    assert not list(tmp_path.iterdir())
    for ours, theirs in zip(tight, roomy, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours.weights, theirs.weights, strict=True))


def test_a_wide_layer_is_refitted_from_few_rows() -> None:
    """Fewer images than inputs: no square of the width is made, and the error falls as for any layer."""
    import keras

    k = keras.layers
    x = keras.Input((200,))
    model = randomize(keras.Model(x, k.Dense(5, name="head")(k.Dense(30, activation="relu", name="wide")(x))), 2)
    (plan,) = [replaced(describe(model), "wide", "svd", (6,))]
    images = np.random.default_rng(0).normal(size=(120, 200)).astype("float32") @ np.diag(np.linspace(2, 0, 200))
    streams = Streams(model, images.astype("float32"))
    shapes = []

    def solve(layer: Any, pieces: Any, weights: Any, moments: Any, cross: Any, ridge: float) -> list[np.ndarray]:
        shapes.append(moments.rows.shape)
        return SOLVE(layer, pieces, weights, moments, cross, ridge)

    found = streams.refit(plan, solve, FitOptions(4000, 1, 1e-2, 0))
    assert set(shapes) == {(1, 105, 200)}
    assert found.after < found.before


def test_transposed_layers_are_left_alone() -> None:
    import keras

    k = keras.layers
    x = keras.Input((4, 4, 6))
    model = randomize(keras.Model(x, k.Conv2DTranspose(5, 3, strides=2, name="up")(x)))
    plan = replaced(describe(model), "up", "tucker", (2, 2))
    found = Streams(model, np.ones((16, 4, 4, 6), "float32")).refit(plan, SOLVE, FitOptions(100, 1, 1e-3, 0))
    assert found.kept
    assert found.weights is plan.weights


def test_early_layers_take_few_images_and_late_ones_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that join later walk the same way: where all stand, the streams are those of whole networks."""
    monkeypatch.setattr("lrfgraph.network.repair.streams.BATCH", 48)
    model, images = net(), images_of()
    plans, streams = plans_of(model), Streams(model, images)
    options, standing = FitOptions(512, 1, 1e-3, 0), []
    found = []
    for plan in plans:
        found.append(streams.refit(plan, SOLVE, options))
        standing.append(streams.chunks[-1].stop)
    assert standing[0] == images_for(plans[0].layer, IMAGES, 512) + 32 == 96  # 64 images, in chunks of 48
    assert standing[-1] == IMAGES
    streams.go_to(len(streams.graph.calls))
    (slot,) = streams.graph.outputs
    compressed = np.concatenate([values[slot][1] for _, _, values in streams.activations(IMAGES).batches([slot])])
    np.testing.assert_allclose(compressed, outputs(rebuilt(model, plans, found), images), atol=2e-4)


def test_images_follow_from_rows_alone() -> None:
    layer = plans_of(net())[0].layer  # 8×8 positions
    assert images_for(layer, 10**6, 65536) == 8 * 65536 // 64
    assert images_for(layer, 1000, 65536) == 1000
    assert images_for(layer, 10**6, 8) == LEAST_IMAGES
    wide = replace(layer, kernel=(1, 3, 3, 4096, 8))
    assert rows_for(wide, 65536) == (512 << 20) // (4 * 9 * 4096)
