"""Layers, digests, BatchNorm folding and the guess of what the output means."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lrfgraph.errors import ModelError
from lrfgraph.layers.kinds import LAYER_KINDS
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.network.counting import count
from lrfgraph.network.describing import Description, describe
from tests.network.models import LAYERS, MODELS, inputs_for, outputs_of


def by_name(found: Description) -> dict[str, LayerSpec]:
    return {layer.name: layer for layer in found.layers}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_macs_are_those_counted_on_the_model(name: str) -> None:
    model = MODELS[name]()
    found = describe(model)
    counted = count(model)
    assert sum(layer.macs for layer in found.layers) == counted.macs > 0
    assert sum(layer.parameters for layer in found.layers) == counted.parameters
    for number, layer in enumerate(found.layers):
        assert LayerSpec.from_json(json.loads(json.dumps(layer.to_json()))) == layer
        assert bool(layer.kept) != bool(layer.kind)
        assert (f"layers/{number}/kernel" in found.arrays) == bool(layer.kind)
    json.dumps(found.structure)


def test_every_kind_is_described() -> None:
    kinds = set()
    for make in LAYERS.values():
        model = make()
        found = describe(model)
        spec = next(layer for layer in found.layers if layer.kind)
        layer = model.layers[-1]
        kinds.add(spec.kind)
        kernel = found.arrays[f"layers/{found.layers.index(spec)}/kernel"]
        assert kernel.shape == spec.kernel
        weight = np.asarray(getattr(layer, spec.family.kernel))
        np.testing.assert_array_equal(spec.family.order.native(kernel), weight)
        np.testing.assert_array_equal(spec.family.order.canonical(weight, spec.groups), kernel)
        assert spec.output_shapes == (tuple(layer.output.shape[1:]),)
        assert spec.bias == layer.use_bias
    assert kinds == set(LAYER_KINDS)


def renamed(model: Any) -> Any:
    """The same model under other names, by way of its JSON."""
    import keras

    text = model.to_json()
    for name in ("stem", "inner", "norm", "logits", "image", "net"):
        text = text.replace(f'"{name}"', f'"other_{name}"')
    other = keras.models.model_from_json(text)
    other.set_weights(model.get_weights())
    return other


def test_digests_know_content_and_not_names() -> None:
    model = MODELS["residual"]()
    one, two = describe(model), describe(renamed(model))
    assert [layer.name for layer in one.layers] != [layer.name for layer in two.layers]
    assert one.digest == two.digest
    assert [(a.upstream, a.identity) for a in one.layers] == [(b.upstream, b.identity) for b in two.layers]


def test_a_changed_weight_changes_what_is_downstream_and_nothing_else() -> None:
    model = MODELS["residual"]()
    before = describe(model)
    layer = model.get_layer("inner")
    layer.kernel.assign(layer.kernel * 1.5)
    after = by_name(describe(model))
    assert describe(model).digest != before.digest
    old = by_name(before)
    changed = {name for name in old if old[name].upstream != after[name].upstream}
    assert "logits" in changed
    assert not changed & {"stem", "inner"}
    assert {n for n in old if old[n].kind and old[n].identity != after[n].identity} == {"inner"}


def test_an_argument_of_a_call_is_part_of_the_digest() -> None:
    import keras

    def make(factor: float) -> str:
        x = keras.Input((4,))
        model = keras.Model(x, keras.layers.Dense(2, kernel_initializer="ones")(x * factor))
        return describe(model).digest

    assert make(0.5) == make(0.5) != make(0.25)


def test_batchnorm_is_folded_where_it_alone_reads_the_layer() -> None:
    model = MODELS["residual"]()
    found = describe(model)
    specs = by_name(found)
    assert specs["inner"].batchnorm == "norm"
    assert specs["inner"].tail == "relu"
    assert specs["stem"].batchnorm == ""
    number = [layer.name for layer in found.layers].index("inner")
    scale, shift = found.arrays[f"layers/{number}/scale"], found.arrays[f"layers/{number}/shift"]
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    inner, norm = model.get_layer("inner"), model.get_layer("norm")
    linear = np.asarray(inner(x)) - np.asarray(inner.bias)
    np.testing.assert_allclose(linear * scale + shift, np.asarray(norm(inner(x))), atol=1e-4)


def test_a_batchnorm_that_does_not_follow_alone_is_left() -> None:
    import keras

    k = keras.layers
    x = keras.Input((6, 6, 3))
    fused = k.BatchNormalization()(k.Conv2D(4, 3, activation="relu", name="fused")(x))
    twice = k.Conv2D(4, 3, name="twice")(x)
    wrong_axis = k.BatchNormalization(axis=1)(k.Conv2D(4, 3, name="wrong_axis")(x))
    shared = k.BatchNormalization()  # what one layer asked of it would happen to the other
    both = [shared(k.Conv2D(4, 3, name=name)(x)) for name in ("one", "other")]
    out = k.Add()([fused, k.BatchNormalization()(twice), twice, wrong_axis, *both])
    specs = by_name(describe(keras.Model(x, out)))
    assert {specs[name].batchnorm for name in ("fused", "twice", "wrong_axis", "one", "other")} == {""}


@pytest.mark.parametrize(
    ("make", "tail"),
    [
        (lambda k: k.ReLU(max_value=6), "relu6"),
        (lambda k: k.ReLU(negative_slope=0.1), "leaky_relu:0.1"),
        (lambda k: k.ReLU(max_value=4), "linear"),
        (lambda k: k.LeakyReLU(negative_slope=0.3), "leaky_relu:0.3"),
        (lambda k: k.Activation("swish"), "silu"),
        (lambda k: k.Softmax(), "softmax"),
        (lambda k: k.PReLU(), "linear"),
        (lambda k: k.Dropout(0.5), "linear"),
    ],
)
def test_tails(make: Any, tail: str) -> None:
    import keras

    x = keras.Input((4,))
    model = keras.Model(x, make(keras.layers)(keras.layers.Dense(3, name="d")(x)))
    assert by_name(describe(model))["d"].tail == tail


def test_shared_layers_are_described_once_with_every_call() -> None:
    specs = by_name(describe(MODELS["shared_with_nested"]()))
    assert specs["shared"].input_shapes == ((8, 8, 4),) * 3
    assert specs["shared"].batchnorm == ""
    assert not any(name.endswith("/shared") for name in specs)


def test_nested_layers_have_paths() -> None:
    specs = by_name(describe(MODELS["nested"]()))
    assert {"block/block_conv", "deep/conv", "deep/inner/inner_conv", "head"} <= set(specs)
    assert len(specs["block/block_conv"].input_shapes) == 2


def test_channels_first_shapes_are_given_channels_last() -> None:
    spec = next(layer for layer in describe(MODELS["channels_first"]()).layers if layer.kind)
    assert (spec.input_shapes, spec.output_shapes) == (((8, 9, 3),), ((8, 9, 4),))
    assert spec.batchnorm


def test_open_sizes_are_assumed_or_given() -> None:
    model = MODELS["open_size"]()
    spec = by_name(describe(model))["conv"]
    assert spec.input_shapes == ((64, 64, 3),)
    assert spec.extra == {"assumed_size": True}
    given = by_name(describe(model, (33, 17, 3)))["conv"]
    assert given.output_shapes == ((16, 8, 4),)
    assert given.extra == {}
    assert given.macs == count(model, (33, 17, 3)).macs == 16 * 8 * 4 * 27


def test_a_size_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(ModelError, match="does not take inputs of this size") as caught:
        describe(MODELS["open_size"](), (1, 1, 3))
    assert "\n" not in str(caught.value)


def test_what_has_no_kernel_says_so() -> None:
    import keras

    x = keras.Input((5, 4))
    y = keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), name="einsum")(x)
    y = keras.layers.TimeDistributed(keras.layers.Dense(2), name="each")(y)
    specs = by_name(describe(keras.Model(x, keras.layers.Flatten(name="flat")(y))))
    assert "order of axes" in specs["einsum"].kept
    assert specs["einsum"].macs == 5 * 4 * 3
    assert "not opened" in specs["each"].kept
    assert specs["each"].input_shapes == ((5, 3),)
    assert specs["flat"].kept == "has no weights"


@pytest.mark.parametrize(
    ("units", "activation", "head"),
    [
        (3, "softmax", "softmax"),
        (1, "sigmoid", "binary"),
        (3, None, "logits"),
        (1, None, "values"),
        (5, "sigmoid", "multilabel"),
        (4, "sigmoid", "values"),  # as wide as the input: it may give back what it is given
    ],
)
def test_what_the_output_may_mean(units: int, activation: str | None, head: str) -> None:
    import keras

    x = keras.Input((4,))
    structure = describe(keras.Model(x, keras.layers.Dense(units, activation=activation)(x))).structure
    assert (structure["activation"], structure["head"]) == (activation or "linear", head)


def test_describing_leaves_the_model_alone() -> None:
    model = MODELS["open_size"]()
    x = inputs_for(model)
    before, text = outputs_of(model, x), model.to_json()
    describe(model)
    assert model.to_json() == text
    np.testing.assert_array_equal(before[0], outputs_of(model, x)[0])
