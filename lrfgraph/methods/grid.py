"""Which ranks are worth computing: what a share of the parameters buys, and what costs no less than the layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lrfgraph.layers.pieces import cost, layer_cost
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.base import Method, Rank

__all__ = ["budgets", "by_truncation", "single_ranks", "tails", "worthwhile"]


def budgets(layer: LayerSpec, shares: Sequence[float]) -> list[int]:
    """Return the number of kernel parameters that each share of them is (rounded down, rounding errors forgiven)."""
    return [int(share * layer.weights + 1e-6) for share in shares]


def single_ranks(method: Method, layer: LayerSpec, highest: int, shares: Sequence[float]) -> list[Rank]:
    """Return the ranks of a method with one rank, whose parameters grow in proportion to it."""
    unit = sum(piece.parameters for piece in method.pieces(layer, (1,)))
    bought = (min(budget // unit, highest) for budget in budgets(layer, shares))
    return worthwhile(method, layer, ((rank,) for rank in bought if rank))


WORST_TRADE = 8.0
"""Largest product of the shares of parameters and MACs: 99 % of the one for 82 times the other is no compression."""


def worthwhile(method: Method, layer: LayerSpec, ranks: Iterable[Rank]) -> list[Rank]:
    """Drop repeats, and ranks with no fewer parameters and no fewer MACs than the layer itself.

    Also those that pay for a little of the one with many times the other (`WORST_TRADE`).
    """
    whole = layer_cost(layer)

    def pays(rank: Rank) -> bool:
        chain = cost(layer, method.pieces(layer, rank))
        trade = chain.parameters / whole.parameters * chain.macs / max(whole.macs, 1)
        return (chain.parameters < whole.parameters or chain.macs < whole.macs) and trade <= WORST_TRADE

    return [rank for rank in dict.fromkeys(ranks) if pays(rank)]


def tails(energy: Array) -> Array:
    """Return for r = 0 … n the energy lost when r components are kept, summed over groups.

    >>> tails(np.array([[4.0, 2.0, 1.0]]))
    array([7., 3., 1., 0.])
    """
    total = np.atleast_2d(energy).sum(axis=0)
    return np.append(np.cumsum(total[::-1])[::-1], 0.0)


def by_truncation(modes: Sequence[int], lost: Sequence[Array], budget: Sequence[int], groups: int = 1) -> list[Rank]:
    """Return the inner ranks of tensor trains that truncate every unfolding at one tolerance, one per budget.

    modes : sizes n_1 … n_d.  lost : for each of the d−1 unfoldings, the energies of `tails`.
    Each budget gets the least tolerance at which the cores, Σ r_{k−1} n_k r_k times `groups`, fit; all tolerances
    that change a rank are tried at once. A budget too small for any is left out.
    """
    tolerances = np.unique(np.concatenate([t[1:] for t in lost]))
    # The rank at a tolerance is the number of tail energies above it; the tails fall, so they are searched reversed.
    ranks = np.stack([t.size - np.searchsorted(t[::-1], tolerances, side="right") for t in lost], axis=1)
    ranks = np.maximum(ranks, 1)
    bonds = np.pad(ranks, ((0, 0), (1, 1)), constant_values=1)
    for k in range(1, len(modes)):
        bonds[:, k] = np.minimum(bonds[:, k], bonds[:, k - 1] * modes[k - 1])
    for k in range(len(modes) - 1, 0, -1):
        bonds[:, k] = np.minimum(bonds[:, k], bonds[:, k + 1] * modes[k])
    sizes = groups * (bonds[:, :-1] * bonds[:, 1:] * np.asarray(modes)).sum(axis=1)
    chosen: list[Rank] = []
    for limit in budget:
        fits = np.flatnonzero(sizes <= limit)
        if fits.size:
            chosen.append(tuple(int(r) for r in bonds[fits[0], 1:-1]))
    return chosen
