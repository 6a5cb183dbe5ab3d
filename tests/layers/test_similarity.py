"""Similarity from moments is that from rows; activations are Keras' own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.layers.similarity import ACTIVATIONS, METRICS, Moments, Reference, from_moments, from_rows, output_error

SIZES = st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(1, 6), st.integers(1, 5))


def data(sizes: tuple[int, int, int, int], seed: int, spread: float) -> tuple[np.ndarray, ...]:
    """Rows with a mean, a kernel, a bias and a candidate: (groups, n, width), (groups, width, outputs)."""
    groups, n, width, outputs = sizes
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(groups, n, width)) * rng.uniform(0.1, 3, (groups, 1, width)) + rng.normal()
    kernel = rng.normal(size=(groups, width, outputs))
    shift = rng.normal(size=(groups, 1, outputs))
    return rows, kernel, shift, kernel + spread * rng.normal(size=kernel.shape)


def moments_of(rows: np.ndarray) -> np.ndarray:
    one = np.concatenate([rows, np.ones((*rows.shape[:2], 1))], axis=2)
    return one.swapaxes(1, 2) @ one / rows.shape[1]


def flat(outputs: np.ndarray) -> np.ndarray:
    return np.moveaxis(outputs, 0, 1).reshape(outputs.shape[1], -1)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 10.0]))
def test_moments_give_what_rows_give(sizes: tuple[int, int, int, int], seed: int, spread: float) -> None:
    rows, kernel, shift, other = data(sizes, seed, spread)
    reference = Reference.of(kernel, shift, moments_of(rows))
    ours = from_moments(Moments.of(reference, other - kernel))
    wanted = from_rows(flat(rows @ kernel + shift), flat(rows @ other + shift))
    assert ours.keys() == wanted.keys() == METRICS.keys()
    for name in ("cosine", "relative_error"):
        assert ours[name] == pytest.approx(wanted[name], abs=1e-7)
    each = [from_rows(x @ a, x @ b)["cka"] for x, a, b in zip(rows, kernel, other, strict=True)]
    assert ours["cka"] == pytest.approx(np.mean(each), abs=1e-7)
    assert all(value <= 1 + 1e-9 for value in ours.values())


def test_a_nearly_exact_candidate_keeps_its_digits() -> None:
    """An error of 1e-9 of the outputs is seen as such, far below the rounding of their squares."""
    rows, kernel, shift, _ = data((1, 30, 5, 4), 1, 0.0)
    reference = Reference.of(kernel, shift, moments_of(rows))
    error = 1.0 - from_moments(Moments.of(reference, kernel * (1 + 1e-9) - kernel))["relative_error"]
    assert error == pytest.approx(
        1e-9 * np.linalg.norm(rows @ kernel) / np.linalg.norm(rows @ kernel + shift), rel=1e-4
    )


def test_outputs_that_are_zero_are_similar_to_zero_alone() -> None:
    rows, kernel, shift, other = data((1, 10, 3, 2), 2, 1.0)
    nothing, moments = np.zeros_like(kernel), moments_of(rows)
    still = Reference.of(nothing, np.zeros_like(shift), moments)
    assert from_moments(Moments.of(still, nothing)) == dict.fromkeys(METRICS, 1.0)
    assert from_moments(Moments.of(still, other)) == dict.fromkeys(METRICS, 0.0)
    assert from_rows(rows[0] @ nothing[0], rows[0] @ nothing[0]) == dict.fromkeys(METRICS, 1.0)


def test_cka_does_not_see_rotation_and_scale_but_cosine_does() -> None:
    rows, kernel, shift, _ = data((1, 50, 6, 4), 3, 0.0)
    turned = kernel @ np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0] * 3.0
    found = from_moments(Moments.of(Reference.of(kernel, shift, moments_of(rows)), turned - kernel))
    assert found["cka"] == pytest.approx(1.0)
    assert found["cosine"] < 0.99


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), groups=st.integers(1, 3))
def test_output_error_is_the_quadratic_form_over_rows(seed: int, groups: int) -> None:
    rows, kernel, _, other = data((groups, 20, 4, 3), seed, 0.5)
    g = np.random.default_rng(seed).normal(size=(groups, 7, 3))
    h = np.einsum("gko,gkp->gop", g, g)
    e = rows @ (other - kernel)
    wanted = 0.5 * np.einsum("gno,gop,gnp->", e, h, e) / rows.shape[1]
    assert output_error(other - kernel, moments_of(rows)[:, :-1, :-1] @ (other - kernel), h) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_keras(name: str) -> None:
    import keras

    x = np.concatenate([np.linspace(-30, 30, 241), [-1e4, 1e4]]).reshape(3, 81).astype("float32")
    wanted = np.asarray(keras.activations.get(name)(x))
    np.testing.assert_allclose(ACTIVATIONS[name](x), wanted, rtol=1e-5, atol=1e-6)
