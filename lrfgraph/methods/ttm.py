"""TT-matrix (T3F) of a dense layer: its matrix reshaped into cores with an input and an output index each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np

from lrfgraph.layers.pieces import Piece
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.algebra import balance, finish, principal, split, transpose
from lrfgraph.methods.base import Arrays, Rank
from lrfgraph.methods.grid import budgets, by_truncation, tails, worthwhile

__all__ = ["Ttm"]

_WIDEST = 4096  # two cores need an eigen-decomposition this wide; beyond it three are offered alone


class Ttm:
    """Two or three cores ``(r_{k−1}, i_k, o_k, r_k)``; rank ``r1`` or ``r1xr2``, the inner ones.

    The sizes are the factors of i and o nearest to each other, those of i rising and those of o falling: of both
    pairings this one has the smaller cores at a rank, and on the dense layers it was tried on neither was
    reliably nearer at equal cost. A prime number gives a factor 1. The inputs' first index is the slowest.
    Novikov et al., Tensorizing neural networks, NIPS 2015; Oseledets, SIAM J. Sci. Comput. 33 (2011).
    """

    name = "ttm"
    version = 1
    nests = False
    iterates = False
    whitens = "none"
    ranks_by_unfolding = False

    def reason(self, layer: LayerSpec) -> str:
        return "" if "core" in layer.family.forms else "defined for dense layers alone"

    def prepare(self, layer: LayerSpec, kernel: Array) -> Arrays:
        matrix = kernel[0].astype(np.float64)
        prepared: Arrays = {}
        if 2 in _depths(layer):
            first, last = split(_tensor(matrix, layer, 2)[None])
            prepared["two_first"], prepared["two_last"] = first[0].astype(np.float32), last[0].astype(np.float32)
            prepared["two_energy"] = np.sum(np.square(first[0]), axis=0) * np.sum(np.square(last[0]), axis=1)
        if 3 in _depths(layer):
            tensor = _tensor(matrix, layer, 3)
            left, right = tensor.reshape(tensor.shape[0], -1), tensor.reshape(-1, tensor.shape[2])
            energy_first, first = principal(left @ left.T)
            energy_last, last = principal(right.T @ right)
            first, last = first[:, : left.shape[1]], last[:, : right.shape[0]]
            core = (first.T @ left).reshape(-1, *tensor.shape[1:])
            prepared["three_first"], prepared["three_core"], prepared["three_last"] = first, core @ last, last
            prepared["three_energy_first"] = energy_first[: first.shape[1]]
            prepared["three_energy_last"] = energy_last[: last.shape[1]]
        return prepared

    def ranks(self, layer: LayerSpec, prepared: Arrays, shares: Sequence[float]) -> list[Rank]:
        """For each share take two or three cores, whichever loses less; both losses are exact."""
        chosen: list[Rank] = []
        for budget in budgets(layer, shares):
            options = [*self._two(layer, prepared, budget), *self._three(layer, prepared, budget)]
            if options:
                chosen.append(min(options)[1])
        return worthwhile(self, layer, chosen)

    def _two(self, layer: LayerSpec, prepared: Arrays, budget: int) -> list[tuple[float, Rank]]:
        if 2 not in _depths(layer):
            return []
        lost = tails(prepared["two_energy"])
        rank = min(budget // sum(_sizes(layer, 2)), lost.size - 1)
        return [(float(lost[rank]), (rank,))] if rank else []

    def _three(self, layer: LayerSpec, prepared: Arrays, budget: int) -> list[tuple[float, Rank]]:
        if 3 not in _depths(layer):
            return []
        lost = [tails(prepared["three_energy_first"]), tails(prepared["three_energy_last"])]
        core = prepared["three_core"]
        return [
            (float(lost[0][0] - np.sum(np.square(core[:r1, :, :r2]))), (r1, r2))
            for r1, r2 in by_truncation(_sizes(layer, 3), lost, [budget])
        ]

    def pieces(self, layer: LayerSpec, rank: Rank) -> tuple[Piece, ...]:
        bonds = (1, *rank, 1)
        inputs, outputs = _modes(layer, len(rank) + 1)
        return tuple(Piece("core", shape) for shape in zip(bonds[:-1], inputs, outputs, bonds[1:], strict=True))

    def factorize(self, layer: LayerSpec, prepared: Arrays, rank: Rank) -> tuple[Array, ...]:
        weights: tuple[Array, ...] = ()
        if len(rank) + 1 in _depths(layer):
            weights = self._cut_two(prepared, *rank) if len(rank) == 1 else self._cut_three(prepared, *rank)
        inputs, outputs = _modes(layer, len(rank) + 1)
        bonds = (1, *(w.shape[-1] for w in weights[:-1]), 1)
        cores = zip(weights, bonds[:-1], inputs, outputs, bonds[1:], strict=False)
        return finish(self, layer, rank, [weight.reshape(shape) for weight, *shape in cores])

    @staticmethod
    def _cut_two(prepared: Arrays, r: int) -> tuple[Array, ...]:
        return prepared["two_first"][:, :r], prepared["two_last"][:r]

    @staticmethod
    def _cut_three(prepared: Arrays, r1: int, r2: int) -> tuple[Array, ...]:
        chain = (
            prepared["three_first"][:, :r1],
            prepared["three_core"][:r1, :, :r2],
            transpose(prepared["three_last"][:, :r2]),
        )
        return tuple(weight[0] for weight in balance([weight[None] for weight in chain]))

    def full_rank(self, layer: LayerSpec) -> Rank:
        depth = _depths(layer)[0]
        sizes = _sizes(layer, depth)
        return tuple(min(prod(sizes[:cut]), prod(sizes[cut:])) for cut in range(1, depth))


def _depths(layer: LayerSpec) -> tuple[int, ...]:
    """Return how many cores are offered: never three where one of them would be a single number."""
    three = min(_sizes(layer, 3)) > 1
    two = not three or min(_sizes(layer, 2)) <= _WIDEST
    return (*([2] if two else []), *([3] if three else []))


def _sizes(layer: LayerSpec, depth: int) -> tuple[int, ...]:
    """Return i_k·o_k of every core."""
    return tuple(i * o for i, o in zip(*_modes(layer, depth), strict=True))


def _modes(layer: LayerSpec, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the factors of the inputs, rising, and of the outputs, falling."""
    return near_equal(layer.inputs, depth), near_equal(layer.outputs, depth)[::-1]


@lru_cache(maxsize=1024)
def near_equal(number: int, count: int) -> tuple[int, ...]:
    """Return `count` factors of a number, rising, with the smallest sum.

    >>> near_equal(2048, 3), near_equal(43, 2)
    ((8, 16, 16), (1, 43))
    """
    if count == 1:
        return (number,)
    divisors = [d for d in range(1, int(number ** (1 / count) + 1e-9) + 1) if number % d == 0]
    options = (tuple(sorted((d, *near_equal(number // d, count - 1)))) for d in divisors)
    return min(options, key=lambda factors: (sum(factors), factors))


def _tensor(matrix: Array, layer: LayerSpec, depth: int) -> Array:
    """Return a dense kernel ``(I, O)`` with one axis ``i_k·o_k`` for each core."""
    inputs, outputs = _modes(layer, depth)
    interleaved = [axis for k in range(depth) for axis in (k, depth + k)]
    return matrix.reshape(*inputs, *outputs).transpose(interleaved).reshape(_sizes(layer, depth))
