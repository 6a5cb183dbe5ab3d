"""Looking after a cache: what is in it, whether it is sound, and what can go."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lrfgraph.engine.arrays import check_arrays
from lrfgraph.engine.files import members, newest, tree_bytes
from lrfgraph.engine.leases import live
from lrfgraph.engine.nodes import digest, is_key, key_of, parts_of
from lrfgraph.engine.runs import RunRecord, list_runs, remove_run
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.errors import StoreError

__all__ = [
    "EntryInfo",
    "Freed",
    "Usage",
    "Verified",
    "fingerprints",
    "gc",
    "list_entries",
    "remove",
    "usage",
    "verify",
]

AROUND = frozenset({"tmp", "leases", "runs", "scratch", "known"})


@dataclass(frozen=True)
class EntryInfo:
    """One entry. bytes : on disk.  created, used : seconds since 1970.  seconds : what it took to compute."""

    key: str
    kind: str
    name: str
    bytes: int
    created: float
    used: float
    seconds: float


@dataclass(frozen=True)
class Usage:
    """Entries and bytes of a kind (``scratch`` and ``other`` are kinds here)."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class Verified:
    """What `verify` found. damaged : key and what is wrong with it."""

    entries: int
    bytes: int
    damaged: dict[str, str]
    removed: tuple[str, ...] = ()


@dataclass
class Freed:
    """What `gc` or `remove` did. over : bytes still above the limit because what is left is in use."""

    keys: list[str] = field(default_factory=list)
    bytes: int = 0
    runs: list[str] = field(default_factory=list)
    protected: int = 0
    over: int = 0


def keys_of(store: Store, kind: str | None = None) -> Iterator[str]:
    """Yield the keys of all entries that lie in the store, sound or not."""
    for folder in _folders(store.base):
        if folder.name in AROUND or (kind is not None and folder.name != kind):
            continue
        for prefix in _folders(folder):
            for entry in _folders(prefix):
                if is_key(key := f"{folder.name}/{entry.name}") and entry.name.startswith(prefix.name):
                    yield key


def list_entries(store: Store, kind: str | None = None) -> list[EntryInfo]:
    """Return all entries whose manifest can be read, least recently used first."""
    entries = []
    for key in keys_of(store, kind):
        used = store.last_use(key)
        with contextlib.suppress(CorruptEntry):
            manifest = store.manifest(key)
            size = int(manifest["bytes"]) + (store.folder(key) / "entry.json").stat().st_size
            entries.append(
                EntryInfo(
                    key,
                    key.partition("/")[0],
                    manifest["name"],
                    size,
                    manifest["created"],
                    used or manifest["created"],
                    manifest["seconds"],
                )
            )
    return sorted(entries, key=lambda info: (info.used, info.key))


def usage(store: Store) -> dict[str, Usage]:
    """Return entries and bytes on disk by kind, largest first; half-written things count too."""
    by_kind: dict[str, Usage] = {}
    counts: dict[str, int] = defaultdict(int)
    for key in keys_of(store):
        counts[key.partition("/")[0]] += 1
    for folder in _folders(store.base):
        size = tree_bytes(str(folder))
        kind = folder.name if folder.name not in AROUND - {"scratch"} else "other"
        before = by_kind.get(kind, Usage(0, 0))
        if size or counts.get(kind):
            by_kind[kind] = Usage(counts.get(kind, 0), before.bytes + size)
    return dict(sorted(by_kind.items(), key=lambda item: -item[1].bytes))


def verify(
    store: Store, *, remove_damaged: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verified:
    """Digest every file of every entry again, check its key, and open its arrays.

    remove_damaged : discard what is damaged, so that the next run computes it again.
    """
    keys = list(keys_of(store))
    damaged: dict[str, str] = {}
    size = 0
    for index, key in enumerate(keys):
        try:
            size += _verify_entry(store, key)
        except CorruptEntry as error:
            damaged[key] = error.why
        if progress is not None:
            progress(index + 1, len(keys))
    if remove_damaged:
        for key in damaged:
            store.discard(key)
    return Verified(len(keys), size, damaged, tuple(damaged) if remove_damaged else ())


def gc(
    store: Store,
    *,
    max_size: int | None = None,
    older_than: float | None = None,
    keep: Collection[str] = (),
    dry_run: bool = False,
) -> Freed:
    """Remove entries not used for `older_than` seconds, then the least recently used until `max_size` bytes are left.

    Never removed: what a live or pinned run names, what is being computed, and `keep`. Interrupted attempts that
    are older than `older_than` go too, models and images that a program handed over that long ago, and records of runs
    of which no entry is left.
    """
    if not dry_run:
        store.clean()
    now, freed = time.time(), Freed()
    runs = list_runs(store)
    safe = {*keep, *_named(runs)}
    entries = list_entries(store)
    listed = {info.key for info in entries}
    # what cannot be read serves nobody, unless it is at this moment being replaced
    broken = [key for key in keys_of(store) if key not in listed and not live(store.lease_path(key), store.stale_after)]
    going = {key: tree_bytes(str(store.folder(key))) for key in broken}
    total = sum(info.bytes for info in entries)
    for info in entries:
        old = older_than is not None and now - info.used > older_than
        large = max_size is not None and total > max_size
        if not old and not large:
            continue
        if info.key in safe or live(store.lease_path(info.key), store.stale_after):
            freed.protected += 1
            continue
        if store.last_use(info.key) not in (None, info.used):
            continue  # somebody has just begun to use it
        going[info.key] = info.bytes
        total -= info.bytes
    _free(store, going, freed, dry_run)
    if max_size is not None:
        freed.over = max(0, total + sum(size for key, size in going.items() if key not in freed.keys) - max_size)
    if older_than is not None:
        _free_scratch(store, now - older_than, safe, freed, dry_run)
        _free_given(store, now - older_than, freed, dry_run)
    gone = set(freed.keys)
    for run in runs:
        if not run.live and not run.pinned and not any(key in listed and key not in gone for key in run.keys):
            if not dry_run:
                with contextlib.suppress(StoreError):  # it has just begun again
                    remove_run(store, run.name)
            freed.runs.append(run.name)
    return freed


def remove(store: Store, *, run: str | None = None, kind: str | None = None) -> Freed:
    """Remove a run's record with the entries that no other run names, or all entries of a kind.

    Raises StoreError if the run or the kind is unknown, or if it is the run that is going on.
    """
    freed = Freed()
    if kind is not None:
        keys = list(keys_of(store, kind))
        if not keys:
            known = ", ".join(sorted({key.partition("/")[0] for key in keys_of(store)})) or "none"
            raise StoreError(f"cache {store.root} has no entries of kind {kind!r}; it has {known}")
        safe = _named(list_runs(store))
    elif run is not None:
        keys = list(remove_run(store, run).keys)
        freed.runs.append(run)
        safe = {key for record in list_runs(store) for key in record.keys}
    else:
        raise StoreError("say what to remove: a run or a kind")
    going = {}
    for key in keys:
        if key in safe or live(store.lease_path(key), store.stale_after):
            freed.protected += 1
        elif store.folder(key).exists():
            going[key] = tree_bytes(str(store.folder(key)))
    _free(store, going, freed)
    return freed


def fingerprints(store: Store) -> dict[str, str]:
    """Return, by key, a digest of what every entry says: identity, results, and the bytes of arrays and files.

    Times and versions are left out, so two stores of the same run compare equal. Raises CorruptEntry.
    """
    by_key = {}
    for key in keys_of(store):
        manifest = store.manifest(key)
        by_key[key] = digest([manifest["identity"], manifest["data"], manifest["arrays"], manifest["files"]])
    return by_key


def _verify_entry(store: Store, key: str) -> int:
    manifest = store.manifest(key)
    if manifest["components"] and key_of(manifest["components"]) != key:
        raise CorruptEntry(key, "the key is not the digest of its components")
    folder = store.folder(key)
    for relative in manifest["files"]:
        store.check_file(key, relative, again=True)
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if extra := sorted(present - {"entry.json", *manifest["files"]}):
        raise CorruptEntry(key, f"it holds {extra[0]}, which nobody wrote there")
    try:
        check_arrays(folder, manifest["arrays"], manifest["files"])
    except (OSError, ValueError) as error:
        raise CorruptEntry(key, str(error)) from error
    return int(manifest["bytes"])


def _named(runs: Iterable[RunRecord]) -> set[str]:
    """Return what live and pinned runs stand on."""
    return {key for run in runs if run.pinned or run.live for key in run.keys}


def _free(store: Store, going: Mapping[str, int], freed: Freed, dry_run: bool = False) -> None:
    """Remove entries, given with their bytes, but for those that a run has named since the records were read.

    A run names what it stands on and then looks whether it is still there; here entries are taken out of their
    places and then the records are read again. So one of the two sees the other, and no lock is needed.
    """
    if dry_run:
        named: set[str] = set()
    else:
        with store.set_aside(going) as put_back:
            named = _named(list_runs(store)) & going.keys()
            for key in named:
                put_back(key)
    freed.protected += len(named)
    freed.keys += [key for key in going if key not in named]
    freed.bytes += sum(size for key, size in going.items() if key not in named)


def _free_scratch(store: Store, before: float, safe: Collection[str], freed: Freed, dry_run: bool) -> None:
    names = {"-".join(parts_of(key)) for key in safe}
    for home in _folders(store.base / "scratch"):
        lease = store.base / "leases" / f"{home.name}.lease"
        if home.name in names or live(lease, store.stale_after) or newest(home) >= before:
            continue
        freed.bytes += tree_bytes(str(home))
        if not dry_run:
            shutil.rmtree(home, ignore_errors=True)


def _free_given(store: Store, before: float, freed: Freed, dry_run: bool) -> None:
    """Remove files that a program handed over and that were not asked for since."""
    for path in members(store.given):
        with contextlib.suppress(OSError):
            stat = path.stat()
            if path.is_file() and stat.st_mtime < before:
                freed.bytes += stat.st_size
                if not dry_run:
                    path.unlink()


def _folders(folder: Path) -> Iterable[Path]:
    try:
        with os.scandir(folder) as listed:
            return sorted(Path(item.path) for item in listed if item.is_dir(follow_symlinks=False))
    except OSError:
        return []
