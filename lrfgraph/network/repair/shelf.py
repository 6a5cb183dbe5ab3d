"""Arrays that wait for their turn: in memory while they fit, in one file after that."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from lrfgraph.layers.spec import Array

__all__ = ["Shelf", "Waiting"]


@dataclass(frozen=True, eq=False)
class Waiting:
    """A float32 array on a shelf.  memory : the array itself, or ``None``.  at : where in the file it begins."""

    shape: tuple[int, ...]
    memory: Array | None = None
    at: int = 0

    @property
    def bytes(self) -> int:
        return 4 * prod(self.shape)


class Shelf:
    """Keeps arrays; those beyond `limit` bytes go to a file in the folder `scratch`, or the system's for such files.

    The file has no name: nothing is left behind whatever happens, and the folder may be removed.
    in_memory, in_file : bytes.
    """

    def __init__(self, limit: int | None = None, scratch: Callable[[], Path] | None = None) -> None:
        self.limit, self.scratch = limit, scratch
        self.in_memory, self.in_file, self.end = 0, 0, 0
        self.file: IO[bytes] | None = None
        self.free: dict[int, list[int]] = {}

    def put(self, array: Array) -> Waiting:
        """Keep an array; the caller does not change it any more."""
        size = array.nbytes
        if self.limit is None or self.in_memory + size <= self.limit:
            self.in_memory += size
            return Waiting(array.shape, array)
        if self.file is None:
            folder = self.scratch() if self.scratch else None
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - open as long as the shelf is
            weakref.finalize(self, self.file.close)
        at = self._place(size)
        content = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8).data
        done = 0
        while done < size:  # one write takes 2 GiB at most
            done += os.pwrite(self.file.fileno(), content[done : done + (1 << 30)], at + done)
        self.in_file += size
        return Waiting(array.shape, None, at)

    def get(self, waiting: Waiting) -> Array:
        """Return an array, not to be written to."""
        if waiting.memory is not None:
            return waiting.memory
        assert self.file is not None
        array: Array = np.empty(waiting.shape, np.float32)
        content, done = array.reshape(-1).view(np.uint8).data, 0
        while done < waiting.bytes:
            done += os.preadv(self.file.fileno(), [content[done : done + (1 << 30)]], waiting.at + done)
        return array

    def drop(self, waiting: Waiting) -> None:
        """Forget an array; its place in the file is used again."""
        if waiting.memory is not None:
            self.in_memory -= waiting.bytes
        else:
            self.in_file -= waiting.bytes
            self.free.setdefault(waiting.bytes, []).append(waiting.at)

    def _place(self, size: int) -> int:
        if self.free.get(size):
            return self.free[size].pop()
        at, self.end = self.end, self.end + size
        return at
