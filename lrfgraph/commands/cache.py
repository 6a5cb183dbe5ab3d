"""A cache as a person sees it: what is in it, whether it is sound, what can go, what comes from elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from lrfgraph.engine import exchange, maintenance, runs
from lrfgraph.engine.remote import RemoteStore
from lrfgraph.engine.store import Store
from lrfgraph.errors import StoreError
from lrfgraph.options.values import parse_age, parse_bytes
from lrfgraph.report.tables import age_text, bytes_text, columns, seconds_text

__all__ = ["du", "gc", "ls", "pin", "pull", "push", "rm", "verify"]

T = TypeVar("T")


def _open(folder: Path) -> Store:
    store = Store(folder)
    older = store.older()
    if older:
        print(f"note: {older}", file=sys.stderr)
    if not store.base.is_dir() and not older:
        raise StoreError(f"{folder} is no cache of lrfgraph; name one with --cache DIR")
    return store


def ls(folder: Path, kind: str | None, run: str | None, *, as_json: bool = False) -> None:
    """List the runs, or the entries of a kind or of a run."""
    store = _open(folder)
    if kind is None and run is None:
        _list_runs(store, as_json)
        return
    entries = maintenance.list_entries(store, kind)
    if kind is not None and not entries:
        known = ", ".join(maintenance.usage(store)) or "none"
        raise StoreError(f"cache {folder} has no entries of kind {kind!r}; it has {known}")
    if run is not None:
        record = next((record for record in runs.list_runs(store) if record.name == run), None)
        if record is None:
            known = ", ".join(record.name for record in runs.list_runs(store)) or "none"
            raise StoreError(f"cache {folder} has no run {run!r}; it has {known}")
        keys = set(record.keys)
        entries = [entry for entry in entries if entry.key in keys]
    if as_json:
        _print([asdict(entry) for entry in entries])
        return
    rows = [[e.name, bytes_text(e.bytes), seconds_text(e.seconds), age_text(e.used), e.key] for e in entries]
    print(columns(["node", "size", "took", "used", "key"], rows, right=(1, 2, 3)))


def _list_runs(store: Store, as_json: bool) -> None:
    sizes = {entry.key: entry.bytes for entry in maintenance.list_entries(store)}
    listed: list[dict[str, Any]] = [
        {
            "run": record.name,
            "entries": sum(key in sizes for key in record.keys),
            "bytes": sum(sizes.get(key, 0) for key in record.keys),
            "created": record.created,
            "pinned": record.pinned,
            "live": record.live,
        }
        for record in runs.list_runs(store)
    ]
    if as_json:
        _print(listed)
        return
    rows = []
    for r in listed:
        marks = ", ".join(word for word in ("pinned", "live") if r[word])
        rows.append([r["run"], str(r["entries"]), bytes_text(r["bytes"]), age_text(r["created"]), marks])
    print(columns(["run", "entries", "size", "age", ""], rows, right=(1, 2, 3)))
    print(f"{len(sizes)} entries, {bytes_text(sum(sizes.values()))} in {store.root}")


def du(folder: Path, *, as_json: bool = False) -> None:
    """Print entries and bytes by kind."""
    usage = maintenance.usage(_open(folder))
    if as_json:
        _print({kind: asdict(used) for kind, used in usage.items()})
        return
    rows = [[kind, str(used.entries), bytes_text(used.bytes)] for kind, used in usage.items()]
    total = ["all", str(sum(u.entries for u in usage.values())), bytes_text(sum(u.bytes for u in usage.values()))]
    print(columns(["kind", "entries", "size"], [*rows, total], right=(1, 2)))


def verify(folder: Path, remove: bool, *, as_json: bool = False) -> bool:
    """Digest everything again; returns whether something is damaged and still there."""
    report = maintenance.verify(_open(folder), remove_damaged=remove, progress=None if as_json else _count)
    if as_json:
        _print(asdict(report))
    else:
        for key, why in report.damaged.items():
            print(f"{key}: {why}" + (", removed" if remove else ""))
        print(f"{report.entries} entries, {bytes_text(report.bytes)}, {len(report.damaged)} damaged")
    return bool(report.damaged) and not remove


def _count(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def gc(folder: Path, max_size: str | None, older_than: str | None, dry_run: bool, *, as_json: bool = False) -> None:
    """Remove what nobody used for long, or what is too much."""
    if max_size is None and older_than is None:
        raise StoreError("say what may go: --max-size 5GB, --older-than 30d, or both")
    size = None if max_size is None else _parsed(parse_bytes, max_size, "sizes are written like 500MB or 5GB")
    age = None if older_than is None else _parsed(parse_age, older_than, "ages are written like 12h, 30d or 4w")
    _freed(maintenance.gc(_open(folder), max_size=size, older_than=age, dry_run=dry_run), dry_run, as_json)


def rm(folder: Path, run: str | None, kind: str | None, *, as_json: bool = False) -> None:
    """Remove a run or a kind."""
    if (run is None) == (kind is None):
        raise StoreError("say what to remove: the name of a run, or --kind KIND")
    _freed(maintenance.remove(_open(folder), run=run, kind=kind), False, as_json)


def _parsed(parse: Callable[[str], T], text: str, usage: str) -> T:
    try:
        return parse(text)
    except (ValueError, OverflowError):
        raise StoreError(f"{usage}, received {text!r}") from None


def _freed(freed: maintenance.Freed, dry_run: bool, as_json: bool) -> None:
    if as_json:
        _print(asdict(freed))
        return
    verb = "would remove" if dry_run else "removed"
    print(f"{verb} {len(freed.keys)} entries, {bytes_text(freed.bytes)}")
    if freed.runs:
        print(f"{verb} the records of {', '.join(freed.runs)}")
    if freed.protected:
        print(f"kept {freed.protected} entries that a run stands on")
    if freed.over:
        print(f"still {bytes_text(freed.over)} above the limit: what is left is in use")


def push(folder: Path, run: str, url: str, *, as_json: bool = False) -> None:
    """Put what a run stands on into the remote."""
    _exchanged(exchange.push(_with_remote(_open(folder), url), run), "put", "in this cache", as_json)


def pull(folder: Path, run: str, url: str, *, as_json: bool = False) -> bool:
    """Fetch what a run stands on from the remote; returns whether all of it is here."""
    done = exchange.pull(_with_remote(Store(folder), url), run)
    _exchanged(done, "fetched", "in the remote", as_json)
    return not done.absent


def _with_remote(store: Store, url: str) -> Store:
    store.remote = RemoteStore(url, required=True, reason="")
    return store


def _exchanged(done: exchange.Exchange, verb: str, side: str, as_json: bool) -> None:
    if as_json:
        _print(asdict(done))
        return
    print(f"{verb} {done.entries} entries, {bytes_text(done.bytes)}; {done.there} were there already")
    if done.absent:
        print(f"{len(done.absent)} that the run names are not {side}, or damaged there")


def pin(folder: Path, run: str, pinned: bool) -> None:
    """Keep what a run stands on, or no longer."""
    runs.pin(_open(folder), run, pinned)
    print(f"{run} is {'pinned' if pinned else 'no longer pinned'}")


def _print(value: Any) -> None:
    print(json.dumps(value, indent=1))
