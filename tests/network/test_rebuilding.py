"""Chains that multiply out to the kernel leave every network as it was, and cost what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.errors import LayerError, ModelError, OutputError
from lrfgraph.layers.pieces import Piece, compose, cost, native_kernel
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.network import exporting
from lrfgraph.network.counting import count
from lrfgraph.network.describing import Description, describe
from lrfgraph.network.exporting import FORMATS, export, save, verify_files
from lrfgraph.network.operations import kernel_variable
from lrfgraph.network.rebuilding import Chain, rebuild
from tests.network.models import GRAPHS, MODELS, inputs_for, one_layer, outputs_of, randomize


def exact_chain(layer: LayerSpec, kernel: np.ndarray) -> Chain:
    """The kernel itself behind (or, where each group has one input, in place of) a 1×1 identity."""
    axes = tuple(range(len(layer.spatial)))
    whole = Piece("mix", layer.kernel, axes)
    if layer.family.depthwise or not layer.family.mixes_channels:
        return Chain("exact", (whole,), (kernel,))
    ones = (1,) * len(axes)
    identity = np.broadcast_to(np.eye(layer.inputs), (layer.groups, *ones, layer.inputs, layer.inputs))
    pieces = (Piece("mix", identity.shape), whole)
    return Chain("exact", pieces, (identity.astype("float32"), kernel))


def core_chain(layer: LayerSpec, kernel: np.ndarray) -> Chain:
    """A dense kernel as one TT core, padded to even sizes."""
    inputs, outputs = layer.inputs + layer.inputs % 2, layer.outputs + layer.outputs % 2
    matrix = np.zeros((inputs, outputs), "float32")
    matrix[: layer.inputs, : layer.outputs] = kernel[0]
    first = matrix.reshape(2, inputs // 2, 2, outputs // 2).transpose(0, 2, 1, 3).reshape(4, -1)
    u, s, v = np.linalg.svd(first, full_matrices=False)
    cores = (u * s).reshape(1, 2, 2, len(s)), v.reshape(len(s), inputs // 2, outputs // 2, 1)
    return Chain("core", tuple(Piece("core", c.shape) for c in cores), cores)


def kernels(found: Description) -> dict[str, tuple[LayerSpec, np.ndarray]]:
    return {
        layer.name: (layer, found.arrays[f"layers/{number}/kernel"])
        for number, layer in enumerate(found.layers)
        if layer.kind
    }


def assert_same(model: Any, rebuilt: Any, tolerance: float = 1e-4) -> None:
    x = inputs_for(model)
    for expected, received in zip(outputs_of(model, x), outputs_of(rebuilt, x), strict=True):
        assert expected.shape == received.shape
        assert np.abs(expected - received).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_exact_chains_change_nothing(name: str) -> None:
    model = MODELS[name]()
    chains = {path: exact_chain(*found) for path, found in kernels(describe(model)).items()}
    assert chains
    assert_same(model, rebuild(model, chains), 2e-2 if name == "frozen_mixed" else 1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("depthwise")])
def test_full_rank_of_every_method_is_exact_and_costs_what_it_says(name: str) -> None:
    """Depthwise kernels have no full rank: only rank 1 is offered for them."""
    model = MODELS[name]()
    description = describe(model)
    layers = kernels(description)
    rebuilt_by = []
    for method in METHODS:
        chains = full_rank_chains(method, layers)
        if not chains:
            continue
        rebuilt_by.append(method)
        macs = sum(layer.macs for layer in description.layers)
        parameters = model.count_params()
        for path, chain in chains.items():
            layer, kernel = layers[path]
            np.testing.assert_allclose(compose(chain.pieces, chain.weights), kernel, atol=1e-4)
            macs += cost(layer, chain.pieces).macs - layer.macs
            parameters += cost(layer, chain.pieces).parameters - layer.weights - int(np.prod(layer.depthwise or 0))
        rebuilt = rebuild(model, chains)
        assert_same(model, rebuilt, 2e-2 if name == "frozen_mixed" else 1e-4)
        counted = count(rebuilt)
        assert (counted.parameters, counted.macs) == (parameters, macs)
    assert rebuilt_by


def full_rank_chains(name: str, layers: dict[str, tuple[LayerSpec, np.ndarray]]) -> dict[str, Chain]:
    """Of every layer that the method takes and has an exact rank for."""
    method, chains = METHODS[name], {}
    for path, (layer, kernel) in layers.items():
        rank = None if method.reason(layer) else method.full_rank(layer)
        if rank is not None:
            weights = method.factorize(layer, method.prepare(layer, kernel), rank)
            chains[path] = Chain(name, method.pieces(layer, rank), weights)
    return chains


def test_truncated_chains_are_the_layer_with_the_composed_kernel() -> None:
    """Every form of piece, depthwise ones and cores included, on every kind of layer that takes it."""
    forms = set()
    for name, make in MODELS.items():
        model = make()
        if name in GRAPHS:
            continue
        path, (layer, kernel) = next(iter(kernels(describe(model)).items()))
        for method in METHODS.values():
            if method.reason(layer):
                continue
            prepared = method.prepare(layer, kernel)
            ranks = method.ranks(layer, prepared, (0.3, 0.6, 0.9))
            for rank in ranks[:1]:
                pieces, weights = method.pieces(layer, rank), method.factorize(layer, prepared, rank)
                twin = make()
                kernel_variable(twin.layers[-1]).assign(native_kernel(layer, pieces, weights))
                rebuilt = rebuild(model, {path: Chain(method.name, pieces, weights)})
                assert_same(twin, rebuilt)
                assert count(rebuilt).macs == cost(layer, pieces).macs
                forms |= {(layer.family.name, piece.form, max(layer.strides, default=1) > 1) for piece in pieces}
    assert {("convolution", "channelwise", True), ("dense", "core", False), ("transposed", "mix", True)} <= forms


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    step=st.one_of(
        st.fixed_dictionaries({"strides": st.tuples(st.integers(1, 3), st.integers(1, 3))}),
        st.fixed_dictionaries({"dilation_rate": st.tuples(st.integers(1, 2), st.integers(1, 2))}),
    ),
    padding=st.sampled_from(["same", "valid"]),
    groups=st.sampled_from([1, 2, 4]),
    transposed=st.booleans(),
)
def test_random_convolutions(
    kernel: tuple[int, int], step: dict[str, Any], padding: str, groups: int, transposed: bool
) -> None:
    def make(layers: Any) -> Any:
        if transposed and max(step.get("dilation_rate", (1,))) == 1:
            return layers.Conv2DTranspose(4, kernel, padding=padding, **step)
        return layers.Conv2D(4, kernel, padding=padding, groups=groups, **step)

    model = one_layer((11, 10, 4), make)()
    path, (layer, weights) = next(iter(kernels(describe(model)).items()))
    for method in ("tt", "svd_spatial", "svd"):
        rank = None if METHODS[method].reason(layer) else METHODS[method].full_rank(layer)
        if rank is not None:
            factors = METHODS[method].factorize(layer, METHODS[method].prepare(layer, weights), rank)
            assert_same(model, rebuild(model, {path: Chain(method, METHODS[method].pieces(layer, rank), factors)}))
    assert_same(model, rebuild(model, {path: exact_chain(layer, weights)}))


def test_cores_padded_to_even_sizes_and_after_an_open_axis() -> None:
    import keras

    x = keras.Input((None, 7))
    model = randomize(keras.Model(x, keras.layers.Dense(5, activation="softmax", name="d")(x)))
    layer, kernel = kernels(describe(model))["d"]
    rebuilt = rebuild(model, {"d": core_chain(layer, kernel)})
    assert rebuilt.output_shape == (None, None, 5)
    pieces = core_chain(layer, kernel).pieces
    sized = replace(layer, input_shapes=((9, 7),), output_shapes=((9, 5),))
    assert count(rebuilt, (9, 7)).macs == cost(sized, pieces).macs
    assert_same(model, rebuilt)


def test_what_is_not_named_is_untouched() -> None:
    model = MODELS["residual"]()
    layer, kernel = kernels(describe(model))["inner"]
    model.get_layer("stem").trainable = False
    rebuilt = rebuild(model, {"inner": exact_chain(layer, kernel)})
    assert rebuilt.name == model.name
    assert [layer.name for layer in rebuilt.layers if "exact" in layer.name] == ["inner_exact_1", "inner_exact_2"]
    assert not rebuilt.get_layer("stem").trainable
    for name in ("stem", "norm", "logits"):
        old, new = model.get_layer(name), rebuilt.get_layer(name)
        assert old is not new
        assert old.get_config() == new.get_config()
        for a, b in zip(old.get_weights(), new.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    x = inputs_for(model)
    before = outputs_of(model, x)
    rebuilt.set_weights([w * 2 for w in rebuilt.get_weights()])
    np.testing.assert_array_equal(before[0], outputs_of(model, x)[0])


def test_graphs_keep_their_shape() -> None:
    import keras

    plain = rebuild(MODELS["sequential"](), {})
    assert isinstance(plain, keras.Sequential)
    assert [layer.name for layer in plain.layers][:2] == ["first", "norm"]
    many = rebuild(MODELS["many"](), {})
    assert set(many.input) == {"left", "right"}
    assert set(many.output) == {"one", "two"}
    nested = MODELS["nested"]()
    chains = {path: exact_chain(*found) for path, found in kernels(describe(nested)).items()}
    rebuilt = rebuild(nested, chains)
    assert [layer.name for layer in rebuilt.layers if hasattr(layer, "layers")] == ["block", "deep"]
    assert rebuilt.get_layer("block").layers[0].name == "block_conv_exact_1"
    shared = MODELS["shared_with_nested"]()
    rebuilt = rebuild(shared, {"shared": exact_chain(*kernels(describe(shared))["shared"])})
    assert rebuilt.count_params() == shared.count_params() + 16


def test_a_bias_given_replaces_none() -> None:
    model = MODELS["dense_prime"]()
    layer, kernel = next(iter(kernels(describe(model)).values()))
    bias = np.arange(5, dtype="float32")
    chain = exact_chain(layer, kernel)
    rebuilt = rebuild(model, {layer.name: Chain("exact", chain.pieces, chain.weights, bias)})
    x = inputs_for(model)
    np.testing.assert_allclose(outputs_of(rebuilt, x)[0], outputs_of(model, x)[0] + bias, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "chain", "words"),
    [
        ("nobody", Chain("svd", (), ()), "no such layer"),
        ("norm", Chain("svd", (), ()), "cannot be replaced"),
        ("first", Chain("svd", (Piece("mix", (1, 3, 3, 3, 6), (0, 1)),), (np.zeros((1, 3, 3, 3, 5)),)), "declares"),
        (
            "first",
            Chain(
                "ttm",
                (Piece("mix", (1, 1, 1, 3, 3)), Piece("core", (1, 3, 6, 1))),
                (np.zeros((1, 1, 1, 3, 3)), np.zeros((1, 3, 6, 1))),
            ),
            "core piece",
        ),
    ],
)
def test_a_chain_that_does_not_fit_is_refused(path: str, chain: Chain, words: str) -> None:
    with pytest.raises(LayerError, match=words):
        rebuild(MODELS["sequential"](), {path: chain})


@pytest.mark.a_fresh_process
def test_written_files_reload_without_this_package(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import keras

    for name in ("residual", "nested", "many"):
        model = MODELS[name]()
        chains = {path: exact_chain(*found) for path, found in kernels(describe(model)).items()}
        rebuilt = rebuild(model, chains)
        save(rebuilt, tmp_path)
        for path in FORMATS:
            assert_same(rebuilt, keras.models.load_model(tmp_path / path, compile=False), 1e-6)
    paths = [tmp_path / name for name in FORMATS]
    found = verify_files(rebuilt, paths)
    assert (found["parameters"], found["macs"]) == (count(rebuilt).parameters, count(rebuilt).macs)
    assert found["difference"] <= 1e-6
    assert "legacy" not in capfd.readouterr().err
    json.dumps(found)
    layer = rebuilt.get_layer("a_exact_2")
    layer.set_weights([w + 1 for w in layer.get_weights()])
    with pytest.raises(ModelError, match="differ by"):
        verify_files(rebuilt, paths)


def test_slices_are_written_in_every_format(tmp_path: Path) -> None:
    model = MODELS["sliced"]()
    paths, counted, notes = export(model, tmp_path)
    assert [path.name for path in paths] == list(FORMATS)
    assert notes == ()
    assert counted["difference"] <= 1e-6


def test_a_format_that_does_not_give_the_model_back_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: Any, path: Path) -> None:
        FORMATS["compressed.keras"](MODELS["dense"](), path)

    monkeypatch.setitem(exporting.FORMATS, "compressed.h5", other)
    paths, _, (note,) = export(MODELS["sequential"](), tmp_path)
    assert [path.name for path in paths] == ["compressed.keras"]
    assert note.startswith("compressed.h5 is left out: ")
    assert not (tmp_path / "compressed.h5").exists()
    monkeypatch.setitem(exporting.FORMATS, "compressed.keras", lambda model, path: path.write_text("nothing"))
    with pytest.raises(ModelError, match="cannot be read in a fresh process"):
        export(MODELS["sequential"](), tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save(MODELS["dense"](), tmp_path / "nowhere")
