"""Column-pivoted QR of a matrix, truncated: cheaper than the SVD and close to it."""

from __future__ import annotations

import numpy as np

from lrfgraph.layers.spec import Array
from lrfgraph.methods.algebra import balance
from lrfgraph.methods.svd import Svd

__all__ = ["Qr"]


class Qr(Svd):
    """i to r channels, r to o channels from W·P = Q·R, the leading columns of Q and rows of R·Pᵀ.

    Businger and Golub, Numer. Math. 7 (1965). Same layers and same chain as `Svd`.
    """

    name = "qr"
    version = 1
    ranks_by_unfolding = False

    @staticmethod
    def _factors(matrix: Array) -> tuple[Array, Array]:
        from scipy.linalg import qr

        groups, inputs, outputs = matrix.shape
        full = min(inputs, outputs)
        first, last = np.zeros((groups, inputs, full)), np.zeros((groups, full, outputs))
        for group in range(groups):
            q, r, pivots = qr(matrix[group], mode="economic", pivoting=True, check_finite=False)
            signs = np.where(np.diag(r) < 0, -1.0, 1.0)  # LAPACK leaves the sign of each column open
            first[group] = q * signs
            last[group][:, pivots] = r * signs[:, None]
        balanced_first, balanced_last = balance((first, last))
        return balanced_first, balanced_last
