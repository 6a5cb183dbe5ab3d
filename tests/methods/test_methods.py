"""The contract that every method keeps, on every kind of layer that it takes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.errors import ConfigurationError
from lrfgraph.layers.kinds import LAYER_KINDS
from lrfgraph.layers.pieces import compose, cost, layer_cost
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import Method, Rank, parse_rank, write_rank
from tests.methods.examples import LAYERS, NAMES, PAIRS, SHARES, fit, layer, random_kernel

pairs = pytest.mark.parametrize(("method", "spec"), PAIRS, ids=NAMES)


def error(method: Method, spec: LayerSpec, rank: Rank) -> float:
    kernel = random_kernel(spec)
    made = compose(method.pieces(spec, rank), fit(method, spec, kernel, rank))
    assert made.shape == kernel.shape
    return float(np.linalg.norm(made - kernel) / np.linalg.norm(kernel))


def test_table() -> None:
    assert all(method.name == name and method.version >= 1 for name, method in METHODS.items())
    assert all(method.whitens in ("row", "channel", "none") for method in METHODS.values())


def test_every_kind_is_taken_or_refused_with_a_reason() -> None:
    assert {spec.kind for spec in LAYERS} == set(LAYER_KINDS)
    reasons = [method.reason(spec) for method in METHODS.values() for spec in LAYERS]
    assert all(reason == reason.strip() and "\n" not in reason and len(reason) < 80 for reason in reasons)
    assert {spec.kind for _, spec in PAIRS} == set(LAYER_KINDS) - {"depthwise_conv1d"}


@pytest.mark.parametrize(
    ("name", "spec", "reason"),
    [
        ("tucker", layer("conv2d", (1, 1, 1, 8, 8)), "kernel has one position, use svd or qr"),
        ("cp", layer("conv2d_transpose", (1, 3, 3, 8, 8)), "Keras has no depthwise transposed convolution"),
        ("svd_spatial", layer("conv1d", (1, 3, 8, 8)), "a 1-D kernel has no second spatial axis"),
        ("svd_spatial", layer("conv3d", (1, 3, 3, 3, 4, 4)), "not defined for 3-D kernels"),
        ("svd_spatial", layer("conv2d", (1, 3, 1, 8, 8)), "kernel extends along one axis only"),
        ("tt", layer("conv2d", (1, 1, 1, 8, 8)), "kernel has one position, use svd or qr"),
        ("tt", layer("conv2d", (1, 2, 1, 8, 8)), ""),
        ("tucker", layer("conv1d", (1, 2, 8, 8)), ""),
        ("cp", layer("conv2d", (1, 1, 1, 8, 8)), "kernel has one position, use svd or qr"),
        ("cp", layer("conv1d", (1, 2, 8, 8)), ""),
        ("svd", layer("conv1d", (1, 2, 8, 8)), "kernel has more than one position, use svd_channel"),
        ("qr", layer("conv1d", (1, 2, 8, 8)), "kernel has more than one position, use svd_channel"),
        ("tt", layer("conv1d", (1, 3, 8, 8)), "a 1-D kernel has no second spatial axis"),
        ("svd", layer("conv2d", (1, 3, 3, 8, 8)), "kernel has more than one position, use svd_channel"),
        ("qr", layer("depthwise_conv2d", (8, 3, 3, 1, 1)), "depthwise layers mix no channels"),
        ("ttm", layer("conv2d", (1, 1, 1, 8, 8)), "defined for dense layers alone"),
    ],
)
def test_reasons(name: str, spec: LayerSpec, reason: str) -> None:
    assert METHODS[name].reason(spec) == reason


@pairs
def test_weights_have_the_shapes_of_the_pieces_and_equal_norms(method: Method, spec: LayerSpec) -> None:
    prepared = method.prepare(spec, random_kernel(spec))
    for rank in method.ranks(spec, prepared, SHARES):
        weights = method.factorize(spec, prepared, rank)
        assert [w.shape for w in weights] == [piece.shape for piece in method.pieces(spec, rank)]
        assert all(w.dtype == np.float32 for w in weights)
        norms = [np.linalg.norm(w) for w in weights]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-4)


@pairs
def test_each_axis_is_carried_once(method: Method, spec: LayerSpec) -> None:
    rank = (1,) * len(method.full_rank(spec) or (1,))
    carried = [axis for piece in method.pieces(spec, rank) for axis in piece.axes]
    assert sorted(carried) == list(range(len(spec.spatial)))


@pairs
def test_full_rank_is_exact(method: Method, spec: LayerSpec) -> None:
    full = method.full_rank(spec)
    if full is None:
        largest = method.ranks(spec, method.prepare(spec, random_kernel(spec)), SHARES)[-1:] or [(1,)]
        assert error(method, spec, largest[0]) < 1.0
    else:
        assert error(method, spec, full) < 1e-5


@pairs
def test_ranks_fit_their_shares_and_cost_less_than_the_layer(method: Method, spec: LayerSpec) -> None:
    prepared = method.prepare(spec, random_kernel(spec))
    ranks = method.ranks(spec, prepared, SHARES)
    whole = layer_cost(spec)
    sizes = []
    for rank in ranks:
        chain = method.pieces(spec, rank)
        spent = cost(spec, chain)
        assert spent.parameters < whole.parameters or spent.macs < whole.macs
        sizes.append(sum(piece.parameters for piece in chain))
        assert parse_rank(write_rank(rank)) == rank
    assert len(set(ranks)) == len(ranks)
    assert sizes == sorted(sizes)
    for share in SHARES:
        for rank in method.ranks(spec, prepared, [share]):
            assert rank in ranks
            assert sum(piece.parameters for piece in method.pieces(spec, rank)) <= share * spec.weights
    assert method.ranks(spec, prepared, [1e-9]) == []


@pytest.mark.parametrize("name", METHODS)
def test_no_single_rank_is_left_out(name: str) -> None:
    """A share that pays for one rank more gets it."""
    method = METHODS[name]
    spec = next(spec for spec in (LAYERS[3], LAYERS[21]) if not method.reason(spec))
    prepared = method.prepare(spec, random_kernel(spec))
    (rank,) = method.ranks(spec, prepared, [0.4])
    assert sum(p.parameters for p in method.pieces(spec, tuple(r + 1 for r in rank))) > 0.4 * spec.weights


@pairs
def test_error_falls_with_the_rank(method: Method, spec: LayerSpec) -> None:
    kernel = random_kernel(spec)
    prepared = method.prepare(spec, kernel)
    ranks = method.ranks(spec, prepared, SHARES)
    errors = [
        float(np.linalg.norm(compose(method.pieces(spec, r), method.factorize(spec, prepared, r)) - kernel))
        for r in ranks
    ]
    # Truncations of several bonds and alternating least squares are quasi-optimal, so they may wobble.
    exact = method.nests and all(len(rank) == 1 for rank in ranks)
    slack = 1.0 + (1e-5 if exact else 0.02)
    assert all(after <= before * slack for before, after in pairwise(errors))
    assert all(e < 1.0 for e in errors)


@pairs
def test_factors_depend_on_nothing_but_kernel_and_rank(method: Method, spec: LayerSpec) -> None:
    kernel = random_kernel(spec)
    prepared = method.prepare(spec, kernel)
    ranks = method.ranks(spec, prepared, SHARES)[:3]
    forwards = [method.factorize(spec, prepared, rank) for rank in ranks]
    again = method.prepare(spec, kernel.copy())
    backwards = [method.factorize(spec, again, rank) for rank in reversed(ranks)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pairs
def test_factors_nest(method: Method, spec: LayerSpec) -> None:
    full = method.full_rank(spec)
    if not method.nests or full is None:
        assert not method.nests or not spec.family.mixes_channels
        return
    prepared = method.prepare(spec, random_kernel(spec))
    assert {len(rank) for rank in method.ranks(spec, prepared, SHARES)} <= {len(full)}, "all are slices of one chain"
    small = tuple(max(1, r // 2) for r in full)
    large, weights = method.factorize(spec, prepared, full), method.factorize(spec, prepared, small)
    for one, other in zip(large, weights, strict=True):
        part = one[tuple(slice(0, n) for n in other.shape)]
        if len(full) == 1:
            assert np.array_equal(part, other)
        # Several ranks: up to the one number per group that balances the norms.
        flat, wanted = (w.reshape(spec.groups, -1).astype(np.float64) for w in (part, other))
        scale = np.linalg.norm(wanted, axis=1, keepdims=True) / np.linalg.norm(flat, axis=1, keepdims=True)
        np.testing.assert_allclose(flat * scale, wanted, rtol=1e-4, atol=1e-6)


@pairs
def test_a_zero_kernel_is_no_trouble(method: Method, spec: LayerSpec) -> None:
    prepared = method.prepare(spec, np.zeros(spec.kernel, np.float32))
    for rank in method.ranks(spec, prepared, [0.5]):
        weights = method.factorize(spec, prepared, rank)
        assert all(np.isfinite(w).all() for w in weights)
        assert not compose(method.pieces(spec, rank), weights).any()


@pytest.mark.parametrize("name", METHODS)
def test_an_impossible_rank_is_one_clear_line(name: str) -> None:
    spec = next(s for m, s in PAIRS if m.name == name)
    method = METHODS[name]
    rank = tuple(1000 for _ in method.full_rank(spec) or (1,))
    with pytest.raises(ConfigurationError, match=rf"{name} has no rank 1000.*; choose") as caught:
        fit(method, spec, random_kernel(spec), rank)
    assert "\n" not in str(caught.value)


def test_a_rank_wider_than_its_neighbours_leave_room_for_is_filled_with_zeros() -> None:
    spec = layer("conv2d", (1, 3, 3, 12, 16))
    tt = METHODS["tt"]
    wide, room = (2, 9, 3), (2, 6, 3)
    weights = fit(tt, spec, random_kernel(spec), wide)
    assert [w.shape for w in weights] == [piece.shape for piece in tt.pieces(spec, wide)]
    assert error(tt, spec, wide) == pytest.approx(error(tt, spec, room), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    groups=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    channels=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 99),
)
def test_any_small_shape(name: str, groups: int, spatial: list[int], channels: tuple[int, int], seed: int) -> None:
    method = METHODS[name]
    shapes = (f"conv{len(spatial)}d", (groups, *spatial, *channels)), ("dense", (1, *channels))
    fitting = [spec for spec in (layer(*shape) for shape in shapes) if not method.reason(spec)]
    if not fitting:
        return
    spec = fitting[0]
    kernel = random_kernel(spec, seed)
    prepared = method.prepare(spec, kernel)
    ranks = method.ranks(spec, prepared, (0.2, 0.5, 0.8, 1.0))
    full = method.full_rank(spec)
    for rank in [*ranks, *([full] if full else [])]:
        made = compose(method.pieces(spec, rank), method.factorize(spec, prepared, rank))
        assert np.isfinite(made).all()
        assert np.linalg.norm(made - kernel) <= (1e-5 if rank == full else 1.001)
