"""The distance to all other filters: the nearest to the geometric median goes first (He et al., FPGM, CVPR 2019)."""

from __future__ import annotations

import numpy as np

from lrfgraph.layers.spec import Array
from lrfgraph.pruning.base import Filters, Ranking, Score, by_norm

__all__ = ["FPGM"]


def distances(filters: Array) -> Array:
    """Return Σ_j ‖F_i − F_j‖₂ for each row of (outputs, entries)."""
    flat = filters.astype(np.float64)
    squares = (flat * flat).sum(axis=1)
    between = squares[:, None] + squares[None, :] - 2 * flat @ flat.T
    np.fill_diagonal(between, 0)
    return np.asarray(np.sqrt(np.maximum(between, 0)).sum(axis=1))


def rank(filters: Filters) -> Ranking:
    return by_norm(filters, distances)


FPGM = Score("fpgm", 1, "distance of the filters that write a channel to all others of their layer", rank)
