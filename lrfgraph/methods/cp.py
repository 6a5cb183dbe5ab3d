"""Canonical polyadic decomposition of a convolution: 1×1, a k×k filter per channel, 1×1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrfgraph.layers.pieces import Piece
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.algebra import balance, cholesky_solver, finish, hosvd, principal, transpose
from lrfgraph.methods.base import Arrays, Rank
from lrfgraph.methods.grid import single_ranks

__all__ = ["Cp"]

# Extrapolated ALS reaches in 50 sweeps what the plain one reaches in 150 to 200; large kernels get fewer.
_SWEEPS = (10, 50)
_FLOPS = 3e10
_TOLERANCE = 1e-5
_RIDGE = 1e-6
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
        (r,) = rank
        start = (prepared[f"start_{mode}"][..., :r] for mode in ("positions", "inputs", "outputs"))
        factors = [_als(*tensors) for tensors in zip(prepared["core"], *start, strict=True)]
        position, first, last = (
            prepared[mode] @ np.stack(by_group)
            for mode, by_group in zip(("positions", "inputs", "outputs"), zip(*factors, strict=True), strict=True)
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


def _als(tensor: Array, a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """Fit ``tensor (S, p, q) ≈ Σ_r a_r ∘ b_r ∘ c_r`` by alternating least squares and return the factors.

    Every update is extrapolated by a step that grows while the error falls, and taken back when it rises (Ang,
    Cohen, Hien, Gillis, Extrapolated alternating algorithms, Numer. Linear Algebra Appl. 27, 2020). Columns of a
    and b have norm 1 when solved for. A sweep costs two products with the tensor. When the norms run away
    (degenerate tensors have no best approximation) the ridge grows tenfold. In float32, a third quicker; what is
    compared from sweep to sweep is summed in float64, and the errors are those of float64 to a thousandth.
    """
    positions, p, q = tensor.shape
    rank = a.shape[1]
    energy = float(np.sum(np.square(tensor)))
    flops = 4.0 * tensor.size * rank + 1.0 * rank**3 + 2.0 * rank**2 * (positions + p + q)
    sweeps = int(np.clip(_FLOPS / flops, *_SWEEPS))
    ridge, step, ceiling = _RIDGE, 0.8, 1.0
    a, b = _unit(a), _unit(b)
    best, best_error = (a, b, c), np.inf
    ahead = best
    if energy == 0.0:
        return best
    matrix = np.ascontiguousarray(tensor.reshape(-1, q), np.float32)
    long = np.empty((positions, p, rank), np.float32)  # one buffer: fresh pages cost as much as the products
    flat, solve = long.reshape(-1, rank), _Solver(rank)
    for _ in range(sweeps):
        c_unit = _unit(ahead[2])
        np.matmul(matrix, c_unit, out=flat)
        gram_c = c_unit.T @ c_unit
        new_b = _unit(solve(ahead[0].T @ ahead[0], gram_c, np.einsum("spr,sr->pr", long, ahead[0]), ridge))
        ahead_b = new_b + step * (new_b - b)
        gram_b = ahead_b.T @ ahead_b
        new_a = _unit(solve(gram_b, gram_c, np.einsum("spr,pr->sr", long, ahead_b), ridge))
        ahead_a = new_a + step * (new_a - a)
        np.multiply(ahead_a[:, None], ahead_b, out=long)
        product = matrix.T @ flat
        new_c = solve(ahead_a.T @ ahead_a, gram_b, product, ridge)
        size = _sum(new_c, new_c)
        fit = 2.0 * _sum(product, new_c) - _sum(solve.gram, new_c.T @ new_c)
        error = max(1.0 - fit / energy, 0.0)
        diverges = not size < _LARGEST * energy
        if diverges:
            ridge *= 10.0
        if diverges or error > best_error:
            ceiling, step = step, step / 1.5
            ahead, (a, b, c) = best, best
            continue
        best = (ahead_a, ahead_b, new_c)
        ahead = (ahead_a, ahead_b, new_c + step * (new_c - c))
        a, b, c = new_a, new_b, new_c
        if best_error - error < _TOLERANCE * error:
            break
        best_error = error
        ceiling = min(1.0, 1.01 * ceiling)
        step = min(ceiling, 1.05 * step)
    return best


def _unit(factor: Array) -> Array:
    norms = np.sqrt(np.einsum("ij,ij->j", factor, factor))
    norms[norms == 0] = 1.0
    unit: Array = factor / norms
    return unit


def _sum(one: Array, other: Array) -> float:
    return float(np.sum(one * other, dtype=np.float64))


class _Solver:
    """Solves for one factor of ``rank`` columns, in buffers of its own. gram : the last matrix, without its ridge."""

    def __init__(self, rank: int) -> None:
        self.gram, self._ridged = np.empty((2, rank, rank), np.float32)
        self._solve = cholesky_solver(self._ridged)
        self._diagonal = self._ridged.reshape(-1)[:: rank + 1]

    def __call__(self, one: Array, other: Array, product: Array, ridge: float) -> Array:
        """Solve ``x · (one * other) = product`` with a ridge relative to the mean diagonal; NaN where that fails."""
        np.multiply(one, other, out=self.gram)
        np.copyto(self._ridged, self.gram)
        self._diagonal += ridge * self._diagonal.mean()
        return self._solve(product)
