"""Moments kept as rows, or not at all, say what the matrix says, and no square of the width is made of few rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from lrfgraph.layers.moments import NoMoments, RowMoments, as_matrix, centred, linear, mean_of
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
