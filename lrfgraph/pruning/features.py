"""The error in the next layers' outputs once a channel is gone and they are refitted to those that are left.

With G the moments of a layer's input, P = (G + λI)⁻¹ and R the rows of W that read a channel, the least squared error
without R is tr(W_Rᵀ (P_RR)⁻¹ W_R), reached by W − P_:R (P_RR)⁻¹ W_R: the optimal brain surgeon (Hassibi and Stork,
1993) for blocks of rows. What is left is again such a problem, with P − P_:R (P_RR)⁻¹ P_R:, so channels go one
after the other and no two that replace each other go both. Errors are weighted by the Fisher factor of the layer's
output gradient where there is one (METHODS §5.9): losses are then those of the network's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfgraph.layers.spec import Array
from lrfgraph.pruning.base import Filters, Ranking, Reader, Score

__all__ = ["FEATURES", "refit"]

RIDGE = 1e-3
"""λ in parts of the mean diagonal of the moments."""

STEPS = 128
"""Steps in which the channels of a group go, at most; in a wide group several go at once."""

Floats = NDArray[np.float64]


def rank(filters: Filters) -> Ranking:
    problems = [
        _Problem.of(reader, group, filters.channels)
        for reader in filters.readers
        for group in range(len(reader.matrix))
        if np.isin(reader.numbers[group], filters.channels).any()
    ]
    left, order, losses, total = list(filters.channels), [], [], 0.0
    at_once = -(-len(left) // STEPS)
    while left:
        costs = sum((problem.costs(left) for problem in problems), np.zeros(len(left)))
        chosen = [left[place] for place in np.argsort(costs, kind="stable")[:at_once]]
        each = np.sort(costs)[:at_once]
        before = total
        total += sum(problem.remove(chosen) for problem in problems)
        order += chosen
        shares = np.cumsum(each) / max(float(each.sum()), 1e-300)
        losses += (before + (total - before) * shares).tolist()
        left = [channel for channel in left if channel not in chosen]
    return Ranking(tuple(order), tuple(losses))


@dataclass
class _Problem:
    """One group of one reader: the inverse of its moments and its weights, as refitted so far.

    rows : by channel, its rows.
    """

    inverse: Floats
    weights: Floats
    rows: dict[int, NDArray[np.intp]]

    @classmethod
    def of(cls, reader: Reader, group: int, channels: tuple[int, ...]) -> _Problem:
        weights = reader.matrix[group] @ reader.scale[group]
        inverse: Floats = np.asarray(np.linalg.inv(_ridged(reader.moments[group], reader.constant)))
        numbers = reader.numbers[group]
        rows = {channel: np.flatnonzero(numbers == channel) for channel in channels}
        return cls(
            inverse, weights.astype(np.float64), {channel: places for channel, places in rows.items() if len(places)}
        )

    def costs(self, channels: list[int]) -> Floats:
        """Return what the removal of each channel alone costs."""
        costs = np.zeros(len(channels))
        by_count: dict[int, list[int]] = {}
        for place, channel in enumerate(channels):
            by_count.setdefault(len(self.rows.get(channel, ())), []).append(place)
        for count, places in by_count.items():
            if count:
                rows = np.stack([self.rows[channels[place]] for place in places])
                blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
                weights = self.weights[rows]
                costs[places] = (weights * np.linalg.solve(blocks, weights)).sum(axis=(1, 2))
        return costs

    def remove(self, channels: list[int]) -> float:
        """Remove channels, refit what is left, and return what that costs."""
        rows = np.concatenate([self.rows.get(channel, np.zeros(0, np.intp)) for channel in channels])
        if not len(rows):
            return 0.0
        across = self.inverse[:, rows]
        block, weights = across[rows], self.weights[rows]
        solved = np.linalg.solve(block, weights)
        cost = float((weights * solved).sum())
        self.weights -= across @ solved
        self.inverse -= across @ np.linalg.solve(block, across.T)
        gone = np.zeros(len(self.inverse), bool)
        gone[rows] = True
        self.weights, self.inverse = self.weights[~gone], self.inverse[~gone][:, ~gone]
        places = np.cumsum(~gone) - 1
        removed = set(channels)
        self.rows = {channel: places[own] for channel, own in self.rows.items() if channel not in removed}
        return cost


def _ridged(moments: Array, constant: bool) -> Floats:
    """Moments with a ridge on their diagonal; none on that of the constant."""
    moments = np.array(moments, np.float64)
    diagonal = moments.diagonal()[: len(moments) - constant]
    ridge = np.full(len(moments), RIDGE * max(float(diagonal.mean()) if len(diagonal) else 0.0, 1e-12))
    if constant:
        ridge[-1] = 1e-9
    return np.asarray(moments + np.diag(ridge))


def refit(reader: Reader, removed: NDArray[np.int64]) -> Array:
    """Return a reader's matrix without the rows of removed channels (zeros), the others refitted to the moments."""
    refitted = np.array(reader.matrix, np.float64)
    for group, numbers in enumerate(reader.numbers):
        gone = np.isin(numbers, removed)
        if not gone.any():
            continue
        moments = _ridged(reader.moments[group], reader.constant)
        lost = moments[~gone][:, gone] @ refitted[group][gone]
        refitted[group][~gone] += np.linalg.solve(moments[~gone][:, ~gone], lost)
        refitted[group][gone] = 0
    return refitted


FEATURES = Score(
    "features", 1, "error in the outputs of the layers that read a channel, once they are refitted without it", rank,
    reads=True, predicts=True,
)  # fmt: skip
