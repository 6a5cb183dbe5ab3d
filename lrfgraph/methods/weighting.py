"""Activation-aware factors: decompose the kernel in the metric of what really flows through the layer.

Written once for all methods: the kernel is weighted before a method prepares it, and the first and last piece of
the chain are un-weighted after it has factorized. Distances between weighted kernels are then errors of the
layer's output, not of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrfgraph.layers.moments import Moments, as_matrix, linear
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.algebra import balance, positions_first, principal, transpose
from lrfgraph.methods.base import Arrays, Method

__all__ = ["Unweighting", "weigh"]

# Directions that the calibration images hardly reach are raised to this share of the strongest one: they get next
# to no weight, yet the weighting can be undone and a full rank stays exact on any input.
_FLOOR = 1e-6
# The output-side square below is scaled by eigenvalues of outputs, where the smallest still count as energies.
_OUTPUT_FLOOR = 1e-12
_DAMPING = 1e-2


@dataclass(frozen=True)
class Unweighting:
    """How to take the weighting out of a chain's first and last piece; plain arrays, so that it can be stored.

    left : ``(g, rows, k)``, rows = i or S·i; turns the first k weighted rows of the first piece into its rows.
    right : ``(g, o, o)``, or ``(g, o)`` where it is diagonal.  ``None`` where there is nothing to undo.
    """

    left: Array | None = None
    right: Array | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to undo."""
        return self.left is None and self.right is None

    def scaled(self, factor: float) -> Unweighting:
        """Return one that multiplies the product by a factor besides; it has to undo something."""
        if self.left is None:
            assert self.right is not None
            return Unweighting(None, self.right * factor)
        return Unweighting(self.left * factor, self.right)

    def __call__(self, weights: Sequence[Array]) -> tuple[Array, ...]:
        """Return the un-weighted chain, norms balanced again, float32; slices of a chain stay slices."""
        if self.idle:
            return tuple(weights)
        chain = self.chain([weight.astype(np.float64) for weight in weights])
        return tuple(np.ascontiguousarray(weight, dtype=np.float32) for weight in balance(chain))

    def chain(self, weights: Sequence[Any], xp: Any = np) -> tuple[Any, ...]:
        """Return the un-weighted chain as it comes.  xp : NumPy or ``keras.ops``, what the weights are arrays of."""
        first, *between, last = weights
        if self.left is not None:
            first = _apply_rows(self.left, first, xp)
        if self.right is not None:
            rows = xp.reshape(last, (last.shape[0], -1, last.shape[-1]))
            rows = rows * self.right[:, None] if self.right.ndim == 2 else xp.matmul(rows, self.right)
            last = xp.reshape(rows, last.shape)
        return (first, *between, last)

    def to_arrays(self) -> Arrays:
        """Return what `from_arrays` reads."""
        return {name: array for name, array in (("left", self.left), ("right", self.right)) if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Unweighting:
        return cls(arrays.get("left"), arrays.get("right"))


def weigh(
    method: Method,
    layer: LayerSpec,
    kernel: Array,
    moments: Moments | None,
    output_weight: Array | None = None,
) -> tuple[Array, Unweighting]:
    """Return the weighted canonical kernel, float64, and how to undo the weighting in a chain made from it.

    moments : ``G = E[x xᵀ]``, ``(g, w+1, w+1)`` or the rows, position-major, the bias last (it is left out here); or
        ``None``.  output_weight : H, ``(g, o, o)``, or scales of the outputs, ``(g, o)``, H = diag(scale²), the
        folded BatchNorm for one; or ``None``.

    Where the whole row can be whitened (``row``) and there are no more outputs than row entries, the weighted
    kernel is the square root of WᵀGW, padded with zeros: its singular vectors are the principal axes of the
    outputs, and nothing as wide as a row is ever decomposed.
    """
    weighted: Array = kernel.astype(np.float64)
    if method.whitens == "none":
        return weighted, Unweighting()
    right = None
    if output_weight is not None:
        root, right = _output_root(output_weight.astype(np.float64))
        weighted = weighted * _beside(root, weighted) if root.ndim == 2 else weighted @ _beside(root, weighted)
    if moments is None:
        return weighted, Unweighting(right=right)
    second = linear(moments)
    second = second.astype(np.float64) if isinstance(second, np.ndarray) else second
    if method.whitens == "row" and (layer.rows == "patch" or layer.positions == 1):
        rows = weighted.reshape(layer.groups, -1, layer.outputs)
        left, rows = (
            _whiten_outputs(second, rows) if rows.shape[1] > rows.shape[2] else _whiten(as_matrix(second), rows)
        )
        return rows.reshape(weighted.shape), Unweighting(left, right)
    tensor = positions_first(weighted)
    left, flat = _whiten(
        _channel_moments(layer, as_matrix(second)), np.moveaxis(tensor, 1, 2).reshape(*tensor.shape[::2], -1)
    )
    back = flat.reshape(layer.groups, layer.inputs, layer.positions, layer.outputs)
    return np.moveaxis(back, 1, 2).reshape(weighted.shape), Unweighting(left, right)


def _whiten(second: Array, rows: Array) -> tuple[Array, Array]:
    """Return L⁻¹ and L·rows with LᵀL = G, its eigenvalues floored."""
    values, vectors = _floored(second, _FLOOR)
    root = np.sqrt(values)
    return vectors / root[:, None], root[..., None] * (transpose(vectors) @ rows)


def _whiten_outputs(second: Moments, rows: Array) -> tuple[Array, Array]:
    """Return the same from the eigen-decomposition of rowsᵀ·G·rows, (o, o) in place of (S·i, S·i)."""
    values, vectors = _floored(transpose(rows) @ second @ rows, _OUTPUT_FLOOR)
    root = np.sqrt(values)
    weighted = np.zeros_like(rows)
    weighted[:, : rows.shape[2]] = root[..., None] * transpose(vectors)
    return rows @ (vectors / root[:, None]), weighted


def _floored(matrix: Array, floor: float) -> tuple[Array, Array]:
    values, vectors = principal(matrix)
    largest = values[:, :1]
    return np.where(largest > 0, np.maximum(values, floor * largest), 1.0), vectors


def _output_root(weight: Array) -> tuple[Array, Array]:
    """Return R = (H + λI)^{1/2} and its inverse; symmetric, because pivoting on outputs should mean outputs."""
    if weight.ndim == 2:
        square = np.square(weight)
        damped = square + _DAMPING * square.mean(axis=1, keepdims=True)
        root = np.sqrt(np.where(damped > 0, damped, 1.0))
        return root, 1.0 / root
    values, vectors = principal(weight)
    damped = values + _DAMPING * values.mean(axis=1, keepdims=True)
    root = np.sqrt(np.where(damped > 0, damped, 1.0))[:, None]
    return (vectors * root) @ transpose(vectors), (vectors / root) @ transpose(vectors)


def _beside(root: Array, kernel: Array) -> Array:
    """Give a per-group root as many axes as the kernel has."""
    ones = (1,) * (kernel.ndim - 3)
    shape = (root.shape[0], *ones, 1, root.shape[1]) if root.ndim == 2 else (root.shape[0], *ones, *root.shape[1:])
    return root.reshape(shape)


def _channel_moments(layer: LayerSpec, second: Array) -> Array:
    """Return the mean over positions of the (i, i) diagonal blocks; where rows are vectors, G itself."""
    count = second.shape[1] // layer.inputs
    blocks = second.reshape(layer.groups, count, layer.inputs, count, layer.inputs)
    mean: Array = np.einsum("gsisj->gij", blocks) / count
    return mean


def _apply_rows(left: Array, first: Any, xp: Any) -> Any:
    """Multiply the first piece from the left, along its inputs or along its whole rows."""
    groups, rows, columns = left.shape
    inputs, rank = first.shape[-2:]
    if rows == inputs:
        beside = left.reshape(groups, *(1,) * (len(first.shape) - 3), rows, columns)
        return xp.matmul(beside, first[..., :columns, :])
    flat = xp.reshape(first, (groups, -1, rank))
    return xp.reshape(xp.matmul(left, flat[:, :columns]), first.shape)
