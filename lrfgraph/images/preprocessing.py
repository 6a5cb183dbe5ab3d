"""What is done to images before the network sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.rows import ArrayLike
from lrfgraph.errors import DataError
from lrfgraph.images.sources import Array, Inputs, Shape, channel_axis, read_npz
from lrfgraph.images.targets import fits
from lrfgraph.options.recipe import DataOptions

__all__ = ["Images", "Preprocessing", "guesses", "prepare", "preprocessing", "preprocessings"]


@dataclass(frozen=True)
class Preprocessing:
    """What is done to images: channel axis added, colours turned round, ``(x · scale − mean) / std``."""

    input_shape: Shape
    scale: float | None = None
    mean: NDArray[np.float32] | None = None
    std: NDArray[np.float32] | None = None
    bgr: bool = False

    def apply(self, x: Array) -> NDArray[np.float32]:
        """Return float32 images of the model's input shape; raises DataError where the shapes differ."""
        if len(x.shape) == len(self.input_shape) and self.input_shape[-1] == 1:
            x = x[..., None]
        if not fits(x.shape[1:], self.input_shape):
            raise DataError(f"images have shape {x.shape[1:]}, the model takes {self.input_shape}")
        if self.bgr:
            x = np.flip(x, axis=channel_axis(self.input_shape))
        result = np.array(x, dtype=np.float32, order="C")
        if self.scale is not None:
            result *= np.float32(self.scale)
        for values, operation in ((self.mean, np.subtract), (self.std, np.divide)):
            if values is not None:
                operation(result, values, out=result)
        return result


@dataclass(frozen=True)
class Images:
    """Preprocessed images that are made when they are asked for, so that raw ones alone stay in memory.

    raws, preprocessings : one for each of the network's inputs.  indices : of the images, ``None`` for all.
    Slices are float32 arrays, of several inputs tuples of them.
    """

    raws: tuple[ArrayLike, ...]
    preprocessings: tuple[Preprocessing, ...]
    indices: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.raws[0] if self.indices is None else self.indices)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images, of several inputs those of the first."""
        return (len(self), *self.preprocessings[0].apply(self.raws[0][:1]).shape[1:])

    def first(self, count: int) -> Images:
        """Return the first images, made when they are asked for like all."""
        indices = np.arange(len(self)) if self.indices is None else self.indices
        return replace(self, indices=indices[:count])

    @property
    def several(self) -> bool:
        """Whether there is more than one input."""
        return len(self.raws) > 1

    def __getitem__(self, chosen: slice | NDArray[np.integer[Any]]) -> Any:
        rows = chosen if self.indices is None else self.indices[chosen]
        made = tuple(how.apply(raw[rows]) for raw, how in zip(self.raws, self.preprocessings, strict=True))
        return made if self.several else made[0]


def preprocessings(options: DataOptions, inputs: Inputs, base: Path = Path()) -> tuple[Preprocessing, ...]:
    """Return what is done to each input: what the options say, of several inputs to those that are pictures."""
    if len(inputs) == 1:
        return (preprocessing(options, next(iter(inputs.values())), base),)
    plain = DataOptions()
    return tuple(preprocessing(options if len(shape) > 1 else plain, shape, base) for shape in inputs.values())


def preprocessing(options: DataOptions, input_shape: Shape, base: Path = Path()) -> Preprocessing:
    """Resolve the options of preprocessing, the statistics file read; raises DataError where they do not fit."""
    values: dict[str, NDArray[np.float32] | None] = {"mean": None, "std": None}
    if options.stats is not None:
        arrays = {name: np.asarray(array) for name, array in read_npz(base / options.stats).items()}
        if not set(values) <= set(arrays):
            raise DataError(f"{options.stats} must hold arrays mean and std; received {', '.join(arrays) or 'none'}")
        values = {name: np.asarray(arrays[name], np.float32) for name in values}
    axis = channel_axis(input_shape)
    for name in values:
        constant = getattr(options, name)
        if constant is not None:
            # The channel axis may be the first one; all others are broadcast over.
            shape = [1] * len(input_shape)
            shape[axis] = len(constant)
            values[name] = np.asarray(constant, np.float32).reshape(shape)
        value = values[name]
        if value is not None and not _broadcasts(value.shape, input_shape):
            raise DataError(f"[data] {name} has shape {value.shape}, the model takes images {input_shape}")
    return Preprocessing(input_shape, options.scale, values["mean"], values["std"], options.channels == "bgr")


def prepare(x: Array, options: DataOptions, input_shape: Shape, base: Path = Path()) -> NDArray[np.float32]:
    """Return images as the network takes them, float32."""
    return preprocessing(options, input_shape, base).apply(x)


def guesses(x: Array, options: DataOptions) -> dict[str, DataOptions]:
    """Return usual preprocessings by the options that ask for them, to be tried on a model at chance level."""
    plain = replace(options, scale=None, mean=None, std=None, stats=None, channels="rgb")
    top = 255.0 if float(np.max(x[:256])) <= 1.5 else 1.0  # images already in 0..1 are brought back first
    unit = top / 255
    sample = np.asarray(x[:1024], np.float64) * top / 255
    each = {"mean": (float(sample.mean()),), "std": (max(float(sample.std()), 1e-6),)}
    tried = {
        "pixels 0..255": replace(plain, scale=top),
        "--scale 1/255": replace(plain, scale=unit),
        "--scale 1/127.5 --mean 1": replace(plain, scale=2 * unit, mean=(1.0,)),
        "mean 0, deviation 1": replace(plain, scale=unit, mean=each["mean"], std=each["std"]),
    }
    if x.ndim == 4 and 3 in (x.shape[-1], x.shape[1]):
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        caffe = (103.939, 116.779, 123.68)
        tried |= {
            "ImageNet mean and std": replace(plain, scale=unit, mean=mean, std=std),
            "--channels bgr, ImageNet mean": replace(plain, scale=top, mean=caffe, channels="bgr"),
            "--scale 1/255 --channels bgr": replace(plain, scale=unit, channels="bgr"),
        }
    return tried


def _broadcasts(shape: Sequence[int], whole: Shape) -> bool:
    pairs = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(s == 1 or w in (None, s) for s, w in pairs)
