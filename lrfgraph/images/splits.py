"""How the images are divided: calibration, validation and test are disjoint; labels stratify the division."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.rows import Chosen
from lrfgraph.errors import DataError
from lrfgraph.images.preprocessing import Images, Preprocessing
from lrfgraph.images.sources import Array, Dataset
from lrfgraph.images.targets import classes_of
from lrfgraph.options.recipe import DataOptions

__all__ = ["Part", "Splits", "split"]

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

    def images(self, dataset: Dataset, preprocessings: Sequence[Preprocessing]) -> Images:
        return Images(dataset.inputs(self.source), tuple(preprocessings), self.indices)

    def raws(self, dataset: Dataset) -> tuple[Chosen, ...]:
        """The images as the source gave them, for each input, read when they are asked for."""
        return tuple(Chosen(raw, self.indices) for raw in dataset.inputs(self.source))


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


def split(dataset: Dataset, options: DataOptions) -> Splits:
    """Divide the images; raises DataError where there are too few.

    Validation depends on the seed and `validation` alone, and fewer calibration images are always the first of
    more, so that asking for more keeps what is known about the rest.
    """
    pool = next(part for part in ("train", "val", "test") if dataset.has(part))
    count, classes = len(dataset.x(pool)), classes_of(dataset.y(pool))
    notes, rest = [], np.arange(count)
    if dataset.has("val") and pool == "train":
        validation = Part("val", np.arange(len(dataset.x("val"))))
        notes.append(f"validation: {len(validation)} images, the given validation part")
    else:
        held, gaps = _held_out(count, classes, options)
        validation, rest = Part(pool, held), np.setdiff1d(rest, np.r_[held, gaps])
        between = f", {len(gaps)} next to them left out" if len(gaps) else ""
        notes.append(f"validation: {len(held)} images held out of the {pool} part ({options.split}{between})")
    order = rest[_stratified(None if classes is None else classes[rest], len(rest), options.seed, stream=2)]
    most = len(order) if pool == "train" else max(len(order) // 4, 1)
    calibration = Part(pool, order[: min(options.calibration, most)])
    notes.append(f"calibration: {len(calibration)} images of the {pool} part")
    test = Part("test", np.arange(len(dataset.x("test")))) if dataset.has("test") else None
    if pool != "train":
        rest = np.setdiff1d(rest, calibration.indices)
        notes.append(f"no training part: calibration and validation were taken out of the {pool} part; no fine-tuning")
    if pool == "val":
        validation = Part(pool, np.union1d(validation.indices, rest))
        notes[0] = f"validation: {len(validation)} images of the val part that are not calibrated on"
    if pool == "test":
        test = Part("test", rest)
    train = Part(pool, rest) if pool == "train" else None
    notes.append(f"test: {len(test)} images" if test else "test: no test part given, nothing measured on it")
    return Splits(calibration, validation, train, test, tuple(notes))


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
