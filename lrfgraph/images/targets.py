"""Labels as a source gives them, and the targets that a network's outputs are compared with. NumPy only.

Which of these a network needs says its head (``network.heads``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import DataError
from lrfgraph.images.sources import Array, Shape

__all__ = [
    "are_switches",
    "class_numbers",
    "classes_of",
    "fits",
    "is_one_hot",
    "label_sets",
    "numbers",
    "share_of_largest_class",
]


def fits(shape: Sequence[int], expected: Shape) -> bool:
    """Whether an array has the expected shape, of which ``None`` takes any length."""
    return len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))


def classes_of(y: Array | None) -> NDArray[np.int64] | None:
    """Return one class number an image, where labels are such: whole numbers or one-hot rows."""
    if y is None:
        return None
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.ndim == 1 and (flat.dtype.kind in "biu" or bool((flat == np.round(flat)).all())):
        return flat.astype(np.int64)
    return flat.argmax(1) if is_one_hot(flat) else None


def is_one_hot(y: Array) -> bool:
    """Whether rows hold a single 1 and zeros."""
    return y.ndim == 2 and y.shape[1] > 1 and are_switches(y) and bool((y.sum(1) == 1).all())


def are_switches(y: Array) -> bool:
    """Whether labels are zeros and ones alone."""
    return bool(np.isin(y, (0, 1)).all())


def class_numbers(y: Array, output_shape: Shape) -> Array:
    """Return class numbers, one for each of an output's answers: int64, at many positions the smallest type.

    y : class numbers or one-hot rows.  output_shape : (…, classes), a single class being a yes or no.  Raises DataError
    where labels have another shape, are fractions or out of range.
    """
    known, many = output_shape[-1] or 0, len(output_shape) > 1
    count = max(known, 2) if known else None
    kind = np.int64 if not many else np.uint8 if known <= 256 else np.int32
    if known > 1 and y.ndim == len(output_shape) + 1 and fits(y.shape[1:], output_shape):
        return np.asarray(y.argmax(-1), kind)
    labels = y[..., 0] if y.ndim == len(output_shape) + 1 and y.shape[-1] == 1 else y
    if not fits(labels.shape[1:], output_shape[:-1]):
        raise DataError(f"labels have shape {y.shape[1:]}, the model's output {output_shape}; give class numbers")
    whole = labels.astype(np.int64)
    if not np.array_equal(whole, labels):
        raise DataError("labels of a classification must be whole numbers, received fractions; or set data.head=values")
    if count is not None and (whole.min() < 0 or whole.max() >= count):
        raise DataError(
            f"labels run from {whole.min()} to {whole.max()}, the model has {count} classes (0 to {count - 1})"
        )
    return whole.astype(kind)


def label_sets(y: Array, output_shape: Shape) -> Array:
    """Return whether an image has each label, uint8 of the output's shape; raises DataError where not 0 or 1."""
    if not fits(y.shape[1:], output_shape):
        raise DataError(
            f"labels have shape {y.shape[1:]}, the model's output {output_shape}; give 0 or 1 for each label"
        )
    if not are_switches(y):
        raise DataError(
            f"labels of a multi-label network must be 0 or 1, received {y.min():g} to {y.max():g}; "
            "or set data.head=values"
        )
    return y.astype(np.uint8)


def numbers(y: Array, output_shape: Shape) -> Array | None:
    """Return float32 targets of the output's shape; ``None`` where labels cannot be such (digits beside a picture)."""
    shaped = y[:, None] if output_shape == (1,) and y.ndim == 1 else y
    return np.asarray(shaped, np.float32) if fits(shaped.shape[1:], output_shape) else None


def share_of_largest_class(targets: Array) -> float:
    """Return the accuracy of always answering the most frequent class."""
    return float(np.bincount(np.ravel(targets)).max() / targets.size)
