"""How files are read: what they are known by is remembered, so that one that did not change is read once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.store import Store
from lrfgraph.errors import DataError

__all__ = ["Digests", "Fingerprints", "Reading", "changed_while_read", "fingerprint"]

BLOCK = 1 << 22
SIZE = 20
SETTLED = 2_000_000_000
"""Nanoseconds after which a clock too coarse to tell two writes apart has moved on."""

EVERY = 0.25
"""Seconds between two reports of progress."""

Digests = NDArray[np.uint8]
Fingerprint = tuple[int, ...]
Fingerprints = NDArray[np.int64]
Look = Callable[[Path, bytes], None]

_count = count()


def fingerprint(stat: os.stat_result) -> Fingerprint:
    """Return what changes when a file is written: where it lies on the disk, its size, its times."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def changed_while_read(what: object) -> DataError:
    """Return the one line about a file that somebody writes."""
    return DataError(f"data {what} changed while it was read; run again when nobody writes it")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"data file {path} cannot be read ({error.strerror}); run again when it can")


def _read_in_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as opened:
        while piece := opened.read(BLOCK):
            yield piece


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    cache : in which digests of files are remembered, each source's in a file of its own; ``None`` for nowhere.
    keep : remember what is new, best effort.  scratch : gives the folder for what has no place in memory; the system's
    by default.  progress : told how much has been read: done, of how much (0 where nobody knows), what.
    told : when it last was.
    """

    cache: Path | None = None
    keep: bool = True
    scratch: Callable[[], Path] | None = None
    progress: Callable[[int, int, str], None] | None = None
    told: list[float] = field(default_factory=lambda: [0.0], repr=False, compare=False)

    def tell(self, done: int, total: int, message: str) -> None:
        """Report progress, now and then."""
        if self.progress and time.monotonic() - self.told[0] > EVERY:
            self.told[0] = time.monotonic()
            self.progress(done, total, message)

    def digests(
        self,
        root: Path,
        files: Sequence[str],
        look: Look | None = None,
        check: Callable[[Path], None] | None = None,
    ) -> tuple[Digests, Fingerprints]:
        """Return the digest of each file's content, (n, 20) bytes, and the fingerprint that it is of, (n, 5) integers.

        What did not change since it was read is not read.  root : the folder they are in, or the single file.
        files : paths below it, ``""`` for itself.  look : called with the path and content of each file that is read;
        without it files may be large, and are read in blocks.  check : called with the path alone.
        Raises DataError where one cannot be read or changes.
        """
        digests_of, seen = self._read(root), [self.state_of(root / name) for name in files]
        states = [_state(name, own) for name, own in zip(files, seen, strict=True)]
        digests: Digests = np.empty((len(files), SIZE), np.uint8)
        settled = np.ones(len(files), bool)
        unread = [index for index, state in enumerate(states) if state not in digests_of]
        for done, index in enumerate(unread):
            path = root / files[index]
            if check is not None:
                check(path)
            if look is None:
                digest, settled[index] = _digest(path, lambda read, size: self.tell(read, size, "bytes read"))
            else:
                self.tell(done, len(unread), "files read")
                digest, settled[index] = _digest(path, look=look)
            if self.state_of(path) != seen[index]:
                raise changed_while_read(path)
            digests[index] = np.frombuffer(digest, np.uint8)
        for index, state in enumerate(states):
            if state in digests_of:
                digests[index] = np.frombuffer(digests_of[state], np.uint8)
        if unread and self.keep:
            self._write(root, [s for s, sure in zip(states, settled, strict=True) if sure], digests[settled])
        return digests, np.array(seen, np.int64).reshape(-1, 5)

    def is_given(self, path: Path) -> bool:
        """Whether a file is one that a program handed over: it was written once, and is touched when it is given."""
        return self.cache is not None and path.absolute().parent == Store(self.cache).given

    def state_of(self, path: Path) -> Fingerprint:
        """Return what changes when a file is written; raises DataError where it is gone."""
        try:
            own = fingerprint(os.stat(path))
        except OSError as error:
            raise _unreadable(path, error) from None
        return (*own[:3], 0, 0) if self.is_given(path) else own

    def note(self, path: Path, digest: str) -> None:
        """Remember the digest of a file that was just written."""
        self._write(path, [_state("", self.state_of(path))], np.frombuffer(bytes.fromhex(digest), np.uint8)[None])

    def _place(self, root: Path) -> Path | None:
        if self.cache is None:
            return None
        name = hashlib.blake2b(os.fsencode(root.absolute()), digest_size=SIZE).hexdigest()
        return Store(self.cache).base / "known" / f"{name}.files"

    def _read(self, root: Path) -> dict[bytes, bytes]:
        """What is known of a source's files; a damaged note counts as none."""
        place = self._place(root)
        if place is None:
            return {}
        try:
            content = place.read_bytes()
        except OSError:
            return {}
        seal, lines = content[:SIZE], content[SIZE:]
        if len(lines) % (2 * SIZE) or hashlib.blake2b(lines, digest_size=SIZE).digest() != seal:
            return {}
        return {lines[i : i + SIZE]: lines[i + SIZE : i + 2 * SIZE] for i in range(0, len(lines), 2 * SIZE)}

    def _write(self, root: Path, states: Sequence[bytes], digests: Digests) -> None:
        place = self._place(root)
        if place is None:
            return
        lines = b"".join(state + digest.tobytes() for state, digest in zip(states, digests, strict=True))
        partial = place.with_name(f".{place.name}.{os.getpid()}.{next(_count)}")
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(hashlib.blake2b(lines, digest_size=SIZE).digest() + lines)
            partial.replace(place)


def _state(name: str, own: Fingerprint) -> bytes:
    text = f"{name}\0{own}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=SIZE).digest()


def _digest(path: Path, tell: Callable[[int, int], None] | None = None, look: Look | None = None) -> tuple[bytes, bool]:
    """The digest of a file's content, and whether a later write cannot look as if there had been none."""
    began = time.time_ns()
    state = hashlib.blake2b(digest_size=SIZE)
    try:
        if look is not None:
            content = path.read_bytes()
            look(path, content)
            state.update(content)
        else:
            read, size = 0, path.stat().st_size
            for piece in _read_in_blocks(path):
                state.update(piece)
                read += len(piece)
                if tell:
                    tell(read, size)
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return state.digest(), max(stat.st_mtime_ns, stat.st_ctime_ns) < began - SETTLED
