"""The table of layer kinds: what a layer is, how it is seen as a matrix, and what it can become.

Kinds that differ in the number of their spatial axes alone are of one family, and a family is written down once. All
that the mathematics, the counting and the network must know of a layer's kind is a trait of its family; nobody asks
which family it is. Nothing here imports Keras: builders of Keras layers are named, and found by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KINDS_BY_CLASS",
    "LAYER_KINDS",
    "PER_CHANNEL",
    "PLAIN",
    "Array",
    "Family",
    "Form",
    "KernelOrder",
    "LayerKind",
]

Array = NDArray[np.floating[Any]]
Form = Literal["mix", "channelwise", "core"]


@dataclass(frozen=True)
class KernelOrder:
    """How Keras orders a kernel's axes.

    canonical : a Keras kernel and its number of groups to ``(groups, *spatial, inputs, outputs)``, channels per group.
    native : back; of a tensor, with the module of its functions (``keras.ops``) in NumPy's place.
    """

    canonical: Callable[[Array, int], Array]
    native: Callable[..., Array]


def _split_groups(kernel: Array, groups: int) -> Array:
    *spatial, inputs, outputs = kernel.shape
    return np.moveaxis(kernel.reshape(*spatial, inputs, groups, outputs // groups), -2, 0)


def _join_groups(kernel: Any, xp: Any = np) -> Any:
    joined = xp.moveaxis(kernel, 0, -2)
    *spatial, inputs, groups, outputs = joined.shape
    return xp.reshape(joined, (*spatial, inputs, groups * outputs))


PLAIN = KernelOrder(_split_groups, _join_groups)
"""``(*spatial, inputs/groups, outputs)``, of a dense layer ``(inputs, outputs)``."""

SWAPPED = KernelOrder(
    lambda kernel, groups: _split_groups(np.swapaxes(kernel, -1, -2), groups),
    lambda kernel, xp=np: xp.swapaxes(_join_groups(kernel, xp), -1, -2),
)
"""``(*spatial, outputs, inputs)``."""

PER_CHANNEL = KernelOrder(
    lambda kernel, groups: np.moveaxis(kernel, -2, 0)[..., None, :],
    lambda kernel, xp=np: xp.moveaxis(kernel[..., 0, :], 0, -2),
)
"""``(*spatial, inputs, multiplier)``: every channel is a group."""


@dataclass(frozen=True)
class Family:
    """The traits that the kinds of a family share.

    Parameters
    ----------
    name : as messages say it.
    rows : what a row of the layer's matrix is, a ``patch`` of the input under the kernel or a single input ``vector``.
    positions : where the kernel is applied, at every position of the ``outputs`` or of the ``inputs``; rows are drawn
        from that grid.
    order : of the kernel's axes in Keras.  kernel : the Keras attribute that holds it.
    forms : the pieces that the layer can become, and the builder of Keras layers for each.
    refused : why it cannot become a piece of another form, where there is more to say about it.
    mixes_channels : whether an output reads several inputs.
    spatial_kernel : whether the kernel extends along the spatial axes, if there are any.
    scatters : whether outputs are sums of what several rows contribute; a row's outputs are then its contributions,
        ``positions·outputs`` of them.
    depthwise : the Keras attribute of a depthwise kernel that is applied first, carries all spatial axes and is kept,
        or ``""``.
    unrefittable : why repair leaves such a layer to its factors, or ``""``.
    """

    name: str
    rows: Literal["patch", "vector"]
    positions: Literal["inputs", "outputs"]
    order: KernelOrder
    forms: Mapping[Form, str]
    kernel: str = "kernel"
    refused: Mapping[Form, str] = field(default_factory=dict)
    mixes_channels: bool = True
    spatial_kernel: bool = True
    scatters: bool = False
    depthwise: str = ""
    unrefittable: str = ""

    def refusal(self, form: Form) -> str:
        """Say why the layer cannot become a piece of this form, or return ``""``."""
        return "" if form in self.forms else self.refused.get(form, f"no {self.name} layer can be a {form} piece")

    @property
    def convolves_channels(self) -> bool:
        """Whether one kernel mixes channels and positions."""
        return self.mixes_channels and self.spatial_kernel


CONVOLUTION = Family("convolution", "patch", "outputs", PLAIN, {"mix": "convolution", "channelwise": "channelwise"})
TRANSPOSED = Family(
    "transposed",
    "vector",
    "inputs",
    SWAPPED,
    {"mix": "transposed"},
    refused={"channelwise": "Keras has no depthwise transposed convolution"},
    scatters=True,
    unrefittable="outputs overlap: no row has a target of its own",
)
DEPTHWISE = Family(
    "depthwise",
    "patch",
    "outputs",
    PER_CHANNEL,
    {"mix": "convolution", "channelwise": "channelwise"},
    mixes_channels=False,
)
SEPARABLE = Family(
    "separable",
    "vector",
    "outputs",
    PLAIN,
    {"mix": "separable"},
    kernel="pointwise_kernel",
    refused={"channelwise": "separable layers are a CP chain already"},
    spatial_kernel=False,
    depthwise="depthwise_kernel",
)
DENSE = Family(
    "dense",
    "vector",
    "inputs",
    PLAIN,
    {"mix": "dense", "core": "tt_matrix"},
    refused={"channelwise": "dense layers have no spatial axes"},
    spatial_kernel=False,
)


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer that can be factorized: its Keras class, its number of spatial axes, its family's traits."""

    name: str
    keras_class: str
    spatial: int
    family: Family


LAYER_KINDS: dict[str, LayerKind] = {
    kind.name: kind
    for kind in (
        LayerKind("conv1d", "Conv1D", 1, CONVOLUTION),
        LayerKind("conv2d", "Conv2D", 2, CONVOLUTION),
        LayerKind("conv3d", "Conv3D", 3, CONVOLUTION),
        LayerKind("conv1d_transpose", "Conv1DTranspose", 1, TRANSPOSED),
        LayerKind("conv2d_transpose", "Conv2DTranspose", 2, TRANSPOSED),
        LayerKind("conv3d_transpose", "Conv3DTranspose", 3, TRANSPOSED),
        LayerKind("depthwise_conv1d", "DepthwiseConv1D", 1, DEPTHWISE),
        LayerKind("depthwise_conv2d", "DepthwiseConv2D", 2, DEPTHWISE),
        LayerKind("separable_conv1d", "SeparableConv1D", 1, SEPARABLE),
        LayerKind("separable_conv2d", "SeparableConv2D", 2, SEPARABLE),
        LayerKind("dense", "Dense", 0, DENSE),
    )
}
KINDS_BY_CLASS: dict[str, LayerKind] = {kind.keras_class: kind for kind in LAYER_KINDS.values()}
