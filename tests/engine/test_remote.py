"""A remote behind the store: another machine computes nothing again, and what goes wrong there costs work at most."""

from __future__ import annotations

import json
import pickle
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3 import ENVIRONMENT, S3Server
from toys import STEPS, grid

from lrfgraph.engine import locations
from lrfgraph.engine.entry import CorruptEntry
from lrfgraph.engine.events import Event
from lrfgraph.engine.exchange import finish, pull, push
from lrfgraph.engine.execute import execute, healing
from lrfgraph.engine.files import checksum
from lrfgraph.engine.maintenance import fingerprints, keys_of, verify
from lrfgraph.engine.memory import forget
from lrfgraph.engine.nodes import Node, Ref, Result, digest
from lrfgraph.engine.remote import RemoteStore
from lrfgraph.engine.runs import list_runs, start_run
from lrfgraph.engine.store import Store
from lrfgraph.engine.workers import workers_for
from lrfgraph.errors import StoreError

NODES = len(grid(2, 3))


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty place in a bucket."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.endpoint}).items():
        monkeypatch.setenv(name, value)
    bucket = f"b{checksum(str(tmp_path).encode())[:20]}"
    urllib.request.urlopen(urllib.request.Request(f"{server.endpoint}/{bucket}", method="PUT")).close()
    server.reset()
    yield f"s3://{bucket}/team/cache"
    server.reset()


class Machine:
    """A cache folder of its own with the remote behind it."""

    def __init__(self, root: Path, url: str, **options: bool) -> None:
        self.store = Store(root, remote=RemoteStore(url, **options))
        self.counts: Counter[str] = Counter()
        self.told: list[str] = []

    def run(self, on_event: Any = None, **options: Any) -> dict[str, Ref]:
        def listen(event: Event) -> None:
            self.counts[event.kind] += 1
            self.told += [event.message] if event.kind == "warning" else []
            if on_event is not None:
                on_event(event)

        refs = execute(grid(2, 3), STEPS, self.store, on_event=listen, **options)
        assert self.store.remote is not None
        self.store.remote.settle()
        self.told += self.store.remote.notes()
        return refs

    def read_all(self, refs: dict[str, Ref]) -> None:
        for ref in refs.values():
            entry = self.store.open(ref)
            for name in entry.names():
                entry.array(name)


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/remote" if request.param == "file" else str(request.getfixturevalue("s3"))


def test_another_machine_computes_nothing_and_reads_the_same(tmp_path: Path, url: str) -> None:
    here, there = Machine(tmp_path / "a", url), Machine(tmp_path / "b", url)
    here.run()
    assert here.counts["finished"] == NODES
    refs = there.run()
    assert there.counts["reused"] == NODES
    assert there.counts["finished"] == 0
    assert len(list(keys_of(there.store))) < NODES, "arrays come when they are read"
    there.read_all(refs)
    assert fingerprints(there.store) == fingerprints(here.store)
    assert verify(there.store).damaged == {}
    assert here.told == there.told == []


def test_what_is_new_reads_what_is_there(tmp_path: Path, url: str) -> None:
    Machine(tmp_path / "a", url).run()
    there = Store(tmp_path / "b", remote=RemoteStore(url))
    events: list[Event] = []
    nodes = [*grid(2, 3), Node("new", "combine", {"factor": 9}, {"a": "s0", "b": "p1"})]
    execute(nodes, STEPS, there, targets=["new"], on_event=events.append)
    assert [event.node for event in events if event.kind == "finished"] == ["new"]
    assert len(list(keys_of(there))) < NODES


def test_a_manifest_is_put_after_all_files_of_its_entry(tmp_path: Path, s3: str, server: S3Server) -> None:
    Machine(tmp_path / "a", s3).run()
    here = s3.removeprefix("s3://") + "/v2/"  # of an earlier test, something may still be under way
    puts = [path for method, path in server.asked if method == "PUT" and here in path]
    whole: set[str] = set()
    for path in puts:
        entry, _, name = path.partition("/v2/")[2].rpartition("/")
        late = name != "entry.json" and any(entry.startswith(done) for done in whole)
        assert not late, f"{path} comes after its manifest"
        whole |= {entry} if name == "entry.json" else set()
    assert len(whole) == NODES


def test_a_remote_that_is_only_read_gets_nothing(tmp_path: Path, s3: str, server: S3Server) -> None:
    Machine(tmp_path / "a", s3).run()
    server.asked.clear()
    there = Machine(tmp_path / "b", s3, readonly=True)
    there.run()
    execute([Node("new", "source", {"seed": 99})], STEPS, there.store)
    there.store.flush()
    assert there.counts["reused"] == NODES
    assert {method for method, _ in server.asked} <= {"GET", "HEAD"}
    with pytest.raises(StoreError, match="is only read"):
        push(there.store, "any")


def test_one_that_may_not_be_written_is_read_on_and_said_once(tmp_path: Path, s3: str, server: S3Server) -> None:
    Machine(tmp_path / "a", s3).run()
    server.refuses = {"PUT", "POST"}
    there = Machine(tmp_path / "b", s3)
    news = [Node(f"new{i}", "source", {"seed": 90 + i}) for i in range(5)]
    execute(news, STEPS, there.store, on_event=lambda event: there.told.append(event.message))
    there.run()
    assert there.counts["reused"] == NODES
    assert len([line for line in there.told if "cannot be written" in line]) == 1
    assert there.store.remote is not None
    assert not there.store.remote.away


def test_stopped_in_mid_run_it_is_said_once_and_the_run_goes_on(
    tmp_path: Path, s3: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "RETRIES", 1)
    here, stopped = Machine(tmp_path / "a", s3), []

    def stop(event: Event) -> None:
        if here.counts["finished"] == 5 and not stopped:
            stopped.append(True)
            server.stop()

    try:
        with start_run(here.store, "toy") as live:
            refs = here.run(on_event=stop, run=live)
    finally:
        server.start()
    assert stopped
    assert here.counts["finished"] == NODES
    here.read_all(refs)
    assert [line.split("(")[0] for line in here.told if "cannot be reached" in line] == [
        f"remote {s3} cannot be reached "
    ]
    (unput,) = [line for line in here.told if "were not put" in line]
    assert "lrfgraph cache push RUN" in unput
    # later: what is missing there is put
    again = Machine(tmp_path / "a", s3)
    pushed = push(again.store, "toy")
    assert pushed.entries >= int(unput.split(": ")[1].split()[0])
    assert pushed.entries + pushed.there == NODES
    assert pushed.absent == ()
    there = Machine(tmp_path / "b", s3)
    there.run()
    assert there.counts["reused"] == NODES


def test_where_it_is_required_its_absence_is_one_line(
    tmp_path: Path, s3: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "RETRIES", 0)
    server.stop()
    try:
        with pytest.raises(StoreError, match=r"cannot be reached .*run.remote_required is set") as caught:
            Machine(tmp_path / "a", s3, required=True).run()
        assert "\n" not in str(caught.value)
        there = Machine(tmp_path / "b", s3)
        there.run()
        assert there.counts["finished"] == NODES
    finally:
        server.start()


def test_one_that_never_answers_is_away(
    tmp_path: Path, s3: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "RETRIES", 0)
    monkeypatch.setattr(locations, "SILENCE", 0.3)
    here = Machine(tmp_path / "a", s3)
    here.run(on_event=lambda event: setattr(server, "delay", 3.0 if here.counts["finished"] > 3 else 0.0))
    assert here.counts["finished"] == NODES
    assert len([line for line in here.told if "cannot be reached" in line]) == 1


def test_what_is_damaged_here_is_fetched_and_not_computed(tmp_path: Path, url: str) -> None:
    here = Machine(tmp_path / "a", url)
    refs = here.run()
    for file in here.store.base.glob("source/*/*/arrays.npz"):
        file.write_bytes(bytes(file.stat().st_size))
    forget()
    again = Machine(tmp_path / "a", url)
    healing(again.store, lambda: again.read_all(again.run()))
    assert again.counts["finished"] == 0
    assert verify(again.store).damaged == {}
    again.read_all(refs)


def test_a_slow_one_only_takes_longer(tmp_path: Path, s3: str, server: S3Server) -> None:
    server.delay = 0.03
    here, there = Machine(tmp_path / "a", s3), Machine(tmp_path / "b", s3)
    here.run()
    there.read_all(there.run())
    assert there.counts["finished"] == 0
    assert here.told == there.told == []


@pytest.mark.parametrize("name", ["arrays.npz", "entry.json", "c.0.0"])
def test_damaged_bytes_are_found_computed_again_and_put_again(
    tmp_path: Path, s3: str, server: S3Server, name: str
) -> None:
    here = Machine(tmp_path / "a", s3)
    here.run()
    server.damages = lambda path: path.endswith(name) and "/source/" in path
    there = Machine(tmp_path / "b", s3)

    healing(there.store, lambda: there.read_all(there.run()))
    assert fingerprints(there.store) == fingerprints(here.store)
    assert there.counts["finished"] == 2, "the two sources, nothing else"
    assert len([line for line in there.told if "it is not used" in line]) == 2
    server.damages = lambda path: False
    third = Machine(tmp_path / "c", s3)
    third.read_all(third.run())
    assert third.counts["finished"] == 0


def test_what_was_put_in_part_is_not_there(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/remote"
    here = Machine(tmp_path / "a", url)
    refs = here.run()
    place = tmp_path / "remote" / "v2"
    gone = refs["s0"].key.split("/")
    (place / gone[0] / gone[1][:2] / gone[1] / "arrays.npz").unlink()
    there = Machine(tmp_path / "b", url)
    with pytest.raises(CorruptEntry, match=r"arrays.npz is missing in file://"):
        there.read_all(there.run())
    there.run()
    assert there.counts["finished"] == 1
    assert (place / gone[0] / gone[1][:2] / gone[1] / "arrays.npz").exists(), "and it is whole there again"


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a//b", "files/..\\evil"])
def test_a_manifest_from_there_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    url, key = f"file://{tmp_path}/remote", f"toy/{digest('toy')}"
    Store(tmp_path / "a", remote=None).commit(key, Result({"x": 1}))
    manifest = json.loads((Store(tmp_path / "a").folder(key) / "entry.json").read_bytes())
    del manifest["digest"]
    manifest["files"] = {name: [1, checksum(b"x")]}
    text = json.dumps(manifest).encode()
    place = tmp_path / "remote" / Store(tmp_path / "a").folder(key).relative_to(tmp_path / "a")
    place.mkdir(parents=True)
    (place / "entry.json").write_bytes(b'{"digest":"' + checksum(text).encode() + b'",' + text[1:])
    before = sorted(tmp_path.rglob("*"))
    there = Store(tmp_path / "b", remote=RemoteStore(url))
    with pytest.raises(CorruptEntry, match="no name of a file"):
        there.manifest(key)
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "b" not in (path, *path.parents)) == before
    assert list((there.base / "tmp").iterdir()) == []


def test_a_run_is_pushed_and_pulled(tmp_path: Path, url: str) -> None:
    here = Store(tmp_path / "a")
    with start_run(here, "toy") as live:
        execute(grid(2, 3), STEPS, here, run=live)
    here.remote = RemoteStore(url)
    assert (pushed := push(here, "toy")).entries == NODES
    assert push(here, "toy") == type(pushed)(0, 0, NODES, ())
    there = Store(tmp_path / "b", remote=RemoteStore(url))
    with pytest.raises(StoreError, match="has no run 'other'; it has toy"):
        pull(there, "other")
    pulled = pull(there, "toy")
    assert (pulled.entries, pulled.bytes, pulled.absent) == (NODES, pushed.bytes, ())
    assert pull(there, "toy").there == NODES
    assert fingerprints(there) == fingerprints(here)
    assert [run.name for run in list_runs(there)] == ["toy"]
    there.remote = None
    counts: Counter[str] = Counter()
    execute(grid(2, 3), STEPS, there, on_event=lambda event: counts.update([event.kind]))
    assert counts["finished"] == 0


def test_a_run_leaves_its_record_there(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/remote"
    here = Machine(tmp_path / "a", url)
    with start_run(here.store, "toy") as live:
        here.run(run=live)
        finish(here.store, live.record)
    there = Store(tmp_path / "b", remote=RemoteStore(url))
    assert pull(there, "toy").entries == NODES


def test_a_run_leaves_there_what_it_found_here_as_well(tmp_path: Path, s3: str, server: S3Server) -> None:
    for attempt in range(3):
        here = Machine(tmp_path / "a", s3)
        if attempt == 0:
            here.store.remote = None
        server.asked.clear()
        with start_run(here.store, "toy") as live:
            execute(grid(2, 3), STEPS, here.store, run=live)
            finish(here.store, live.record)
    there = Store(tmp_path / "b", remote=RemoteStore(s3))
    assert [path for method, path in server.asked if method == "PUT" and "/runs/" not in path] == []
    assert len([path for method, path in server.asked if "/v2/" in path]) == 2, "its record, read and written"
    assert (pulled := pull(there, "toy")).entries == NODES
    assert pulled.absent == ()
    there.remote = None
    counts: Counter[str] = Counter()
    execute(grid(2, 3), STEPS, there, on_event=lambda event: counts.update([event.kind]))
    assert counts["finished"] == 0


def test_what_was_found_here_is_no_loss_where_the_remote_is_away(
    tmp_path: Path, s3: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "RETRIES", 0)
    here = Machine(tmp_path / "a", s3)
    with start_run(here.store, "toy") as live:
        execute(grid(2, 3), STEPS, Store(tmp_path / "a"), run=live)
        server.stop()
        try:
            finish(here.store, live.record)
        finally:
            server.start()
    assert here.store.remote is not None
    (line,) = here.store.remote.notes()
    assert "cannot be reached" in line


def test_workers_need_no_common_folder(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_LRFGRAPH__CACHE", str(tmp_path / "theirs"))
    here = Machine(tmp_path / "ours", s3)
    cluster = workers_for(workers=2)
    try:
        refs = here.run(on=cluster)
    finally:
        cluster.close()
    assert here.counts["finished"] == NODES
    assert len(list(keys_of(Store(tmp_path / "theirs")))) == NODES
    here.read_all(refs)
    np.testing.assert_array_equal(
        here.store.open(refs["c0/0"]).array("vector"), Store(tmp_path / "theirs").open(refs["c0/0"]).array("vector")
    )


def test_a_store_travels_with_its_remote(tmp_path: Path) -> None:
    store = Store(tmp_path, remote=RemoteStore(f"file://{tmp_path}/remote", required=True))
    first, second = (pickle.loads(pickle.dumps(store)) for _ in range(2))
    assert first.remote.url == store.remote.url  # type: ignore[union-attr]
    assert first.remote.required
    assert first.remote is second.remote, "one a process"


@pytest.mark.parametrize("url", ["", "bucket", "ftp://x/y", "s3://", "http://x", "s3:/x/y"])
def test_what_is_no_url_of_a_remote_is_one_line(url: str) -> None:
    with pytest.raises(StoreError, match=r"run.remote is s3://BUCKET/PREFIX.*received"):
        RemoteStore(url)


def test_a_bucket_that_is_not_there_is_said(tmp_path: Path, s3: str) -> None:
    here = Machine(tmp_path / "a", "s3://nobody-has-this/cache")
    here.run()
    assert here.counts["finished"] == NODES
    assert len([line for line in here.told if "cannot be reached" in line]) == 1


def test_without_the_package_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r"needs the package obstore; pip install 'lrfgraph\[remote\]'"):
        Machine(tmp_path / "a", f"file://{tmp_path}/remote").run()
