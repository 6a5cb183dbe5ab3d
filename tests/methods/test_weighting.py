"""Activation-aware factors: optimal where theory says so, better than plain ones elsewhere, never worse off."""

from __future__ import annotations

import numpy as np
import pytest

from lrfgraph.layers.pieces import compose
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import Method, Rank
from lrfgraph.methods.weighting import Unweighting, weigh
from tests.methods.examples import (
    NAMES,
    PAIRS,
    SHARES,
    correlated_moments,
    fit,
    layer,
    output_error,
    random_kernel,
    random_outputs,
)

pairs = pytest.mark.parametrize(("method", "spec"), PAIRS, ids=NAMES)


def aware(
    method: Method, spec: LayerSpec, rank: Rank, moments: Array | None, outputs: Array | None = None
) -> tuple[Array, ...]:
    weighted, undo = weigh(method, spec, random_kernel(spec), moments, outputs)
    assert weighted.shape == spec.kernel
    assert weighted.dtype == np.float64
    restored = Unweighting.from_arrays(undo.to_arrays())
    return restored(fit(method, spec, weighted, rank))


def middle_rank(method: Method, spec: LayerSpec) -> Rank:
    ranks = method.ranks(spec, method.prepare(spec, random_kernel(spec)), SHARES)
    return ranks[len(ranks) // 2] if ranks else method.full_rank(spec) or (1,)


@pairs
def test_full_rank_stays_exact(method: Method, spec: LayerSpec) -> None:
    full = method.full_rank(spec)
    if full is None:
        return
    kernel = random_kernel(spec)
    scale = np.linspace(-2, 2, spec.groups * spec.outputs).reshape(spec.groups, spec.outputs)
    for moments in (None, correlated_moments(spec)):
        for outputs in (None, random_outputs(spec), scale):
            made = compose(method.pieces(spec, full), aware(method, spec, full, moments, outputs))
            assert np.linalg.norm(made - kernel) / np.linalg.norm(kernel) < 2e-3


@pairs
def test_shapes_and_balance(method: Method, spec: LayerSpec) -> None:
    rank = middle_rank(method, spec)
    weights = aware(method, spec, rank, correlated_moments(spec), random_outputs(spec))
    assert [w.shape for w in weights] == [piece.shape for piece in method.pieces(spec, rank)]
    assert all(w.dtype == np.float32 for w in weights)
    norms = [np.linalg.norm(w) for w in weights]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-4)


@pairs
def test_aware_beats_plain_on_correlated_inputs(method: Method, spec: LayerSpec) -> None:
    rank = middle_rank(method, spec)
    kernel, moments = random_kernel(spec), correlated_moments(spec)
    pieces = method.pieces(spec, rank)
    if method.whitens == "channel" and spec.rows == "patch":
        # Channel weighting knows the mean over positions alone: give all positions one covariance, uncorrelated.
        block = correlated_moments(layer("dense", (spec.groups, spec.inputs, 1)))
        moments = np.stack([np.kron(np.eye(spec.positions), b[:-1, :-1]) for b in block])
        moments = np.pad(moments, ((0, 0), (0, 1), (0, 1)))
    plain = output_error(spec, kernel, compose(pieces, fit(method, spec, kernel, rank)), moments)
    better = output_error(spec, kernel, compose(pieces, aware(method, spec, rank, moments)), moments)
    if method.whitens == "none" or (method.whitens == "channel" and spec.inputs == 1):
        assert better == pytest.approx(plain, rel=1e-4, abs=1e-9)
    else:
        assert better <= plain * 1.001 + 1e-9


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("svd_channel", layer("conv2d", (1, 3, 3, 6, 16))),
        ("svd_channel", layer("conv2d", (1, 3, 3, 2, 30))),
        ("svd_channel", layer("conv2d", (2, 3, 3, 4, 8))),
        ("svd", layer("dense", (1, 40, 12))),
        ("svd", layer("dense", (1, 12, 40))),
        ("svd", layer("separable_conv2d", (1, 1, 1, 16, 12), depthwise=(3, 3, 8, 2))),
        ("svd", layer("conv2d_transpose", (1, 1, 1, 10, 8))),
    ],
)
def test_row_weighting_is_the_optimal_map(name: str, spec: LayerSpec) -> None:
    """The output error at every rank is the tail of the eigenvalues of WᵀGW (METHODS: PCA of the outputs)."""
    kernel, moments = random_kernel(spec), correlated_moments(spec)
    matrix = spec.matrix(kernel.astype(np.float64))
    values = np.linalg.eigvalsh(matrix.swapaxes(1, 2) @ moments[:, :-1, :-1] @ matrix)[:, ::-1]
    method = METHODS[name]
    weighted, undo = weigh(method, spec, kernel, moments)
    prepared = method.prepare(spec, weighted)
    (full,) = method.full_rank(spec) or (0,)
    for rank in range(1, full):
        made = compose(method.pieces(spec, (rank,)), undo(method.factorize(spec, prepared, (rank,))))
        tail = values[:, rank:].sum()
        assert output_error(spec, kernel, made, moments) == pytest.approx(tail, rel=1e-3, abs=1e-5 * values.sum())


@pairs
def test_too_few_samples_are_no_trouble(method: Method, spec: LayerSpec) -> None:
    rank = middle_rank(method, spec)
    kernel = random_kernel(spec)
    moments = correlated_moments(spec, samples=max(2, spec.width // 3))
    weights = aware(method, spec, rank, moments, np.zeros((spec.groups, spec.outputs, spec.outputs)))
    made = compose(method.pieces(spec, rank), weights)
    assert np.isfinite(made).all()
    if method.whitens == "row" and spec.rows == "patch":
        plain = compose(method.pieces(spec, rank), fit(method, spec, kernel, rank))
        assert output_error(spec, kernel, made, moments) <= output_error(spec, kernel, plain, moments)
    dead = aware(method, spec, rank, np.zeros_like(moments))
    assert all(np.isfinite(w).all() for w in dead)


NESTED = {m.name: (m, s) for m, s in reversed(PAIRS) if m.nests and len(m.full_rank(s) or ()) == 1}


@pytest.mark.parametrize("name", NESTED)
def test_slices_still_nest_after_unweighting(name: str) -> None:
    """Of methods with one rank; slices of several ranks nest up to the numbers that balance them."""
    method, spec = NESTED[name]
    weighted, undo = weigh(method, spec, random_kernel(spec), correlated_moments(spec), random_outputs(spec))
    prepared = method.prepare(spec, weighted)
    (full,) = method.full_rank(spec) or (0,)
    first, last = undo(method.factorize(spec, prepared, (full,)))
    small_first, small_last = undo(method.factorize(spec, prepared, (full // 2,)))
    np.testing.assert_allclose(small_first, first[..., : full // 2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(small_last, last[..., : full // 2, :], rtol=1e-4, atol=1e-6)


def test_output_weight_helps_where_it_says() -> None:
    """With H given, the error in the metric of H is smaller than without."""
    spec = layer("conv2d", (1, 3, 3, 12, 16))
    scale = np.geomspace(1, 100, 16)[None]
    kernel = random_kernel(spec)
    for name in ("svd_channel", "svd_spatial", "tucker", "cp", "tt"):
        method = METHODS[name]
        rank = middle_rank(method, spec)
        pieces = method.pieces(spec, rank)
        seen = [
            float(np.linalg.norm((compose(pieces, aware(method, spec, rank, None, h)) - kernel) * scale[:, None, None]))
            for h in (None, scale, scale[..., None] ** 2 * np.eye(16))
        ]
        assert seen[1] < 0.9 * seen[0], name
        assert seen[2] == pytest.approx(seen[1], rel=2e-2), name


def test_nothing_to_weigh_changes_nothing() -> None:
    spec = layer("conv2d", (1, 3, 3, 6, 8))
    kernel = random_kernel(spec)
    for method in METHODS.values():
        weighted, undo = weigh(method, spec, kernel, None)
        assert np.array_equal(weighted, kernel)
        assert undo.to_arrays() == {}
