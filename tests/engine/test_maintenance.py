"""Looking after a cache never takes away what a pinned or a live run stands on."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import STEPS, fill, grid

from lrfgraph.engine import maintenance
from lrfgraph.engine import store as store_module
from lrfgraph.engine.events import Event
from lrfgraph.engine.execute import execute
from lrfgraph.engine.leases import Waiting
from lrfgraph.engine.maintenance import EntryInfo, Usage, fingerprints, gc, list_entries, remove, usage, verify
from lrfgraph.engine.nodes import Result, digest
from lrfgraph.engine.runs import LiveRun, RunRecord, list_runs, pin, remove_run, start_run
from lrfgraph.engine.store import Store
from lrfgraph.errors import StoreError

A = [f"a/{digest(number)}" for number in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_ls_and_du_agree_with_the_disk(store: Store) -> None:
    refs = fill(store)
    entries = list_entries(store)
    assert [info.key for info in entries] == [ref.key for ref in refs.values()]
    assert {info.name for info in entries} == set(refs)
    on_disk = {
        key: sum(path.stat().st_size for path in store.folder(key).rglob("*") if path.is_file())
        for key in (ref.key for ref in refs.values())
    }
    assert {info.key: info.bytes for info in entries} == on_disk
    by_kind = usage(store)
    assert by_kind["source"] == Usage(2, sum(size for key, size in on_disk.items() if key.startswith("source/")))
    assert sum(kind.bytes for kind in by_kind.values()) == store.bytes_used()
    assert {info.kind for info in list_entries(store, "score")} == {"score"}
    assert usage(Store(store.root / "nowhere")) == {}


def test_verify_finds_what_reading_does_not(store: Store) -> None:
    refs = fill(store)
    assert verify(store).damaged == {}
    metadata = store.folder(refs["s0"].key) / "arrays.zarr/deep/er/product/zarr.json"
    metadata.write_text(metadata.read_text().replace("float64", "float32"))
    (store.folder(refs["s1"].key) / "left.over").write_text("")
    (store.folder(refs["p0"].key) / "entry.json").unlink()
    product = store.folder(refs["p1"].key) / "arrays.npz"
    stat = product.stat()
    product.write_bytes(bytes(stat.st_size))
    os.utime(product, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen: list[tuple[int, int]] = []
    report = verify(store, progress=lambda done, total: seen.append((done, total)))
    assert report.entries == len(refs)
    assert seen[-1] == (len(refs), len(refs))
    assert report.damaged == {
        refs["s0"].key: "arrays.zarr/deep/er/product/zarr.json is damaged (wrong checksum)",
        refs["s1"].key: "it holds left.over, which nobody wrote there",
        refs["p0"].key: "the manifest is missing",
        refs["p1"].key: "arrays.npz is damaged (wrong checksum)",
    }
    assert set(verify(store, remove_damaged=True).removed) == set(report.damaged)
    assert verify(store).entries == len(refs) - 4


def test_gc_removes_the_oldest_first_and_a_rerun_is_right(store: Store) -> None:
    refs = fill(store)
    keys = [ref.key for ref in refs.values()]
    before = fingerprints(store)
    limit = sum(info.bytes for info in list_entries(store)[4:])
    assert gc(store, max_size=limit, dry_run=True).keys == keys[:4]
    assert len(list_entries(store)) == len(keys)
    freed = gc(store, max_size=limit)
    assert freed.keys == keys[:4]
    assert freed.over == 0
    freed = gc(store, older_than=3.5 * 3600)
    assert freed.keys == keys[4:-4]
    execute(grid(2, 2), STEPS, store)
    assert fingerprints(store) == before


def test_gc_never_takes_what_is_pinned_live_leased_or_kept(store: Store) -> None:
    refs = fill(store)
    start_run(store, "pinned", [refs["s0"].key]).close()
    pin(store, "pinned")
    start_run(store, "over", [refs["s1"].key]).close()
    lease = Waiting(store.lease_path(refs["p1"].key)).acquire()
    assert lease is not None
    with start_run(store, "live", [refs["p0"].key]) as live:
        live.add([refs["c0/0"].key])
        freed = gc(store, max_size=0, keep=[refs["c0/1"].key])
        assert freed.protected == 5
        safe = {refs[name].key for name in ("s0", "p0", "c0/0", "c0/1", "p1")}
        assert set(freed.keys) == {ref.key for ref in refs.values()} - safe
        assert freed.over == sum(info.bytes for info in list_entries(store))
        assert freed.runs == ["over"], "nothing of it is left"
    lease.release()
    assert {run.name: (run.pinned, run.live) for run in list_runs(store)} == {
        "pinned": (True, False),
        "live": (False, False),
    }
    pin(store, "pinned", False)
    freed = gc(store, max_size=0)
    assert list_entries(store) == []
    assert sorted(freed.runs) == ["live", "pinned"]


def test_what_gc_takes_before_a_run_has_named_it_is_missed_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gc` comes in between the look into the cache and the run's record."""
    fill(store)
    add, freed = LiveRun.add, []

    def late(self: LiveRun, keys: Iterable[str]) -> bool:
        if not freed:
            freed.extend(gc(store, max_size=0).keys)
        return add(self, keys)

    monkeypatch.setattr(LiveRun, "add", late)
    events: list[Event] = []
    with start_run(store, "begun") as run:
        refs = execute(grid(2, 2), STEPS, store, run=run, on_event=events.append)
    assert len(freed) == len(refs)
    assert Counter(event.kind for event in events if event.kind not in ("started", "progress")) == {
        "finished": len(refs)
    }, "none is announced as reused or found missing by a step"


def test_gc_leaves_what_a_run_names_while_it_chooses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run begins between gc's look at the records and its first removal."""
    refs = fill(store)
    named = [refs["s0"].key, refs["c0/0"].key]
    runs: list[LiveRun] = []

    def listed(store: Store) -> list[EntryInfo]:
        runs.append(start_run(store, "begun"))
        runs[0].add(named)
        return list_entries(store)

    before = fingerprints(store)
    monkeypatch.setattr(maintenance, "list_entries", listed)
    freed = gc(store, max_size=0)
    runs[0].close()
    assert set(freed.keys) == {ref.key for ref in refs.values()} - set(named)
    assert freed.protected == len(named)
    assert freed.over == sum(info.bytes for info in list_entries(store)) > 0
    assert fingerprints(store) == {key: before[key] for key in named}
    assert list((store.base / "tmp").iterdir()) == []


def test_removing_a_run_leaves_what_another_names_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = fill(store)
    start_run(store, "old", [ref.key for ref in refs.values()]).close()
    runs: list[LiveRun] = []

    def removed(store: Store, name: str) -> RunRecord:
        record = remove_run(store, name)
        runs.append(start_run(store, "begun"))
        return record

    def set_aside(keys: Iterable[str]) -> Any:
        runs[0].add([refs["s0"].key])
        return real(keys)

    real = store.set_aside
    monkeypatch.setattr(maintenance, "remove_run", removed)
    monkeypatch.setattr(store, "set_aside", set_aside)
    freed = remove(store, run="old")
    runs[0].close()
    assert (len(freed.keys), freed.protected) == (len(refs) - 1, 1)
    assert [info.key for info in list_entries(store)] == [refs["s0"].key]


def test_gc_takes_broken_entries_and_old_scratch(store: Store) -> None:
    refs = fill(store)
    (store.folder(refs["s0"].key) / "entry.json").unlink()
    old, young = (store.scratch(f"toy/{digest(age)}").open() for age in ("old", "young"))
    (old / "epoch").write_text("1")
    for path in (old / "epoch", old, old.parent):
        os.utime(path, (1000, 1000))
    freed = gc(store, older_than=86400)
    assert freed.keys == [refs["s0"].key]
    assert not old.exists()
    assert young.exists()


def test_remove_by_run_keeps_what_others_name(store: Store) -> None:
    refs = fill(store)
    start_run(store, "one", [refs["s0"].key, refs["p0"].key]).close()
    start_run(store, "two", [refs["s0"].key, refs["p1"].key]).close()
    freed = remove(store, run="one")
    assert freed.keys == [refs["p0"].key]
    assert freed.runs == ["one"]
    assert [run.name for run in list_runs(store)] == ["two"]
    with start_run(store, "two"), pytest.raises(StoreError, match="is going on at this moment"):
        remove_run(store, "two")


def test_remove_by_kind_keeps_what_is_pinned(store: Store) -> None:
    refs = fill(store)
    start_run(store, "mine", [refs["s1"].key]).close()
    pin(store, "mine")
    freed = remove(store, kind="source")
    assert (freed.keys, freed.protected) == ([refs["s0"].key], 1)
    for wrong, says in (
        ({"kind": "no"}, "no entries of kind 'no'; it has combine"),
        ({"run": "no"}, "has no run 'no'; it has mine"),
        ({}, "say what"),
    ):
        with pytest.raises(StoreError, match=says):
            remove(store, **wrong)


def test_two_live_runs_of_one_name(store: Store) -> None:
    with start_run(store, "run", [A[1]]) as first, start_run(store, "run", [A[2]]) as second:
        assert (first.record.name, second.record.name) == ("run", "run-2")
    with start_run(store, "run", [A[3]]) as again:
        assert again.record.name == "run"
    with pytest.raises(StoreError, match="names of runs"):
        start_run(store, "../run")


def test_a_pin_and_what_it_keeps_survive_the_next_run(store: Store) -> None:
    start_run(store, "run", [A[1]]).close()
    pin(store, "run")
    start_run(store, "run", [A[2]]).close()
    assert [(run.keys, run.pinned) for run in list_runs(store)] == [((A[1], A[2]), True)]
    pin(store, "run", False)


def crafted(store: Store, name: str, keys: list[str], inside: str = "") -> None:
    """A run record as it was never written."""
    path = store.base / "runs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": inside or name, "keys": keys, "pinned": False, "created": 0.0}))


def outside(tmp_path: Path, kind: str = "score") -> tuple[Path, str]:
    """A folder that is not the cache's, laid out as if it were a kind's, and the key of what lies in it."""
    key = f"{kind}/{digest('precious')}"
    folder = tmp_path / "home" / key[len(kind) + 1 :][:2] / key[len(kind) + 1 :]
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("…")
    return folder, key


def test_a_crafted_record_removes_nothing_outside(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    refs = fill(store)
    folder, key = outside(tmp_path)
    wrong = ["../../home", f"../../home/{key.partition('/')[2]}", str(folder), f"score/../../../home/{folder.name}", ""]
    wrong += ["score/" + "A" * 40, key + "/../..", f"{key}\n", "score/*"]
    crafted(store, "crafted", [*wrong, refs["s0"].key])
    assert remove(store, run="crafted").keys == [refs["s0"].key]
    assert (folder / "thesis.tex").exists()
    for one in wrong:
        for use in (store.folder, store.discard, store.last_use, store.scratch, store.lease_path, store.manifest):
            with pytest.raises(StoreError, match="keys are a kind and 40 hexadecimal digits"):
                use(one)


def test_a_record_is_known_by_its_file(store: Store, tmp_path: Path) -> None:
    fill(store)
    crafted(store, "mine", [], inside="../../elsewhere")
    crafted(store, "-no-name", [])
    assert [run.name for run in list_runs(store)] == ["mine"]
    pin(store, "mine")
    assert not (tmp_path / "elsewhere.json").exists()
    assert [run.pinned for run in list_runs(store)] == [True]


def test_links_are_not_followed_out_of_the_cache(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    folder, key = outside(tmp_path)
    (store.base / "runs").mkdir(parents=True)
    (store.base / "score").symlink_to(tmp_path / "home")
    crafted(store, "crafted", [key])
    with pytest.raises(StoreError, match="leads out of it; remove the link"):
        remove(store, run="crafted")
    gc(store, max_size=0)
    (store.base / "score").unlink()
    store.folder(key).parent.mkdir(parents=True)
    store.folder(key).symlink_to(folder)
    crafted(store, "crafted", [key])
    remove(store, run="crafted")
    assert not store.folder(key).is_symlink()
    assert (folder / "thesis.tex").exists()


def test_a_cache_that_is_a_link_is_a_cache(tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "large-disk")
    store = Store(tmp_path / "cache")
    refs = fill(store)
    assert len(gc(store, max_size=0).keys) == len(refs)


@pytest.mark.parametrize("change", [{"shape": [4]}, {"dtype": "int64"}])
def test_an_array_that_is_not_what_the_manifest_says_is_found(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Both were written, and each is whole: only who opens the array sees that they disagree."""
    real, key = store_module.describe, f"toy/{digest('toy')}"
    monkeypatch.setattr(store_module, "describe", lambda array: real(array) | change)
    store.commit(key, Result(arrays={"x": np.zeros(3)}))
    assert verify(store).damaged[key].startswith("array x is float64(3,) instead of ")


def test_every_entry_tells_its_times_and_every_kind_its_bytes(store: Store) -> None:
    store.commit(A[0], Result(arrays={"x": np.zeros(10)}), name="small", seconds=1.5)
    store.commit(f"b/{digest(0)}", Result(arrays={"x": np.zeros(10_000)}), name="large", seconds=2.5)
    os.utime(store.folder(A[0]) / "entry.json", (1000, 1000))
    small, large = list_entries(store)
    assert (small.kind, small.name, small.seconds, small.used) == ("a", "small", 1.5, 1000)
    assert (large.kind, large.name, large.seconds) == ("b", "large", 2.5)
    assert abs(small.created - time.time()) < 60
    store.scratch(A[1]).open().joinpath("epoch").write_bytes(bytes(5000))
    by_kind = usage(store)
    assert list(by_kind) == ["b", "scratch", "a"]
    assert by_kind["scratch"] == Usage(0, 5000)
    assert by_kind["b"] == Usage(1, large.bytes)
