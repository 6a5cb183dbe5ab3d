"""U, s, V of a layer's matricized kernel, and the kernels that they stand for (METHODS §6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.layers.kinds import KINDS_BY_CLASS
from lrfgraph.layers.moments import Moments
from lrfgraph.layers.pieces import compose, whole
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.algebra import balance, transpose
from lrfgraph.methods.weighting import Unweighting, weigh
from lrfgraph.selection.shrinking import Form

__all__ = ["absorbed", "decompose", "keep", "kernels", "native", "orthogonality_step", "rank_loss"]

NEGLIGIBLE = 1e-6
"""Share of the largest singular value below which one counts as zero."""

PLAIN = Unweighting()
"""Of a matrix that is that of the kernel itself."""

AUTO = 0.5
"""Share of a layer's parameters at which matricizations are compared."""


def decompose(
    layer: LayerSpec,
    methods: tuple[str, ...],
    kernel: Array,
    moments: Moments | None = None,
    output_weight: Array | None = None,
) -> tuple[str, tuple[Array, Array, Array], Unweighting]:
    """Return the method whose matrix of a canonical kernel loses least at half the parameters, and its U, s, V.

    U : (groups, m, r), orthonormal columns.  s : (groups, r), falling.  V : (groups, n, r).  r is the matrix' rank.
    moments, output_weight : what flows through the layer and how much the network minds it, see `weigh`. The matrix
    is then that of the weighted kernel, of the same norm; the last thing returned takes the weighting out again.
    """
    best: tuple[float, str, tuple[Array, Array, Array], Unweighting] | None = None
    for method in methods:
        weighted, undo = weigh(METHODS[method], layer, kernel, moments, output_weight)
        prepared = METHODS[method].prepare(layer, weighted)
        matrix = prepared["first"].astype(np.float64) @ prepared["last"].astype(np.float64)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        rank = max(int(np.count_nonzero(values.max(axis=0) > NEGLIGIBLE * values.max())), 1)
        unit = Form(layer, method, 1).cost_at(1).parameters
        kept = max(int(AUTO * layer.weights / unit), 1)
        lost = float(np.square(values[:, kept:]).sum() / max(np.square(values).sum(), 1e-30))
        if best is None or lost < best[0]:
            triple = left[..., :rank], values[:, :rank], transpose(right)[..., :rank]
            best = lost, method, triple, undo
    assert best is not None
    _, name, (left, values, right), undo = best
    if not undo.idle:
        size = float(np.linalg.norm(values)) / max(float(np.linalg.norm(kernel)), 1e-30) or 1.0
        values, undo = values / size, undo.scaled(size)
    left, values, right = (np.ascontiguousarray(each, np.float32) for each in (left, values, right))
    return name, (left, values, right), undo


def keep(array: Array, places: NDArray[np.intp]) -> Array:
    """Return the columns that stay.  array : (groups, …, r).  places : (groups, kept)."""
    index = places.reshape(len(places), *[1] * (array.ndim - 2), -1)
    return np.ascontiguousarray(np.take_along_axis(array, index, axis=-1))


def kernels(form: Form, left: Any, scale: Any, right: Any, xp: Any, undo: Unweighting = PLAIN) -> tuple[Any, ...]:
    """Return the canonical kernels that U, s, V stand for: two factors, or of a layer that is dense the one.

    xp : NumPy or ``keras.ops``.  undo : the weighting of the matrix.
    """
    first, last = METHODS[form.method].pieces(form.layer, (form.rank,))
    a = xp.reshape(left * scale[:, None, :], first.shape)
    groups, *spatial, rank, outputs = last.shape
    b = xp.moveaxis(xp.reshape(xp.swapaxes(right, -1, -2), (groups, rank, *spatial, outputs)), 1, -2)
    a, b = undo.chain((a, b), xp)
    return (xp.matmul(a, b),) if form.dense else (a, b)


def absorbed(form: Form, left: Array, scale: Array, right: Array, undo: Unweighting = PLAIN) -> tuple[Array, ...]:
    """Return the same with √|s| in each of the two factors: norms are balanced for whatever comes next."""
    root = np.sqrt(np.abs(scale))
    first, last = kernels(
        Form(form.layer, form.method, form.rank, dense=False),
        left * root[:, None, :], np.ones_like(scale), right * (np.sign(scale) * root)[:, None, :], np, undo,
    )  # fmt: skip
    if not undo.idle:
        first, last = balance((first, last))
    if not form.dense:
        return first, last
    pieces = METHODS[form.method].pieces(form.layer, (form.rank,))
    return (compose(pieces, (first, last)).reshape(whole(form.layer).shape),)


def native(operation: Any, kernel: Any) -> Any:
    """Return a canonical kernel, a tensor, in the order of a Keras layer."""
    import keras

    return KINDS_BY_CLASS[type(operation).__name__].family.order.native(kernel, keras.ops)


def rank_loss(scales: Sequence[Any], shares: Sequence[float]) -> Any:
    """Return Σ c·‖s‖₁/‖s‖₂ of the singular values (groups, r) of all layers; c is the layer's share of the cost."""
    import tensorflow as tf

    total = tf.constant(0.0)
    for scale, share in zip(scales, shares, strict=True):
        norm = tf.sqrt(tf.reduce_sum(tf.square(scale), -1) + 1e-12)
        total += share * tf.reduce_mean(tf.reduce_sum(tf.abs(scale), -1) / norm)
    return total


def orthogonality_step(side: Any) -> tuple[Any, Any]:
    """Return the orthogonality loss ‖UᵀU − I‖²/r² of one factor (groups, m, r), and the step that lowers it.

    The step is along the loss' gradient, 4·U(UᵀU − I)/r², of the length that leads to the nearest orthonormal factor
    where U is close to it (Newton and Schulz): U(UᵀU − I)/2.
    """
    import tensorflow as tf

    rank = int(side.shape[-1])
    apart = tf.matmul(side, side, transpose_a=True) - tf.eye(rank)
    return tf.reduce_sum(tf.square(apart)) / rank**2, tf.matmul(side, apart) / 2
