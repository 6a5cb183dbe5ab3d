"""What is measured of a network's outputs against targets. NumPy only.

A measure gives one pseudo-value an image: their mean is the measure, their deviation over √n its standard error, and
that of their differences the standard error of a difference on the same images. Where a measure is a mean over images
the pseudo-values are what is averaged (a difference is then McNemar's); otherwise they are the measure plus its
derivative by the image's weight: the infinitesimal jackknife (B. Efron, "The Jackknife, the Bootstrap and Other
Resampling Plans", 1982), of the area under the ROC curve the same as E. DeLong et al., Biometrics 44, 1988.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINARY", "CLASSES", "LABELS", "POSITIONS", "VALUES", "Measure", "Measures", "standard_error"]

Array = NDArray[Any]
FEW = 10
"""Fewer classes have no top-5 accuracy worth a number."""


@dataclass(frozen=True)
class Measure:
    """One measure, computed in blocks of images.

    title : for people.  share : whether it is one of 1, which people read in percent.
    gather : answers (n, …, classes) or values (n, …), targets → what is kept of each image, (n, …).
    finish : what was kept of all images → pseudo-values (n,), or ``None`` where the measure is not defined.
    centred : whether `gather` is called with the targets' mean over all images besides.
    whole : in place of both, the network's own outputs (n, …) and the targets of all images → pseudo-values (n,).
    """

    title: str
    gather: Callable[..., Array] = lambda answers, targets: answers
    finish: Callable[[Array], Array | None] = lambda kept: kept
    centred: bool = False
    whole: Callable[[Array, Array], Array] | None = None
    share: bool = True


Measures = Mapping[str, Measure]


def standard_error(each: Array) -> float:
    """Return the standard error of the mean of pseudo-values; of shares of right answers, the binomial's."""
    mean = float(each.mean())
    if np.isin(each, (0, 1)).all():
        return float(np.sqrt(mean * (1 - mean) / len(each)))
    return float(each.std() / np.sqrt(len(each)))


def _per_image(values: Array) -> Array:
    return np.asarray(values.reshape(len(values), -1).mean(1))


def _right(outputs: Array, targets: Array) -> Array:
    return _per_image(outputs.argmax(-1) == targets)


def _among_first_five(outputs: Array, targets: Array) -> Array:
    if outputs.shape[-1] < FEW:
        return np.zeros((len(outputs), 0))
    own = np.take_along_axis(outputs, targets[..., None].astype(np.int64), -1)
    return _per_image((outputs > own).sum(-1) < 5)


def _if_any(kept: Array) -> Array | None:
    return kept if kept.ndim == 1 else None


def _squared_error(outputs: Array, targets: Array) -> Array:
    return _per_image(np.square(outputs - np.asarray(targets, np.float64)))


def _squares(outputs: Array, targets: Array, centre: Array) -> Array:
    """(n, 2): an image's squared error, and its targets' squared distance from their mean over all images."""
    targets = np.asarray(targets, np.float64)
    pairs = ((outputs, targets), (targets, centre[None]))
    return np.stack([np.square(a - b).reshape(len(a), -1).sum(1) for a, b in pairs], -1)


def _determination(kept: Array) -> Array | None:
    """Pseudo-values of 1 − Σ errors / Σ distances; the mean, being their minimum, adds nothing to the derivative."""
    errors, distances = kept.T
    whole = distances.sum()
    if not whole:
        return None
    ratio = errors.sum() / whole
    return np.asarray(1 - ratio - len(kept) * (errors - ratio * distances) / whole)


# Ratios of sums over images: intersection over union, F1 ---------------------------------------------------------


def _intersections(outputs: Array, targets: Array) -> Array:
    """(n, classes, 2): positions that both answer and target give a class, and that either does."""
    classes, count = outputs.shape[-1], len(outputs)
    answers, labels = (values.reshape(count, -1) for values in (outputs.argmax(-1), targets))
    kept = np.zeros((count, classes, 3))
    for number in range(classes):
        ours, theirs = answers == number, labels == number
        kept[:, number] = np.stack([(ours & theirs).sum(1), (ours | theirs).sum(1), theirs.sum(1)], -1)
    return kept


def _hits(outputs: Array, targets: Array) -> Array:
    """(n, labels, 3): twice the labels rightly given, the labels given and those there, and those there."""
    ours, theirs = outputs.argmax(-1), targets.astype(np.int64)
    ours, theirs = (values.reshape(len(values), -1, values.shape[-1]) for values in (ours, theirs))
    return np.stack([2 * (ours & theirs).sum(1), (ours + theirs).sum(1), theirs.sum(1)], -1).astype(float)


def _mean_ratio(kept: Array) -> Array | None:
    """Pseudo-values of the mean over classes of Σ first / Σ second; classes that no target has are left out."""
    kept = kept[:, kept[..., 2].sum(0) > 0]
    if not kept.shape[1]:
        return None
    above, below = kept[..., 0], kept[..., 1]
    whole = below.sum(0)
    ratio = above.sum(0) / whole
    return np.asarray((ratio + len(kept) * (above - ratio * below) / whole).mean(1))


# Orders of all images: area under the ROC curve, average precision --------------------------------------------------


def _scores(outputs: Array, targets: Array) -> Array:
    """(n, answers, labels, 2): how much more likely yes is than no, and whether it is so."""
    scores = outputs[..., 1] - outputs[..., 0]
    if targets.ndim == 1:
        scores, targets = scores.reshape(-1, 1), targets[:, None]
    return np.stack([values.reshape(len(values), -1, values.shape[-1]) for values in (scores, targets)], -1)


def _auc(kept: Array) -> Array | None:
    scores, there = kept[:, 0, 0, 0], kept[:, 0, 0, 1] > 0
    with_it, without = np.sort(scores[there]), np.sort(scores[~there])
    if not len(with_it) or not len(without):
        return None
    each = np.empty(len(scores))
    for chosen, others, sign in ((there, without, 1), (~there, with_it, -1)):
        below = sum(np.searchsorted(others, scores[chosen], side) for side in ("left", "right")) / (2 * len(others))
        each[chosen] = below if sign > 0 else 1 - below
    area = float(each[there].mean())
    for chosen in (there, ~there):
        each[chosen] = area + len(scores) * (each[chosen] - area) / chosen.sum()
    return each


def _mean_average_precision(kept: Array) -> Array | None:
    labels = [number for number in range(kept.shape[2]) if kept[:, :, number, 1].any()]
    if not labels:
        return None
    each = [_average_precision(kept[:, :, number, 0], kept[:, :, number, 1] > 0) for number in labels]
    return np.asarray(np.mean(each, axis=0))


def _average_precision(scores: Array, there: Array) -> Array:
    """Pseudo-values of one label's average precision Σ (Rₖ − Rₖ₋₁) Pₖ; scores, there : (n, answers)."""
    flat, yes = scores.ravel(), there.ravel()
    everything, positives = np.sort(flat), np.sort(flat[yes])
    reached = len(flat) - np.searchsorted(everything, positives, "left")
    precision = (len(positives) - np.searchsorted(positives, positives, "left")) / reached
    value = precision.mean()
    # A weight acts through the precision at every positive that is not above it.
    upto = np.searchsorted(positives, flat, "right")
    sums = [np.r_[0.0, np.cumsum(part)][upto] for part in (1 / reached, precision / reached)]
    slope = yes * sums[0] - sums[1]
    slope[yes] += precision[np.searchsorted(positives, flat[yes], "left")] - value
    return np.asarray(value + len(scores) * (slope / len(positives)).reshape(scores.shape).sum(1))


CLASSES: Measures = {
    "accuracy": Measure("accuracy", _right),
    "top5": Measure("top-5 accuracy", _among_first_five, _if_any),
}
BINARY: Measures = {"accuracy": Measure("accuracy", _right), "auc": Measure("area under the ROC curve", _scores, _auc)}
LABELS: Measures = {
    "map": Measure("mean average precision", _scores, _mean_average_precision),
    "f1": Measure("F1, mean over labels", _hits, _mean_ratio),
}
POSITIONS: Measures = {
    "iou": Measure("mean IoU", _intersections, _mean_ratio),
    "pixel_accuracy": Measure("pixel accuracy", _right),
}
VALUES: Measures = {
    "r2": Measure("R²", _squares, _determination, centred=True),
    "mse": Measure("mean squared error", _squared_error, share=False),
}
