"""Moments kept as rows, or not at all, say what the matrix says, and no square of the width is made of few rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from lrfgraph.layers.moments import NoMoments, RowMoments, as_matrix, centred, linear, mean_of, shrinkage, shrunk
from lrfgraph.layers.similarity import Moments, Reference, from_moments, output_error
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.weighting import weigh

RNG = np.random.default_rng(0)


def rows_and_matrix(groups: int = 2, count: int = 7, width: int = 11) -> tuple[RowMoments, np.ndarray]:
    rows = RNG.normal(size=(groups, count, width)) + 0.5
    full = np.concatenate([rows, np.ones((groups, count, 1))], axis=2)
    return RowMoments(rows, True), full.swapaxes(1, 2) @ full / count


def test_products_from_either_side() -> None:
    rows, matrix = rows_and_matrix()
    right, left = RNG.normal(size=(2, 12, 3)), RNG.normal(size=(2, 4, 12))
    np.testing.assert_allclose(rows @ right, matrix @ right)
    np.testing.assert_allclose(left @ rows, left @ matrix)
    right, left = right[:, :-1], left[:, :, :-1]
    np.testing.assert_allclose(linear(rows) @ right, matrix[:, :-1, :-1] @ right)
    np.testing.assert_allclose(left @ centred(rows) @ right, left @ centred(matrix) @ right)
    np.testing.assert_allclose(mean_of(rows), mean_of(matrix))
    np.testing.assert_allclose(as_matrix(linear(rows)), linear(matrix))
    assert NoMoments() @ right is right
    assert left @ NoMoments() is left


def test_shrunk_moments_are_the_same_as_rows_and_as_a_matrix() -> None:
    rows, matrix = rows_and_matrix()
    less, covariance = shrunk(rows), centred(matrix)
    assert isinstance(covariance, np.ndarray)
    apart = covariance * (1 - np.eye(11))
    other = matrix.copy()
    other[:, :-1, :-1] -= shrinkage(rows.rows) * apart
    np.testing.assert_allclose(as_matrix(less), other)
    np.testing.assert_allclose(as_matrix(centred(less)), centred(other), atol=1e-12)
    np.testing.assert_allclose(as_matrix(linear(less)), linear(other))
    np.testing.assert_allclose(mean_of(other), mean_of(matrix))  # means and variances stay
    np.testing.assert_allclose(np.einsum("gii->gi", other), np.einsum("gii->gi", matrix))
    assert np.abs(other - matrix).max() > 0.01


def test_shrinkage_is_what_its_source_says() -> None:
    """Schäfer and Strimmer (2005), their w_kij written out for every pair of inputs."""
    x = RNG.normal(size=(2, 9, 5)) @ RNG.normal(size=(5, 5))
    x[1, :, 2] = 3.0  # an input that never varies
    for rows, share in zip(x, shrinkage(x)[:, 0, 0], strict=True):
        z = rows[:, rows.std(0) > 0]
        z = (z - z.mean(0)) / z.std(0)
        w = z[:, :, None] * z[:, None, :]
        off = ~np.eye(z.shape[1], dtype=bool)
        noise = np.square(w - w.mean(0)).sum(0) / (len(z) * (len(z) - 1))
        assert share == pytest.approx(min(noise[off].sum() / np.square(w.mean(0))[off].sum(), 1.0))


def features(count: int) -> np.ndarray:
    """What a dense layer receives behind a ReLU: many inputs that vary together a little."""
    return np.maximum(RNG.normal(size=(1, count, 60)) @ MIXING + RNG.normal(size=(1, count, 60)), 0)


MIXING = np.random.default_rng(1).normal(size=(60, 60)) * np.geomspace(1, 0.1, 60)[:, None] / 4


@pytest.mark.parametrize(("count", "low", "high"), [(30, 0.15, 0.9), (3_000, 0.0, 0.1)])
def test_few_rows_shrink_and_many_do_not(count: int, low: float, high: float) -> None:
    assert low <= shrinkage(features(count))[0, 0, 0] <= high


def test_factors_of_shrunk_moments_lose_less_on_rows_that_nobody_has_seen() -> None:
    few, fresh = features(40), features(5000)
    layer = LayerSpec("few", "Dense", "dense", (1, 60, 40), input_shapes=((60,),), output_shapes=((40,),), macs=2400)
    kernel, method = RNG.normal(size=(1, 60, 40)), METHODS["svd"]

    def lost(moments: RowMoments) -> float:
        weighted, undo = weigh(method, layer, kernel[:, None], moments)
        first, last = undo(method.factorize(layer, method.prepare(layer, weighted), (20,)))
        return float(np.square(fresh @ (first.reshape(1, 60, 20) @ last.reshape(1, 20, 40) - kernel)).sum())

    plain = RowMoments(few, True)
    assert lost(shrunk(plain)) < 0.9 * lost(plain)


@pytest.mark.parametrize("known", [True, False])
def test_a_candidate_scores_the_same(known: bool) -> None:
    rows, matrix = rows_and_matrix()
    if not known:
        matrix = np.eye(12)[None].repeat(2, 0)
    kernel, shift = RNG.normal(size=(2, 11, 4)), RNG.normal(size=(2, 1, 4))
    other = kernel + 0.3 * RNG.normal(size=kernel.shape)
    curvature = RNG.normal(size=(2, 4, 4))
    ours, theirs = (Reference.of(kernel, shift, each) for each in (rows if known else NoMoments(), matrix))
    assert ours.power == pytest.approx(theirs.power)
    mine, its = (Moments.of(each, other - kernel) for each in (ours, theirs))
    assert from_moments(mine) == pytest.approx(from_moments(its))
    assert output_error(mine.error, mine.spread, curvature) == pytest.approx(
        output_error(its.error, its.spread, curvature)
    )


def test_a_wide_layer_is_weighted_without_its_width_squared() -> None:
    """20,000 inputs: the square would take 3.2 GB."""
    layer = LayerSpec(
        "wide", "Dense", "dense", (1, 20_000, 8), input_shapes=((20_000,),), output_shapes=((8,),), macs=160_000
    )
    rows = RowMoments(RNG.normal(size=(1, 30, 20_000)), True)
    kernel = RNG.normal(size=layer.kernel)
    tracemalloc.start()
    method = METHODS["svd"]
    weighted, undo = weigh(method, layer, kernel, rows)
    chain = undo(method.factorize(layer, method.prepare(layer, weighted), (8,)))
    reference = Reference.of(kernel, np.zeros((1, 1, 8)), rows)
    scores = from_moments(Moments.of(reference, chain[0] @ chain[1] - kernel))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores["cosine"] == pytest.approx(1.0)
    assert most < 100e6
