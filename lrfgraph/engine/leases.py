"""Leases: who is computing an entry at this moment, so that another run waits instead of repeating it.

A lease is a file made with O_EXCL whose content names its owner; one thread per process touches all leases the
process holds. It is stale when its owner is dead (same machine) or its time stands still (any machine). A lease
is a courtesy, never a lock that correctness hangs on: entries are published by an atomic rename, so that two
owners at once cost work and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "BEAT",
    "STALE_AFTER",
    "Lease",
    "Waiting",
    "live",
    "owner",
    "owner_is_dead",
    "signature",
    "signed_by_dead",
    "sweep",
]

BEAT = 2.0
STALE_AFTER = 10.0

_held: dict[Path, str] = {}
_guard = threading.Lock()
_beating: list[threading.Thread] = []


def _started(pid: int) -> int | None:
    """Return when a process of this machine started (clock ticks since boot; 0 where the system does not say),
    or ``None`` if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        if os.name != "posix":
            return 0
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            return 0
        return 0
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@functools.cache
def _host() -> str:
    # Containers may share a name and not their process numbers: the namespace tells them apart.
    name = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    with contextlib.suppress(OSError):
        name += f"-{os.stat('/proc/self/ns/pid').st_ino}"
    return name


def owner() -> tuple[str, int, int]:
    """Return this process: host, process id, start time."""
    pid = os.getpid()
    return _host(), pid, _own_start(pid)


@functools.cache
def _own_start(pid: int) -> int:
    return _started(pid) or 0


def signature() -> str:
    """Return this process as the beginning of a file's name."""
    return ".".join(map(str, owner()))


def signed_by_dead(name: str) -> bool:
    """Say whether a name begins with the `signature` of a process that is gone for certain."""
    host, pid, started = [*name.split("."), "", ""][:3]
    return pid.isdigit() and started.isdigit() and owner_is_dead(host, int(pid), int(started))


def owner_is_dead(host: str, pid: int, started: int) -> bool:
    """Say whether a process of this machine is gone for certain; of other machines nothing is certain."""
    return host == _host() and _started(pid) != started


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds; `release` gives it back."""

    path: Path
    token: str

    def release(self) -> None:
        with _guard:
            if _held.get(self.path) == self.token:
                del _held[self.path]
        content = _read(self.path)
        if content and content.get("token") == self.token:  # else it was taken over meanwhile
            with contextlib.suppress(OSError):
                self.path.unlink()


@dataclass
class Waiting:
    """The wish for one lease, and what was seen of the one in the way so far."""

    path: Path
    stale_after: float = STALE_AFTER
    _seen: tuple[str, float] = ("", 0.0)
    _since: float = field(default_factory=time.monotonic)

    def acquire(self) -> Lease | None:
        """Take the lease if it is free or stale; otherwise return ``None`` at once.

        Raises OSError where the folder cannot be written.
        """
        while True:
            lease = _create(self.path)
            if lease is not None:
                return lease
            content = _read(self.path)
            if content is None:
                continue  # released between the two looks
            if not self._stale(content) or not _take_away(self.path, content):
                return None

    def _stale(self, content: dict[str, Any]) -> bool:
        try:
            modified = self.path.stat().st_mtime
        except OSError:
            return False
        if self._seen != (content.get("token", ""), modified):
            self._seen, self._since = (content.get("token", ""), modified), time.monotonic()
        return (
            _dead(content, self.path)
            or time.monotonic() - self._since > self.stale_after
            or (
                # clocks of other machines differ, so theirs must be seen to stand still
                content.get("host") == _host() and time.time() - modified > self.stale_after
            )
        )


def live(path: Path, stale_after: float = STALE_AFTER) -> bool:
    """Say whether somebody holds this lease, at one look: for another machine the clocks are trusted to a minute."""
    content = _read(path)
    if content is None or _dead(content, path):
        return False
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return age <= stale_after + (0 if content.get("host") == _host() else 60)


def sweep(path: Path, older_than: float = 60.0) -> None:
    """Remove a lease that nobody holds and that is not brand-new; best effort."""
    content = _read(path)
    with contextlib.suppress(OSError):
        held = content is None or live(path, max(older_than, STALE_AFTER))
        if not held and time.time() - path.stat().st_mtime > older_than:
            _take_away(path, content or {})


def _dead(content: dict[str, Any], path: Path) -> bool:
    host, pid, started = content.get("host"), content.get("pid"), content.get("started")
    if not isinstance(host, str) or not isinstance(pid, int) or not isinstance(started, int):
        return False  # torn while being written: its age decides
    if (host, pid, started) == owner():
        with _guard:
            return _held.get(path) != content.get("token")
    return owner_is_dead(host, pid, started)


def _create(path: Path) -> Lease | None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    try:
        handle = os.open(path, flags, 0o666)
    except FileExistsError:
        return None
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, flags, 0o666)
        except FileExistsError:
            return None
    host, pid, started = owner()
    token = uuid.uuid4().hex
    with _guard:
        _held[path] = token
    try:
        os.write(handle, json.dumps({"host": host, "pid": pid, "started": started, "token": token}).encode())
    except OSError:
        with _guard:
            _held.pop(path, None)
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    _beat()
    return Lease(path, token)


def _read(path: Path) -> dict[str, Any] | None:
    """Return a lease's content, ``{}`` for one that is torn, ``None`` for none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _take_away(path: Path, content: dict[str, Any]) -> bool:
    """Remove a lease that was found stale, if it is that one still.

    Between the look and the removal another may have removed it and a third have made its own: those who take away
    do it one after the other. Only where the system has no file locks may two runs end up with one lease.
    """
    with _one_at_a_time(path.parent.with_name(f"{path.parent.name}.lock")):
        if _read(path) != content:
            return False
        path.unlink(missing_ok=True)
        return True


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    # flock and not a file made with O_EXCL: the system lets go of it when its holder dies
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _beat() -> None:
    with _guard:
        if _beating and _beating[0].is_alive():
            return
        _beating[:] = [threading.Thread(target=_keep_beating, name="lrfgraph-leases", daemon=True)]
        _beating[0].start()


def _keep_beating() -> None:
    while True:
        time.sleep(BEAT)
        with _guard:
            held = dict(_held)
        now = time.time()
        for path, token in held.items():
            if (_read(path) or {}).get("token") == token:  # it may have been taken over while this process stood still
                with contextlib.suppress(OSError):
                    os.utime(path, (now, now))
