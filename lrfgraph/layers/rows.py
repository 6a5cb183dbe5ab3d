"""Rows: the matrix view of a layer's input, sampled, and the moments summed over them (NumPy only).

A convolution is a matrix product over patches, so a layer's linear output on any position is one row times the
kernel's matrix. A seeded sample of rows and their second moments are all that scoring needs.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from lrfgraph.layers.spec import Array, LayerSpec

__all__ = ["Sampler", "add_moments", "cut", "grouped", "positions_of"]

DRAWN = 1 << 20
"""Random numbers that are at hand at once."""


def positions_of(layer: LayerSpec, call: int = 0) -> tuple[int, ...]:
    """Return the grid from which rows are drawn: the positions at which the kernel is applied."""
    shapes = layer.input_shapes if layer.family.positions == "inputs" else layer.output_shapes
    return shapes[call][:-1]


def cut(layer: LayerSpec, x: Array, image: NDArray[np.intp], position: NDArray[np.intp]) -> Array:
    """Cut rows out of a batch of a layer's inputs.

    Parameters
    ----------
    x : (batch, *spatial, channels), of a separable convolution its depthwise outputs.
    image, position : (n,) index of the image in the batch, flat index into `positions_of`.

    Returns
    -------
    rows : (n, S, channels); S = 1 where rows are vectors.
    """
    if layer.rows == "vector":
        vectors: Array = x.reshape(x.shape[0], -1, 1, x.shape[-1])[image, position]
        return vectors
    before, after, grid = _padding(layer, x.shape[1:-1])
    padded = np.pad(x, [(0, 0), *zip(before, after, strict=True), (0, 0)])
    corner = np.unravel_index(position, grid)
    offsets = np.unravel_index(np.arange(prod(layer.spatial)), layer.spatial)
    index = tuple(
        corner[axis][:, None] * layer.strides[axis] + offsets[axis][None, :] * layer.dilation[axis]
        for axis in range(len(layer.spatial))
    )
    rows: Array = padded[(image[:, None], *index)]
    return rows


def _padding(layer: LayerSpec, size: tuple[int, ...]) -> tuple[list[int], list[int], tuple[int, ...]]:
    before, after, grid = [], [], []
    for axis, length in enumerate(size):
        stride = layer.strides[axis]
        reach = (layer.spatial[axis] - 1) * layer.dilation[axis]
        if layer.padding == "same":
            count = -(-length // stride)
            total = max((count - 1) * stride + reach + 1 - length, 0)
            low, high = total // 2, total - total // 2
        else:
            low, high = (reach, 0) if layer.padding == "causal" else (0, 0)
            count = (length + low - reach - 1) // stride + 1
        before.append(low)
        after.append(high)
        grid.append(count)
    return before, after, tuple(grid)


def grouped(layer: LayerSpec, rows: Array) -> Array:
    """Arrange rows (n, S, channels) as (groups, n, width), the left factor of `LayerSpec.matrix`."""
    n, positions, channels = rows.shape
    split = rows.reshape(n, positions, layer.groups, channels // layer.groups)
    return np.moveaxis(split, 2, 0).reshape(layer.groups, n, -1)


def add_moments(total: Array, layer: LayerSpec, rows: Array) -> None:
    """Add the sums of x xᵀ over `rows` to `total` (groups, width+1, width+1), the constant 1 last."""
    x = grouped(layer, np.asarray(rows, dtype=np.float32))
    total[:, :-1, :-1] += x.swapaxes(1, 2) @ x
    sums = x.sum(axis=1, dtype=np.float64)
    total[:, -1, :-1] += sums
    total[:, :-1, -1] += sums
    total[:, -1, -1] += x.shape[1]


class Sampler:
    """Which positions of which images are drawn for a layer: seeded, and the same whatever the batch size.

    `per_image` positions are drawn from each image; the first `stored` of them are kept as rows, all of
    them enter the moments.
    """

    def __init__(self, layer: LayerSpec, images: int, rows: int, moment_rows: int, max_bytes: int, seed: int) -> None:
        grids = [prod(positions_of(layer, call)) for call in range(len(layer.input_shapes))]
        row_bytes = 4 * layer.groups * layer.width
        rows = max(min(rows, max_bytes // row_bytes), 1)
        calls = len(grids)
        rng = np.random.default_rng(seed)
        self.drawn: list[NDArray[np.intp]] = []
        self.stored: list[int] = []
        for grid in grids:
            count = min(max(-(-moment_rows // (images * calls)), 1), grid)
            if count < grid:
                block = max(DRAWN // grid, 1)  # of images: numbers for all of them at once would take gigabytes
                order = np.concatenate(
                    [
                        rng.random((min(block, images - start), grid)).argpartition(count - 1, axis=1)[:, :count]
                        for start in range(0, images, block)
                    ]
                )
            else:
                order = np.broadcast_to(rng.permutation(grid), (images, grid))
            self.drawn.append(np.ascontiguousarray(order, dtype=np.intp))
            self.stored.append(min(max(rows // (images * calls), 1), count))
        self.stride = max(-(-images * sum(self.stored) // rows), 1)  # where even one row an image is too many

    def batch(self, call: int, start: int, stop: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
        """Return image (within the batch), position and whether the row is stored, for images start to stop."""
        positions = self.drawn[call][start:stop]
        image = np.repeat(np.arange(stop - start), positions.shape[1])
        is_stored = np.zeros(positions.shape, dtype=bool)
        is_stored[(np.arange(start, stop) % self.stride) == 0, : self.stored[call]] = True
        return image, positions.reshape(-1), is_stored.reshape(-1)
