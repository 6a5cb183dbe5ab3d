"""One entry of the store as it is read, and what is raised where the disk does not hold what it promises."""

from __future__ import annotations

from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.arrays import PACKED, ZarrRows, is_zarr, read_packed, read_zarr
from lrfgraph.engine.memory import ARRAYS
from lrfgraph.engine.rows import ArrayLike
from lrfgraph.errors import StoreError

if TYPE_CHECKING:
    from lrfgraph.engine.store import Store

__all__ = ["CorruptEntry", "Entry"]

WHOLE = 64 << 20
"""Bytes of an array up to which it is read as a whole, and kept, where its rows are asked for."""


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
        full, manifest = self._full(name), self.manifest
        array: NDArray[Any] | None = ARRAYS.get(self._at(manifest, full))
        if array is not None:
            return array
        try:
            if is_zarr(full, manifest["files"]):
                some = {full: read_zarr(self.store.folder(self.key), full, self._check)}
            else:  # all at once: they lie in one file
                some = read_packed(self._read(PACKED))
        except (OSError, ValueError) as error:
            raise CorruptEntry(self.key, f"array {full} cannot be read ({error})") from error
        for own, value in some.items():
            value.flags.writeable = False
            ARRAYS.put(self._at(manifest, own), value, value.nbytes)
        if full not in some:
            raise CorruptEntry(self.key, f"{PACKED} lacks {full}")
        return some[full]

    def rows(self, name: str) -> ArrayLike:
        """Return one array to be read by its rows, where it is too large to be kept; else the array itself."""
        full, manifest = self._full(name), self.manifest
        said = manifest["arrays"][full]
        if prod(said["shape"]) * np.dtype(said["dtype"]).itemsize <= WHOLE:
            return self.array(name)

        def damage(why: str) -> CorruptEntry:
            return CorruptEntry(self.key, f"array {full} cannot be read ({why})")

        return ZarrRows(self.store.folder(self.key), full, self._check, damage)

    def _full(self, name: str) -> str:
        full, manifest = self.prefix + name, self.manifest
        if full not in manifest["arrays"]:
            raise KeyError(f"{manifest['name']} ({self.key}) has no array {full!r}; it has {self.names()}")
        return full

    def file(self, name: str) -> Path:
        """Return the path of one file, its checksum verified; raises KeyError if there is none of this name."""
        if f"files/{name}" not in self.manifest["files"]:
            raise KeyError(f"{self.manifest['name']} ({self.key}) has no file {name!r}")
        self.store.check_file(self.key, f"files/{name}")
        return self.store.folder(self.key) / "files" / name

    def _at(self, manifest: dict[str, Any], name: str) -> tuple[str, ...]:
        return str(self.store.root), self.key, manifest["digest"], name

    def _check(self, relative: str, content: bytes | None) -> None:
        if relative not in self.manifest["files"]:
            raise CorruptEntry(self.key, f"{relative} is missing")
        self.store.check_file(self.key, relative, content)

    def _read(self, relative: str) -> bytes:
        try:
            content = (self.store.folder(self.key) / relative).read_bytes()
        except OSError as error:
            raise CorruptEntry(self.key, f"{relative} cannot be read ({error.strerror})") from error
        self._check(relative, content)
        return content
