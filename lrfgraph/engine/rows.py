"""Arrays that are read by their rows: of a file, of an entry, of images that are decoded when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_BYTES", "ArrayLike", "Chosen", "Joined", "Rows", "Told", "blocks"]

BLOCK_BYTES = 16 << 20
"""Bytes of rows that are read at once where all are read."""


class Rows(ABC):
    """An array of which no more is in memory than what is asked for.

    shape, dtype : of the whole.  ``rows[chosen]`` gives an array; chosen : a slice, places in any order, or one place.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows at some places, in that order."""

    def between(self, start: int, stop: int) -> NDArray[Any]:
        """Return the rows from `start` up to `stop`."""
        return self.take(np.arange(start, stop))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: slice | int | Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[Any]:
        if isinstance(chosen, slice):
            start, stop, step = chosen.indices(len(self))
            return self.between(start, max(stop, start)) if step == 1 else self.take(np.arange(start, stop, step))
        places = np.asarray(chosen, np.int64)
        if places.ndim == 0:
            return self.take(places[None])[0]  # type: ignore[no-any-return]
        if len(places) and places[-1] - places[0] == len(places) - 1 and (np.diff(places) == 1).all():
            return self.between(int(places[0]), int(places[-1]) + 1)
        return self.take(places)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole, were it in memory."""
        return prod(self.shape) * self.dtype.itemsize


ArrayLike = NDArray[Any] | Rows


def blocks(array: ArrayLike, most: int = BLOCK_BYTES) -> Iterator[NDArray[Any]]:
    """Yield all rows of an array in order, about `most` bytes at once; of an array without axes the whole."""
    if array.ndim == 0:
        yield np.asarray(array)
        return
    step = max(most // max(array.nbytes // max(len(array), 1), 1), 1)
    for start in range(0, len(array), step):
        yield array[start : start + step]


class Chosen(Rows):
    """Some rows of an array, in an order of their own."""

    def __init__(self, whole: ArrayLike, places: NDArray[np.int64]) -> None:
        self.whole, self.places = whole, places
        self.shape, self.dtype = (len(places), *whole.shape[1:]), whole.dtype

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        return self.whole[self.places[places]]


class Joined(Rows):
    """The rows of one array, and then those of another of the same kind."""

    def __init__(self, first: ArrayLike, second: ArrayLike) -> None:
        self.first, self.second = first, second
        self.shape, self.dtype = (len(first) + len(second), *first.shape[1:]), first.dtype

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        rows = np.empty((len(places), *self.shape[1:]), self.dtype)
        early = places < len(self.first)
        for array, mine, start in ((self.first, early, 0), (self.second, ~early, len(self.first))):
            if mine.any():
                rows[mine] = array[places[mine] - start]
        return rows


class Told(Rows):
    """An array that says how many of its rows were read.  tell : is called with a number of rows that were."""

    def __init__(self, whole: ArrayLike, tell: Callable[[int], None]) -> None:
        self.whole, self.tell = whole, tell
        self.shape, self.dtype = whole.shape, whole.dtype

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        rows = self.whole[places]
        self.tell(len(places))
        return rows
