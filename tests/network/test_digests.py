"""Two networks that can give different outputs never share a digest; two that cannot do."""

# ruff: noqa: PLW0108 (a network makes its own layers: they are made when it is)
from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.errors import ModelError
from lrfgraph.network.describing import Description, describe
from tests.network.models import MODELS

Make = Callable[[], Any]


def network(between: Callable[[Any], Any], shape: tuple[int, ...] = (8, 6), dense: bool = True) -> Make:
    """A network that does something to its input before a dense layer of ones."""

    def make() -> Any:
        import keras

        x = keras.Input(shape)
        y = between(x)
        return keras.Model(x, keras.layers.Dense(3, kernel_initializer="ones", name="d")(y) if dense else y)

    return make


def ops() -> Any:
    import keras

    return keras.ops


def layers() -> Any:
    import keras

    return keras.layers


DIFFERENT: dict[str, tuple[Make, Make]] = {
    "stop of a slice": (network(lambda x: x[..., :4]), network(lambda x: x[..., :5])),
    "side of a slice": (network(lambda x: x[..., :3]), network(lambda x: x[..., 3:])),
    "step of a slice": (network(lambda x: x[:, ::2]), network(lambda x: x[:, 1::2])),
    "axis of a slice": (network(lambda x: x[:, :3, :3]), network(lambda x: x[:, 1:4, :3])),
    "index": (network(lambda x: x[:, 0]), network(lambda x: x[:, 1])),
    "number": (network(lambda x: x * 2.0), network(lambda x: x * 3.0)),
    "tiny difference of numbers": (network(lambda x: x + 0.1), network(lambda x: x + np.nextafter(0.1, 1))),
    "infinity and none": (
        network(lambda x: ops().clip(x, -1.0, float("inf"))),
        network(lambda x: ops().clip(x, -1.0, 1.0)),
    ),
    "array": (
        network(lambda x: x * np.arange(6, dtype="float32")),
        network(lambda x: x * np.arange(6, dtype="float32")[::-1].copy()),
    ),
    "keyword argument": (
        network(lambda x: ops().sum(x, axis=1, keepdims=True)),
        network(lambda x: ops().sum(x, axis=2, keepdims=True), dense=True),
    ),
    "configuration of an operation": (
        network(lambda x: ops().pad(x, ((0, 0), (1, 0), (0, 0)))),
        network(lambda x: ops().pad(x, ((0, 0), (0, 1), (0, 0)))),
    ),
    "dtype of a cast": (
        network(lambda x: ops().cast(ops().cast(x, "float16"), "float32")),
        network(lambda x: ops().cast(ops().cast(x, "bfloat16"), "float32")),
    ),
    "equation": (
        network(lambda x: ops().einsum("bij,bkj->bik", x, x)),
        network(lambda x: ops().einsum("bij,bkj->bki", x, x)),
    ),
    "order of operands": (network(lambda x: x - x[:, :1]), network(lambda x: x[:, :1] - x)),
    "strides": (
        network(lambda x: layers().Conv1D(3, 3, strides=1, kernel_initializer="ones")(x)),
        network(lambda x: layers().Conv1D(3, 3, strides=2, kernel_initializer="ones")(x)),
    ),
    "activation": (
        network(lambda x: layers().Activation("relu")(x)),
        network(lambda x: layers().Activation("tanh")(x)),
    ),
    "fused activation of a layer inside another": (
        network(lambda x: layers().TimeDistributed(layers().Dense(2, "relu", kernel_initializer="ones"))(x)),
        network(lambda x: layers().TimeDistributed(layers().Dense(2, "tanh", kernel_initializer="ones"))(x)),
    ),
    "direction of a layer inside another": (
        network(lambda x: layers().Bidirectional(layers().SimpleRNN(2, kernel_initializer="ones",
                recurrent_initializer="ones"), merge_mode="sum")(x)),
        network(lambda x: layers().Bidirectional(layers().SimpleRNN(2, kernel_initializer="ones",
                recurrent_initializer="ones"), merge_mode="ave")(x)),
    ),
    "rate that acts": (
        network(lambda x: layers().LeakyReLU(negative_slope=0.1)(x)),
        network(lambda x: layers().LeakyReLU(negative_slope=0.2)(x)),
    ),
    "precision": (
        network(lambda x: layers().Dense(4, kernel_initializer="ones", dtype="mixed_float16")(x)),
        network(lambda x: layers().Dense(4, kernel_initializer="ones", dtype="mixed_bfloat16")(x)),
    ),
    "data format": (
        network(lambda x: layers().Conv2D(4, 3, kernel_initializer="ones")(x), (8, 8, 8)),
        network(lambda x: layers().Conv2D(4, 3, kernel_initializer="ones", data_format="channels_first")(x), (8, 8, 8)),
    ),
    "which output comes first": (
        lambda: _two_outputs(swapped=False),
        lambda: _two_outputs(swapped=True),
    ),
}  # fmt: skip


def _two_outputs(swapped: bool) -> Any:
    import keras

    x = keras.Input((4,))
    one, two = (keras.layers.Dense(3, kernel_initializer=kind)(x) for kind in ("ones", "zeros"))
    return keras.Model(x, [two, one] if swapped else [one, two])


@pytest.mark.parametrize("what", DIFFERENT)
def test_networks_that_differ_have_different_digests(what: str) -> None:
    one, other = (describe(make()) for make in DIFFERENT[what])
    assert one.digest != other.digest


@pytest.mark.parametrize("what", DIFFERENT)
def test_the_same_network_made_twice_has_one_digest(what: str) -> None:
    first, again = (describe(DIFFERENT[what][0]()) for _ in range(2))
    assert first.digest == again.digest
    assert upstreams(first) == upstreams(again)


def upstreams(described: Description) -> list[str]:
    return [layer.upstream for layer in described.layers]


def kernel_layer(described: Description) -> Any:
    return next(layer for layer in described.layers if layer.kind)


@pytest.mark.parametrize("what", ["side of a slice", "number", "array", "equation", "activation"])
def test_what_feeds_a_layer_is_in_its_upstream(what: str) -> None:
    one, other = (describe(make()) for make in DIFFERENT[what])
    assert kernel_layer(one).upstream != kernel_layer(other).upstream
    assert kernel_layer(one).identity == kernel_layer(other).identity


def test_rows_depend_on_the_data_format() -> None:
    one, other = (kernel_layer(describe(make())) for make in DIFFERENT["data format"])
    assert one.upstream != other.upstream


def test_rows_of_a_separable_convolution_depend_on_its_depthwise_kernel() -> None:
    model = MODELS["separable_conv2d"]()
    before = kernel_layer(describe(model))
    layer = model.layers[-1]
    layer.depthwise_kernel.assign(layer.depthwise_kernel * 3)
    after = kernel_layer(describe(model))
    assert before.upstream != after.upstream
    layer.pointwise_kernel.assign(layer.pointwise_kernel * 3)
    assert kernel_layer(describe(model)).upstream == after.upstream


# Names --------------------------------------------------------------------------------------------------------------


def named(model: str = "net", image: str = "image", layer: str = "d", output: str = "out") -> Any:
    import keras

    x = keras.Input((4,), name=image)
    y = keras.layers.Dense(3, kernel_initializer="ones", name=layer)(x)
    return keras.Model(x, {output: y}, name=model)


@pytest.mark.parametrize("renaming", [{"model": "other"}, {"image": "other"}, {"layer": "other"}, {"output": "other"}])
def test_names_are_in_the_signature_alone(renaming: dict[str, str]) -> None:
    one, other = describe(named()), describe(named(**renaming))
    assert one.digest == other.digest
    assert upstreams(one) == upstreams(other)
    assert one.structure["signature"] != other.structure["signature"]


def test_what_trains_is_in_the_signature_alone() -> None:
    import keras

    def make(**options: Any) -> Description:
        x = keras.Input((4,))
        layer = keras.layers.Dense(3, name="d", **options)
        model = keras.Model(x, layer(x), name="net")
        layer.kernel.assign(np.ones((4, 3)))
        return describe(model)

    plain = make()
    for options in ({"trainable": False}, {"kernel_regularizer": "l2"}, {"kernel_initializer": "zeros"}):
        other = make(**options)
        assert other.digest == plain.digest
        assert other.structure["signature"] != plain.structure["signature"]


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"shared_with_nested"}))  # which Keras' own files lose
def test_a_model_read_twice_has_one_signature(name: str, tmp_path: Path) -> None:
    from lrfgraph.network.opening.loading import load_model

    MODELS[name]().save(tmp_path / "model.keras")
    one, two = (describe(load_model(tmp_path / "model.keras")) for _ in range(2))
    assert (one.digest, one.structure) == (two.digest, two.structure)


def test_a_network_is_the_same_in_either_file(tmp_path: Path) -> None:
    from lrfgraph.network.opening.loading import load_model

    digests = {describe(MODELS["sliced"]()).digest}
    for name in ("model.keras", "model.h5"):
        MODELS["sliced"]().save(tmp_path / name)
        digests.add(describe(load_model(tmp_path / name)).digest)
    assert len(digests) == 1


# A user's code ------------------------------------------------------------------------------------------------------


CODE = """
import keras
import helpers

FACTOR = {factor}

def scaled(x):
    return x * FACTOR

@keras.saving.register_keras_serializable("tests")
class Base(keras.layers.Layer):
    def call(self, x):
        return self.final(x) {base}

@keras.saving.register_keras_serializable("tests")
class Mine(Base):
    def final(self, x):
        return helpers.shifted(scaled(x)) {final}
    def compute_output_shape(self, shape):
        return shape

def unrelated():
    return {unrelated}

def act(x):
    return keras.ops.relu(x) {act}
"""
HELPERS = "def shifted(x):\n    return x + {shift}\n"
PLAIN = {"factor": 2, "base": "", "final": "", "shift": 1, "unrelated": 0, "act": ""}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A module of a user's, written with some words in place of others, and imported afresh."""
    monkeypatch.syspath_prepend(str(tmp_path))
    count = iter(range(100))

    def write(**words: Any) -> Any:
        import keras

        for name in ("mine", "helpers"):
            sys.modules.pop(name, None)
        values = PLAIN | words
        # another length each time: what was compiled before is recognised by size and by seconds
        filler = "\n" * next(count)
        (tmp_path / "mine.py").write_text(CODE.format(**values) + filler)
        (tmp_path / "helpers.py").write_text(HELPERS.format(**values) + filler)
        keras.saving.get_custom_objects().clear()
        importlib.invalidate_caches()
        return importlib.import_module("mine")

    yield write
    for name in ("mine", "helpers"):
        sys.modules.pop(name, None)


def with_layer(module: Any) -> Description:
    return describe(network(module.Mine())())


@pytest.mark.parametrize(
    "change",
    [{"factor": 3}, {"base": "* 5"}, {"final": "+ 1"}, {"shift": 2}],
    ids=["constant", "base class", "method", "helper in another module"],
)
def test_the_code_of_a_custom_layer_is_in_the_digest(change: dict[str, Any], written: Callable[..., Any]) -> None:
    plain = with_layer(written())
    changed = with_layer(written(**change))
    assert plain.digest != changed.digest
    assert kernel_layer(plain).upstream != kernel_layer(changed).upstream


def test_code_that_the_layer_does_not_name_is_not(written: Callable[..., Any]) -> None:
    assert with_layer(written()).digest == with_layer(written(unrelated=1)).digest


def test_the_code_of_a_custom_function_is_in_the_digest(written: Callable[..., Any]) -> None:
    def make(module: Any) -> str:
        return describe(network(lambda x: layers().Dense(2, module.act, kernel_initializer="ones")(x))()).digest

    assert make(written()) != make(written(act="+ 1"))
    assert make(written()) == make(written(unrelated=1))


def test_the_code_of_a_layer_inside_another_is_in_the_digest(written: Callable[..., Any]) -> None:
    def make(module: Any) -> str:
        return describe(network(lambda x: layers().TimeDistributed(module.Mine())(x))()).digest

    assert make(written()) != make(written(final="+ 1"))


def test_two_functions_typed_into_lambdas_differ() -> None:
    one, other = (
        describe(network(lambda x, f=f: layers().Lambda(f, output_shape=(8, 6))(x))()).digest
        for f in (lambda x: x + 1, lambda x: x + 2)
    )
    assert one != other


def test_what_cannot_be_written_down_is_refused_by_name() -> None:
    import keras

    class Held:
        pass

    class Holder(keras.layers.Layer):
        def __init__(self, held: Any = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.held = held

        def call(self, x: Any) -> Any:
            return x

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "held": self.held}

    with pytest.raises(ModelError, match=r"holder: holds a Held .* cannot be written down exactly") as caught:
        describe(network(Holder(Held(), name="holder"))())
    assert "\n" not in str(caught.value)
