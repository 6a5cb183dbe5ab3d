"""Scratch: what an attempt at a key has got so far and would lose if it were interrupted.

``v2/scratch/<kind>-<digest>/<attempt>/``. A folder belongs to one attempt in one process, whose name it carries,
so that a process that was stopped and the one that took its place never write into each other's files. The next
attempt at a key goes on from the newest one there is: it takes over a folder whose process is dead or has given
up (renamed, which only one can), and copies that of a process which may be alive.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from lrfgraph.engine.files import members, newest
from lrfgraph.engine.leases import signature, signed_by_dead

__all__ = ["Scratch", "ownerless"]

GIVEN_UP = "given-up."

_count = itertools.count()


class Scratch:
    """The folder of one attempt at a key; nothing is made before it is asked for.

    home : of all attempts at the key.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path: Path | None = None

    def open(self) -> Path:
        """Return the folder, with what the attempt before this one left in it."""
        if self.path is None:
            self.path = self._open()
        return self.path

    def give_up(self) -> None:
        """Leave the folder to the next attempt, whoever makes it; nothing where none was opened."""
        path, self.path = self.path, None
        if path is not None:
            with contextlib.suppress(OSError):
                path.rename(path.with_name(GIVEN_UP + path.name))

    def remove(self) -> None:
        """Remove the folder, and those of earlier attempts that nobody writes into any more: the key is computed."""
        path, self.path = self.path, None
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
            for earlier in ownerless(self.home):
                shutil.rmtree(earlier, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.home.rmdir()

    def _open(self) -> Path:
        own = self.home / f"{signature()}.{next(_count)}"
        free = set(ownerless(self.home))
        for earlier in sorted(members(self.home), key=newest, reverse=True):
            try:
                if earlier in free:
                    earlier.rename(own)
                else:
                    shutil.copytree(earlier, own)
            except OSError:  # it was taken over or finished meanwhile
                shutil.rmtree(own, ignore_errors=True)
            else:
                return own
        own.mkdir(parents=True, exist_ok=True)
        return own


def ownerless(home: Path) -> Iterator[Path]:
    """Yield the attempts at a key that were given up or whose process is dead."""
    return (path for path in members(home) if path.name.startswith(GIVEN_UP) or signed_by_dead(path.name))
