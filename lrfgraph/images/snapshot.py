"""Images as plain arrays, as they came: what is kept of a split, and how images are made of it again.

Calibration images are the first of the repair images, which are kept once: what repair has more is beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.rows import ArrayLike, Chosen, Joined, Rows
from lrfgraph.images.preprocessing import Images, Preprocessing

__all__ = ["KEPT", "kept_arrays", "kept_images", "preprocessing_arrays", "read_preprocessings"]

Array = NDArray[Any]
KEPT = ("calibration", "repair", "validation")
"""The splits whose images are kept themselves; those of the others stay in the source."""


def kept_arrays(splits: Mapping[str, Sequence[ArrayLike]]) -> dict[str, ArrayLike]:
    """Return the arrays to be kept, by name; they are read when they are written.

    splits : by name, the images of each input, (n, …).
    """
    arrays: dict[str, ArrayLike] = {}
    for split, raws in splits.items():
        start = len(splits["calibration"][0]) if split == "repair" else 0
        arrays |= {f"{split}/x/{place}": Chosen(raw, np.arange(start, len(raw))) for place, raw in enumerate(raws)}
    return arrays


def kept_images(rows: Callable[[str], ArrayLike], split: str, how: Sequence[Preprocessing]) -> Images:
    """Return a split's images, preprocessed as they are asked for.

    rows : kept array by name.  how : the preprocessing of each input.
    """
    names = ("calibration", "repair") if split == "repair" else (split,)
    raws = (tuple(rows(f"{name}/x/{place}") for name in names) for place in range(len(how)))
    return Images(tuple(map(_joined, raws)), tuple(how))


def _joined(pieces: tuple[ArrayLike, ...]) -> ArrayLike:
    if len(pieces) == 1 or not len(pieces[1]):
        return pieces[0]
    return Joined(*pieces) if any(isinstance(piece, Rows) for piece in pieces) else np.concatenate(pieces)


def preprocessing_arrays(preprocessings: Iterable[Preprocessing]) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Return the preprocessing of each input as JSON and, by name, arrays."""
    data, arrays = [], {}
    for place, how in enumerate(preprocessings):
        data.append({"input_shape": list(how.input_shape), "scale": how.scale, "bgr": how.bgr})
        given = {"mean": how.mean, "std": how.std}
        arrays.update({f"preprocessing/{place}/{name}": value for name, value in given.items() if value is not None})
    return data, arrays


def read_preprocessings(
    data: Iterable[Mapping[str, Any]], names: Iterable[str], array: Callable[[str], Array]
) -> tuple[Preprocessing, ...]:
    """Return what `preprocessing_arrays` wrote; names : of all arrays there are."""
    known = set(names)

    def value(place: int, name: str) -> Array | None:
        full = f"preprocessing/{place}/{name}"
        return array(full) if full in known else None

    return tuple(
        Preprocessing(tuple(how["input_shape"]), how["scale"], value(place, "mean"), value(place, "std"), how["bgr"])
        for place, how in enumerate(data)
    )
