"""What a process remembers: caches bounded by bytes, and the versions that are written into every entry."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import platform
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lrfgraph import __version__

__all__ = ["ARRAYS", "BoundedCache", "array_bytes", "forget", "give_back", "trim", "versions"]

NOTED = ("scipy", "tensorly", "tensorflow", "keras")

Value = TypeVar("Value")

_caches: weakref.WeakSet[BoundedCache] = weakref.WeakSet()


class BoundedCache:
    """Least recently used values, up to a number of bytes together; safe for threads.

    keep_last : for values that are costly to make again: the one put last is kept whatever its size. Without it, one
        larger than half the limit is not kept, so that a scan does not displace everything.
    """

    def __init__(self, limit: int, *, keep_last: bool = False) -> None:
        self.limit, self.keep_last, self.size = limit, keep_last, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._guard = threading.Lock()
        _caches.add(self)

    def get(self, key: Hashable) -> Any:
        """Return the value, or ``None``."""
        with self._guard:
            entry = self._values.get(key)
            if entry is None:
                return None
            self._values.move_to_end(key)
            return entry[0]

    def get_or_make(self, key: Hashable, make: Callable[[], Value], size_of: Callable[[Value], int]) -> Value:
        """Return the value, made and put if it is absent; two threads may make it at once."""
        value: Value | None = self.get(key)
        if value is None:
            value = make()
            self.put(key, value, size_of(value))
        return value

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of `size` bytes, in place of what was there."""
        with self._guard:
            self._remove(key)
            if not self.keep_last and size > self.limit // 2:
                return
            self._values[key] = (value, size)
            self.size += size
            while self.size > self.limit and len(self._values) > self.keep_last:
                self._remove(next(iter(self._values)))

    def take(self, key: Hashable) -> Any:
        """Remove a value and return it, or ``None``: for what one thread alone may use at a time."""
        with self._guard:
            return self._remove(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._guard:
            self._values.clear()
            self.size = 0

    def _remove(self, key: Hashable) -> Any:
        value, size = self._values.pop(key, (None, 0))
        self.size -= size
        return value


ARRAYS = BoundedCache(128 << 20)


def forget() -> None:
    """Empty every cache of this process, so that all is read from disk and made again, as by a new one."""
    for cache in list(_caches):
        cache.clear()


def give_back() -> None:
    """Collect what refers only to itself, and hand free memory back to the system where the C library keeps it."""
    gc.collect()
    trim()


def trim() -> None:
    """Hand free memory back to the system where the C library would keep it (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def array_bytes(value: object) -> int:
    """Return the bytes of all NumPy arrays that a value holds: in containers, and as attributes of objects."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(array_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(array_bytes, value))
    return array_bytes(vars(value)) if hasattr(value, "__dict__") else 0


def versions() -> dict[str, str]:
    """Return what numbers depend on but nobody chooses: versions, BLAS, processor. Never part of a key."""
    return {**_fixed(), **{name: _version(name) for name in NOTED if name in sys.modules}}


@functools.cache
def _version(name: str) -> str:
    from importlib import metadata  # takes longer to load than all that a cached run reads

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def _fixed() -> dict[str, str]:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "lrfgraph": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "processor": _processor(),
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
