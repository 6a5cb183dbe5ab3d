"""Spatial SVD of a two-dimensional kernel: a vertical and a horizontal convolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrfgraph.layers.pieces import Piece
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.algebra import finish, split
from lrfgraph.methods.base import Arrays, Rank
from lrfgraph.methods.grid import single_ranks

__all__ = ["SvdSpatial"]

_WRONG_AXES = {
    1: "a 1-D kernel has no second spatial axis",
    3: "not defined for 3-D kernels",
}


class SvdSpatial:
    """k₁×1 from i to r channels, 1×k₂ from r to o: the truncated SVD of the (k₁·i) × (k₂·o) matrix.

    A depthwise kernel is the same with one input channel a group; only rank 1 is offered there, because Keras has
    no depthwise layer between a channel's own r intermediate ones. Jaderberg et al., BMVC 2014. Not TensorLy's SVD:
    the exact one takes 2 to 5 times as long for the same error, the random one is quicker and loses 0.6 to 2.5 % more.
    """

    name = "svd_spatial"
    version = 1
    nests = True
    iterates = False
    whitens = "channel"
    ranks_by_unfolding = False

    def reason(self, layer: LayerSpec) -> str:
        if not layer.family.spatial_kernel:
            return f"{layer.family.name} layers have no spatial kernel to separate"
        if len(layer.spatial) != 2:
            return _WRONG_AXES[len(layer.spatial)]
        if layer.positions == 1:
            return "kernel has one position, use svd or qr"
        return "" if min(layer.spatial) > 1 else "kernel extends along one axis only"

    def prepare(self, layer: LayerSpec, kernel: Array) -> Arrays:
        k1, k2 = layer.spatial
        matrix = np.moveaxis(kernel.astype(np.float64), 2, 3)
        first, last = split(matrix.reshape(layer.groups, k1 * layer.inputs, k2 * layer.outputs))
        return {"first": first.astype(np.float32), "last": last.astype(np.float32)}

    def ranks(self, layer: LayerSpec, prepared: Arrays, shares: Sequence[float]) -> list[Rank]:
        return single_ranks(self, layer, self._highest(layer), shares)

    def pieces(self, layer: LayerSpec, rank: Rank) -> tuple[Piece, ...]:
        (r,) = rank
        k1, k2 = layer.spatial
        return (
            Piece("mix", (layer.groups, k1, 1, layer.inputs, r), (0,)),
            Piece("mix", (layer.groups, 1, k2, r, layer.outputs), (1,)),
        )

    def factorize(self, layer: LayerSpec, prepared: Arrays, rank: Rank) -> tuple[Array, ...]:
        r = min(rank[0], self._highest(layer))
        k1, k2 = layer.spatial
        first, last = prepared["first"][..., :r], prepared["last"][:, :r]
        weights = (
            first.reshape(layer.groups, k1, 1, layer.inputs, r),
            np.moveaxis(last.reshape(layer.groups, r, k2, layer.outputs), 2, 1)[:, None],
        )
        return finish(self, layer, rank, weights)

    def full_rank(self, layer: LayerSpec) -> Rank | None:
        full = _full(layer)
        return (full,) if full <= self._highest(layer) else None

    @staticmethod
    def _highest(layer: LayerSpec) -> int:
        return _full(layer) if layer.family.mixes_channels else 1


def _full(layer: LayerSpec) -> int:
    k1, k2 = layer.spatial
    return min(k1 * layer.inputs, k2 * layer.outputs)
