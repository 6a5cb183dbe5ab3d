"""Tensor train of a convolution: 1×1, one convolution along each spatial axis, 1×1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import numpy as np

from lrfgraph.layers.pieces import Piece
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.algebra import balance, finish, hosvd, principal, transpose
from lrfgraph.methods.base import Arrays, Rank
from lrfgraph.methods.grid import budgets, by_truncation, tails, worthwhile

__all__ = ["Tt"]

_WRONG_AXES = {1: "a 1-D kernel has no second spatial axis"}


class Tt:
    """1×1 from i to p channels, k₁×1 from p to q, 1×k₂ from q to r, 1×1 from r to o; rank ``pxqxr``.

    The tensor (i, k₁, k₂, o) is truncated at both ends first, then along its spatial bonds: TT-SVD (Oseledets,
    SIAM J. Sci. Comput. 33, 2011) with its usual error bound, but the two large unfoldings do not depend on the
    rank. A 3-D kernel has three spatial cores and four ranks. Not TensorLy's `tensor_train`, which decomposes them
    anew at every rank: 2 % less error for 1.3 (ResNet-20) to 3.1 (VGG-16) times the time.
    """

    name = "tt"
    version = 1
    nests = False
    iterates = False
    whitens = "channel"
    ranks_by_unfolding = False

    def reason(self, layer: LayerSpec) -> str:
        if not layer.family.convolves_channels:
            return f"{layer.family.name} layers have no spatial kernel that mixes channels"
        if layer.positions == 1:
            return "kernel has one position, use svd or qr"
        return _WRONG_AXES.get(len(layer.spatial), "")

    def prepare(self, layer: LayerSpec, kernel: Array) -> Arrays:
        bases = hosvd(kernel)
        core = np.moveaxis(bases["core"], 2, 1)
        groups, rows = core.shape[:2]
        for axis, size in enumerate(layer.spatial[:-1]):
            rows *= size
            unfolding = core.reshape(groups, rows, -1)
            wide = rows <= unfolding.shape[-1]
            gram = unfolding @ transpose(unfolding) if wide else transpose(unfolding) @ unfolding
            bases[f"energy_axis{axis}"] = np.maximum(np.linalg.eigvalsh(gram)[..., ::-1], 0.0)
        return bases

    def ranks(self, layer: LayerSpec, prepared: Arrays, shares: Sequence[float]) -> list[Rank]:
        """Truncate every bond at the same tolerance, the least at which the chain fits the share."""
        names = ("energy_inputs", *(f"energy_axis{axis}" for axis in range(len(layer.spatial) - 1)), "energy_outputs")
        modes = (layer.inputs, *layer.spatial, layer.outputs)
        lost = [tails(prepared[name]) for name in names]
        return worthwhile(self, layer, by_truncation(modes, lost, budgets(layer, shares), layer.groups))

    def pieces(self, layer: LayerSpec, rank: Rank) -> tuple[Piece, ...]:
        ones = (1,) * len(layer.spatial)
        spatial = (
            Piece("mix", (layer.groups, *_along(ones, axis, size), before, after), (axis,))
            for axis, (size, (before, after)) in enumerate(zip(layer.spatial, pairwise(rank), strict=True))
        )
        return (
            Piece("mix", (layer.groups, *ones, layer.inputs, rank[0])),
            *spatial,
            Piece("mix", (layer.groups, *ones, rank[-1], layer.outputs)),
        )

    def factorize(self, layer: LayerSpec, prepared: Arrays, rank: Rank) -> tuple[Array, ...]:
        bonds = tuple(min(r, most) for r, most in zip(rank, self.full_rank(layer), strict=True))
        first, last = prepared["inputs"][..., : bonds[0]], transpose(prepared["outputs"][..., : bonds[-1]])
        core = np.moveaxis(prepared["core"][..., : bonds[0], : bonds[-1]], 2, 1)
        groups, before, positions, after = core.shape
        ones = (1,) * len(layer.spatial)
        weights = [first.reshape(groups, *ones, *first.shape[1:])]
        rest: Array = core.reshape(groups, before, positions * after)
        for axis, size in enumerate(layer.spatial):
            rest = rest.reshape(groups, before * size, prod(layer.spatial[axis + 1 :]) * after)
            link: Array = rest
            if axis + 1 < len(layer.spatial):
                link = _leading(rest, bonds[axis + 1])
                rest = transpose(link) @ rest
            spatial_first = np.moveaxis(link.reshape(groups, before, size, -1), 1, 2)
            weights.append(spatial_first.reshape(groups, *_along(ones, axis, size), before, -1))
            before = spatial_first.shape[-1]
        weights.append(last.reshape(groups, *ones, *last.shape[1:]))
        return finish(self, layer, rank, balance(weights))

    def full_rank(self, layer: LayerSpec) -> Rank:
        modes = (layer.inputs, *layer.spatial, layer.outputs)
        return tuple(min(prod(modes[:cut]), prod(modes[cut:])) for cut in range(1, len(modes)))


def _leading(matrix: Array, rank: int) -> Array:
    """Return `rank` leading left singular vectors, zeros beyond what there are.

    A rank can be possible for the kernel and yet wider than its truncated neighbours leave room for, when it was
    rounded or written by hand.
    """
    columns = matrix.shape[-1]
    vectors = principal(matrix @ transpose(matrix))[1][..., : min(rank, columns)]
    return np.pad(vectors, ((0, 0), (0, 0), (0, max(rank - vectors.shape[-1], 0))))


def _along(ones: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*ones[:axis], size, *ones[axis + 1 :])
