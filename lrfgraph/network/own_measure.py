"""A measure of the user's: ``package.module:function(targets, outputs)``, larger is better."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import DataError
from lrfgraph.network.measures import Measure
from lrfgraph.network.opening.archive import one_line

__all__ = ["own_measure"]

Array = NDArray[Any]
GROUPS = 50
"""Groups of images that are left out one after the other, where a measure is one number of all images."""


def own_measure(text: str) -> Measure:
    """Return the measure that ``package.module:function`` is.

    The function gets targets (n, …) and the network's outputs (n, …), float32, and returns a number for each image,
    whose mean is the measure, or one number for all. Raises DataError where it cannot be imported.
    """
    module, _, name = text.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(f"metric {text}: {module} cannot be imported ({one_line(error)})") from None
    function = getattr(imported, name, None)
    if not callable(function):
        raise DataError(f"metric {text}: {module} has no function {name}")
    return Measure(name, whole=lambda outputs, targets: _pseudo_values(function, text, outputs, targets), share=False)


def _pseudo_values(function: Callable[..., Any], text: str, outputs: Array, targets: Array) -> Array:
    """Image by image (n,): what the function says of each, or of one number for all what leaving groups out says.

    The delete-a-group jackknife (P. S. Kott, Journal of Official Statistics 17, 2001), scaled so that the values' mean
    is the measure and the standard error of their mean is the measure's.
    """
    count = len(outputs)
    value = _called(function, text, outputs, targets)
    if value.shape == (count,) and count > 1:
        return value
    groups = min(GROUPS, count)
    number = np.arange(count) % groups
    if groups < 2:
        return np.full(count, float(value.reshape(())))
    without = [_called(function, text, outputs[number != g], targets[number != g]) for g in range(groups)]
    pseudo = groups * float(value) - (groups - 1) * np.array(without, np.float64)
    each = ((pseudo - pseudo.mean()) * np.sqrt(count / groups))[number]
    each -= np.average(each)  # groups differ in size by one image
    return np.asarray(float(value) + each)


def _called(function: Callable[..., Any], text: str, outputs: Array, targets: Array) -> Array:
    """Call the function on arrays of its own; raises DataError where it fails, or returns what is no measure."""
    try:
        value = np.asarray(function(targets.copy(), outputs.copy()), np.float64)
    except (Exception, SystemExit) as error:
        raise DataError(f"metric {text} raised {type(error).__name__}: {one_line(error)}") from None
    if value.shape not in ((), (len(outputs),)) or not np.isfinite(value).all():
        what = f"shape {value.shape}" if value.shape not in ((), (len(outputs),)) else "a value that is not finite"
        raise DataError(
            f"metric {text} must return a number, or one for each of {len(outputs)} images; received {what}"
        )
    return value
