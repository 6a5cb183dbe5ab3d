"""LayerSpec, a layer as plain data: its kernel in one canonical order, its geometry, its digests.

Every kernel is brought to the order ``(groups, *spatial, inputs, outputs)``, both channel counts per
group. A depthwise convolution is the grouped one with as many groups as channels, a dense layer the one
without spatial axes, so the mathematics is written once for all of them. Nothing here imports Keras.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np

from lrfgraph.layers.kinds import LAYER_KINDS, Array, Family

__all__ = ["Array", "LayerSpec"]


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
    identity : digest of kernel, bias and folded BatchNorm.  upstream : digest of all that its rows are cut from: what
        feeds it, its data format, a separable convolution's depthwise kernel.
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
        """The traits of the layer's kind."""
        return LAYER_KINDS[self.kind].family

    @property
    def rows(self) -> Literal["patch", "vector"]:
        return self.family.rows

    @property
    def unrefittable(self) -> str:
        """Why repair leaves the layer to its factors, or ``""``."""
        return self.family.unrefittable or ("channels come first" if self.data_format == "channels_first" else "")

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
