"""Refit: exact gradients, the closed form where there is one, and a ridge that holds on to where it started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.moments import RowMoments
from lrfgraph.layers.pieces import Piece, compose
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods import refit as module
from lrfgraph.methods.base import Method
from lrfgraph.methods.refit import equal_norms, gradients, refit
from tests.methods.examples import NAMES, PAIRS, SHARES, correlated_moments, fit, layer, random_kernel

FEW = [index for index, (_, spec) in enumerate(PAIRS) if spec.weights <= 2000]
PAIRS_FEW, NAMES_FEW = [PAIRS[i] for i in FEW], [NAMES[i] for i in FEW]


def chain(method: Method, spec: LayerSpec, seed: int = 0) -> tuple[Any, list[Array]]:
    """A candidate of middling rank: its pieces and weights in float64."""
    kernel = random_kernel(spec, seed)
    ranks = method.ranks(spec, method.prepare(spec, kernel), SHARES)
    rank = ranks[len(ranks) // 2] if ranks else method.full_rank(spec)
    assert rank is not None
    return method.pieces(spec, rank), [w.astype(np.float64) for w in fit(method, spec, kernel, rank)]


def pairs_whose(
    chains: Callable[[LayerSpec, Sequence[Piece]], bool],
) -> tuple[list[tuple[Method, LayerSpec]], list[str]]:
    """The pairs whose chains are of one form, and their names."""
    fitting = [i for i in FEW if chains(PAIRS[i][1], chain(*PAIRS[i])[0])]
    return [PAIRS[i] for i in fitting], [NAMES[i] for i in fitting]


def matrix(spec: LayerSpec, pieces: Any, weights: Any) -> Array:
    return spec.matrix(compose(pieces, list(weights)))


def objective(made: Array, g: Array, c: Array) -> float:
    return float(np.sum(made * (g @ made - 2 * c)))


def moments_of(spec: LayerSpec) -> Array:
    return correlated_moments(spec)[:, :-1, :-1]


@pytest.mark.parametrize(("method", "spec"), PAIRS, ids=NAMES)
def test_gradients_are_the_differences(method: Method, spec: LayerSpec) -> None:
    """The product is linear in every piece: a step along one piece changes it by exactly the gradient's part."""
    pieces, weights = chain(method, spec)
    rng = np.random.default_rng(3)
    slope = rng.normal(size=matrix(spec, pieces, weights).shape)
    found = gradients(spec, pieces, weights, slope)
    assert [g.shape for g in found] == [w.shape for w in weights]
    start = np.sum(slope * matrix(spec, pieces, weights))
    for index, gradient in enumerate(found):
        step = rng.normal(size=gradient.shape)
        moved = [*weights[:index], weights[index] + step, *weights[index + 1 :]]
        change = np.sum(slope * matrix(spec, pieces, moved)) - start
        assert change == pytest.approx(np.sum(gradient * step), rel=1e-8, abs=1e-8 * (1 + abs(start)))


def ends_with_a_matrix(spec: LayerSpec, pieces: Sequence[Piece]) -> bool:
    """More than two factors of a row's matrix, the last of them a 1×1 convolution."""
    last = pieces[-1]
    return len(pieces) > 2 and last.form == "mix" and {*last.shape[1:-2]} <= {1} and spec.rows == "patch"


PAIRS_LAST, NAMES_LAST = pairs_whose(ends_with_a_matrix)


@pytest.mark.parametrize(("method", "spec"), PAIRS_LAST, ids=NAMES_LAST)
def test_a_last_piece_that_is_a_matrix_ends_at_its_best(method: Method, spec: LayerSpec) -> None:
    """It follows from the others in closed form: whatever the steps, its gradient is zero."""
    pieces, weights = chain(method, spec)
    g = moments_of(spec) + 1e-3 * np.eye(spec.width)
    c = np.random.default_rng(2).normal(size=(spec.groups, spec.width, spec.outputs))
    found = refit(spec, pieces, weights, g, c, ridge=0.0, steps=2)
    slopes = [gradients(spec, pieces, w, 2 * (g @ matrix(spec, pieces, w) - c))[-1] for w in (weights, found)]
    assert np.abs(slopes[1]).max() < 1e-3 * np.abs(slopes[0]).max()


@pytest.mark.parametrize(("method", "spec"), PAIRS_FEW, ids=NAMES_FEW)
def test_refit_never_ends_above_its_start(method: Method, spec: LayerSpec) -> None:
    pieces, weights = chain(method, spec)
    g, rng = moments_of(spec), np.random.default_rng(4)
    wanted = spec.matrix(random_kernel(spec).astype(np.float64))
    c = g @ (wanted + 0.05 * rng.normal(size=wanted.shape) * np.abs(wanted).mean())
    found = refit(spec, pieces, weights, g, c, 0.0, 30)
    assert [w.shape for w in found] == [w.shape for w in weights]
    before, after = (objective(matrix(spec, pieces, w), g, c) for w in (weights, found))
    assert after <= before + 1e-9 * abs(before)


@pytest.mark.parametrize(("method", "spec"), PAIRS_FEW, ids=NAMES_FEW)
def test_a_target_that_the_chain_can_reach_is_reached(method: Method, spec: LayerSpec) -> None:
    pieces, weights = chain(method, spec)
    g, rng = moments_of(spec), np.random.default_rng(5)
    wanted = matrix(spec, pieces, weights)
    near = [w + 0.1 * np.abs(w).mean() * rng.normal(size=w.shape) for w in weights]

    def error(made: Array) -> float:
        return float(np.sum((made - wanted) * (g @ (made - wanted))) / np.sum(wanted * (g @ wanted)))

    found = refit(spec, pieces, near, g, g @ wanted, 0.0, 300)
    assert error(matrix(spec, pieces, found)) < min(1e-4, error(matrix(spec, pieces, near)))


@pytest.mark.parametrize(("method", "spec"), PAIRS_FEW, ids=NAMES_FEW)
def test_few_rows_give_what_their_moments_give(method: Method, spec: LayerSpec) -> None:
    """The solution is the same, but for where a descent is stopped; the error is what it minimises."""
    pieces, weights = chain(method, spec)
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(spec.groups, max(spec.width // 2, 1), spec.width))
    g = rows.swapaxes(1, 2) @ rows / rows.shape[1]
    c = g @ spec.matrix(random_kernel(spec).astype(np.float64))
    ours, theirs = (refit(spec, pieces, weights, each, c, 1e-2, 60) for each in (RowMoments(rows, False), g))
    first, second, start = (objective(matrix(spec, pieces, each), g, c) for each in (ours, theirs, weights))
    assert first == pytest.approx(second, rel=1e-3, abs=1e-3 * abs(start - second))


@pytest.mark.parametrize(("method", "spec"), PAIRS_FEW, ids=NAMES_FEW)
def test_a_large_ridge_holds_on_to_the_start(method: Method, spec: LayerSpec) -> None:
    pieces, weights = chain(method, spec)
    g, start = moments_of(spec), matrix(spec, pieces, weights)
    c = g @ np.random.default_rng(6).normal(size=start.shape)
    found = matrix(spec, pieces, refit(spec, pieces, weights, g, c, 1e8, 30))
    np.testing.assert_allclose(found, start, atol=1e-4 * np.abs(start).max())


def test_two_cores_with_the_sizes_of_two_matrices_are_cores() -> None:
    """6·6 rows in the first one, as the layer has inputs, and r·30 numbers in the last."""
    spec, method = layer("dense", (1, 36, 30)), METHODS["ttm"]
    pieces, weights = method.pieces(spec, (4,)), fit(method, spec, random_kernel(spec), (4,))
    assert [piece.shape for piece in pieces] == [(1, 6, 6, 4), (4, 6, 5, 1)]
    g, wanted = moments_of(spec), matrix(spec, pieces, weights)
    found = refit(spec, pieces, weights, g, g @ wanted, 0.0, 10)
    np.testing.assert_allclose(matrix(spec, pieces, found), wanted, atol=1e-5 * np.abs(wanted).max())


ONE_EACH = {method.name: (method, spec) for method, spec in reversed(PAIRS_FEW)}


@pytest.mark.parametrize(("method", "spec"), ONE_EACH.values(), ids=ONE_EACH)
def test_the_unit_of_the_inputs_does_not_matter(method: Method, spec: LayerSpec) -> None:
    """Powers of two, so that not even rounding differs: moments of inputs a thousand times as small or as large."""
    pieces, weights = chain(method, spec)
    g, wanted = moments_of(spec), spec.matrix(random_kernel(spec, 7).astype(np.float64))
    one, small, large = (
        matrix(spec, pieces, refit(spec, pieces, weights, s * g, s * (g @ wanted), 1e-4, 15))
        for s in (1.0, 2.0**-20, 2.0**20)
    )
    np.testing.assert_allclose(small, one, rtol=1e-6, atol=1e-9 * np.abs(one).max())
    np.testing.assert_allclose(large, one, rtol=1e-6, atol=1e-9 * np.abs(one).max())


TWO_MATRICES = ("svd", "qr", "svd_channel")
"""Methods whose chains are (width × r)(r × outputs) in a layer's own matrix view."""

MATRICES = [
    (m, spec) for m, spec in PAIRS_FEW if m.name in TWO_MATRICES and (spec.rows == "patch" or spec.positions == 1)
]
MATRIX_NAMES = [f"{method.name}-{spec.name}" for method, spec in MATRICES]


@pytest.mark.parametrize(("method", "spec"), MATRICES, ids=MATRIX_NAMES)
def test_the_closed_form_is_no_worse_than_descent(
    method: Method, spec: LayerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, weights = chain(method, spec)
    g, wanted = moments_of(spec), spec.matrix(random_kernel(spec, 9).astype(np.float64))
    ridge = 1e-3
    exact = matrix(spec, pieces, refit(spec, pieces, weights, g, g @ wanted, ridge, 1))
    monkeypatch.setattr(module, "_is_matrix_pair", lambda layer, pieces: False)
    descent = matrix(spec, pieces, refit(spec, pieces, weights, g, g @ wanted, ridge, 200))
    penalty = ridge * np.trace(g, axis1=1, axis2=2)[:, None, None] / g.shape[-1]
    whole, cross = g + penalty * np.eye(g.shape[-1]), g @ wanted + penalty * matrix(spec, pieces, weights)
    assert objective(exact, whole, cross) <= objective(descent, whole, cross) + 1e-9 * abs(
        objective(descent, whole, cross)
    )


def test_balance_equals_norms_and_keeps_the_product() -> None:
    method, spec = next((m, s) for m, s in PAIRS_FEW if m.name == "tucker")
    pieces, weights = chain(method, spec)
    uneven = [weights[0] * 100, weights[1] / 7, weights[2] * 3]
    even = equal_norms(uneven)
    np.testing.assert_allclose(matrix(spec, pieces, even), matrix(spec, pieces, uneven), rtol=1e-9, atol=1e-12)
    assert np.ptp([np.linalg.norm(w) for w in even]) < 1e-9
    nothing = [np.zeros(3), np.ones(3)]
    assert all(a is b for a, b in zip(equal_norms(nothing), nothing, strict=True))
