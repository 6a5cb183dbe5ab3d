"""Canonical polyadic decomposition of a convolution: 1×1, a k×k filter per channel, 1×1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lrfgraph.layers.pieces import Piece
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.algebra import balance, cholesky_solver, finish, hosvd, principal, transpose
from lrfgraph.methods.base import Arrays, Rank
from lrfgraph.methods.grid import single_ranks

__all__ = ["Cp"]

Chosen = NDArray[np.bool_]

# Extrapolated ALS reaches in 50 sweeps what the plain one reaches in 150 to 200; large kernels get fewer.
_SWEEPS = (10, 50)
_FLOPS = 3e10
_TOLERANCE = 1e-5
_RIDGE = 1e-6
STARTS = ("start_positions", "start_inputs", "start_outputs")
_LARGEST = 1e6  # squared norms of the factors, of the tensor's, that count as divergence


class Cp:
    """1×1 from i to r channels, depthwise k×k, 1×1 from r to o; all positions are one mode.

    Lebedev et al., Speeding-up convolutional neural networks using fine-tuned CP-decomposition, ICLR 2015. There
    is no rank at which alternating least squares is sure to be exact. Not TensorLy's `parafac`, which takes 4 to 25
    times as long for 0.3 to 0.7 % more error.
    """

    name = "cp"
    version = 2
    nests = False
    iterates = True
    whitens = "channel"
    ranks_by_unfolding = False

    def reason(self, layer: LayerSpec) -> str:
        if not layer.family.mixes_channels:
            return f"{layer.family.name} layers mix no channels"
        one_position = "" if layer.positions > 1 else "kernel has one position, use svd or qr"
        return layer.family.refusal("channelwise") or one_position

    def prepare(self, layer: LayerSpec, kernel: Array) -> Arrays:
        """Compress all modes exactly, and split the tensor into orthogonal rank-1 terms, largest first.

        The terms are the singular triples of the slices along the principal axes of the position mode. The first
        r of them are the start of rank r: no random numbers, and no other rank, enter a factorization.
        """
        bases = hosvd(kernel)
        groups, positions, p, q = bases["core"].shape
        flat = bases["core"].reshape(groups, positions, p * q)
        axes = principal(flat @ transpose(flat))[1][..., : min(positions, p * q)]
        core = (transpose(axes) @ flat).reshape(groups, -1, p, q)
        left, size, right = np.linalg.svd(core, full_matrices=False)
        each = size.shape[-1]
        order = np.argsort(-size.reshape(groups, -1), axis=1, kind="stable")
        group = np.arange(groups)[:, None]
        where, which = order // each, order % each
        sizes = size[group, where, which]
        start = {
            "start_positions": np.eye(core.shape[1], dtype=np.float32)[:, where].swapaxes(0, 1),
            "start_inputs": transpose(left[group, where, :, which]).astype(np.float32),
            "start_outputs": transpose(right[group, where, which] * sizes[..., None]).astype(np.float32),
        }
        return {"positions": axes, "inputs": bases["inputs"], "outputs": bases["outputs"], "core": core, **start}

    def ranks(self, layer: LayerSpec, prepared: Arrays, shares: Sequence[float]) -> list[Rank]:
        return single_ranks(self, layer, prepared["start_inputs"].shape[-1], shares)

    def pieces(self, layer: LayerSpec, rank: Rank) -> tuple[Piece, ...]:
        (r,) = rank
        axes = tuple(range(len(layer.spatial)))
        ones = (1,) * len(axes)
        return (
            Piece("mix", (layer.groups, *ones, layer.inputs, r)),
            Piece("channelwise", (layer.groups, *layer.spatial, r), axes),
            Piece("mix", (layer.groups, *ones, r, layer.outputs)),
        )

    def factorize(self, layer: LayerSpec, prepared: Arrays, rank: Rank) -> tuple[Array, ...]:
        return self.factorize_alike(layer, [prepared], rank)[0]

    def factorize_alike(self, layer: LayerSpec, prepared: Sequence[Arrays], rank: Rank) -> list[tuple[Array, ...]]:
        """Factorize layers of one geometry at one rank side by side: the small products of one sweep are then one."""
        (r,) = rank
        joined = {name: np.concatenate([one[name] for one in prepared]) for name in ("core", *STARTS)}
        factors = _als(joined["core"], *(joined[name][..., :r] for name in STARTS))
        parts = zip(*(np.split(factor, len(prepared)) for factor in factors), strict=True)
        return [self._weights(layer, one, rank, part) for one, part in zip(prepared, parts, strict=True)]

    def _weights(self, layer: LayerSpec, prepared: Arrays, rank: Rank, factors: tuple[Array, ...]) -> tuple[Array, ...]:
        position, first, last = (
            prepared[mode] @ factor for mode, factor in zip(("positions", "inputs", "outputs"), factors, strict=True)
        )
        columns = first.shape[-1]
        ones = (1,) * len(layer.spatial)
        weights = (
            first.reshape(layer.groups, *ones, layer.inputs, columns),
            position.reshape(layer.groups, *layer.spatial, columns),
            transpose(last).reshape(layer.groups, *ones, columns, layer.outputs),
        )
        return finish(self, layer, rank, balance(weights))

    def full_rank(self, layer: LayerSpec) -> Rank | None:
        return None


def _als(tensor: Array, a: Array, b: Array, c: Array) -> tuple[Array, ...]:
    """Fit ``tensors (n, S, p, q) ≈ Σ_r a_r ∘ b_r ∘ c_r``, n of them, by alternating least squares; return the factors.

    Every update is extrapolated by a step that grows while the error falls, and taken back when it rises (Ang,
    Cohen, Hien, Gillis, Extrapolated alternating algorithms, Numer. Linear Algebra Appl. 27, 2020). Columns of a
    and b have norm 1 when solved for. A sweep costs two products with the tensor. When the norms run away
    (degenerate tensors have no best approximation) the ridge grows tenfold. In float32, a third quicker; what is
    compared from sweep to sweep is summed in float64, and the errors are those of float64 to a thousandth.

    Each tensor goes its own way, and is done when its own error stands still: what it is fitted beside changes no bit.
    """
    count, positions, p, q = tensor.shape
    rank = a.shape[-1]
    energy = np.array([float(np.sum(np.square(one))) for one in tensor])
    flops = 4.0 * positions * p * q * rank + 1.0 * rank**3 + 2.0 * rank**2 * (positions + p + q)
    fits = _Fits(np.arange(count), energy, _unit(a), _unit(b), c)
    result = [fits.best[0].copy(), fits.best[1].copy(), fits.best[2].copy()]
    matrix = np.ascontiguousarray(tensor.reshape(count, -1, q), np.float32)
    buffer = np.empty((count, positions, p, rank), np.float32)  # fresh pages cost as much as the products
    going = energy > 0.0
    for _ in range(int(np.clip(_FLOPS / flops, *_SWEEPS))):
        if not going.any():
            break
        if not going.all():
            fits.leave(result, ~going)
            fits, matrix = fits.of(going), matrix[going]
        going = ~fits.sweep(matrix, buffer[: len(matrix)])
    fits.leave(result, np.ones(len(matrix), bool))
    return tuple(result)


class _Fits:
    """Tensors on their way, one along the first axis of everything. places : which of all they are."""

    def __init__(self, places: NDArray[np.intp], energy: Array, a: Array, b: Array, c: Array) -> None:
        count = len(places)
        self.places, self.energy = places, energy
        self.last = self.ahead = self.best = (a, b, c)
        self.error = np.full(count, np.inf)
        self.ridge, self.step, self.ceiling = np.full(count, _RIDGE), np.full(count, 0.8), np.ones(count)
        self.solve = _Solver(count, a.shape[-1])

    def of(self, chosen: Chosen) -> _Fits:
        """Return some of them."""
        some = _Fits(self.places[chosen], self.energy[chosen], *(factor[chosen] for factor in self.best))
        for name in ("error", "ridge", "step", "ceiling"):
            setattr(some, name, getattr(self, name)[chosen])
        for name in ("last", "ahead"):
            setattr(some, name, tuple(factor[chosen] for factor in getattr(self, name)))
        return some

    def leave(self, result: list[Array], chosen: Chosen) -> None:
        """Write the best of some where it belongs."""
        for whole, factor in zip(result, self.best, strict=True):
            whole[self.places[chosen]] = factor[chosen]

    def sweep(self, matrix: Array, long: Array) -> Chosen:
        """Update all three factors of each; returns which are done. long : (n, S, p, r), written to."""
        flat, ridge = long.reshape(*matrix.shape[:2], -1), self.ridge
        (a, b, c), step = self.last, self.step.astype(np.float32)[:, None, None]
        c_unit = _unit(self.ahead[2])
        np.matmul(matrix, c_unit, out=flat)
        gram_c = transpose(c_unit) @ c_unit
        gram_a = transpose(self.ahead[0]) @ self.ahead[0]
        new_b = _unit(self.solve(gram_a, gram_c, np.einsum("nspr,nsr->npr", long, self.ahead[0]), ridge))
        ahead_b = new_b + step * (new_b - b)
        gram_b = transpose(ahead_b) @ ahead_b
        new_a = _unit(self.solve(gram_b, gram_c, np.einsum("nspr,npr->nsr", long, ahead_b), ridge))
        ahead_a = new_a + step * (new_a - a)
        np.multiply(ahead_a[:, :, None], ahead_b[:, None], out=long)
        product = transpose(matrix) @ flat
        new_c = self.solve(transpose(ahead_a) @ ahead_a, gram_b, product, ridge)
        size = _sums(new_c, new_c)
        fit = 2.0 * _sums(product, new_c) - _sums(self.solve.gram, transpose(new_c) @ new_c)
        error = np.maximum(1.0 - fit / self.energy, 0.0)
        diverges = ~(size < _LARGEST * self.energy)
        self.ridge = np.where(diverges, 10.0 * ridge, ridge)
        worse = diverges | (error > self.error)
        new = ahead_a, ahead_b, new_c
        back = worse[:, None, None]
        self.last = _where(back, self.best, (new_a, new_b, new_c))
        self.ahead = _where(back, self.best, (ahead_a, ahead_b, new_c + step * (new_c - c)))
        self.best = _where(back, self.best, new)
        with np.errstate(invalid="ignore"):  # the first error is compared with infinity
            done: Chosen = ~worse & (self.error - error < _TOLERANCE * error)
        self.error = np.where(worse, self.error, error)
        ceiling = np.where(worse, self.step, np.minimum(1.0, 1.01 * self.ceiling))
        self.step = np.where(worse, self.step / 1.5, np.minimum(ceiling, 1.05 * self.step))
        self.ceiling = ceiling
        return done


def _where(chosen: Chosen, these: tuple[Array, ...], others: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    if not chosen.any():
        a, b, c = others
    else:
        a, b, c = (np.where(chosen, this, other) for this, other in zip(these, others, strict=True))
    return a, b, c


def _unit(factor: Array) -> Array:
    norms = np.sqrt(np.einsum("nij,nij->nj", factor, factor))
    norms[norms == 0] = 1.0
    unit: Array = factor / norms[:, None]
    return unit


def _sums(one: Array, other: Array) -> Array:
    product = one * other
    sums: Array = product.reshape(len(product), -1).sum(axis=1, dtype=np.float64)
    return sums


class _Solver:
    """Solves for one factor of each of n, of ``rank`` columns, in buffers of its own.

    gram : the last matrices, without their ridge.
    """

    def __init__(self, count: int, rank: int) -> None:
        self.gram, self._ridged = np.empty((2, count, rank, rank), np.float32)
        self._solvers = [cholesky_solver(matrix) for matrix in self._ridged]
        self._diagonals = self._ridged.reshape(count, -1)[:, :: rank + 1]

    def __call__(self, one: Array, other: Array, product: Array, ridge: Array) -> Array:
        """Solve ``x · (one * other) = product`` with a ridge relative to the mean diagonal; NaN where that fails."""
        np.multiply(one, other, out=self.gram)
        np.copyto(self._ridged, self.gram)
        self._diagonals += ridge.astype(np.float32)[:, None] * self._diagonals.mean(axis=1, keepdims=True)
        solution = np.empty_like(product)
        for solve, right, left in zip(self._solvers, product, solution, strict=True):
            left[...] = solve(right)
        return solution
