"""Images from a function of the user's: arrays, dictionaries and tuples of them, or streams of tf.data."""

from __future__ import annotations

import hashlib
import importlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.memory import BoundedCache, array_bytes
from lrfgraph.engine.rows import ArrayLike, blocks
from lrfgraph.errors import DataError
from lrfgraph.images.archives import rows_of_spool, spool
from lrfgraph.images.naming import KNOWN_AS, PART_NAMES, Inputs
from lrfgraph.images.reading import Reading

__all__ = ["Elements", "call_function", "function_digest", "import_function", "join_elements", "named_arrays"]

Array = NDArray[Any]
LONGEST_STREAM = 100_000
ENDLESS = -1  # what tf.data calls the number of elements of a stream that repeats
TUPLES: dict[int, tuple[str, ...]] = {
    1: ("x_train",),
    2: ("x_train", "y_train"),
    4: ("x_train", "y_train", "x_test", "y_test"),
    6: ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
}
"""By how many values a function returns, what they are."""

RESULTS = BoundedCache(0, keep_last=True)


class Elements:
    """One component of a stream's elements, in order, in a file as soon as they are many.

    Whether they are batches says the model's input.
    """

    def __init__(self, elements: Iterable[Any] = (), reading: Reading | None = None) -> None:
        self.file, self.shapes = spool(reading or Reading()), Counter[tuple[int, ...]]()
        weakref.finalize(self, self.file.close)
        for element in elements:
            self.add(np.asarray(element))

    def __len__(self) -> int:
        return self.shapes.total()

    def add(self, element: Array) -> None:
        """Append an element."""
        if not self.shapes:
            self.first, self.dtype = element.shape, element.dtype
        self.shapes[element.shape] += 1
        self.file.write(np.ascontiguousarray(element, self.dtype).data)

    def content(self) -> ArrayLike:
        """Return the numbers of all, one after the other."""
        count = sum(prod(shape) * n for shape, n in self.shapes.items())
        return rows_of_spool(self.file, (count,), self.dtype)

    def joined(self, batched: bool) -> ArrayLike | None:
        """Return all as one array, ``None`` where their shapes differ."""
        kinds = {shape[1:] if batched else shape for shape in self.shapes}
        if len(kinds) != 1 or (batched and not self.first):
            return None
        count = sum(shape[0] * n if batched else n for shape, n in self.shapes.items())
        return rows_of_spool(self.file, (count, *kinds.pop()), self.dtype)


def import_function(text: str, base: Path) -> Callable[..., Any]:
    """Import ``package.module:function``; modules in the folder `base` are found without installing them."""
    module, _, name = text.partition(":")
    folder = str(base.resolve())
    sys.path.insert(0, folder)
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    finally:
        sys.path.remove(folder)
    return function


def call_function(source: str, base: Path, reading: Reading | None = None) -> dict[str, Any]:
    """Call the user's function once per process; return its arrays, or `Elements` of its streams, by name.

    An input among several is named ``x_train/NAME``, or by its place: ``x_train/0``.
    """
    return _call(source, base, reading)[0]


def function_digest(source: str, base: Path, reading: Reading | None = None) -> str:
    """Return the digest of what the user's function gives, made once per process."""
    return _call(source, base, reading)[1]


def _call(source: str, base: Path, reading: Reading | None) -> tuple[dict[str, Any], str]:
    key = (source, base.resolve())
    result: tuple[dict[str, Any], str] | None = RESULTS.get(key)
    if result is None:
        try:
            named = dict(named_arrays(import_function(source, base)(), f"data function {source}", reading))
        except DataError:
            raise
        except Exception as error:
            first = str(error).strip().splitlines()[:1]
            raise DataError(f"data function {source} raised {type(error).__name__}: {''.join(first)}") from None
        state = hashlib.blake2b(digest_size=20)
        for name, array in sorted(named.items()):
            whole = array.content() if isinstance(array, Elements) else array
            form = array.first if isinstance(array, Elements) else array.shape
            state.update(f"{name}{whole.dtype.str}{form}".encode())
            for block in blocks(whole):
                state.update(block.tobytes())
        result = named, state.hexdigest()
        RESULTS.put(key, result, array_bytes(named))
    return result


def named_arrays(value: Any, origin: str, reading: Reading | None = None) -> Iterator[tuple[str, Any]]:
    """Yield arrays, or `Elements` of streams, by name.

    value : a dictionary of arrays or streams, one array or stream, or a tuple of them, see `TUPLES`.
    origin : what it comes from, for messages.  reading : of streams.  Raises DataError.
    """
    reading = reading or Reading()
    if isinstance(value, Mapping):
        for name, item in value.items():
            if _is_stream(item):
                yield from _read_stream(item, PART_NAMES.get(str(name).lower(), "train"), origin, reading)
            else:
                yield from _flat(str(name), item)
        return
    several = value if isinstance(value, tuple) else (value,)
    if all(_is_stream(item) for item in several) and 1 <= len(several) <= 3:
        names = ("train", "test") if len(several) == 2 else ("train", "val", "test")
        for item, part in zip(several, names, strict=False):
            yield from _read_stream(item, part, origin, reading)
        return
    if several and all(isinstance(item, tuple) for item in several):  # ((x, y), (x, y)) as keras.datasets gives
        several = tuple(array for pair in several for array in pair)
    if len(several) not in TUPLES or any(map(_is_stream, several)) or any(item is None for item in several):
        received = "None" if value is None else f"{len(several)} values"
        raise DataError(f"{origin} gave {received}; give a dict of arrays or (x, y), or up to three streams of tf.data")
    for name, item in zip(TUPLES[len(several)], several, strict=True):
        yield from _flat(name, item)


def _flat(name: str, item: Any) -> Iterator[tuple[str, Array]]:
    """One array, or one for each of several inputs (a dictionary or a tuple)."""
    if isinstance(item, Mapping):
        yield from ((f"{name}/{own}", np.asarray(array)) for own, array in item.items())
    elif isinstance(item, tuple) and len({np.ndim(array) for array in item} - {0}) > 0:
        yield from ((f"{name}/{place}", np.asarray(array)) for place, array in enumerate(item))
    else:
        yield name, np.asarray(item)


def _is_stream(value: Any) -> bool:
    return hasattr(value, "as_numpy_iterator")


def _read_stream(dataset: Any, part: str, origin: str, reading: Reading) -> Iterator[tuple[str, Elements]]:
    """Write a tf.data.Dataset's elements down, one by one; raises DataError where it does not end."""
    length = int(dataset.cardinality())
    if length == ENDLESS:
        raise DataError(f"the {part} stream of {origin} does not end; let it end with .take(n)")
    collected: dict[str, Elements] = {}
    for number, element in enumerate(dataset.as_numpy_iterator()):
        reading.tell(number, max(length, 0), f"elements of the {part} stream")
        if length < 0 and number == LONGEST_STREAM:
            raise DataError(
                f"the {part} stream of {origin} does not say how long it is, and has more than {number:,} elements; "
                "let it end with .take(n), or say so with tf.data.experimental.assert_cardinality"
            )
        pair = element if isinstance(element, tuple) else (element,)
        for name, item in (element if isinstance(element, Mapping) else dict(zip("xy", pair, strict=False))).items():
            for flat, array in _flat(str(name), item):
                own = _name_in_part(flat, part)
                if array.dtype.kind not in "biuf":
                    raise DataError(f"{origin}: {own} must hold numbers; received {array.dtype}")
                if own not in collected:
                    collected[own] = Elements(reading=reading)
                collected[own].add(array)
    yield from collected.items()


def _name_in_part(name: str, part: str) -> str:
    """Name a component of a stream's elements as an array of a part: ``image`` is ``x_train``, unknown names inputs."""
    own, slash, place = name.partition("/")
    known = KNOWN_AS.get(own.lower())
    return f"x_{part}/{own}" if known is None else f"{known[0]}_{part}{slash}{place}"


def join_elements(named: Mapping[str, Any], inputs: Inputs) -> dict[str, ArrayLike]:
    """Make one array of a stream's elements, which are batches where images have more axes than the model's input."""
    arrays: dict[str, ArrayLike] = {}
    for name, elements in named.items():
        if not isinstance(elements, Elements):
            arrays[name] = elements
            continue
        part = name.partition("/")[0][2:]
        own = next((other for other in named if other.partition("/")[0] == f"x_{part}"), name)
        joined = elements.joined(len(named[own].first) > _rank(own, inputs))
        if joined is None:
            raise DataError(f"{name}: the stream's elements differ in shape; received {elements.first} first")
        arrays[name] = joined
    return arrays


def _rank(name: str, inputs: Inputs) -> int:
    """How many axes the input that an array is called after has, without the batch axis."""
    place, shapes = name.partition("/")[2], list(inputs.values())
    if place in inputs:
        return len(inputs[place])
    number = int(place) if place.isdigit() else 0
    return len(shapes[number]) if number < len(shapes) else 0
