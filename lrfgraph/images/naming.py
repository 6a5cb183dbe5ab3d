"""What the arrays of a source are called: parts, images and labels, and the inputs of a network that has several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lrfgraph.engine.rows import ArrayLike
from lrfgraph.errors import DataError

__all__ = ["KNOWN_AS", "PART_NAMES", "Inputs", "Shape", "input_names", "recognise"]

Shape = tuple[int | None, ...]
Inputs = Mapping[str, Shape]
"""A network's inputs in its order: name to shape without the batch axis."""

# Spellings met in the wild; case does not matter. The first word is the name used here.
ALIASES: dict[str, tuple[str, ...]] = {
    "x_train": ("x_train", "train_x", "xtrain", "train_images", "images_train", "x", "images", "image", "inputs"),
    "y_train": ("y_train", "train_y", "ytrain", "train_labels", "labels_train", "y", "labels", "label", "targets"),
    "x_val": ("x_val", "x_valid", "x_validation", "val_x", "xval", "val_images", "images_val"),
    "y_val": ("y_val", "y_valid", "y_validation", "val_y", "yval", "val_labels", "labels_val"),
    "x_test": ("x_test", "test_x", "xtest", "test_images", "images_test"),
    "y_test": ("y_test", "test_y", "ytest", "test_labels", "labels_test"),
}
KNOWN_AS = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
SEPARATORS = "/._"


def input_names(inputs: Inputs) -> tuple[str, ...]:
    """Return the names of a network's inputs where it has several; a single one needs none."""
    return tuple(inputs) if len(inputs) > 1 else ()


def recognise(
    named: Mapping[str, ArrayLike], source: str, inputs: Inputs
) -> tuple[dict[str, ArrayLike], tuple[str, ...]]:
    """Return arrays by the names used here, and notes of what was ignored.

    Of several inputs each is ``x_train/NAME``; a source may write ``x_train.NAME``, ``x_train_NAME``, the place in
    NAME's stead, or the input's NAME alone for a training part.  Raises DataError where images are not there, named
    twice or not those of the network.
    """
    names, arrays, ignored = input_names(inputs), dict[str, ArrayLike](), []
    for name, array in named.items():
        known = _known_name(name, names)
        if known is None:
            ignored.append(name)
            continue
        if known in arrays:
            raise DataError(f"{source} names {known} twice; received {', '.join(named)}")
        arrays[known] = array
    if not any(name.startswith("x") for name in arrays):
        raise DataError(
            f"{source} has no images; received {', '.join(named) or 'nothing'}, name them x_train and x_test, or x"
        )
    if names:
        arrays = _by_input(arrays, source, names)
    return arrays, (f"ignored arrays: {', '.join(ignored)}",) if ignored else ()


def _known_name(name: str, names: Sequence[str]) -> str | None:
    known = KNOWN_AS.get(name.lower())
    if known is not None or not names:
        return known
    if name in names:
        return f"x_train/{name}"
    for place, own in enumerate(names):
        for ending in (own, str(place)):
            stem = name.removesuffix(ending)
            images = KNOWN_AS.get(stem[:-1].lower(), "") if stem != name and stem[-1:] in SEPARATORS else ""
            if images.startswith("x"):
                return f"{images}/{own}"
    return None


def _by_input(arrays: Mapping[str, ArrayLike], source: str, names: Sequence[str]) -> dict[str, ArrayLike]:
    """Check that every part has all inputs; an array whose first axis counts the inputs is taken apart."""
    parts = {name.partition("/")[0] for name in arrays if name.startswith("x")}
    complete = {name: array for name, array in arrays.items() if not name.startswith("x")}
    for part in sorted(parts):
        whole = arrays.get(part)
        if whole is not None and len(whole) == len(names):
            complete |= {f"{part}/{name}": array for name, array in zip(names, np.asarray(whole), strict=True)}
            continue
        lacking = [name for name in names if f"{part}/{name}" not in arrays]
        if lacking:
            raise DataError(
                f"{source} has no {part}/{lacking[0]}; the model takes the inputs {', '.join(names)}, give an array of "
                f"each, as {part}/{names[0]}"
            )
        complete |= {f"{part}/{name}": arrays[f"{part}/{name}"] for name in names}
    return complete
