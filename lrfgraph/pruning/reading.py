"""A layer and what was recorded of its inputs, as the reader of channels that scores and refits see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrfgraph.errors import ConfigurationError
from lrfgraph.layers.rows import grouped
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.pruning.base import Reader
from lrfgraph.pruning.channels import Numbers

__all__ = ["Record", "kernel_and_bias", "reader_of"]

STAYS = -1
"""The channel number of the constant 1."""

DAMPING = 0.01
"""What is added to the Fisher factor, in parts of its mean diagonal."""

WIDEST = 8192
"""Rows of a layer's matrix up to which moments between all of them are made."""


@dataclass(frozen=True)
class Record:
    """What is known of a layer.

    kernel : canonical.  scale : of a BatchNormalization folded behind it, (groups·outputs,), or ``None``.
    moments : (groups, width+1, width+1), or ``None``.  rows : (n, S, channels).  curvature : (groups, outputs,
    outputs), or ``None``.
    """

    layer: LayerSpec
    kernel: Array
    bias: Array | None
    scale: Array | None
    rows: Array
    moments: Array | None
    curvature: Array | None = None


def reader_of(record: Record, inputs: Numbers) -> Reader:
    """Return a layer as a reader; inputs : (groups, inputs) channel numbers.

    An error of its output counts as the loss of the network (half the Fisher factor of the output's gradient), or
    without one as a share of the output's power behind its BatchNormalization.
    """
    layer = record.layer
    matrix = layer.matrix(np.asarray(record.kernel, np.float64))
    repeat = layer.positions if layer.rows == "patch" else 1
    numbers = np.tile(inputs, (1, repeat))
    moments = _moments(record)
    constant = has_shift(layer)
    if constant:
        bias = np.zeros((layer.groups, matrix.shape[2] // layer.outputs, layer.outputs))
        if record.bias is not None:
            bias = bias + record.bias.reshape(layer.groups, 1, layer.outputs)
        matrix = np.concatenate([matrix, bias.reshape(layer.groups, 1, -1)], axis=1)
        numbers = np.concatenate([numbers, np.full((layer.groups, 1), STAYS)], axis=1)
    else:
        moments = moments[:, :-1, :-1]
    return Reader(matrix, numbers, moments, _scale(record, matrix, moments), constant)


def has_shift(layer: LayerSpec) -> bool:
    """Whether a layer, or the BatchNormalization behind it, can take up a constant.

    A layer that scatters adds a row's contributions to those of others: what it shifts is not a constant.
    """
    return (layer.bias or bool(layer.batchnorm)) and not layer.family.scatters


def kernel_and_bias(layer: LayerSpec, matrix: Array) -> tuple[Array, Array | None]:
    """Take a reader's matrix apart: the canonical kernel, and the bias (groups·outputs,) where it has one."""
    bias = matrix[:, -1].reshape(-1) if has_shift(layer) else None
    matrix = matrix if bias is None else matrix[:, :-1]
    if layer.rows == "patch":
        return np.asarray(matrix.reshape(layer.kernel)), bias
    split = matrix.reshape(layer.groups, layer.inputs, layer.positions, layer.outputs)
    return np.asarray(np.moveaxis(split, 2, 1).reshape(layer.kernel)), bias


def _moments(record: Record) -> Array:
    """Moments with the constant; where none were summed, those of the rows.  Raises ConfigurationError."""
    if record.moments is not None:
        return np.asarray(record.moments)
    x = grouped(record.layer, np.asarray(record.rows, np.float32))
    if x.shape[2] > WIDEST:
        raise ConfigurationError(
            f"{record.layer.name}: its kernel has {x.shape[2]:,} rows, score features compares at most {WIDEST:,}; "
            "take another with --set prune.score=l1 --set prune.refit=false"
        )
    x = np.concatenate([x, np.ones((*x.shape[:2], 1), np.float32)], axis=2)
    return np.asarray(x.swapaxes(1, 2) @ x / x.shape[1], np.float64)


def _scale(record: Record, matrix: Array, moments: Array) -> Array:
    layer = record.layer
    repeat = matrix.shape[2] // layer.outputs
    if record.curvature is not None:
        diagonal = np.trace(record.curvature, axis1=1, axis2=2) / layer.outputs
        values, vectors = np.linalg.eigh(record.curvature)
        values = np.maximum(values, 0) + DAMPING * diagonal[:, None]
        roots = vectors * np.sqrt(values / 2)[:, None, :]
        return np.stack([np.kron(np.eye(repeat), root) for root in roots])
    scale = np.ones(layer.groups * layer.outputs) if record.scale is None else np.asarray(record.scale, np.float64)
    scale = np.tile(scale.reshape(layer.groups, layer.outputs), (1, repeat))
    outputs = matrix * scale[:, None, :]
    power = float(np.einsum("gij,gik,gkj->", outputs, moments, outputs, optimize=True))
    return np.asarray(np.stack([np.diag(each) for each in scale]) / np.sqrt(max(power, 1e-30)))
