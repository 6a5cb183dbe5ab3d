"""The L1 norm of a filter (Li et al., Pruning filters for efficient ConvNets, ICLR 2017)."""

from __future__ import annotations

import numpy as np

from lrfgraph.layers.spec import Array
from lrfgraph.pruning.base import Filters, Ranking, Score, by_norm

__all__ = ["L1"]


def norms(filters: Array) -> Array:
    """Return the L1 norm of each row of (outputs, entries)."""
    return np.asarray(np.abs(filters.astype(np.float64)).sum(axis=1))


def rank(filters: Filters) -> Ranking:
    return by_norm(filters, norms)


L1 = Score("l1", 1, "L1 norm of the filters that write a channel", rank)
