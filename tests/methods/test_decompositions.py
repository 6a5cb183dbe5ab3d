"""The decompositions against TensorLy's, exhaustive search and planted answers."""

from __future__ import annotations

import doctest
import sys
import threading
import time
from itertools import product

import numpy as np
import pytest

from lrfgraph.errors import ConfigurationError
from lrfgraph.layers.pieces import compose
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS, algebra, grid, ttm
from lrfgraph.methods.algebra import cholesky_solver
from lrfgraph.methods.base import Alike, Method, Rank
from tests.methods.examples import fit, layer, output_error, random_kernel

CONV = layer("conv2d", (1, 3, 3, 12, 16))


def error(method: Method, spec: LayerSpec, kernel: Array, rank: Rank) -> float:
    made = compose(method.pieces(spec, rank), fit(method, spec, kernel, rank))
    return float(np.linalg.norm(made - kernel) / np.linalg.norm(kernel))


@pytest.mark.parametrize("module", [grid, ttm, sys.modules["lrfgraph.methods.base"]])
def test_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("shape", [(2, 9, 5), (1, 5, 9), (1, 6, 6)])
def test_split_is_the_svd(shape: tuple[int, ...]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    first, last = algebra.split(matrix)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(last, axis=2)
    np.testing.assert_allclose(sizes, np.linalg.svd(matrix, compute_uv=False), rtol=1e-9)
    np.testing.assert_allclose(first @ last, matrix, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), np.linalg.norm(last, axis=2), rtol=1e-9)


def test_signs_do_not_depend_on_lapack() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 7, 4)))[0]
    flipped = basis * np.array([1, -1, -1, 1])
    assert np.array_equal(algebra.fix_signs(basis), algebra.fix_signs(flipped))


def test_tucker_finds_the_pair_that_loses_least() -> None:
    kernel, tucker = random_kernel(CONV), METHODS["tucker"]
    prepared = tucker.prepare(CONV, kernel)
    lost_in, lost_out = (grid.tails(prepared[f"energy_{side}"]) for side in ("inputs", "outputs"))
    for share in (0.1, 0.3, 0.6):
        (found,) = tucker.ranks(CONV, prepared, [share])
        fitting = [
            (lost_in[p] + lost_out[q], -p)
            for p, q in product(range(1, 13), range(1, 17))
            if sum(x.parameters for x in tucker.pieces(CONV, (p, q))) <= share * CONV.weights and p <= 9 * q <= 81 * p
        ]
        assert lost_in[found[0]] + lost_out[found[1]] == pytest.approx(min(fitting)[0])


def test_tucker_is_close_to_higher_order_orthogonal_iteration() -> None:
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import multi_mode_dot

    kernel = random_kernel(CONV)[0].astype(np.float64)
    for rank in ((3, 4), (6, 8), (9, 12)):
        (core, factors), _ = partial_tucker(kernel, rank=list(rank), modes=[2, 3], n_iter_max=50, tol=1e-8)
        best = np.linalg.norm(multi_mode_dot(core, factors, modes=[2, 3]) - kernel)
        assert best <= error(METHODS["tucker"], CONV, kernel[None], rank) <= 1.03 * best


def test_tensor_train_is_as_near_as_tensorlys() -> None:
    from tensorly.decomposition import tensor_train

    kernel = random_kernel(CONV)
    train = np.moveaxis(kernel[0], 2, 0).astype(np.float64)
    for rank in ((3, 5, 4), (6, 11, 8), (10, 20, 12)):
        other = tensor_train(train, rank=[1, *rank, 1]).to_tensor()
        assert error(METHODS["tt"], CONV, kernel, rank) <= 1.02 * np.linalg.norm(other - train)


def test_tt_matrix_is_as_near_as_tensorlys() -> None:
    from tensorly.decomposition import tensor_train_matrix

    spec = layer("dense", (1, 48, 30))
    kernel = random_kernel(spec)
    tensor = kernel.reshape(3, 4, 4, 5, 3, 2).astype(np.float64)
    assert [piece.shape[1:3] for piece in METHODS["ttm"].pieces(spec, (5, 4))] == [(3, 5), (4, 3), (4, 2)]
    other = tensor_train_matrix(tensor, rank=[1, 5, 4, 1]).to_tensor()
    assert error(METHODS["ttm"], spec, kernel, (5, 4)) <= 1.02 * np.linalg.norm(other - tensor)


def test_three_cores_are_offered_unless_one_would_be_a_single_number() -> None:
    method = METHODS["ttm"]
    small, smaller = layer("dense", (1, 4, 7)), layer("dense", (1, 2, 3))
    assert [piece.shape[1:3] for piece in method.pieces(small, (4, 2))] == [(1, 7), (2, 1), (2, 1)]
    assert error(method, small, random_kernel(small), (4, 2)) < 1e-5
    with pytest.raises(ConfigurationError, match="ttm has no rank 1x1"):
        fit(method, smaller, random_kernel(smaller), (1, 1))


def test_cp_finds_a_planted_rank() -> None:
    """Nearly always: any start of alternating least squares is trapped now and then (a random one, half the time)."""
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        a, b, c = rng.normal(size=(9, 4)), rng.normal(size=(12, 4)), rng.normal(size=(16, 4))
        kernel = np.einsum("sr,ir,or->sio", a, b, c).reshape(1, 3, 3, 12, 16)
        found.append(error(METHODS["cp"], CONV, kernel, (4,)) < 0.01)
        assert error(METHODS["cp"], CONV, kernel, (3,)) > 0.05
    assert sum(found) >= 6


def test_cp_is_as_near_as_tensorlys() -> None:
    from tensorly.cp_tensor import cp_to_tensor
    from tensorly.decomposition import parafac

    kernel = random_kernel(CONV)
    tensor = kernel.reshape(9, 12, 16).astype(np.float64)
    for rank in (5, 15, 30):
        found = parafac(tensor, rank, n_iter_max=60, init="random", random_state=0, tol=1e-8)
        other = np.linalg.norm(cp_to_tensor(found) - tensor)
        assert error(METHODS["cp"], CONV, kernel, (rank,)) <= 1.02 * other


def test_cp_survives_a_tensor_without_best_approximation() -> None:
    """a∘a∘b + a∘b∘a + b∘a∘a has rank 3 and is the limit of tensors of rank 2, whose factors run away."""
    e, f = np.eye(2)
    tensor = sum(np.einsum("s,i,o->sio", *modes) for modes in ((e, e, f), (e, f, e), (f, e, e)))
    spec = layer("conv1d", (1, 2, 2, 2))
    weights = fit(METHODS["cp"], spec, np.asarray(tensor)[None], (2,))
    assert all(np.isfinite(w).all() for w in weights)
    assert max(np.linalg.norm(w) for w in weights) < 30
    assert error(METHODS["cp"], spec, np.asarray(tensor)[None], (2,)) < 0.6


def test_truncation_gives_the_least_tolerance_that_fits() -> None:
    rng = np.random.default_rng(0)
    modes = (6, 3, 3, 8)
    lost = [grid.tails(np.sort(rng.random((2, n)) ** 3)[:, ::-1]) for n in (6, 18, 8)]
    for limit in (100, 200, 400, 800):
        (chosen,) = grid.by_truncation(modes, lost, [limit], groups=2)
        bonds = (1, *chosen, 1)
        assert 2 * sum(a * n * b for a, n, b in zip(bonds, modes, bonds[1:], strict=False)) <= limit
        assert all(
            a <= b * n for a, n, b in zip((*bonds[1:], 1), (*modes, 1), (*bonds, 1), strict=False)
        )  # no bond is wider than what enters it
    assert grid.by_truncation(modes, lost, [1]) == []


def test_error_in_the_metric_of_white_inputs_is_the_frobenius_norm() -> None:
    kernel = random_kernel(CONV)
    moments = np.eye(CONV.width + 1)[None]
    assert output_error(CONV, kernel, np.zeros_like(kernel), moments) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("size", "rows"), [(1, 1), (5, 3), (40, 64)])
def test_the_solver_solves_and_says_where_it_cannot(size: int, rows: int) -> None:
    rng = np.random.default_rng(size)
    root, right = rng.normal(size=(size + 5, size)).astype(np.float32), rng.normal(size=(rows, size)).astype(np.float32)
    gram, buffer = root.T @ root, np.empty((size, size), np.float32)
    solve = cholesky_solver(buffer)
    for scale in (1.0, 4.0):
        buffer[:] = scale * gram
        kept = right.copy()
        assert solve(right) @ (scale * gram) == pytest.approx(right, abs=1e-3)
        assert np.array_equal(right, kept)
    buffer[:] = -np.eye(size)
    assert np.isnan(solve(right)).all()


def test_the_solver_lets_other_threads_run() -> None:
    """SciPy's wrapper holds Python's lock: nobody counts while it solves."""
    size, counted, over = 1000, 0, threading.Event()
    buffer, right = np.empty((size, size), np.float32), np.ones((size, size), np.float32)
    solve = cholesky_solver(buffer)

    def count() -> None:
        nonlocal counted
        while not over.is_set():
            counted += 1
            time.sleep(0)

    thread, ran = threading.Thread(target=count), 0
    thread.start()
    for _ in range(20):
        buffer[:] = np.eye(size)
        before = counted
        solve(right)
        ran += counted > before
    over.set()
    thread.join()
    assert ran >= 5


@pytest.mark.parametrize("method", [method for method in METHODS.values() if isinstance(method, Alike)])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_a_layer_is_fitted_beside_changes_no_bit(method: Method, groups: int) -> None:
    """One is zero, one is exact at this rank and done at once, the others take their time."""
    assert isinstance(method, Alike)
    spec = layer("conv2d", (groups, 3, 3, 6, 8))
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=spec.kernel) for _ in range(4)]
    a, b, c = (rng.normal(size=(groups, size, 2)) for size in (9, 6, 8))
    exact = np.einsum("gsr,gir,gor->gsio", a, b, c).reshape(spec.kernel)
    prepared = [method.prepare(spec, kernel) for kernel in [np.zeros(spec.kernel), *kernels[:2], exact, *kernels[2:]]]
    together = method.factorize_alike(spec, prepared, (5,))
    for own, beside in zip(prepared, together, strict=True):
        for one, other in zip(method.factorize(spec, own, (5,)), beside, strict=True):
            assert np.array_equal(one, other)
    assert not any(np.any(piece) for piece in together[0][1:2])
    assert np.abs(compose(method.pieces(spec, (5,)), together[3]) - exact).max() < 0.02 * np.abs(exact).max()
