"""Tucker-2 of a convolution: 1×1 into few channels, a small k×k core, 1×1 out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrfgraph.layers.pieces import Piece
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.algebra import balance, finish, hosvd, transpose
from lrfgraph.methods.base import Arrays, Rank
from lrfgraph.methods.grid import budgets, tails, worthwhile

__all__ = ["Tucker"]


class Tucker:
    """1×1 from i to p channels, k×k from p to q, 1×1 from q to o; rank ``pxq``.

    Slices of the higher-order SVD: factors of a smaller rank are slices, up to one number a piece that balances
    their norms. Kim et al., Compression of deep convolutional neural networks, ICLR 2016. Not TensorLy's
    `partial_tucker`, whose sweeps at every rank lose 2 to 3 % less, take 8 to 27 times as long and do not nest.
    """

    name = "tucker"
    version = 1
    nests = True
    iterates = False
    whitens = "channel"
    ranks_by_unfolding = True

    def reason(self, layer: LayerSpec) -> str:
        if not layer.family.convolves_channels:
            return f"{layer.family.name} layers have no spatial kernel that mixes channels"
        return "" if layer.positions > 1 else "kernel has one position, use svd or qr"

    def prepare(self, layer: LayerSpec, kernel: Array) -> Arrays:
        bases = hosvd(kernel)
        return bases | {name: bases[name].astype(np.float32) for name in ("inputs", "outputs", "core")}

    def ranks(self, layer: LayerSpec, prepared: Arrays, shares: Sequence[float]) -> list[Rank]:
        """For each share take, over all p, the largest affordable q, and of these pairs the one that loses least."""
        lost_inputs, lost_outputs = tails(prepared["energy_inputs"]), tails(prepared["energy_outputs"])
        p = np.arange(1, lost_inputs.size)
        per_group = np.array(budgets(layer, shares))[:, None] // layer.groups
        q = (per_group - layer.inputs * p) // (layer.positions * p + layer.outputs)
        q = np.clip(q, 0, np.minimum(lost_outputs.size - 1, layer.positions * p))
        # More than S inputs for each output of the core is more than its rank can be.
        possible = (q > 0) & (p <= layer.positions * q)
        lost = np.where(possible, lost_inputs[p] + lost_outputs[q], np.inf)
        best = np.argmin(lost, axis=1)
        pairs = [(int(p[b]), int(row[b])) for row, b, ok in zip(q, best, possible, strict=True) if ok[b]]
        return worthwhile(self, layer, pairs)

    def pieces(self, layer: LayerSpec, rank: Rank) -> tuple[Piece, ...]:
        p, q = rank
        axes = tuple(range(len(layer.spatial)))
        ones = (1,) * len(axes)
        return (
            Piece("mix", (layer.groups, *ones, layer.inputs, p)),
            Piece("mix", (layer.groups, *layer.spatial, p, q), axes),
            Piece("mix", (layer.groups, *ones, q, layer.outputs)),
        )

    def factorize(self, layer: LayerSpec, prepared: Arrays, rank: Rank) -> tuple[Array, ...]:
        p, q = rank
        core = prepared["core"][..., :p, :q].astype(np.float64)
        first, last = prepared["inputs"][..., :p], transpose(prepared["outputs"][..., :q])
        ones = (1,) * len(layer.spatial)
        weights = (
            first.reshape(layer.groups, *ones, *first.shape[1:]),
            core.reshape(layer.groups, *layer.spatial, *core.shape[2:]),
            last.reshape(layer.groups, *ones, *last.shape[1:]),
        )
        return finish(self, layer, rank, balance(weights))

    def full_rank(self, layer: LayerSpec) -> Rank:
        positions, inputs, outputs = layer.positions, layer.inputs, layer.outputs
        return (min(inputs, positions * outputs), min(outputs, positions * inputs))
