"""Run records: which entries a run stands on, so that nothing it still needs is thrown away.

``v2/runs/<run>.json`` names the keys; a run is live while its lease beats, and kept for good while it is pinned.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lrfgraph.engine.leases import Lease, Waiting, live
from lrfgraph.engine.nodes import is_key
from lrfgraph.engine.store import Store
from lrfgraph.errors import StoreError

__all__ = ["LiveRun", "RunRecord", "find_run", "list_runs", "pin", "record_run", "remove_run", "start_run"]


NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}")


@dataclass(frozen=True)
class RunRecord:
    """name : of the run.  keys : the entries it stands on.  created : seconds since 1970.  live : not written down,
    asked of the lease."""

    name: str
    keys: tuple[str, ...]
    pinned: bool = False
    created: float = 0.0
    live: bool = False


class LiveRun:
    """A run while it goes on; a context manager. What it names is safe from `maintenance.gc` until it is closed.

    Until then its record on disk also keeps what an earlier run of its name stood on: a rerun names the same
    entries, and finds them written down already.
    """

    def __init__(self, store: Store, record: RunRecord, lease: Lease | None, earlier: Iterable[str] = ()) -> None:
        self.store, self.record, self._lease = store, record, lease
        self._written = dict.fromkeys([*record.keys, *earlier])

    def add(self, keys: Iterable[str]) -> bool:
        """Name further entries, as later stages get to know them; a read-only cache keeps no record.

        Returns whether some of them were not named on disk before: those may have gone meanwhile.
        """
        merged = dict.fromkeys([*self.record.keys, *keys])
        self.record = replace(self.record, keys=tuple(merged))
        if self._lease is None or merged.keys() <= self._written.keys():
            return False
        self._written |= merged
        _write(self.store, replace(self.record, keys=tuple(self._written)))
        return True

    def close(self) -> None:
        """Say that the run is over."""
        if self._lease is not None:
            if self._written.keys() != set(self.record.keys):
                with contextlib.suppress(StoreError):  # the record then keeps more than it must
                    _write(self.store, self.record)
            self._lease.release()
            self._lease = None

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def start_run(store: Store, name: str, keys: Iterable[str] = ()) -> LiveRun:
    """Record that a run stands on `keys`, in place of an earlier record of this name (a pin and what it
    keeps stay).

    If a run of this name is live already, the new one takes a name of its own (``name-2``, …). On a cache that
    cannot be written there is no record and no error: what is only read needs none.
    """
    _check_name(name)
    for number in range(1, 1000):
        own = name if number == 1 else f"{name}-{number}"
        try:
            lease = Waiting(_lease_path(store, own), store.stale_after).acquire()
        except OSError:
            return LiveRun(store, RunRecord(own, tuple(dict.fromkeys(keys))), None)
        if lease is not None:
            break
    else:
        raise StoreError(f"cache {store.root} has a thousand live runs named {name!r}; choose another name")
    before = _read(store, _path(store, own))
    pinned = bool(before and before.pinned)
    earlier = before.keys if before else ()
    inherited = earlier if pinned else ()  # a rerun that is cut short takes nothing from what is pinned
    record = RunRecord(own, tuple(dict.fromkeys([*inherited, *keys])), pinned, round(time.time(), 3))
    try:
        _write(store, replace(record, keys=tuple(dict.fromkeys([*record.keys, *earlier]))))
    except StoreError:
        lease.release()
        return LiveRun(store, record, None)
    return LiveRun(store, record, lease, earlier)


def list_runs(store: Store) -> list[RunRecord]:
    """Return all records, oldest first; one that cannot be read is left out."""
    try:
        paths = sorted((store.base / "runs").glob("*.json"))
    except OSError:
        return []
    records = [record for path in paths if (record := _read(store, path)) is not None]
    return sorted(records, key=lambda record: record.created)


def pin(store: Store, name: str, pinned: bool = True) -> None:
    """Keep what a run stands on for good, or (``pinned=False``) no longer. Raises StoreError for an unknown run."""
    record = find_run(store, name)
    _write(store, replace(record, pinned=pinned))


def remove_run(store: Store, name: str) -> RunRecord:
    """Forget a run's record and return it; its entries stay. Raises StoreError if it is unknown or live."""
    record = find_run(store, name)
    if record.live:
        raise StoreError(f"run {name!r} is going on at this moment; stop it first")
    with store.writing(f"runs/{name}"):
        _path(store, name).unlink(missing_ok=True)
    return record


def record_run(store: Store, record: RunRecord) -> None:
    """Write the record of a run that was not carried out here; a pin stays. Raises StoreError if it is live here."""
    _check_name(record.name)
    before = _read(store, _path(store, record.name))
    if before and before.live:
        raise StoreError(f"run {record.name!r} is going on at this moment; wait for its end")
    _write(store, replace(record, pinned=bool(before and before.pinned)))


def find_run(store: Store, name: str) -> RunRecord:
    """Return a run's record; raises StoreError if there is none of this name."""
    _check_name(name)
    record = _read(store, _path(store, name))
    if record is None:
        known = ", ".join(record.name for record in list_runs(store)) or "none"
        raise StoreError(f"cache {store.root} has no run {name!r}; it has {known}")
    return record


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise StoreError(f"names of runs are letters, digits, '_', '-', '+' and '.', received {name!r}")


def _path(store: Store, name: str) -> Path:
    return store.base / "runs" / f"{name}.json"


def _lease_path(store: Store, name: str) -> Path:
    return store.base / "leases" / f"runs-{name}.lease"


def _read(store: Store, path: Path) -> RunRecord | None:
    try:
        content = json.loads(path.read_bytes())
        keys = tuple(key for key in map(str, content["keys"]) if is_key(key))  # another could lead anywhere
        record = RunRecord(path.stem, keys, content["pinned"] is True, float(content["created"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not NAME.fullmatch(record.name):
        return None
    return replace(record, live=live(_lease_path(store, record.name), store.stale_after))


def _write(store: Store, record: RunRecord) -> None:
    content = asdict(record)
    del content["live"]
    path = _path(store, record.name)
    temporary = path.with_name(f".{record.name}.{os.getpid()}")
    with store.writing(f"runs/{record.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(content, separators=(",", ":")))
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
