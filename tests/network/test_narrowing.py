"""A pruned network gives what the original gives where nothing reads the removed channels, whatever couples them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.network.counting import count
from lrfgraph.network.pruning.narrowing import masked_outputs, narrow
from lrfgraph.network.pruning.rules import RULES
from lrfgraph.network.pruning.walking import Walk, walk
from lrfgraph.pruning.channels import Dependencies
from tests.network.couplings import COUPLINGS, conv, head
from tests.network.models import GRAPHS, LAYERS, inputs_for, outputs_of, randomize


def some(dependencies: Dependencies, share: float = 0.4, seed: int = 0) -> list[int]:
    """Channels of every group, never all."""
    rng = np.random.default_rng(seed)
    count_of = {group.name: max(round(share * len(group.channels)), 1) for group in dependencies.groups}
    return [
        int(channel)
        for group in dependencies.groups
        if len(group.channels) > 1
        for channel in rng.permutation(group.channels)[: count_of[group.name]]
    ]


def assert_agree(model: Any, walked: Walk, removed: list[int], small: Any) -> None:
    x = inputs_for(model)
    import keras

    masked = masked_outputs(walked, removed, tuple(keras.tree.flatten(x)))
    for expected, received in zip(masked, outputs_of(small, x), strict=True):
        assert np.abs(np.asarray(expected) - received).max() <= 1e-5 * max(np.abs(np.asarray(expected)).max(), 1e-3)


@pytest.mark.parametrize("name", COUPLINGS)
def test_pruned_is_masked(name: str) -> None:
    model = COUPLINGS[name]()
    walked = walk(model)
    dependencies = walked.dependencies(model.count_params())
    removed = some(dependencies)
    assert removed
    small = narrow(model, walked, removed)
    assert_agree(model, walked, removed, small)
    counted = count(small)
    assert (counted.parameters, counted.macs) == dependencies.size(removed)
    assert counted.parameters < model.count_params()
    assert not np.allclose(outputs_of(model, inputs_for(model))[0], outputs_of(small, inputs_for(model))[0], atol=1e-4)


@pytest.mark.parametrize("name", [*LAYERS, *GRAPHS])
def test_nothing_removed_is_the_same_network(name: str) -> None:
    model = (LAYERS | GRAPHS)[name]()
    small = narrow(model, walk(model), ())
    for expected, received in zip(
        outputs_of(model, inputs_for(model)), outputs_of(small, inputs_for(model)), strict=True
    ):
        assert expected.shape == received.shape
        assert np.abs(expected - received).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_is_pruned_where_it_can_be(name: str) -> None:
    model = GRAPHS[name]()
    walked = walk(model)
    # with as many channels as columns, channels first, TensorFlow's backend of Keras adds the bias to the columns
    removed = some(walked.dependencies(model.count_params()), 0.7)
    if name != "frozen_mixed":  # half of it computes in half precision
        assert_agree(model, walked, removed, narrow(model, walked, removed))


def test_written_and_read_again(tmp_path: Path) -> None:
    import keras

    model = COUPLINGS["nested_models"]()
    walked = walk(model)
    small = narrow(model, walked, some(walked.dependencies(0)))
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras", compile=False)
    assert np.array_equal(outputs_of(again, inputs_for(model))[0], outputs_of(small, inputs_for(model))[0])


# Groups -------------------------------------------------------------------------------------------------------------


def groups_of(model: Any) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {g.name: (len(g.channels), g.layers) for g in walk(model).dependencies(0).groups}


def built(make: Any) -> Any:
    import keras

    x = keras.Input((8, 8, 3))
    return randomize(keras.Model(x, make(keras.layers, x)))


def test_channels_that_are_added_are_one_group() -> None:
    def make(k: Any, x: Any) -> Any:
        x = conv(k, x, 6, name="stem")
        return head(k, k.Add()([x, conv(k, conv(k, x, 4, name="inner"), 6, name="outer")]))

    assert groups_of(built(make)) == {"stem": (6, ("stem", "outer")), "inner": (4, ("inner",))}


def test_an_addition_across_a_concatenation_makes_two_groups() -> None:
    def make(k: Any, x: Any) -> Any:
        parts = [conv(k, x, 4, name="a"), conv(k, x, 3, name="b")]
        return head(k, k.Add()([k.Concatenate()(parts), conv(k, x, 7, name="both")]))

    assert groups_of(built(make)) == {"a": (4, ("a", "both")), "b": (3, ("b", "both"))}


def test_groups_of_a_grouped_convolution_stay_equal() -> None:
    def make(k: Any, x: Any) -> Any:
        return head(k, k.Conv2D(8, 3, groups=2, name="grouped")(conv(k, x, 6, name="before")))

    assert groups_of(built(make)) == {"before": (3, ("before",)), "grouped": (4, ("grouped",))}


class Doubling:
    """Made in a function: Keras is imported when a test needs it."""

    @staticmethod
    def layer() -> Any:
        import keras

        class Custom(keras.layers.Layer):
            def call(self, x: Any) -> Any:
                return 2 * x

        return Custom(name="custom")


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (lambda k, x: k.Softmax(name="across")(x), "across: softmax runs over all of them"),
        (lambda k, x: k.Activation("softmax", name="across")(x), "across: softmax runs over all"),
        (lambda k, x: x[..., :6], "takes a part of it"),
        (lambda k, x: k.Concatenate(name="both")([x, x[..., ::2]]), "takes a part of it"),
        (lambda k, x: x * np.arange(6, dtype="float32"), "constant for every channel"),
        (lambda k, x: Doubling.layer()(x), "custom: Custom is not Keras' own"),
        (lambda k, x: k.LSTM(4, name="cell")(k.Reshape((64, 6))(x))[:, None, None], "cell: LSTM is not followed"),
        (lambda k, x: k.UnitNormalization(name="unit")(x), "unit: UnitNormalization is not followed"),
        (lambda k, x: k.Add()([x, k.UnitNormalization(name="unit")(x)]), "unit: UnitNormalization is not followed"),
    ],
)
def test_what_cannot_be_followed_is_kept_and_says_why(block: Any, reason: str) -> None:
    def make(k: Any, x: Any) -> Any:
        return head(k, conv(k, block(k, conv(k, x, 6, name="before")), 5, name="after"))

    model = built(make)
    walked = walk(model)
    dependencies = walked.dependencies(model.count_params())
    assert reason in dependencies.kept["before"]
    assert all("before" not in group.layers for group in dependencies.groups)
    assert any("after" in group.layers for group in dependencies.groups)
    assert_agree(model, walked, some(dependencies), narrow(model, walked, some(dependencies)))


def test_inputs_and_outputs_stay() -> None:
    def make(k: Any, x: Any) -> Any:
        return k.Add()([k.Conv2D(3, 3, padding="same", name="last")(x), x])

    dependencies = walk(built(make)).dependencies(0)
    assert not dependencies.groups
    assert "the network's input" in dependencies.kept["last"] or "leaves" in dependencies.kept["last"]


@pytest.mark.parametrize("norm", ["LayerNormalization", "RMSNormalization", "GroupNormalization"])
def test_normalizations_over_channels_are_narrowed_and_noted(norm: str) -> None:
    def make(k: Any, x: Any) -> Any:
        layer = (
            k.GroupNormalization(groups=2, name="norm") if norm.startswith("Group") else getattr(k, norm)(name="norm")
        )
        return head(k, conv(k, layer(conv(k, x, 6, name="before"))))

    model = built(make)
    walked = walk(model)
    dependencies = walked.dependencies(model.count_params())
    group = next(group for group in dependencies.groups if "before" in group.layers)
    assert group.note == "norm takes its statistics over fewer channels"
    small = narrow(model, walked, some(dependencies))
    assert np.isfinite(outputs_of(small, inputs_for(model))[0]).all()
    assert count(small).parameters == dependencies.size(some(dependencies))[0]


def test_dependencies_are_data() -> None:
    dependencies = walk(COUPLINGS["concatenation"]()).dependencies(100)
    data, arrays = dependencies.to_data()
    again = Dependencies.from_data(data, arrays.__getitem__)
    assert again.to_data()[0] == data
    assert again.groups == dependencies.groups
    removed = some(dependencies)
    assert again.size(removed) == dependencies.size(removed)


def test_a_coupling_that_a_rule_gets_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the masked original would show a rule that reverses channels."""

    def reversed_channels(walked: Walk, call: Any) -> None:
        walked.write(call, {axis: numbers[::-1].copy() for axis, numbers in walked.known(call.inputs[0]).items()})

    monkeypatch.setitem(RULES, "ReLU", reversed_channels)
    model = COUPLINGS["batch_normalization"]()
    walked = walk(model)
    removed = some(walked.dependencies(0))
    with pytest.raises(AssertionError):
        assert_agree(model, walked, removed, narrow(model, walked, removed))
