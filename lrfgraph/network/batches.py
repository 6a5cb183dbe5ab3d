"""Training images batch by batch: in a new order every epoch, shifted and mirrored as asked, targets with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import DataError
from lrfgraph.images.sources import channel_axis

__all__ = ["Batches", "Split", "blended", "moved", "moved_split"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Split:
    """Images, array-like (n, …), and the targets that a head gives of them, or ``None``."""

    x: Any
    y: Any = None

    def __len__(self) -> int:
        return len(self.x)


class Batches:
    """The batches of one split, by epoch.

    section : of the options, as messages name it.  labels : whether targets are asked for; zeros otherwise.
    count : images of an epoch, all by default; a short last batch is left out: it would unsettle BatchNorm.
    Raises DataError where images cannot be moved as asked, or their targets not with them.
    """

    def __init__(self, split: Split, section: str, options: Any, labels: bool, count: int | None = None) -> None:
        self.split, self.crop, self.flip, self.labels = split, options.crop, options.flip, labels
        self.augments = self.crop > 0 or self.flip
        self._check(section)
        count = min(count or len(split), len(split))
        self.batch = min(options.batch, count)
        self.steps = count // self.batch
        self.seed = options.seed

    def _check(self, section: str) -> None:
        x, y = self.split.x, self.split.y
        spatial = tuple(_spatial(x.shape).values())
        if self.crop >= max(min(spatial, default=self.crop + 1), 1):
            raise DataError(f"[{section}] crop {self.crop} is too large for images of shape {x.shape[1:]}")
        if self.augments and getattr(x, "several", False):
            raise DataError(f"[{section}] crop and flip move the images of one input, the model takes several")
        shape = () if y is None else tuple(np.shape(y[:1])[1:])
        if self.augments and self.labels and len(shape) > 1 and not _moves_along(shape, x.shape):
            raise DataError(
                f"[{section}] crop and flip move images of shape {x.shape[1:]}, targets of shape {shape} cannot "
                f"follow; leave them out, or set {section}.labels=false"
            )

    def epoch(self, number: int) -> Iterator[tuple[Array, tuple[Array, ...], Array]]:
        """Yield the indices of each batch, its images, one array an input, and its targets."""
        random = np.random.default_rng([self.seed, number])
        order = random.permutation(len(self.split))
        axes = len(_spatial(self.split.x.shape))
        for step in range(self.steps):
            chosen = np.sort(order[step * self.batch : (step + 1) * self.batch])
            images = _as_tuple(self.split.x[chosen])
            labels = self._labels(chosen, images)
            if self.augments:
                shifts = random.integers(-self.crop, self.crop + 1, (len(chosen), axes))
                mirrored = (random.random(len(chosen)) < 0.5) & self.flip
                images = (moved(images[0], shifts, mirrored),)
                if labels.ndim > 2:
                    labels = _moved_targets(labels, shifts, mirrored, images[0].ndim)
            yield chosen, images, labels

    def _labels(self, chosen: Array, images: tuple[Array, ...]) -> Array:
        if not self.labels:
            return np.zeros(len(chosen), np.float32)
        return images[0] if self.split.y is self.split.x else np.asarray(self.split.y[chosen])


@dataclass(frozen=True)
class Moved:
    """Images, or targets at their positions, each moved once and for all; made when a slice is asked for.

    axes : of the images.  shifts, mirrored : as of `moved`, for all images.
    """

    source: Any
    axes: int
    shifts: Array
    mirrored: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, part: slice) -> Array:
        return _moved_targets(np.asarray(self.source[part]), self.shifts[part], self.mirrored[part], self.axes)


def moved_split(split: Split, options: Any) -> Split:
    """Return a split whose images are moved as in training, targets with them; always the same way."""
    x, y = split.x, split.y
    if not (options.crop or options.flip):
        return split
    random, axes = np.random.default_rng(options.seed), len(x.shape)
    shifts = random.integers(-options.crop, options.crop + 1, (len(x), len(_spatial(x.shape))))
    how = axes, shifts, (random.random(len(x)) < 0.5) & options.flip
    images = Moved(x, *how)
    if y is x:
        return Split(images, images)
    follow = y is not None and _moves_along(tuple(np.shape(y[:1])[1:]), tuple(x.shape))
    return Split(images, Moved(y, *how) if follow else y)


def moved(images: Array, shifts: Array, mirrored: Array) -> Array:
    """Shift each image along its spatial axes, edges reflected, and mirror some along the last one.

    images : (n, …), channels first or last.  shifts : (n, spatial axes).  mirrored : (n,) booleans.
    """
    spatial = _spatial(images.shape)
    for column, (axis, size) in enumerate(spatial.items()):
        index = np.abs(np.arange(size) + shifts[:, column, None])
        index = (size - 1) - np.abs((size - 1) - index)
        if column == len(spatial) - 1:
            index = np.where(mirrored[:, None], size - 1 - index, index)
        shape = [len(images)] + [1] * (images.ndim - 1)
        shape[axis] = size
        images = np.take_along_axis(images, index.reshape(shape), axis)
    return images


def blended(images: Array, count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Return images in a random order, the first `count` of them blended with others, and that order.

    A blend is λ·x + (1 − λ)·x′, λ uniform (Zhang et al., "mixup", 2018); what a network says of it is new even where it
    knows both images by heart (Beyer et al., "A good teacher is patient and consistent", 2022).
    """
    order, other = random.permutation(len(images)), random.permutation(len(images))
    weight = np.ones((len(images), *[1] * (images.ndim - 1)), np.float32)
    weight[:count] = random.random(weight[:count].shape)
    return weight * images[order] + (1 - weight) * images[other], order


def _as_tuple(batch: Any) -> tuple[Array, ...]:
    return tuple(np.asarray(array, np.float32) for array in (batch if isinstance(batch, tuple) else (batch,)))


def _moves_along(targets: tuple[int, ...], images: tuple[int, ...]) -> bool:
    """Whether targets have a value (or several, last) at each position of the images; shapes without a batch axis."""
    spatial = tuple(_spatial(images).values())
    if len(targets) == len(spatial):
        return targets == spatial
    return len(targets) == len(spatial) + 1 and tuple(_spatial((1, *targets)).values()) == spatial


def _moved_targets(targets: Array, shifts: Array, mirrored: Array, axes: int) -> Array:
    """Move targets with their images, which have `axes` axes."""
    if targets.ndim == axes:
        return moved(targets, shifts, mirrored)
    return moved(targets[..., None], shifts, mirrored)[..., 0]


def _spatial(shape: tuple[int, ...]) -> dict[int, int]:
    """Spatial axes of a batch of images and their sizes."""
    channels = channel_axis(tuple(shape[1:])) % (len(shape) - 1) + 1
    return {axis: size for axis, size in enumerate(shape) if axis not in (0, channels)}
