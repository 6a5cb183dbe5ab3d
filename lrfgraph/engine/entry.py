"""One entry of the store as it is read, and what is raised where the disk does not hold what it promises."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.memory import ARRAYS
from lrfgraph.engine.zarr_format import decode
from lrfgraph.errors import StoreError

if TYPE_CHECKING:
    from lrfgraph.engine.store import Store

__all__ = ["CorruptEntry", "Entry"]


class CorruptEntry(StoreError):  # noqa: N818 - names a thing, as Interrupted does
    """An entry that is damaged or gone; whoever can compute it again discards it and does."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(key, why)
        self.key, self.why = key, why

    def __str__(self) -> str:
        return f"cache entry {self.key}: {self.why}; run the same command again and it is computed anew"


class Entry:
    """One finished result as a step reads it (`nodes.Input`); nothing is read until it is asked for.

    Arrays are read-only and kept in a cache of bounded bytes; with a `part`, names are relative to it. All
    methods raise CorruptEntry where the disk does not hold what the manifest promises.
    """

    def __init__(self, store: Store, key: str, identity: str, part: str = "") -> None:
        self.store, self.key, self.identity = store, key, identity
        self.prefix = f"{part.rstrip('/')}/" if part else ""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Everything that is written about the entry."""
        return self.store.manifest(self.key)

    @property
    def data(self) -> dict[str, Any]:
        """The small results; shared between readers, so not to be changed."""
        data: dict[str, Any] = self.manifest["data"]
        return data

    def names(self) -> list[str]:
        """Return the names of the arrays, sorted."""
        start = len(self.prefix)
        return sorted(name[start:] for name in self.manifest["arrays"] if name.startswith(self.prefix))

    def array(self, name: str) -> NDArray[Any]:
        """Return one array, read-only; raises KeyError if the entry has none of this name."""
        full, manifest = self.prefix + name, self.manifest
        if full not in manifest["arrays"]:
            raise KeyError(f"{manifest['name']} ({self.key}) has no array {full!r}; it has {self.names()}")
        at = (str(self.store.root), self.key, manifest["digest"], full)
        array: NDArray[Any] | None = ARRAYS.get(at)
        if array is None:
            try:
                array = decode(manifest["arrays"][full], lambda chunk: self._read(f"{full}/{chunk}"))
            except ValueError as error:
                raise CorruptEntry(self.key, f"array {full} cannot be read ({error})") from error
            array.flags.writeable = False
            ARRAYS.put(at, array, array.nbytes)
        return array

    def file(self, name: str) -> Path:
        """Return the path of one file, its checksum verified; raises KeyError if there is none of this name."""
        if f"files/{name}" not in self.manifest["files"]:
            raise KeyError(f"{self.manifest['name']} ({self.key}) has no file {name!r}")
        self.store.check_file(self.key, f"files/{name}")
        return self.store.folder(self.key) / "files" / name

    def _read(self, relative: str) -> NDArray[np.uint8]:
        if relative not in self.manifest["files"]:
            raise CorruptEntry(self.key, f"{relative} is missing")
        try:
            content = np.fromfile(self.store.folder(self.key) / relative, np.uint8)
        except OSError as error:
            raise CorruptEntry(self.key, f"{relative} cannot be read ({error.strerror})") from error
        self.store.check_file(self.key, relative, content)
        return content
