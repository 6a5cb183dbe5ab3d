"""Arrays of ``.npz`` files: small ones as a whole, large ones read by their rows."""

from __future__ import annotations

import os
import tempfile
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.rows import ArrayLike, Rows, blocks
from lrfgraph.errors import DataError
from lrfgraph.images.reading import Reading, changed_while_read

__all__ = ["IN_MEMORY", "FileRows", "existing", "npz_bytes", "read_npz", "rows_of_spool", "spool", "write_npz"]

Array = NDArray[Any]
IN_MEMORY = 16 << 20
"""Bytes of an array up to which it is read whole."""

DAMAGED = (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile)


class FileRows(Rows):
    """Rows that lie one after the other in an open file, which is closed when nobody has them any more.

    start : where the first one begins.  watched : what a file is called that nobody may write meanwhile, ``None`` for
    one that nobody else has.
    """

    def __init__(
        self, file: IO[bytes], start: int, shape: tuple[int, ...], dtype: np.dtype[Any], watched: Path | None = None
    ) -> None:
        self.start, self.shape, self.dtype, self.watched = start, shape, dtype, watched
        self.handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.handle)
        self.state = self._state()

    def take(self, places: NDArray[np.int64]) -> Array:
        rows = np.empty((len(places), *self.shape[1:]), self.dtype)
        ends = [*(np.flatnonzero(np.diff(places) != 1) + 1), len(places)] if len(places) else []
        for begin, end in zip([0, *ends], ends, strict=False):  # rows that follow each other, at once
            self._read(rows[begin:end], int(places[begin]))
        return rows

    def between(self, start: int, stop: int) -> Array:
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self._read(rows, start)
        return rows

    def _read(self, into: Array, first: int) -> None:
        """Fill an array with the rows from the first one on."""
        content, done = into.reshape(-1).view(np.uint8), 0
        at = self.start + first * (into.nbytes // max(len(into), 1))
        while done < len(content):
            piece = os.pread(self.handle, len(content) - done, at + done)
            if not piece:
                raise changed_while_read(self.watched)
            content[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        if self.watched and self._state() != self.state:
            raise changed_while_read(self.watched)

    def _state(self) -> tuple[int, int]:
        """What changes when the open file is written: one that takes its place, or its name, is another."""
        stat = os.fstat(self.handle)
        return stat.st_size, stat.st_mtime_ns


def spool(reading: Reading) -> Any:
    """Return an open file without a name, in memory as long as it is small."""
    folder = str(reading.scratch()) if reading.scratch else None
    return tempfile.SpooledTemporaryFile(IN_MEMORY, dir=folder)


def rows_of_spool(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArrayLike:
    """Return the rows that were written to a spool."""
    file.flush()
    if file._rolled:
        return FileRows(file, 0, shape, dtype)
    file.seek(0)
    return np.frombuffer(file.read(), dtype).reshape(shape)


def check_stored(path: Path) -> None:
    """Raise DataError where a large array is not what was written: it is going to be read in place, unchecked."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type == zipfile.ZIP_STORED and info.file_size > IN_MEMORY:
                    with archive.open(info) as member:
                        while member.read(1 << 20):
                            pass
    except DAMAGED:
        raise DataError(
            f"{path} cannot be read, it is no whole .npz file; save plain arrays with numpy.savez"
        ) from None


def npz_bytes(path: Path) -> int:
    """Return the bytes of a ``.npz`` file's arrays that will lie in memory, 0 where that cannot be told."""
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    shape, fortran, dtype = _header(member)
                    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
                    total += size if _stays(info.filename, shape, fortran, size) else 0
    except (OSError, ValueError, zipfile.BadZipFile):
        return 0
    return total


def existing(path: Path) -> Path:
    """Return the path of a file that is there; raises DataError."""
    if not path.is_file():
        raise DataError(f"data file {path} does not exist; give a .npz file, a folder or package.module:function")
    return path


def read_npz(path: Path, reading: Reading | None = None) -> dict[str, ArrayLike]:
    """Read plain arrays; large ones by their rows where they are stored as they are, else from a copy on disk.

    Raises DataError where the file is missing, no ``.npz``, or holds Python objects.
    """
    reading = reading or Reading()
    try:
        with existing(path).open("rb") as opened, zipfile.ZipFile(opened) as archive:
            return {
                info.filename.removesuffix(".npy"): _member(path, opened, archive, info, reading)
                for info in archive.infolist()
            }
    except DAMAGED as error:
        objects = zipfile.is_zipfile(path) and str(error).startswith("Object arrays")
        what = "it holds Python objects" if objects else "it is no whole .npz file"
        raise DataError(f"{path} cannot be read, {what}; save plain arrays with numpy.savez") from None


def _member(
    path: Path, opened: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo, reading: Reading
) -> ArrayLike:
    with archive.open(info) as member:
        shape, fortran, dtype = _header(member)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if dtype.hasobject or _stays(info.filename, shape, fortran, size):
            member.seek(0)
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
            return array
        if info.compress_type == zipfile.ZIP_STORED:
            start = _content_of(opened, info) + member.tell()
            if start + size > os.fstat(opened.fileno()).st_size:
                raise EOFError(path)
            return FileRows(opened, start, shape, dtype, None if reading.is_given(path) else path)
        with spool(reading) as copy:
            while piece := member.read(1 << 20):
                copy.write(piece)
                reading.tell(copy.tell(), size, f"bytes of {path.name} unpacked")
            if copy.tell() != size:
                raise EOFError(path)
            return rows_of_spool(copy, shape, dtype)


def _stays(name: str, shape: tuple[int, ...], fortran: bool, size: int) -> bool:
    """Whether an array is read whole: small ones, labels, and those whose rows do not lie together."""
    return size <= IN_MEMORY or len(shape) < 2 or fortran


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    first = np.lib.format.read_magic(member) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(member)
    return header


def _content_of(opened: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where in the archive a member's content begins: behind its local header, whose lengths are its own."""
    local = os.pread(opened.fileno(), 30, info.header_offset)
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def write_npz(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write arrays as `numpy.savez` does, those that are read by their rows block by block."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, Rows):
                    head = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                    np.lib.format.write_array_header_1_0(member, head)
                    for block in blocks(array):
                        member.write(np.ascontiguousarray(block).data)
                else:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
