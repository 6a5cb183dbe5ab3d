"""What a process remembers: a cache bounded by bytes, and the versions that are written into every entry."""

from __future__ import annotations

import functools
import platform
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np

from lrfgraph import __version__

__all__ = ["ARRAYS", "BoundedCache", "versions"]

NOTED = ("scipy", "tensorly", "tensorflow", "keras")


class BoundedCache:
    """Least recently used values, up to a number of bytes together; safe for threads."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """Return the value, or ``None``."""
        with self._guard:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of `size` bytes; one larger than half the limit is not kept."""
        if size > self.limit // 2:
            return
        with self._guard:
            self.size += size - self._kept.pop(key, (None, 0))[1]
            self._kept[key] = (value, size)
            while self.size > self.limit:
                self.size -= self._kept.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget everything."""
        with self._guard:
            self._kept.clear()
            self.size = 0


ARRAYS = BoundedCache(512 << 20)


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
