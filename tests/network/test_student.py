"""A network with layers in other forms: what U, s, V stand for is what its plain Keras layers compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.pieces import compose
from lrfgraph.methods import METHODS
from lrfgraph.methods.weighting import Unweighting
from lrfgraph.network.describing import describe
from lrfgraph.network.operations import kernel_variable, layer_at
from lrfgraph.network.shrinking.factors import absorbed, decompose, keep, kernels, native, orthogonality_step, rank_loss
from lrfgraph.network.shrinking.student import Student, fresh, others_of, values_of
from lrfgraph.selection.shrinking import Form
from tests.methods.examples import correlated_moments, output_error, random_kernel, random_outputs
from tests.methods.examples import layer as example
from tests.network import models

SHRINKING = ("svd_spatial", "svd_channel", "svd")
MODELS = {**models.LAYERS, "channels_first": models.channels_first, "sequential": models.sequential}
CASES = [
    (name, method, dense)
    for name in MODELS
    for method in SHRINKING
    for dense in (False, True)
    if not name.startswith("depthwise")
]


def forms_of(
    model: Any, method: str, dense: bool, weighted: bool = False
) -> tuple[list[Form], list[Any], list[Unweighting]]:
    """Every layer that a method gives several ranks, at full rank."""
    forms, values, undone = [], [], []
    for layer in describe(model).layers:
        full = METHODS[method].full_rank(layer) if layer.kind and not METHODS[method].reason(layer) else None
        if layer.kept or full is None or full[0] < 2:
            continue
        kernel = np.asarray(kernel_variable(layer_at(model, layer.name)))
        canonical = layer.family.order.canonical(kernel, layer.groups)
        seen = (correlated_moments(layer), random_outputs(layer)) if weighted else ()
        _, triple, undo = decompose(layer, (method,), canonical, *seen)
        assert undo.idle != weighted
        assert weighted <= np.isclose(np.linalg.norm(triple[1]), np.linalg.norm(canonical), rtol=1e-4)
        forms.append(Form(layer, method, triple[1].shape[1], dense))
        values += triple
        undone.append(undo)
    return forms, values, undone


def filled(model: Any, forms: list[Form], values: list[Any], undone: list[Unweighting], made: Any) -> Any:
    student = Student(model, forms)
    student.assign(others_of(model, forms))
    parts = iter(values)
    for form, undo, layers in zip(forms, undone, student.kernels, strict=True):
        for layer, kernel in zip(layers, made(form, next(parts), next(parts), next(parts), undo=undo), strict=True):
            kernel_variable(layer).assign(native(layer, np.reshape(kernel, kernel.shape)))
    return student.finish()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(("name", "method", "dense"), CASES)
def test_all_ranks_are_the_layer(name: str, method: str, dense: bool, weighted: bool) -> None:
    model = MODELS[name]()
    forms, values, undone = forms_of(model, method, dense, weighted)
    if not forms:
        return
    x = models.inputs_for(model)
    expected = models.outputs_of(model, x)[0]
    for made in (absorbed, of_tensors):
        received = models.outputs_of(filled(model, forms, values, undone, made), x)[0]
        np.testing.assert_allclose(received, expected, atol=(2e-3 if weighted else 2e-5) * np.abs(expected).max())


def of_tensors(form: Form, *triple: Any, undo: Unweighting) -> list[Any]:
    import keras

    tensors = map(keras.ops.convert_to_tensor, triple)
    made = [np.asarray(kernel) for kernel in kernels(form, *tensors, keras.ops, undo)]
    return [made[0].reshape(form.layer.kernel)] if form.dense else made


def test_every_method_meets_a_layer() -> None:
    met = {method for name, method, dense in CASES if dense and forms_of(MODELS[name](), method, dense)[0]}
    assert met == set(SHRINKING)


def test_absorbed_factors_are_balanced_and_signs_stay() -> None:
    model = MODELS["conv2d"]()
    (form,), (left, scale, right), _ = forms_of(model, "svd_spatial", False)
    scale = scale * np.where(np.arange(scale.shape[1]) % 2, -1, 1)
    first, last = absorbed(form, left, scale, right)
    np.testing.assert_allclose(
        np.square(first).sum(axis=(0, 1, 2, 3)), np.square(last).sum(axis=(0, 1, 2, 4)), rtol=1e-5
    )
    whole = kernels(form, left, scale, right, np)
    np.testing.assert_allclose(first @ last, whole[0] @ whole[1], atol=1e-6)


@pytest.mark.parametrize("method", SHRINKING)
def test_of_a_weighted_matrix_the_ranks_that_matter_to_the_outputs_stay(method: str) -> None:
    layer = example("dense", (1, 48, 30)) if method == "svd" else example("conv2d", (1, 3, 3, 12, 16))
    kernel, moments = random_kernel(layer), correlated_moments(layer)
    if method == "svd_spatial":  # weighs by channels alone
        count = kernel.shape[-2]
        channels = np.kron(np.eye(9), moments[0, :count, :count])
        moments[0, : len(channels), : len(channels)] = channels
    errors = []
    for seen in ((), (moments,)):
        _, triple, undo = decompose(layer, (method,), kernel, *seen)
        left, scale, right = (keep(each, np.arange(2)[None]) for each in (triple[0], triple[1][:, None], triple[2]))
        form = Form(layer, method, 2, dense=False)
        first, last = absorbed(form, left, scale[:, 0], right, undo)
        errors.append(output_error(layer, kernel, compose(METHODS[method].pieces(layer, (2,)), (first, last)), moments))
    assert errors[1] < 0.9 * errors[0]


def test_a_matrix_without_full_rank_begins_at_its_own() -> None:
    layer = describe(MODELS["dense"]()).layers[-1]
    kernel = np.outer(np.arange(1.0, 7.0), np.arange(1.0, 5.0))[None].astype(np.float32)
    _, (left, scale, right), _ = decompose(layer, ("svd",), kernel)
    assert left.shape == (1, 6, 1)
    np.testing.assert_allclose((left * scale[:, None]) @ np.swapaxes(right, 1, 2), kernel, rtol=1e-5)


def test_the_matricization_that_keeps_more_is_taken() -> None:
    layer = describe(MODELS["conv2d"]()).layers[-1]
    rng = np.random.default_rng(0)
    spatial = np.einsum("air,bro->abio", rng.normal(size=(3, 3, 1)), rng.normal(size=(3, 1, 5)))[None]
    channel = np.einsum("abir,ro->abio", rng.normal(size=(3, 3, 3, 1)), rng.normal(size=(1, 5)))[None]
    assert decompose(layer, ("svd_spatial", "svd_channel"), spatial)[0] == "svd_spatial"
    assert decompose(layer, ("svd_spatial", "svd_channel"), channel)[0] == "svd_channel"


def test_columns_stay_by_group() -> None:
    array = np.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(keep(array, np.array([[0, 2], [1, 2]])), [[[0, 2], [3, 5]], [[7, 8], [10, 11]]])


def test_losses_are_those_of_the_definition() -> None:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    side, scale = rng.normal(size=(1, 6, 3)).astype("float32"), rng.normal(size=(1, 3)).astype("float32")
    gram = side[0].T @ side[0] - np.eye(3)
    with tf.GradientTape() as tape:
        variable = tf.Variable(side)
        loss, step = orthogonality_step(variable)
    assert float(loss) == pytest.approx(np.square(gram).sum() / 9, rel=1e-5)
    np.testing.assert_allclose(tape.gradient(loss, variable), step * 8 / 9, rtol=1e-4, atol=1e-5)
    expected = 0.4 * np.abs(scale).sum() / np.linalg.norm(scale)
    assert float(rank_loss([tf.constant(scale)], [0.4])) == pytest.approx(expected, rel=1e-5)


def test_a_whole_step_leads_to_orthonormal_factors() -> None:
    rng = np.random.default_rng(0)
    side = np.linalg.qr(rng.normal(size=(2, 8, 3)))[0].astype("float32") + 0.02 * rng.normal(size=(2, 8, 3))
    _, step = orthogonality_step(side.astype("float32"))
    before, after = (np.abs(np.swapaxes(u, 1, 2) @ u - np.eye(3)).max() for u in (side, side - step))
    assert after < 0.1 * before


def test_fresh_weights_follow_the_seed() -> None:
    model = MODELS["sequential"]()
    first, again, other = (values_of(fresh(model, seed).variables) for seed in (1, 1, 2))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert any(not np.array_equal(one, two) for one, two in zip(first, other, strict=True))
    own = values_of(model.variables)
    assert [value.shape for value in own] == [value.shape for value in first]


def test_frozen_layers_learn_and_are_frozen_again() -> None:
    model = MODELS["sequential"]()
    model.layers[0].trainable = False
    student = Student(model, [])
    assert any(layer.name == model.layers[0].name and layer.trainable for layer in student.model.layers)
    assert not student.finish().layers[0].trainable


def test_fixed_statistics_leave_scale_and_shift_to_learn() -> None:
    student = Student(MODELS["sequential"](), [], fixed_statistics=True)
    norm = next(layer for layer in student.model.layers if type(layer).__name__ == "BatchNormalization")
    learned = {id(variable) for variable in student.trainable}
    assert {id(norm.gamma), id(norm.beta)} <= learned
    assert not norm.trainable
    x = models.inputs_for(student.model)
    (before,) = values_of([norm.moving_mean])
    student.model(x, training=True)
    np.testing.assert_array_equal(values_of([norm.moving_mean])[0], before)
