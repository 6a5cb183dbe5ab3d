"""Whole runs from one cache to another by way of the remote: `push`, `pull`, and what a run leaves there at its end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from lrfgraph.engine.nodes import is_key
from lrfgraph.engine.remote import RemoteStore
from lrfgraph.engine.runs import RunRecord, find_run, record_run
from lrfgraph.engine.store import VERSION, Store
from lrfgraph.errors import StoreError

__all__ = ["Exchange", "finish", "pull", "push"]


@dataclass(frozen=True)
class Exchange:
    """What was brought over.  entries, bytes : of these.  there : entries that were there already.
    absent : keys that the run names and the giving side does not have."""

    entries: int
    bytes: int
    there: int
    absent: tuple[str, ...]


def finish(store: Store, record: RunRecord) -> None:
    """Wait until the remote has all that a run stands on and that is here, and leave the run's record for `pull`.

    What was in the cache before the run had this remote is put as well; where the same record is there already,
    nothing is asked about its entries.
    """
    remote = store.remote
    if remote is None:
        return
    remote.settle()
    if remote.readonly:
        return
    if not _has_record(remote, record):
        _put_missing(store, remote, record)
        remote.settle()
    _put_record(remote, record)


def push(store: Store, name: str) -> Exchange:
    """Put what a run stands on into the remote, and its record last. Raises StoreError for an unknown run."""
    remote = _remote_of(store)
    if remote.readonly:
        raise StoreError(f"remote {remote.url} is only read (run.remote_readonly); leave that out to push")
    record = find_run(store, name)
    remote.create()
    moved, there = _put_missing(store, remote, record)
    remote.flush()
    _put_record(remote, record)
    absent = tuple(key for key in record.keys if not store.is_here(key))
    return Exchange(len(moved), _bytes(store, moved), there, absent)


def pull(store: Store, name: str) -> Exchange:
    """Fetch what a run stands on from the remote, and its record last. Raises StoreError for an unknown run."""
    remote = _remote_of(store)
    content = remote.read(_record_path(name))
    if content is None:
        raise StoreError(f"remote {remote.url} has no run {name!r}; it has {', '.join(remote.runs()) or 'none'}")
    try:
        said = json.loads(content)
        keys = tuple(key for key in map(str, said["keys"]) if is_key(key))  # another could lead anywhere
        created = float(said["created"])
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"remote {remote.url}: the record of run {name!r} is damaged; push it again") from error
    wanted = [key for key in keys if not store.is_here(key)]
    store.look_up(wanted)
    store.bring(wanted)
    moved = [key for key in wanted if store.is_here(key)]
    record_run(store, RunRecord(name, keys, created=created))
    return Exchange(len(moved), _bytes(store, moved), len(keys) - len(wanted), tuple(sorted({*wanted} - {*moved})))


def _remote_of(store: Store) -> RemoteStore:
    if store.remote is None:
        raise StoreError("say which remote; received none")
    return store.remote


def _put_missing(store: Store, remote: RemoteStore, record: RunRecord) -> tuple[list[str], int]:
    """Put what is here and not there; returns these keys, and how many of the run's are in both places."""
    here = [key for key in record.keys if store.is_here(key)]
    there = remote.holding(here)
    moved = [] if remote.away else [key for key in here if key not in there]
    for key in moved:
        remote.put(store, key)
    return moved, len(there)


def _has_record(remote: RemoteStore, record: RunRecord) -> bool:
    """Whether the remote's record of a run names the same entries."""
    try:
        return set(json.loads(remote.read(_record_path(record.name)) or b"")["keys"]) == set(record.keys)
    except (ValueError, TypeError, KeyError):
        return False


def _put_record(remote: RemoteStore, record: RunRecord) -> None:
    content = json.dumps({"name": record.name, "keys": list(record.keys), "created": record.created})
    remote.write(_record_path(record.name), content.encode())


def _record_path(name: str) -> str:
    return f"{VERSION}/runs/{name}.json"


def _bytes(store: Store, keys: Iterable[str]) -> int:
    return sum(int(store.manifest(key)["bytes"]) for key in keys)
