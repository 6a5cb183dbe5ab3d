"""Layers of every kind with small kernels, and which method takes which: the list that all tests of methods share."""

from __future__ import annotations

import numpy as np

from lrfgraph.layers.kinds import LAYER_KINDS
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import Method


def layer(
    kind: str, kernel: tuple[int, ...], size: int = 12, stride: int = 1, depthwise: tuple[int, ...] = ()
) -> LayerSpec:
    """Return a layer with inputs of `size` along every spatial axis ("same" padding)."""
    family = LAYER_KINDS[kind].family
    spatial = len(kernel) - 3
    after = size * stride if family.scatters else -(-size // stride)
    ins, outs = kernel[0] * kernel[-2], kernel[0] * kernel[-1]
    return LayerSpec(
        name=f"{kind}-{'x'.join(map(str, kernel))}-{stride}",
        class_name=LAYER_KINDS[kind].keras_class,
        kind=kind,
        kernel=kernel,
        strides=(stride,) * spatial,
        dilation=(1,) * spatial,
        padding="same",
        depthwise=depthwise,
        input_shapes=(((size,) * spatial + (ins,)),),
        output_shapes=(((after,) * spatial + (outs,)),),
    )


LAYERS = [
    layer("conv1d", (1, 5, 8, 12)),
    layer("conv1d", (2, 3, 6, 6), stride=2),
    layer("conv1d", (1, 1, 8, 12)),
    layer("conv2d", (1, 3, 3, 12, 16)),
    layer("conv2d", (1, 3, 3, 12, 16), stride=2),
    layer("conv2d", (1, 5, 3, 1, 8)),
    layer("conv2d", (1, 3, 1, 8, 8)),
    layer("conv2d", (4, 3, 3, 4, 6)),
    layer("conv2d", (1, 1, 1, 16, 10), stride=2),
    layer("conv2d", (3, 1, 1, 8, 6)),
    layer("conv3d", (1, 3, 2, 3, 6, 8)),
    layer("conv3d", (1, 1, 1, 1, 8, 8)),
    layer("conv1d_transpose", (1, 4, 8, 6), stride=2),
    layer("conv2d_transpose", (1, 3, 3, 10, 8), stride=2),
    layer("conv2d_transpose", (1, 1, 1, 10, 8), stride=2),
    layer("conv3d_transpose", (1, 2, 2, 2, 6, 4), stride=2),
    layer("depthwise_conv1d", (8, 5, 1, 2)),
    layer("depthwise_conv2d", (8, 3, 3, 1, 1)),
    layer("depthwise_conv2d", (8, 3, 5, 1, 2), stride=2),
    layer("separable_conv1d", (1, 1, 12, 10), depthwise=(3, 12, 1)),
    layer("separable_conv2d", (1, 1, 1, 16, 12), depthwise=(3, 3, 8, 2), stride=2),
    layer("dense", (1, 48, 30)),
    layer("dense", (1, 17, 13)),
    layer("dense", (1, 24, 64)),
]
PAIRS = [(method, spec) for method in METHODS.values() for spec in LAYERS if not method.reason(spec)]
NAMES = [f"{method.name}-{spec.name}" for method, spec in PAIRS]
SHARES = tuple(np.linspace(0.05, 1.0, 12))


def random_kernel(spec: LayerSpec, seed: int = 0, decay: float = 0.7) -> Array:
    """Return a kernel whose channel modes decay, so that low ranks mean something."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=spec.kernel)
    for axis in (-1, -2):
        size = spec.kernel[axis]
        mix = rng.normal(size=(size, size)) * decay ** (np.arange(size) / 4)
        kernel = np.moveaxis(np.moveaxis(kernel, axis, -1) @ mix, -1, axis)
    return (kernel / np.linalg.norm(kernel)).astype(np.float32)


def correlated_moments(spec: LayerSpec, seed: int = 1, samples: int = 0) -> Array:
    """Return G with a bias row, of inputs whose entries are strongly correlated."""
    rng = np.random.default_rng(seed)
    width, samples = spec.width, samples or 4 * spec.width + 8
    moments = np.empty((spec.groups, width + 1, width + 1))
    for group in range(spec.groups):
        mix = rng.normal(size=(width, width)) * 0.75 ** np.arange(width)
        rows = np.column_stack([rng.normal(size=(samples, width)) @ mix.T + 0.3, np.ones(samples)])
        moments[group] = rows.T @ rows / samples
    return moments


def random_outputs(spec: LayerSpec) -> Array:
    """Return H, of outputs that the network minds unequally."""
    root = np.random.default_rng(5).normal(size=(spec.groups, spec.outputs, spec.outputs))
    return root @ root.swapaxes(1, 2)


def output_error(spec: LayerSpec, kernel: Array, approximation: Array, moments: Array) -> float:
    """Return tr((Ŵ−W)ᵀ G (Ŵ−W))."""
    difference = spec.matrix(approximation.astype(np.float64) - kernel)
    return float(np.einsum("gij,gio,gjo->", moments[:, :-1, :-1], difference, difference))


def fit(method: Method, spec: LayerSpec, kernel: Array, rank: tuple[int, ...]) -> tuple[Array, ...]:
    return method.factorize(spec, method.prepare(spec, kernel), rank)
