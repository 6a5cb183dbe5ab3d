"""A chain of pieces turned into Keras layers: the builders that the table of layer kinds names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from lrfgraph.errors import LayerError
from lrfgraph.layers.kinds import KINDS_BY_CLASS, PER_CHANNEL, PLAIN, Array, LayerKind
from lrfgraph.layers.pieces import Piece

__all__ = ["Chain", "Replacement", "make_layers"]

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Chain:
    """What stands in for one layer.

    weights : one array a piece, of the shapes that `pieces` says.  bias : of all output channels; ``None`` keeps
    the layer's own, if it has one.
    """

    method: str
    pieces: tuple[Piece, ...]
    weights: tuple[Array, ...]
    bias: Array | None = None


@dataclass(frozen=True)
class Replacement:
    """Keras layers that stand in for one, and the weights they get once they are built."""

    layers: tuple[Any, ...]
    weights: tuple[list[Array], ...]


@dataclass(frozen=True)
class _Link:
    """One piece about to become a Keras layer.

    common : name, dtype, trainable, bias and activation.  first : whether it begins the chain.
    """

    layer: Any
    kind: LayerKind
    piece: Piece
    weight: Array
    common: dict[str, Any]
    first: bool

    def along(self, values: Any, otherwise: int = 1) -> tuple[int, ...]:
        """The layer's own value on the axes this piece carries, a neutral one on the others."""
        own = (values,) * self.kind.spatial if isinstance(values, int) else tuple(values)
        return tuple(own[axis] if axis in self.piece.axes else otherwise for axis in range(self.kind.spatial))

    @property
    def geometry(self) -> dict[str, Any]:
        return {
            "strides": self.along(self.layer.strides),
            "dilation_rate": self.along(self.layer.dilation_rate),
            "padding": self.layer.padding if self.piece.axes else "valid",
            "data_format": self.layer.data_format,
        }


def make_layers(layer: Any, chain: Chain, shape: tuple[int | None, ...], names: set[str]) -> Replacement:
    """Return the Keras layers of a chain in place of `layer`, whose input has `shape` (batch axis first).

    New names are added to `names`.  Raises LayerError where the chain does not fit the layer.
    """
    kind = KINDS_BY_CLASS.get(type(layer).__name__)
    if kind is None:
        raise LayerError(f"{layer.name}: {type(layer).__name__} cannot be replaced; keep it")
    if len(chain.pieces) != len(chain.weights) or any(
        piece.shape != weight.shape for piece, weight in zip(chain.pieces, chain.weights, strict=False)
    ):
        shapes = [weight.shape for weight in chain.weights]
        raise LayerError(f"{layer.name}: {chain.method} declares {[p.shape for p in chain.pieces]}, received {shapes}")
    refused = [piece.form for piece in chain.pieces if piece.form not in kind.family.forms]
    if refused:
        raise LayerError(
            f"{layer.name}: {chain.method} has a {refused[0]} piece, which no {kind.family.name} layer can be"
        )
    bias = chain.bias
    if bias is None and layer.use_bias:
        bias = np.asarray(layer.bias)
    build = _CHAIN_BUILDERS.get(kind.family.forms[chain.pieces[0].form], _one_layer_a_piece)
    return build(layer, kind, replace(chain, bias=bias), shape, names)


def _one_layer_a_piece(
    layer: Any, kind: LayerKind, chain: Chain, shape: tuple[int | None, ...], names: set[str]
) -> Replacement:
    layers, weights = [], []
    for index, (piece, weight) in enumerate(zip(chain.pieces, chain.weights, strict=True)):
        bias = chain.bias if index + 1 == len(chain.pieces) else None
        common = {
            "name": _new_name(layer, chain.method, index + 1, names),
            "dtype": layer.dtype_policy,
            "trainable": layer.trainable,
            "use_bias": bias is not None,
            "activation": layer.activation if index + 1 == len(chain.pieces) else None,
        }
        build = _BUILDERS[kind.family.forms[piece.form]]
        keras_layer, values = build(_Link(layer, kind, piece, weight, common, index == 0))
        layers.append(keras_layer)
        weights.append(values + ([] if bias is None else [np.asarray(bias).reshape(-1)]))
    return Replacement(tuple(layers), tuple(weights))


def _new_name(layer: Any, method: str, number: int, names: set[str]) -> str:
    name = f"{layer.name}_{method}_{number}"
    while name in names:
        name += "_"
    names.add(name)
    return name


def _convolution(link: _Link) -> tuple[Any, list[Array]]:
    """A (grouped) convolution; a depthwise one where every group has one input and Keras has such a layer."""
    import keras

    groups, inputs = link.piece.shape[0], link.piece.shape[-2]
    if groups > 1 and inputs == 1 and _depthwise_can(link):
        cls = getattr(keras.layers, f"DepthwiseConv{link.kind.spatial}D")
        layer = cls(link.piece.shape[1:-2], depth_multiplier=link.piece.shape[-1], **link.geometry, **link.common)
        return layer, [PER_CHANNEL.native(link.weight)]
    kernel = PLAIN.native(link.weight)
    cls = getattr(keras.layers, f"Conv{link.kind.spatial}D")
    layer = cls(kernel.shape[-1], link.piece.shape[1:-2], groups=groups, **link.geometry, **link.common)
    return layer, [kernel]


def _depthwise_can(link: _Link) -> bool:
    """TensorFlow's depthwise operation has one stride for both axes, no causal padding and no third axis; on a CPU
    it wants channels last."""
    geometry = link.geometry
    return (
        link.kind.spatial < 3
        and len(set(geometry["strides"])) == 1
        and (max(geometry["strides"]) == 1 or max(geometry["dilation_rate"]) == 1)
        and geometry["padding"] != "causal"
        and geometry["data_format"] == "channels_last"
    )


def _channelwise(link: _Link) -> tuple[Any, list[Array]]:
    """One filter a channel: the grouped convolution with a group for every channel."""
    groups, *spatial, channels = link.piece.shape
    weight = np.moveaxis(link.weight, -1, 1).reshape(groups * channels, *spatial, 1, 1)
    piece = Piece("mix", weight.shape, link.piece.axes)
    return _convolution(_Link(link.layer, link.kind, piece, weight, link.common, link.first))


def _transposed(link: _Link) -> tuple[Any, list[Array]]:
    import keras

    if not link.piece.axes:
        return _convolution(link)
    kernel = link.kind.family.order.native(link.weight)
    padding = getattr(link.layer, "output_padding", None)
    cls = getattr(keras.layers, f"Conv{link.kind.spatial}DTranspose")
    if padding is not None:
        padding = link.along(padding, 0)
    layer = cls(kernel.shape[-2], kernel.shape[:-2], output_padding=padding, **link.geometry, **link.common)
    return layer, [kernel]


def _separable(link: _Link) -> tuple[Any, list[Array]]:
    """The first piece keeps the depthwise kernel and becomes the pointwise one; those after it are 1×1."""
    import keras

    if not link.first:
        return _convolution(link)
    layer, kernel = link.layer, link.kind.family.order.native(link.weight)
    replacement = getattr(keras.layers, f"SeparableConv{link.kind.spatial}D")(
        kernel.shape[-1],
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
        depth_multiplier=layer.depth_multiplier,
        **link.common,
    )
    return replacement, [np.asarray(layer.depthwise_kernel), kernel]


def _dense(link: _Link) -> tuple[Any, list[Array]]:
    import keras

    kernel = link.kind.family.order.native(link.weight)
    return keras.layers.Dense(kernel.shape[-1], **link.common), [kernel]


def _tt_matrix(
    layer: Any, kind: LayerKind, chain: Chain, shape: tuple[int | None, ...], names: set[str]
) -> Replacement:
    """Reshape, one EinsumDense a core, reshape: a TT-matrix (Novikov et al., 2015) in place of a dense layer.

    After core k the axes are the outputs of the cores so far, the rank, the inputs of those to come.
    """
    import keras

    extra = tuple(shape[1:-1])
    if extra.count(None) > 1:
        raise LayerError(f"{layer.name}: {chain.method} needs all but one axis of its input known, received {shape}")
    open_extra = tuple(-1 if size is None else size for size in extra)
    inputs = [piece.shape[1] for piece in chain.pieces]
    outputs = [piece.shape[2] for piece in chain.pieces]
    width, units = int(layer.kernel.shape[0]), int(layer.units)
    common = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
    layers: list[Any] = []
    weights: list[list[Array]] = []

    def add(cls: Any, *args: Any, values: Sequence[Array] = (), **kwargs: Any) -> None:
        layers.append(cls(*args, name=_new_name(layer, chain.method, len(layers) + 1, names), **common, **kwargs))
        weights.append(list(values))

    if prod(inputs) != width:  # a prime size was padded with zeros
        add(keras.layers.Reshape, (-1, width, 1))
        add(keras.layers.ZeroPadding2D, ((0, 0), (0, prod(inputs) - width)), data_format="channels_last")
    add(keras.layers.Reshape, (*open_extra, *inputs))
    free = LETTERS[3 : 3 + len(extra)]
    batch, r, s = LETTERS[0], LETTERS[1], LETTERS[2]
    ins = LETTERS[3 + len(extra) :][: len(inputs)]
    outs = LETTERS[3 + len(extra) + len(inputs) :][: len(outputs)]
    last = len(chain.pieces) - 1
    for k, weight in enumerate(chain.weights):
        before, after = (r if k else ""), (s if k < last else "")
        source = batch + free + outs[:k] + before + ins[k:]
        target = batch + free + outs[: k + 1] + after + ins[k + 1 :]
        sizes = (*extra, *outputs[: k + 1], *((chain.pieces[k].shape[3],) if after else ()), *inputs[k + 1 :])
        kernel = weight.reshape([n for n, used in zip(weight.shape, (before, True, True, after), strict=True) if used])
        values = [kernel]
        bias = chain.bias if k == last else None
        if bias is not None:
            padded = np.concatenate([np.asarray(bias).reshape(-1), np.zeros(prod(outputs) - units)]).astype(np.float32)
            values.append(padded.reshape(outputs))
        add(
            keras.layers.EinsumDense,
            f"{source},{before}{ins[k]}{outs[k]}{after}->{target}",
            sizes,
            bias_axes=None if bias is None else outs,
            values=values,
        )
    if prod(outputs) != units:
        add(keras.layers.Reshape, (-1, prod(outputs), 1))
        add(keras.layers.Cropping2D, ((0, 0), (0, prod(outputs) - units)), data_format="channels_last")
    add(keras.layers.Reshape, (*open_extra, units))
    if keras.activations.serialize(layer.activation) != "linear":
        add(keras.layers.Activation, layer.activation)
    return Replacement(tuple(layers), tuple(weights))


Builder = Callable[[_Link], tuple[Any, list[Array]]]
ChainBuilder = Callable[[Any, LayerKind, Chain, tuple[int | None, ...], set[str]], Replacement]

_BUILDERS: dict[str, Builder] = {
    "convolution": _convolution,
    "channelwise": _channelwise,
    "transposed": _transposed,
    "separable": _separable,
    "dense": _dense,
}
"""Keras layer and weights of one piece, by the name that the table of kinds gives."""

_CHAIN_BUILDERS: dict[str, ChainBuilder] = {"tt_matrix": _tt_matrix}
"""The same for forms whose pieces are built together."""
