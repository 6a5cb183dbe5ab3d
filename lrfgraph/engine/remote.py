"""An object store behind the local one: what is missing here is fetched from there, what is computed is put there.

The same paths as on disk, below the remote's URL; an entry's manifest is put last, and its put is the commit. What
comes from there is checked like everything else, and a damaged entry counts as none: it is computed and put again.
Local disk stays the working copy. Where the remote cannot be reached, the run goes on without it and says so once,
or ends where it is `required`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lrfgraph.engine.entry import CorruptEntry
from lrfgraph.engine.files import write
from lrfgraph.engine.locations import import_obstore, make_folder, no_folder, open_url
from lrfgraph.engine.nodes import parts_of
from lrfgraph.engine.store import SYNC_SECONDS, VERSION, parse_manifest
from lrfgraph.errors import StoreError

if TYPE_CHECKING:
    from lrfgraph.engine.store import Store

__all__ = ["RemoteStore", "remote_store"]

URL = re.compile(r"(s3|gs|az|file)://[^\s?#]+")
AT_ONCE = 16
"""Requests that are on their way at the same time."""
BLOCK = 8 << 20

T = TypeVar("T")


@cache
def remote_store(url: str, readonly: bool = False, required: bool = False) -> RemoteStore:
    """Return the remote store at a URL: one for all that ask in this process."""
    return RemoteStore(url, readonly, required)


class RemoteStore:
    """Entries in an object store; nothing is asked of it before something is looked for.

    url : ``s3://bucket/prefix``, ``gs://…``, ``az://…`` or ``file:///folder``; credentials and endpoints are those of
    the environment. A folder that is not there is made by the first that is put into it.  readonly : nothing is put
    there.  required : raise StoreError where it cannot be reached.  reason : why it is required, as the error says.
    known : keys that were seen there and are not here.
    Raises StoreError for another URL.
    """

    def __init__(
        self, url: str, readonly: bool = False, required: bool = False, reason: str = "run.remote_required is set"
    ) -> None:
        if not URL.fullmatch(url):
            raise StoreError(f"run.remote is s3://BUCKET/PREFIX, gs://…, az://… or file:///FOLDER; received {url!r}")
        self.url, self.readonly, self.required, self.reason = url.rstrip("/"), readonly, required, reason
        self.known: set[str] = set()
        self.away = ""
        self._damaged: set[str] = set()
        self._put_there: set[str] = set()
        self._notes: list[str] = []
        self._unput = 0
        self._waiting: set[Future[None]] = set()
        self._failure: BaseException | None = None
        self._guard = threading.RLock()
        self._client: Any = None
        self._pools: dict[str, ThreadPoolExecutor] = {}  # two, so that no question waits for what is being put

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return remote_store, (self.url, self.readonly, self.required)

    # Reading --------------------------------------------------------------------------------------------------------

    def look_up(self, store: Store, keys: Iterable[str]) -> bool:
        """Ask for entries that are not here; returns whether one of them is there.

        An entry that is all manifest (a score, a decision) comes with the question.
        """
        asked = [key for key in dict.fromkeys(keys) if key not in self.known and key not in self._damaged]
        if not asked or self.away:
            return False
        answers = list(self._threads("ask").map(lambda key: self._look_up(store, key), asked))
        return any(answers)

    def bring(self, store: Store, key: str) -> bool:
        """Fetch an entry that is not here; returns whether there is one. Raises CorruptEntry for a damaged one."""
        if key not in self.known and (key in self._damaged or not self._look_up(store, key)):
            return False
        if key in self.known:
            self._fetch(store, key)
        return True

    def bring_all(self, store: Store, keys: Iterable[str]) -> None:
        """Fetch entries side by side; what is damaged there is left to whoever reads it."""

        def bring(key: str) -> None:
            with suppress(CorruptEntry):
                self.bring(store, key)

        for _ in self._threads("ask").map(bring, dict.fromkeys(keys)):
            pass

    def holding(self, keys: Iterable[str]) -> set[str]:
        """Return those of some keys whose entry is there, its manifest sound."""

        def holds(key: str) -> bool:
            if key in self._put_there:
                return True
            content = self.read(f"{_place(key)}/entry.json")
            with suppress(CorruptEntry):
                return content is not None and bool(parse_manifest(key, content))
            return False

        asked = list(dict.fromkeys(keys))
        return {key for key, there in zip(asked, self._threads("ask").map(holds, asked), strict=True) if there}

    def runs(self) -> list[str]:
        """Return the names of the runs whose record is there."""
        import obstore

        found = self._ask(lambda client: obstore.list(client, prefix=f"{VERSION}/runs").collect()) or ()
        return sorted(Path(one["path"]).stem for one in found)

    def read(self, path: str) -> bytes | None:
        """Return an object, ``None`` where there is none or the remote is away."""
        import_obstore()
        import obstore

        return self._ask(lambda client: bytes(obstore.get(client, path).bytes()))

    def _look_up(self, store: Store, key: str) -> bool:
        content = self.read(f"{_place(key)}/entry.json")
        if content is None:
            return False
        try:
            manifest = parse_manifest(key, content)
        except CorruptEntry as error:
            self._note_damage(error)
            return False
        if manifest["files"]:
            with self._guard:
                self.known.add(key)
        else:
            store.adopt(key, lambda folder: _write_manifest(folder, content), manifest["seconds"] > SYNC_SECONDS)
        return True

    def _fetch(self, store: Store, key: str) -> None:
        content = self.read(f"{_place(key)}/entry.json")
        if content is None:
            with self._guard:
                self.known.discard(key)
            raise CorruptEntry(key, f"it is not in {self.url} any more")
        try:
            manifest = parse_manifest(key, content)
            files: dict[str, tuple[int, str]] = manifest["files"]

            def fill(folder: Path) -> None:
                for relative, (size, expected) in files.items():
                    self._download(key, relative, folder, (size, expected))
                _write_manifest(folder, content)

            with store.writing(key, int(manifest["bytes"])):
                store.adopt(key, fill, manifest["seconds"] > SYNC_SECONDS)
        except CorruptEntry as error:
            if not self.away:
                self._note_damage(error)
            raise
        with self._guard:
            self.known.discard(key)

    def _download(self, key: str, relative: str, folder: Path, expected: tuple[int, str]) -> None:
        import obstore

        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in relative.split("/")):
            raise CorruptEntry(key, f"{relative!r} is no name of a file")
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        answer = self._ask(lambda client: obstore.get(client, f"{_place(key)}/{relative}"))
        if answer is None:
            raise CorruptEntry(key, f"{relative} is missing in {self.url}")
        if write(target, self._blocks(key, answer)) != tuple(expected):
            raise CorruptEntry(key, f"{relative} is damaged in {self.url}")

    def _blocks(self, key: str, answer: Any) -> Iterator[Any]:
        from obstore.exceptions import BaseError

        try:
            yield from answer.stream(min_chunk_size=BLOCK)
        except BaseError as error:
            self._leave(error)
            raise CorruptEntry(key, f"{self.url} went away") from error

    def _note_damage(self, error: CorruptEntry) -> None:
        with self._guard:
            self.known.discard(error.key)
            if error.key not in self._damaged:
                self._damaged.add(error.key)
                self._notes.append(f"remote {self.url}: {error.key}: {error.why}; it is not used")

    # Writing --------------------------------------------------------------------------------------------------------

    def put(self, store: Store, key: str) -> None:
        """Put an entry that is here, beside what goes on; `flush` waits for it."""
        if self.readonly:
            return
        with self._guard:
            if self.away:
                self._unput += 1
                return
            if self._failure is not None:
                raise self._failure
            one = self._threads("put").submit(self._put, store, key)
            self._waiting.add(one)
        one.add_done_callback(self._was_put)

    def flush(self) -> None:
        """Wait until all entries are put; raises StoreError if one could not be and the remote is required."""
        with self._guard:
            waiting = list(self._waiting)
        for one in waiting:
            one.result()
        if self._failure is not None:
            raise self._failure

    def settle(self) -> None:
        """Wait like `flush`, and note how many entries could not be put."""
        self.flush()
        with self._guard:
            count, self._unput = self._unput, 0
            if count:
                self._notes.append(
                    f"remote {self.url}: {count} {'entry was' if count == 1 else 'entries were'} not put there; "
                    "`lrfgraph cache push RUN` does it when it can be reached"
                )

    def _was_put(self, one: Future[None]) -> None:
        with self._guard:
            self._waiting.discard(one)
            if not one.cancelled() and self._failure is None:
                self._failure = one.exception()

    def create(self) -> None:
        """Make the folder of a ``file:`` URL where it is not there; a bucket is never made."""
        try:
            make_folder(self.url)
        except OSError as error:
            self._leave(error)

    def write(self, path: str, content: bytes) -> bool:
        """Put an object; returns whether it is there."""
        import_obstore()
        import obstore

        return self._ask(lambda client: obstore.put(client, path, content), writing=True) is not None

    def _put(self, store: Store, key: str) -> None:
        folder = store.folder(key)
        try:
            content = (folder / "entry.json").read_bytes()
            files = parse_manifest(key, content)["files"]
        except (OSError, CorruptEntry):
            return  # it went meanwhile, or is not worth it
        done = all(self._upload(folder / relative, f"{_place(key)}/{relative}") for relative in files)
        if done and self.write(f"{_place(key)}/entry.json", content):
            self._damaged.discard(key)
            self._put_there.add(key)
        elif folder.is_dir():
            with self._guard:
                self._unput += 1

    def _upload(self, path: Path, name: str) -> bool:
        import obstore

        return path.is_file() and self._ask(lambda client: obstore.put(client, name, path), writing=True) is not None

    # Being there ----------------------------------------------------------------------------------------------------

    def notes(self) -> list[str]:
        """Return what a person should know and was not told yet."""
        with self._guard:
            notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Give up what is not put yet, and forget what was seen: the next run asks again."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        self._failure, self.away, self._client = None, "", None
        self._waiting.clear()
        self.known.clear()
        self._damaged.clear()
        self._put_there.clear()

    def _threads(self, purpose: str) -> ThreadPoolExecutor:
        with self._guard:
            if purpose not in self._pools:
                self._pools[purpose] = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=f"lrfgraph-{purpose}")
            return self._pools[purpose]

    def _ask(self, request: Callable[[Any], T], writing: bool = False) -> T | None:
        """Carry out a request; ``None`` if what is asked for is not there, or the remote is away."""
        if self.away or (writing and self.readonly):
            return None
        from obstore.exceptions import BaseError, PermissionDeniedError

        try:
            if (client := self._opened(writing)) is None:
                return None
        except (BaseError, OSError, ValueError) as error:
            self._leave(error)
            return None
        try:
            return request(client)
        except FileNotFoundError as error:
            if writing:
                self._leave(error)
            return None
        except PermissionError as error:
            self._leave(error)
        except PermissionDeniedError as error:
            self._leave(error, only_writing=writing)
        except (BaseError, ValueError) as error:
            self._leave(error)
        return None

    def _leave(self, error: Exception, only_writing: bool = False) -> None:
        reason = " ".join(str(error).split("\n")[0].split())[:300] or type(error).__name__
        what = "written" if only_writing else "reached"
        if self.required:
            raise StoreError(
                f"remote {self.url} cannot be {what} ({reason}){self.reason and '; '}{self.reason}"
            ) from error
        with self._guard:
            if self.away or (only_writing and self.readonly):
                return
            if only_writing:
                self.readonly = True
                self._notes.append(f"remote {self.url} cannot be written ({reason}); it is only read from here on")
                return
            self.away = reason
            self.known.clear()
            self._notes.append(f"remote {self.url} cannot be reached ({reason}); the run goes on without it")

    def _opened(self, writing: bool) -> Any:
        """The client; ``None`` for a folder that is yet to be made."""
        with self._guard:
            if self._client is None:
                if no_folder(self.url):
                    if self.readonly or self.required:  # what is there is wanted: the URL is mistyped
                        raise FileNotFoundError("no such folder")
                    if not writing:
                        return None
                    make_folder(self.url)
                client = open_url(self.url)
                import obstore

                for _ in obstore.list(client, prefix=f"{VERSION}/none", chunk_size=1):  # a bucket that is not there
                    break
                self._client = client
            return self._client


def _place(key: str) -> str:
    kind, name = parts_of(key)
    return f"{VERSION}/{kind}/{name[:2]}/{name}"


def _write_manifest(folder: Path, content: bytes) -> None:
    write(folder / "entry.json", [content])
