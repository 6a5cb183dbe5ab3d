"""Images and labels: how they are divided, and what the network sees of them.

The measured parts (calibration, validation, test) are disjoint; labels stratify the division and measure
accuracy, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import DataError
from lrfgraph.images.sources import (
    Array,
    Dataset,
    Shape,
    channel_axis,
    is_one_hot,
    load,
    read_npz,
    source_digest,
    source_state,
)
from lrfgraph.options.recipe import DataOptions

__all__ = [
    "Dataset",
    "Images",
    "Part",
    "Preprocessing",
    "Splits",
    "chance_level",
    "guesses",
    "load",
    "prepare",
    "preprocessing",
    "source_digest",
    "source_state",
    "split",
    "targets_of",
    "task_of",
]

Indices = NDArray[np.int64]

LARGEST_VALIDATION = 5000
UNLABELLED_RUNS = 10


@dataclass(frozen=True)
class Part:
    """Some of the images: positions (ascending where order does not matter) in one part of the source."""

    source: str
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self, dataset: Dataset) -> Array | None:
        labels = dataset.y(self.source)
        return None if labels is None else labels[self.indices]

    def images(self, dataset: Dataset, preprocessing: Preprocessing) -> Images:
        return Images(dataset.x(self.source), self.indices, preprocessing)


@dataclass(frozen=True)
class Splits:
    """The division: calibration, validation and test are disjoint; training images are all but validation's.

    notes : what each number will come from, for the report.
    """

    calibration: Part
    validation: Part
    train: Part | None
    test: Part | None
    notes: tuple[str, ...]


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
        if not _fits(x.shape[1:], self.input_shape):
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
    """Preprocessed images that are made when they are asked for, so that raw ones alone stay in memory."""

    raw: Array
    indices: Indices
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self[:1].shape[1:])

    def __getitem__(self, chosen: slice | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        return self.preprocessing.apply(self.raw[self.indices[chosen]])


def split(dataset: Dataset, options: DataOptions) -> Splits:
    """Divide the images; raises DataError where there are too few.

    Validation depends on the seed and `validation` alone, and fewer calibration images are always the first of
    more, so that asking for more keeps what is known about the rest.
    """
    pool = next(part for part in ("train", "test", "val") if dataset.has(part))
    count, classes = len(dataset.x(pool)), _classes(dataset.y(pool))
    notes = []
    rest = np.arange(count)
    if dataset.has("val") and pool != "val":
        validation = Part("val", np.arange(len(dataset.x("val"))))
        notes.append(f"validation: {len(validation)} images, the given validation part")
    else:
        held, gaps = _held_out(count, classes, options)
        validation, rest = Part(pool, held), np.setdiff1d(rest, np.r_[held, gaps])
        between = f", {len(gaps)} next to them left out" if len(gaps) else ""
        notes.append(f"validation: {len(held)} images held out of the {pool} part ({options.split}{between})")
    order = rest[_stratified(None if classes is None else classes[rest], len(rest), options.seed, stream=2)]
    most = max(len(order) // 4, 1) if pool == "test" else len(order)
    calibration = Part(pool, order[: min(options.calibration, most)])
    notes.append(f"calibration: {len(calibration)} images of the {pool} part")
    train = None if pool == "test" else Part(pool, rest)
    test = Part("test", np.arange(len(dataset.x("test")))) if dataset.has("test") else None
    if pool == "test":
        test = Part("test", np.setdiff1d(rest, calibration.indices))
        notes.append("no training part: calibration and validation were taken out of the test part; no fine-tuning")
    notes.append(f"test: {len(test)} images" if test else "test: no test part given, nothing measured on it")
    return Splits(calibration, validation, train, test, tuple(notes))


def preprocessing(options: DataOptions, input_shape: Shape, base: Path = Path()) -> Preprocessing:
    """Resolve the options of preprocessing, the statistics file read; raises DataError where they do not fit."""
    values: dict[str, NDArray[np.float32] | None] = {"mean": None, "std": None}
    if options.stats is not None:
        arrays = read_npz(base / options.stats)
        if not set(values) <= set(arrays):
            raise DataError(f"{options.stats} must hold arrays mean and std; received {', '.join(arrays) or 'none'}")
        values = {name: np.asarray(arrays[name], np.float32) for name in values}
    axis = channel_axis(input_shape)
    for name in values:
        given = getattr(options, name)
        if given is not None:
            # The channel axis may be the first one; all others are broadcast over.
            shape = [1] * len(input_shape)
            shape[axis] = len(given)
            values[name] = np.asarray(given, np.float32).reshape(shape)
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


def task_of(options: DataOptions, y: Array | None, input_shape: Shape, output_shape: Shape) -> str:
    """Say what the network does, ``classification`` or ``regression``, from its shapes and the labels.

    Without labels, one vector per image counts as classification unless it has the input's shape.
    """
    if options.task != "auto":
        return options.task
    if len(output_shape) != 1 or output_shape == input_shape:
        return "regression"
    if y is None:
        return "classification" if output_shape[0] != 1 else "regression"
    if output_shape[0] == 1:
        return "classification" if bool(np.isin(y, (0, 1)).all()) else "regression"
    return "regression" if _classes(y) is None else "classification"


def targets_of(y: Array | None, task: str, output_shape: Shape) -> Array | None:
    """Return class numbers (int64) or float32 targets of the output's shape; None where there are none.

    A regression whose labels cannot be its targets (digits beside an autoencoder) has none: its own input is the
    target then. Raises DataError where labels are out of range.
    """
    if y is None:
        return None
    if task == "regression":
        shaped = y[:, None] if output_shape == (1,) and y.ndim == 1 else y
        return np.asarray(shaped, np.float32) if _fits(shaped.shape[1:], output_shape) else None
    known = output_shape[-1] or 0
    count = max(known, 2) if known else None
    if known > 1 and y.ndim == len(output_shape) + 1 and y.shape[-1] == known:
        return np.asarray(y.argmax(-1), np.int64)
    labels = y[..., 0] if y.ndim == len(output_shape) + 1 and y.shape[-1] == 1 else y
    if labels.ndim != len(output_shape):
        raise DataError(f"labels have shape {y.shape[1:]}, the model's output {output_shape}; give class numbers")
    numbers = labels.astype(np.int64)
    if not np.array_equal(numbers, labels):
        raise DataError(
            "labels of a classification must be whole numbers, received fractions; or set data.task=regression"
        )
    if count is not None and (numbers.min() < 0 or numbers.max() >= count):
        raise DataError(
            f"labels run from {numbers.min()} to {numbers.max()}, the model has {count} classes (0 to {count - 1})"
        )
    return numbers


def chance_level(targets: Array) -> float:
    """Return the accuracy of always answering the most frequent class."""
    return float(np.bincount(np.ravel(targets)).max() / targets.size)


def _classes(y: Array | None) -> Indices | None:
    """Class numbers, where labels are such: whole numbers or one-hot rows."""
    if y is None:
        return None
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.ndim == 1 and (flat.dtype.kind in "biu" or bool((flat == np.round(flat)).all())):
        return flat.astype(np.int64)
    return flat.argmax(1) if is_one_hot(flat) else None


def _held_out(count: int, classes: Indices | None, options: DataOptions) -> tuple[Indices, Indices]:
    share = options.validation
    size = int(share) if share >= 1 else min(max(round(share * count), 1), LARGEST_VALIDATION)
    if size >= count:
        raise DataError(
            f"{size} validation images leave none of {count} to calibrate on; give more, or fewer with data.validation"
        )
    if options.split == "stratified":
        return np.sort(_stratified(classes, count, options.seed, stream=1)[:size]), np.arange(0)
    return _runs(count, classes, size, options.seed)


def _stratified(classes: Indices | None, count: int, seed: int, stream: int) -> Indices:
    """Return a random order of which every beginning has all classes in proportion."""
    random = np.random.default_rng([seed, stream])
    order = random.permutation(count)
    if classes is None:
        return order
    place = np.empty(count)
    for members in _members(classes[order]):
        place[members] = (np.arange(len(members)) + random.random()) / len(members)
    return order[np.argsort(place, kind="stable")]


def _members(classes: Indices) -> list[Indices]:
    by_class = np.argsort(classes, kind="stable")
    return np.split(by_class, np.flatnonzero(np.diff(classes[by_class])) + 1)


def _runs(count: int, classes: Indices | None, size: int, seed: int) -> tuple[Indices, Indices]:
    """Hold out one run of neighbours per class, and leave out a third of its length on both sides.

    Frames of one track are neighbours; those that a cut divides fall into the gap and serve nobody.
    """
    random = np.random.default_rng([seed, 1])
    groups = np.array_split(np.arange(count), min(UNLABELLED_RUNS, count)) if classes is None else _members(classes)
    held, gaps = [], []
    for members in groups:
        length = min(max(round(size * len(members) / count), 1), len(members) - 1)
        start = int(random.integers(0, len(members) - length + 1))
        gap = min(-(-length // 3), (len(members) - length) // 3)
        held.append(members[start : start + length])
        gaps.append(np.r_[members[max(start - gap, 0) : start], members[start + length : start + length + gap]])
    return np.sort(np.concatenate(held)), np.sort(np.concatenate(gaps))


def _fits(shape: Sequence[int], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


def _broadcasts(shape: Sequence[int], wanted: Shape) -> bool:
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(s == 1 or w in (None, s) for s, w in pairs)
