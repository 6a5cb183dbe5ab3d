"""Files as the store needs them: written with their checksums, flushed, digested, counted. No keys, no entries."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = [
    "FULL",
    "age",
    "checksum",
    "file_checksum",
    "flush_one",
    "flush_tree",
    "members",
    "newest",
    "out_of_space",
    "tree_bytes",
    "write",
]

FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


def write(path: Path, buffers: Iterable[Any]) -> tuple[int, str]:
    """Write buffers one after the other; return the bytes and the checksum."""
    state, size = hashlib.blake2b(digest_size=20), 0
    with open(path, "wb") as file:
        for buffer in buffers:
            file.write(buffer)
            state.update(buffer)
            size += len(buffer)
    return size, state.hexdigest()


def checksum(content: Any) -> str:
    """Return the 160-bit BLAKE2b digest of bytes."""
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def file_checksum(path: str) -> str:
    """Return the same of a file's content, read in blocks."""
    state = hashlib.blake2b(digest_size=20)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def flush_tree(folder: Path) -> None:
    """Have the disk take all files and folders below, and the folder itself."""
    for path, _, names in os.walk(folder):
        for name in names:
            flush_one(os.path.join(path, name))
        flush_one(path)


def flush_one(path: str) -> None:
    """Have the disk take one file, or the names in one folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tree_bytes(folder: str) -> int:
    """Return the bytes of all files below a folder; what vanishes meanwhile does not count."""
    total, waiting = 0, [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as listed:
            for item in listed:
                if item.is_dir(follow_symlinks=False):
                    waiting.append(item.path)
                else:
                    with contextlib.suppress(OSError):
                        total += item.stat(follow_symlinks=False).st_size
    return total


def members(folder: Path) -> list[Path]:
    """Return what lies in a folder; nothing if it is none."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def age(path: Path) -> float:
    """Return the seconds since a file was changed; 0 if it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


def newest(folder: Path) -> float:
    """Return when a folder or anything in it was last changed (seconds since 1970), 0 if it is gone."""
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times)


def out_of_space(error: BaseException | None) -> str:
    """Return what the system said of a full disk, ``""`` if an error and its causes are about something else.

    Libraries written in C hand on the system's words, but not always its number.
    """
    while error is not None:
        for number in FULL:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""
