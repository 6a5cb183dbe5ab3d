"""What `gc` and `remove` free is what the disk has more, and nothing that is young, named or in use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from toys import fill

from lrfgraph.engine.files import tree_bytes
from lrfgraph.engine.leases import Waiting
from lrfgraph.engine.maintenance import gc, list_entries, remove
from lrfgraph.engine.nodes import digest
from lrfgraph.engine.runs import list_runs, pin, start_run
from lrfgraph.engine.store import Store

A = f"a/{digest(0)}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_freed_is_what_the_disk_has_more(store: Store) -> None:
    refs = fill(store)
    old = store.scratch(f"toy/{digest('old')}").open()
    (old / "epoch").write_bytes(bytes(3000))
    for path in (old / "epoch", old, old.parent):
        os.utime(path, (1000, 1000))
    (store.folder(refs["s0"].key) / "entry.json").unlink()
    before = store.bytes_used()
    planned = gc(store, older_than=3.5 * 3600, dry_run=True)
    assert store.bytes_used() == before
    freed = gc(store, older_than=3.5 * 3600)
    assert (freed.keys, freed.bytes) == (planned.keys, planned.bytes)
    assert before - store.bytes_used() == freed.bytes > 3000
    start_run(store, "run", [ref.key for ref in refs.values()]).close()
    before = tree_bytes(str(store.base)) - tree_bytes(str(store.base / "runs"))
    freed = remove(store, run="run")
    assert before - store.bytes_used() == freed.bytes > 0


def test_gc_leaves_what_is_as_old_as_the_limit_and_as_large(store: Store) -> None:
    refs = fill(store)
    whole = sum(info.bytes for info in list_entries(store))
    assert gc(store, max_size=whole).keys == []
    freed = gc(store, max_size=whole - 1)
    assert (freed.keys, freed.over) == ([next(iter(refs.values())).key], 0)
    assert gc(store).keys == []


def test_gc_takes_a_broken_entry_whose_lease_is_stale_for_this_store(store: Store) -> None:
    refs = fill(store)
    key = refs["s0"].key
    (store.folder(key) / "entry.json").unlink()
    lease = Waiting(store.lease_path(key)).acquire()
    assert lease is not None
    assert gc(Store(store.root, stale_after=-1.0)).keys == [key]
    lease.release()


def test_gc_leaves_a_broken_entry_that_is_being_computed(store: Store) -> None:
    refs = fill(store)
    key = refs["s0"].key
    (store.folder(key) / "entry.json").unlink()
    lease = Waiting(store.lease_path(key)).acquire()
    assert lease is not None
    assert gc(store).keys == []
    lease.release()
    assert gc(store).keys == [key]


def test_gc_leaves_scratch_that_is_named_or_in_use(store: Store) -> None:
    keys = [f"toy/{digest(number)}" for number in range(4)]
    homes = []
    for key in keys:
        folder = store.scratch(key).open()
        for path in (folder, folder.parent):
            os.utime(path, (1000, 1000))
        homes.append(folder.parent)
    lease = Waiting(store.lease_path(keys[1])).acquire()
    assert lease is not None
    start_run(store, "mine", [keys[2]]).close()
    pin(store, "mine")
    assert gc(store, max_size=0).bytes == 0
    gc(store, older_than=60, keep=[keys[3]])
    lease.release()
    assert [home.exists() for home in homes] == [False, True, True, True]


def test_a_dry_run_changes_nothing(store: Store) -> None:
    refs = fill(store)
    start_run(store, "run", [refs["s0"].key]).close()
    leftover = store.base / "tmp" / "another-host.1.1.1"
    leftover.mkdir(parents=True)
    os.utime(leftover, (1, 1))
    scratch = store.scratch(A).open()
    for path in (scratch, scratch.parent):
        os.utime(path, (1000, 1000))

    def everything() -> list[Path]:
        return sorted(store.root.rglob("*"))

    before = everything()
    planned = gc(store, max_size=0, older_than=60, dry_run=True)
    assert everything() == before
    assert len(planned.keys) == len(refs)
    assert planned.runs == ["run"]
    assert gc(store, max_size=0, older_than=60).keys == planned.keys
    assert not any(path.exists() for path in (leftover, scratch))
    assert list_runs(store) == []


def test_gc_takes_files_of_programs_that_nobody_asked_for_since(store: Store) -> None:
    store.given.mkdir(parents=True)
    for name, age in (("old.npz", 5000), ("young.npz", 0)):
        (store.given / name).write_bytes(bytes(100))
        os.utime(store.given / name, (time.time() - age,) * 2)
    assert gc(store, older_than=3600, dry_run=True).bytes == 100
    assert gc(store, older_than=3600).bytes == 100
    assert [path.name for path in store.given.iterdir()] == ["young.npz"]
