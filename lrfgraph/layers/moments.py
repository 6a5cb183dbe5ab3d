"""Second moments G = E[x xᵀ] of a layer's inputs: a matrix, or the rows themselves where they are fewer than wide.

Whatever form they have, they are multiplied from either side with ``@``; nothing as wide as a row squared is made of
few rows (of VGG-16's first dense layer that would take 5 GB).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lrfgraph.layers.spec import Array

__all__ = [
    "Moments", "NoMoments", "RidgedRows", "RowMoments", "as_matrix", "centred", "linear", "mean_of", "shrinkage",
    "shrunk",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class RowMoments:
    """The mean of x xᵀ over rows x, (groups, n, width), of which no product is made.

    constant : whether every row ends in a 1 that is not written down.  shrinkage : (groups, 1, 1), the share by which
    covariances between different inputs are shrunk towards none, see `shrunk`.
    """

    rows: Array
    constant: bool
    shrinkage: Array | None = None

    __array_ufunc__ = None  # so that NumPy leaves `array @ moments` to `__rmatmul__`

    def __matmul__(self, right: Array) -> Array:
        """Return G·right, (groups, width, k)."""
        inner = self.rows @ right[:, : self.rows.shape[2]]
        inner = inner + right[:, -1:] if self.constant else inner
        outer = self.rows.swapaxes(1, 2) @ inner
        if self.constant:
            outer = np.concatenate([outer, inner.sum(axis=1, keepdims=True)], axis=1)
        product: Array = outer / self.rows.shape[1]
        return product if self.shrinkage is None else product + self.shrinkage * (self.uncorrelated(right) - product)

    def uncorrelated(self, right: Array) -> Array:
        """Return (μμᵀ + diag(σ²))·right: what G would be if no two inputs varied together."""
        mean, variance = self.rows.mean(axis=1)[..., None], self.rows.var(axis=1)[..., None]
        if self.constant:
            mean, variance = (np.pad(part, ((0, 0), (0, 1), (0, 0))) for part in (mean, variance))
            mean[:, -1] = 1.0
        part: Array = mean @ (mean.swapaxes(1, 2) @ right) + variance * right
        return part

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
        return replace(moments, constant=False)
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
        return replace(moments, rows=moments.rows - mean.swapaxes(1, 2), constant=False)
    covariance: Array = moments[:, :-1, :-1] - mean @ mean.swapaxes(1, 2)
    return covariance


def as_matrix(moments: Moments) -> Array:
    """Return moments of rows as a matrix, for what is not wide; others as they are; float64."""
    if isinstance(moments, RowMoments):
        rows = moments.rows
        if moments.constant:
            rows = np.pad(rows, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)
        product: Array = (rows.swapaxes(1, 2) @ rows) / rows.shape[1]
        if moments.shrinkage is not None:
            eye = np.broadcast_to(np.eye(product.shape[-1]), product.shape)
            product = product + moments.shrinkage * (moments.uncorrelated(eye) - product)
        return product
    assert not isinstance(moments, NoMoments)
    return moments.astype(np.float64)


def shrinkage(rows: Array) -> Array:
    """Return the share by which covariances estimated from these rows are best shrunk towards none, (groups, 1, 1).

    Schäfer and Strimmer, Stat. Appl. Genet. Mol. Biol. 4, 32 (2005), target D: Σ Var(r_ij) / Σ r_ij² over the
    correlations of different inputs; variances stay. Sums over pairs of inputs are taken over pairs of rows, the fewer.

    rows : (groups, n, width), independent of each other.
    """
    count = rows.shape[1]
    spread = rows.std(axis=1, keepdims=True, dtype=np.float64)
    z = np.divide(rows - rows.mean(axis=1, keepdims=True), spread, out=np.zeros(rows.shape), where=spread > 0)
    square = np.square(z)
    correlations = np.square(z @ z.swapaxes(1, 2)).sum(axis=(1, 2)) / count**2 - (spread > 0).sum(axis=(1, 2))
    products = (np.square(square.sum(axis=2)).sum(axis=1) - np.square(square).sum(axis=(1, 2))) / count
    noise = (products - correlations) / max(count - 1, 1)
    share: Array = np.clip(noise / np.maximum(correlations, 1e-30), 0.0, 1.0)
    return share[:, None, None]


def shrunk(moments: RowMoments) -> RowMoments:
    """Return moments whose covariances between inputs are shrunk as far as so few rows ask for.

    Moments of fewer rows than inputs are blind to most directions: factors that fit them lose ten times as much on
    images that they have not seen as on those that they have.
    """
    return replace(moments, shrinkage=shrinkage(moments.rows))
