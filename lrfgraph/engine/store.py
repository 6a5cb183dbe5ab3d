"""The store: results by key, published whole or not at all. The only place of cache I/O.

``<root>/v2/<kind>/<2 hex>/<digest>/`` is an entry: its arrays (`arrays`), ``files/`` and, written last, the manifest
``entry.json``. An entry is written under ``v2/tmp`` and renamed into its place, and never changed after that; of
two writers the second discards its copy. What took longer than `SYNC_SECONDS` to compute is flushed to disk
before it is published; a cheaper entry that a power cut tears is found out by its checksums and computed again.
Checksums are verified the first time a process reads a file, sizes every time.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrfgraph.engine import leases
from lrfgraph.engine.arrays import array_like, describe, write_arrays
from lrfgraph.engine.entry import CorruptEntry, Entry
from lrfgraph.engine.files import FULL, age, checksum, file_checksum, flush_one, flush_tree, members, tree_bytes, write
from lrfgraph.engine.memory import BoundedCache, versions
from lrfgraph.engine.nodes import Ref, Result, is_key, parts_of
from lrfgraph.engine.scratch import Scratch, ownerless
from lrfgraph.errors import StoreError

if TYPE_CHECKING:
    from lrfgraph.engine.remote import RemoteStore

__all__ = ["FORMAT", "SYNC_SECONDS", "VERSION", "CorruptEntry", "Entry", "Store", "parse_manifest"]

FORMAT = 2
VERSION = f"v{FORMAT}"
SYNC_SECONDS = 0.5
USED_EVERY = 3600.0
LEFTOVER_AGE = 86400.0
FIELDS = {"format", "key", "name", "components", "identity", "data", "arrays", "files", "bytes", "inputs", "seconds"}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}

_manifests = BoundedCache(32 << 20)
_verified = BoundedCache(16 << 20)
_count = itertools.count()


class Store:
    """A cache folder; nothing is created before something is written.

    root : the cache folder.  stale_after : seconds after which a lease whose time stands still is taken over.
    remote : what stands behind it; an entry that is missing here and has been seen there counts as being here.
    """

    def __init__(
        self, root: Path | str, *, stale_after: float = leases.STALE_AFTER, remote: RemoteStore | None = None
    ) -> None:
        self.root, self.stale_after, self.remote = Path(root).expanduser().absolute(), stale_after, remote
        self.base = self.root / VERSION
        self._base = str(self.base)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @property
    def given(self) -> Path:
        """The folder of files that a program handed over, called by their content; no entry is in it."""
        return self.root / "given"

    def older(self) -> str:
        """Return one line about entries of an earlier format that lie in the cache, ``""`` if there are none."""
        names = [name for number in range(1, FORMAT) if (self.root / (name := f"v{number}")).is_dir()]
        if not names:
            return ""
        listed = ", ".join(str(self.root / name) for name in names)
        return (
            f"cache {self.root} has entries of an earlier format, which are not read; remove {listed} to free the space"
        )

    def folder(self, key: str) -> Path:
        """Return where the entry of a key lies, or would lie."""
        return Path(self._path(key))

    def _path(self, key: str) -> str:
        kind, name = parts_of(key)
        return f"{self._base}/{kind}/{name[:2]}/{name}"

    def has(self, key: str) -> bool:
        """Say whether the entry is there (its manifest; nothing is verified)."""
        return self.last_use(key) is not None

    def last_use(self, key: str) -> float | None:
        """Return when the entry was last used (seconds since 1970, exact to an hour), ``None`` if it is absent."""
        try:
            return os.stat(f"{self._path(key)}/entry.json").st_mtime
        except OSError:
            return time.time() if self.remote and key in self.remote.known else None

    def is_here(self, key: str) -> bool:
        """Say whether the entry lies in this folder, whatever the remote has."""
        return os.path.exists(f"{self._path(key)}/entry.json")

    def look_up(self, keys: Iterable[str]) -> bool:
        """Ask the remote for entries that are missing here; returns whether one of them is there."""
        return self.remote is not None and self.remote.look_up(self, keys)

    def bring(self, keys: Iterable[str]) -> None:
        """Fetch entries that are missing here from the remote, many at once."""
        if self.remote is not None:
            self.remote.bring_all(self, (key for key in keys if not self.is_here(key)))

    def flush(self) -> None:
        """Wait until the remote has what was computed here; see `RemoteStore.flush`."""
        if self.remote is not None:
            self.remote.flush()

    def touch(self, key: str, last_use: float) -> None:
        """Note that an entry was used, at most once an hour; a read-only cache is left as it is."""
        if time.time() - last_use > USED_EVERY:
            with contextlib.suppress(OSError):
                os.utime(f"{self._path(key)}/entry.json")

    def open(self, source: Ref | str) -> Entry:
        """Return the entry of a Ref, or of a key (its manifest is then read for the identity)."""
        if isinstance(source, Ref):
            return Entry(self, source.key, source.identity, source.part)
        return Entry(self, source, str(self.manifest(source)["identity"]))

    def manifest(self, key: str) -> dict[str, Any]:
        """Return an entry's manifest, verified; raises CorruptEntry if it is absent or not what was written."""
        path = f"{self._path(key)}/entry.json"
        try:
            with open(path, "rb", buffering=0) as file:
                stat = os.fstat(file.fileno())
                at = (path, stat.st_ino, stat.st_size, stat.st_ctime_ns)
                remembered: dict[str, Any] | None = _manifests.get(at)
                if remembered is not None:
                    return remembered
                content = file.readall()
        except FileNotFoundError as error:
            if self.remote is not None and self.remote.bring(self, key):
                return self.manifest(key)
            raise CorruptEntry(key, "the manifest is missing") from error
        except OSError as error:
            raise CorruptEntry(key, f"the manifest cannot be read ({error.strerror})") from error
        manifest = parse_manifest(key, content)
        _manifests.put(at, manifest, 6 * len(content))
        return manifest

    def check_file(self, key: str, relative: str, content: bytes | None = None, *, again: bool = False) -> None:
        """Verify a file of an entry: its size, and the first time in this process (or `again`) its checksum.

        Raises CorruptEntry.
        """
        size, expected = self.manifest(key)["files"][relative]
        path = f"{self._path(key)}/{relative}"
        try:
            stat = os.stat(path)
            if stat.st_size != size:
                raise CorruptEntry(key, f"{relative} has {stat.st_size} bytes instead of {size}")
            state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if not again and _verified.get(path) == state:
                return
            actual = file_checksum(path) if content is None else checksum(content)
        except OSError as error:
            raise CorruptEntry(key, f"{relative} cannot be read ({error.strerror})") from error
        if actual != expected:
            raise CorruptEntry(key, f"{relative} is damaged (wrong checksum)")
        _verified.put(path, state, len(path) + 256)

    def scratch(self, key: str) -> Scratch:
        """Return what one attempt at this key may keep for the next one, should it be interrupted."""
        return Scratch(self.base / "scratch" / "-".join(parts_of(key)))

    def lease_path(self, key: str) -> Path:
        """Return the path of a key's lease; all leases lie in one folder, so that they are quickly listed."""
        return self.base / "leases" / f"{'-'.join(parts_of(key))}.lease"

    def commit(
        self,
        key: str,
        result: Result,
        *,
        name: str = "",
        components: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
        seconds: float = 0.0,
    ) -> int:
        """Write an entry and publish it; returns its bytes.

        components : what the key digests.  inputs : the inputs' keys.  Raises StoreError if the cache cannot be
        written or is full, TypeError or ValueError for a result that cannot be stored; nothing is left behind.
        """
        arrays = {n: array_like(a) for n, a in sorted(result.arrays.items())}
        need = sum(a.nbytes for a in arrays.values())
        with self.writing(key, need):
            temporary = self._temporary()
        try:
            with self.writing(key, need):
                files = _write_files(temporary, result)
                manifest = {
                    "format": FORMAT,
                    "key": key,
                    "name": name,
                    "components": dict(components or {}),
                    "identity": result.identity or key,
                    "data": result.data,
                    "arrays": {n: describe(a) for n, a in arrays.items()},
                    "files": files,
                    "bytes": sum(size for size, _ in files.values()),
                    "inputs": dict(inputs or {}),
                    "seconds": round(seconds, 6),
                    "created": round(time.time(), 3),
                    "versions": versions(),
                }
                text = json.dumps(manifest, separators=(",", ":"), allow_nan=False, default=_plain).encode()
                content = b'{"digest":"' + checksum(text).encode() + b'",' + text[1:]
                write(temporary / "entry.json", [content])
                if seconds > SYNC_SECONDS:
                    flush_tree(temporary)
                self._publish(temporary, key, seconds > SYNC_SECONDS)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if self.remote is not None:
            self.remote.put(self, key)
        return len(content) + int(str(manifest["bytes"]))

    def adopt(self, key: str, fill: Callable[[Path], None], flush: bool) -> None:
        """Publish an entry that comes from elsewhere, whole and verified.

        fill : writes its files into a folder, and the manifest last.  flush : have the disk take it first.
        """
        with self.writing(key):
            temporary = self._temporary()
            try:
                fill(temporary)
                if flush:
                    flush_tree(temporary)
                self._publish(temporary, key, flush)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def discard(self, key: str) -> None:
        """Remove an entry, whatever state it is in; raises StoreError if the cache cannot be written."""
        with self.set_aside([key]):
            pass

    @contextlib.contextmanager
    def set_aside(self, keys: Iterable[str]) -> Iterator[Callable[[str], None]]:
        """Take entries out of their places, whatever state they are in; at the end of the block they are gone.

        Yields a function that puts one back. Raises StoreError if the cache cannot be written.
        """
        with self.writing("tmp"):
            aside = self._temporary()
        try:
            for key in keys:
                place = self.folder(key)
                if place.parent.resolve() != self.base.resolve().joinpath(*place.parent.parts[-2:]):
                    raise StoreError(f"cache {self.root}: {place.parent} leads out of it; remove the link")
                with self.writing(key), contextlib.suppress(FileNotFoundError):
                    place.rename(aside / "-".join(parts_of(key)))
            yield lambda key: self._publish(aside / "-".join(parts_of(key)), key, flush=False)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def bytes_used(self) -> int:
        """Return the bytes of all files in the cache, unfinished ones included."""
        return tree_bytes(self._base)

    def remembered(self, state: str | None, read: Callable[[], str], keep: bool = True) -> str:
        """Return what `read` says of a large file, from memory if it was read in the same state before.

        state : says which file it is and that it has not changed; ``None`` if nothing says so.  keep : remember it,
        best effort; a damaged note counts as none.
        """
        if state is None:
            return read()
        path = self.base / "known" / checksum(state.encode())
        with contextlib.suppress(OSError, ValueError):
            value, seal = path.read_text(encoding="ascii").split()
            if seal == checksum(f"{state} {value}".encode()):
                return value
        value = read()
        if keep:
            partial = path.with_name(f".{path.name}.{os.getpid()}.{next(_count)}")
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_text(f"{value} {checksum(f'{state} {value}'.encode())}", encoding="ascii")
                partial.replace(path)
        return value

    def clean(self) -> None:
        """Remove what dead processes left half-written, and their leases; best effort."""
        for path in members(self.base / "tmp"):
            if leases.signed_by_dead(path.name) or age(path) > LEFTOVER_AGE:
                shutil.rmtree(path, ignore_errors=True)
        for home in members(self.base / "scratch"):
            key = "/".join(home.name.rsplit("-", 1))
            if is_key(key) and self.has(key):  # another attempt was quicker
                for attempt in ownerless(home):
                    shutil.rmtree(attempt, ignore_errors=True)
                with contextlib.suppress(OSError):
                    home.rmdir()
        for path in members(self.base / "leases"):
            leases.sweep(path)

    @contextlib.contextmanager
    def writing(self, key: str, need: int = 0) -> Iterator[None]:
        """Turn what the system says about a closed or full disk into one line for the user."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise self.full(error.strerror or "no space", f"writing {key}, which needs {need:,} bytes") from error
            if error.errno in CLOSED:
                raise StoreError(
                    f"cache {self.root} cannot be written ({error.strerror}), needed for {key}; use --cache DIR"
                ) from error
            raise

    def full(self, reason: str, doing: str) -> StoreError:
        """Return the one line that says that there is no room, to be raised."""
        return StoreError(f"cache {self.root} is full ({reason}) while {doing}; free some space, or use --cache DIR")

    def _temporary(self) -> Path:
        path = self.base / "tmp" / f"{leases.signature()}.{next(_count)}"
        try:
            path.mkdir()
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        return path

    def _publish(self, temporary: Path, key: str, flush: bool) -> None:
        """Rename an entry into its place; one that is there already wins, one without a manifest does not."""
        place = self._path(key)
        parent = os.path.dirname(place)
        for _ in range(8):
            try:
                os.rename(temporary, place)
            except FileNotFoundError:
                os.makedirs(parent, exist_ok=True)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise
                if self.is_here(key):
                    return
                self.discard(key)
            else:
                if flush:
                    flush_one(parent)
                return
        raise StoreError(f"cache {self.root}: {key} cannot be put in its place {place}; remove what lies there")


def _write_files(folder: Path, result: Result) -> dict[str, tuple[int, str]]:
    """Write arrays and move files into `folder`; returns size and checksum of each."""
    files = write_arrays(folder, result.arrays)
    for name, source in sorted(result.files.items()):
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"names of files are plain, received {name!r}")
        (folder / "files").mkdir(exist_ok=True)
        target = folder / "files" / name
        shutil.move(source, target)
        files[f"files/{name}"] = (target.stat().st_size, file_checksum(str(target)))
    return files


def parse_manifest(key: str, content: bytes) -> dict[str, Any]:
    """Return a manifest that has been read; raises CorruptEntry unless it is what was written for this key."""
    # {"digest":"<40 hex>",<the rest>: every byte of the file is either compared or digested
    if (
        content[:11] != b'{"digest":"'
        or content[51:53] != b'",'
        or checksum(b"{" + content[53:]) != content[11:51].decode("ascii", "replace")
    ):
        raise CorruptEntry(key, "the manifest is damaged")
    manifest: dict[str, Any] = json.loads(content)
    if lacks := sorted(FIELDS - manifest.keys()):
        raise CorruptEntry(key, f"the manifest lacks {', '.join(lacks)}")
    if manifest["key"] != key or manifest["format"] != FORMAT:
        raise CorruptEntry(key, f"the manifest belongs to {manifest['key']}")
    return manifest


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"results are JSON values, received {type(value).__name__}")
