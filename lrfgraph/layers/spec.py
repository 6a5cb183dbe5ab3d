"""What a layer is to us: its kernel in one canonical order, and how its inputs are cut into rows.

Every kernel is brought to the order ``(groups, *spatial, inputs, outputs)``, both channel counts per
group. A depthwise convolution is the grouped one with as many groups as channels, a dense layer the one
without spatial axes, so the mathematics is written once for all of them. Nothing here imports Keras.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAYER_KINDS", "Family", "LayerKind", "LayerSpec", "canonical", "native"]

Array = NDArray[np.floating[Any]]
Family = Literal["convolution", "transposed", "depthwise", "separable", "dense"]


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer that can be factorized.

    `spatial` is the number of spatial axes; `rows` says what a row of the layer's matrix is: a ``patch`` of
    the input under the kernel, or a single input ``vector`` (dense, transposed: its outputs are then the
    scattered contributions of one position).
    """

    name: str
    keras_class: str
    family: Family
    spatial: int
    rows: Literal["patch", "vector"]


LAYER_KINDS: dict[str, LayerKind] = {
    kind.name: kind
    for kind in (
        LayerKind("conv1d", "Conv1D", "convolution", 1, "patch"),
        LayerKind("conv2d", "Conv2D", "convolution", 2, "patch"),
        LayerKind("conv3d", "Conv3D", "convolution", 3, "patch"),
        LayerKind("conv1d_transpose", "Conv1DTranspose", "transposed", 1, "vector"),
        LayerKind("conv2d_transpose", "Conv2DTranspose", "transposed", 2, "vector"),
        LayerKind("conv3d_transpose", "Conv3DTranspose", "transposed", 3, "vector"),
        LayerKind("depthwise_conv1d", "DepthwiseConv1D", "depthwise", 1, "patch"),
        LayerKind("depthwise_conv2d", "DepthwiseConv2D", "depthwise", 2, "patch"),
        LayerKind("separable_conv1d", "SeparableConv1D", "separable", 1, "vector"),
        LayerKind("separable_conv2d", "SeparableConv2D", "separable", 2, "vector"),
        LayerKind("dense", "Dense", "dense", 0, "vector"),
    )
}


@dataclass(frozen=True)
class LayerSpec:
    """A layer as plain data.

    Parameters
    ----------
    name : path of the layer, ``outer/inner`` inside nested models.
    class_name : Keras class.
    kind : entry of `LAYER_KINDS`, or ``""`` for a layer that has no kernel to factorize.
    kernel : canonical shape ``(groups, *spatial, inputs, outputs)``, channel counts per group; of a separable
        convolution it is the pointwise kernel, whose inputs are the depthwise outputs.
    depthwise : shape ``(*spatial, inputs, multiplier)`` of a separable convolution's depthwise kernel.
    input_shapes, output_shapes : one shape per call, channels last, without the batch axis.
    parameters, macs : of the whole layer, all its calls (a shared layer counts its weights once).
    bias : whether it has one.  activation : name of the fused activation.
    batchnorm : path of the BatchNormalization that alone reads its output, or ``""``.
    tail : name of the activation that follows (fused, or a layer of its own).
    identity : digest of kernel, bias and folded BatchNorm.  upstream : digest of all that feeds it.
    kept : why it cannot be factorized whatever the method, or ``""``.
    """

    name: str
    class_name: str
    kind: str = ""
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: str = "valid"
    output_padding: tuple[int, ...] = ()
    data_format: str = "channels_last"
    depthwise: tuple[int, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    output_shapes: tuple[tuple[int, ...], ...] = ()
    parameters: int = 0
    macs: int = 0
    bias: bool = False
    activation: str = "linear"
    batchnorm: str = ""
    tail: str = "linear"
    identity: str = ""
    upstream: str = ""
    kept: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        return LAYER_KINDS[self.kind].family

    @property
    def rows(self) -> Literal["patch", "vector"]:
        return LAYER_KINDS[self.kind].rows

    @property
    def groups(self) -> int:
        return self.kernel[0]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Kernel sizes along the spatial axes."""
        return self.kernel[1:-2]

    @property
    def positions(self) -> int:
        """S of METHODS: the number of kernel positions."""
        return prod(self.spatial)

    @property
    def inputs(self) -> int:
        """Input channels per group."""
        return self.kernel[-2]

    @property
    def outputs(self) -> int:
        """Output channels per group."""
        return self.kernel[-1]

    @property
    def weights(self) -> int:
        """Number of kernel entries."""
        return prod(self.kernel)

    @property
    def width(self) -> int:
        """Length of one row of one group."""
        return self.inputs * (self.positions if self.rows == "patch" else 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerSpec:
        def frozen(value: Any) -> Any:
            return tuple(frozen(item) for item in value) if isinstance(value, list) else value

        return cls(**{name: frozen(value) for name, value in data.items()})

    def matrix(self, kernel: Array) -> Array:
        """Return a canonical kernel as the matrices that rows are multiplied with.

        Shape ``(groups, positions·inputs, outputs)`` where rows are patches and
        ``(groups, inputs, positions·outputs)`` where they are vectors.
        """
        groups, inputs, outputs = kernel.shape[0], kernel.shape[-2], kernel.shape[-1]
        if self.rows == "patch":
            return kernel.reshape(groups, -1, outputs)
        return np.moveaxis(kernel.reshape(groups, -1, inputs, outputs), 1, 2).reshape(groups, inputs, -1)


def canonical(family: Family, kernel: Array, groups: int = 1) -> Array:
    """Bring a Keras kernel to ``(groups, *spatial, inputs, outputs)``, channels per group.

    Keras keeps ``(*spatial, inputs/groups, outputs)`` for convolutions, ``(*spatial, outputs, inputs)`` for
    transposed ones, ``(*spatial, inputs, multiplier)`` for depthwise ones and ``(inputs, outputs)`` for dense.
    """
    if family == "transposed":
        kernel = np.swapaxes(kernel, -1, -2)
    if family == "depthwise":
        return np.moveaxis(kernel, -2, 0)[..., None, :]
    *spatial, inputs, outputs = kernel.shape
    split = kernel.reshape(*spatial, inputs, groups, outputs // groups)
    return np.moveaxis(split, -2, 0)


def native(family: Family, kernel: Array) -> Array:
    """Undo `canonical`."""
    if family == "depthwise":
        return np.moveaxis(kernel[..., 0, :], 0, -2)
    joined = np.moveaxis(kernel, 0, -2)
    *spatial, inputs, groups, outputs = joined.shape
    joined = joined.reshape(*spatial, inputs, groups * outputs)
    return np.swapaxes(joined, -1, -2) if family == "transposed" else joined
