"""Second moments G = E[x xᵀ] of a layer's inputs: a matrix, or the rows themselves where they are fewer than wide.

Whatever form they have, they are multiplied from either side with ``@``; nothing as wide as a row squared is made of
few rows (of VGG-16's first dense layer that would take 5 GB).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrfgraph.layers.spec import Array

__all__ = ["Moments", "NoMoments", "RidgedRows", "RowMoments", "as_matrix", "centred", "linear", "mean_of"]


@dataclass(frozen=True, eq=False)
class RowMoments:
    """The mean of x xᵀ over rows x, (groups, n, width), of which no product is made.

    constant : whether every row ends in a 1 that is not written down.
    """

    rows: Array
    constant: bool

    __array_ufunc__ = None  # so that NumPy leaves `array @ moments` to `__rmatmul__`

    def __matmul__(self, right: Array) -> Array:
        """Return G·right, (groups, width, k)."""
        inner = self.rows @ right[:, : self.rows.shape[2]]
        inner = inner + right[:, -1:] if self.constant else inner
        outer = self.rows.swapaxes(1, 2) @ inner
        if self.constant:
            outer = np.concatenate([outer, inner.sum(axis=1, keepdims=True)], axis=1)
        product: Array = outer / self.rows.shape[1]
        return product

    def __rmatmul__(self, left: Array) -> Array:
        """Return left·G, (groups, k, width): G is symmetric."""
        product: Array = (self @ left.swapaxes(1, 2)).swapaxes(1, 2)
        return product


@dataclass(frozen=True, eq=False)
class RidgedRows:
    """G + λI of rows without the constant.  ridge : λ, (groups, 1, 1), above 0."""

    moments: RowMoments
    ridge: Array

    __array_ufunc__ = None

    def __matmul__(self, right: Array) -> Array:
        return self.moments @ right + self.ridge * right

    def __rmatmul__(self, left: Array) -> Array:
        return left @ self.moments + self.ridge * left

    def solve(self, right: Array) -> Array:
        """Return (G + λI)⁻¹·right by the identity of Woodbury: what is inverted is as large as there are rows."""
        x, count = self.moments.rows, self.moments.rows.shape[1]
        inner = x @ x.swapaxes(1, 2) + count * self.ridge * np.eye(count)
        solution: Array = (right - x.swapaxes(1, 2) @ np.linalg.solve(inner, x @ right)) / self.ridge
        return solution


@dataclass(frozen=True)
class NoMoments:
    """The identity: inputs of which nothing is known."""

    __array_ufunc__ = None

    def __matmul__(self, right: Array) -> Array:
        return right

    def __rmatmul__(self, left: Array) -> Array:
        return left


Moments = Array | RowMoments | NoMoments
"""(groups, width+1, width+1), with the constant 1 last."""


def linear(moments: Moments) -> Moments:
    """Return the moments without the constant."""
    if isinstance(moments, RowMoments):
        return RowMoments(moments.rows, False)
    return moments if isinstance(moments, NoMoments) else moments[:, :-1, :-1]


def mean_of(moments: Moments) -> Array | float:
    """Return E[x], (groups, width, 1)."""
    if isinstance(moments, RowMoments):
        mean: Array = moments.rows.mean(axis=1, dtype=np.float64)[..., None]
        return mean
    return 0.0 if isinstance(moments, NoMoments) else moments[:, :-1, -1:]


def centred(moments: Moments) -> Moments:
    """Return the covariance of x."""
    if isinstance(moments, NoMoments):
        return moments
    mean = np.asarray(mean_of(moments))
    if isinstance(moments, RowMoments):
        return RowMoments(moments.rows - mean.swapaxes(1, 2), False)
    covariance: Array = moments[:, :-1, :-1] - mean @ mean.swapaxes(1, 2)
    return covariance


def as_matrix(moments: Moments) -> Array:
    """Return moments of rows as a matrix, for what is not wide; float64."""
    if isinstance(moments, RowMoments):
        product: Array = (moments.rows.swapaxes(1, 2) @ moments.rows) / moments.rows.shape[1]
        return product
    assert not isinstance(moments, NoMoments)
    return moments.astype(np.float64)
