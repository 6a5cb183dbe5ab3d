"""Killed, interrupted, crowded, corrupted, read-only and full: the result is that of an undisturbed run."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from faults import ENV, corrupt_at_random, counts_of, kill_at_random, start
from toys import STEPS, grid

from lrfgraph.engine.events import Event
from lrfgraph.engine.execute import execute, healing
from lrfgraph.engine.leases import live
from lrfgraph.engine.maintenance import fingerprints, keys_of, verify
from lrfgraph.engine.memory import ARRAYS
from lrfgraph.engine.nodes import Node, Result, Step, Task, digest
from lrfgraph.engine.resolve import resolve
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.errors import StoreError


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    execute(grid(), STEPS, store)
    return store


def finish(store: Store, **options: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    execute(grid(), STEPS, store, on_event=lambda event: counts.update([event.kind]), **options)
    return counts


def test_killed_at_any_moment_and_completed(tmp_path: Path, undisturbed: Store) -> None:
    store = Store(tmp_path)
    assert kill_at_random(tmp_path, 5) > 0
    committed = sum(store.has(key) for key in keys_of(store))
    counts = finish(store)
    assert counts["finished"] == len(grid()) - committed, "what was committed is not computed again"
    assert counts["discarded"] == 0
    assert fingerprints(store) == fingerprints(undisturbed)
    store.clean()
    assert list((store.base / "tmp").iterdir()) == []
    assert verify(store).damaged == {}


def test_concurrent_runs_share_the_work(tmp_path: Path, undisturbed: Store) -> None:
    processes = [start(tmp_path, 0.005) for _ in range(4)]
    counts = [counts_of(process) for process in processes]
    assert sum(count["finished"] for count in counts) == len(grid())
    assert fingerprints(Store(tmp_path)) == fingerprints(undisturbed)


@pytest.mark.parametrize("seed", range(10))
def test_no_corruption_is_silent(tmp_path: Path, undisturbed: Store, seed: int) -> None:
    shutil.copytree(undisturbed.root, tmp_path / "cache")
    store = Store(tmp_path / "cache")
    done = corrupt_at_random(store.root, 10, seed)
    ARRAYS.clear()
    said: list[Event] = []

    def results() -> dict[str, Any]:
        refs = execute(grid(), STEPS, store, on_event=said.append)
        found = {}
        for name, ref in refs.items():
            entry = store.open(ref)
            found[name] = [entry.data, *(entry.array(array).tobytes() for array in entry.names())]
            if "files/note.txt" in entry.manifest["files"]:
                found[name].append(entry.file("note.txt").read_bytes())
        return found

    found = healing(store, results, said.append)
    refs = execute(grid(), STEPS, undisturbed)
    for name, ref in refs.items():
        entry = undisturbed.open(ref)
        assert found[name][0] == entry.data, done
        assert found[name][1 : 1 + len(entry.names())] == [entry.array(a).tobytes() for a in entry.names()], done
    assert any(event.kind in ("discarded", "finished") for event in said) or all("zarr.json" in one for one in done)
    # verify sees what remains: metadata of groups, for other programs
    remaining = verify(store, remove_damaged=True).damaged
    assert all("zarr.json" in why for why in remaining.values())
    execute(grid(), STEPS, store)
    assert fingerprints(store) == fingerprints(undisturbed)


def test_a_damaged_input_is_computed_again_in_the_middle(tmp_path: Path) -> None:
    store = Store(tmp_path)
    refs = execute(grid(), STEPS, store)
    for name in ("s0", "p0", "c0/0"):
        chunk = store.folder(refs[name].key) / "arrays.npz"
        chunk.write_bytes(bytes(chunk.stat().st_size))
    store.discard(refs["c0/0/score"].key)
    ARRAYS.clear()
    said: list[Event] = []
    execute(grid(), STEPS, store, on_event=said.append)
    assert [(e.node, e.message) for e in said if e.kind == "discarded"] == [
        ("c0/0", "arrays.npz is damaged (wrong checksum)"),
        *(((name), "arrays.npz is damaged (wrong checksum)") for name in ["s0"]),
        *(((name), "arrays.npz is damaged (wrong checksum)") for name in ["p0"]),
    ]
    assert sorted(e.node for e in said if e.kind == "finished") == ["c0/0", "c0/0/score", "p0", "s0"]


def test_a_damaged_result_of_an_earlier_stage_is_for_the_driver(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = [Node("s", "source", {"seed": 1}), Node("n", "score", {}, {"of": "s"})]
    said: list[Event] = []

    def stages() -> bool:
        refs = execute([*first, Node("d", "choose", {"threshold": 1.0}, {"of": "n"})], STEPS, store)
        last = execute(
            [Node("c", "score", {}, {"of": refs["s"], "when": refs["d"]})], STEPS, store, on_event=said.append
        )
        return bool(store.open(last["c"]).data)

    assert stages()
    refs = execute(first, STEPS, store)
    chunk = store.folder(refs["s"].key) / "arrays.npz"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    ARRAYS.clear()
    for key in list(keys_of(store, "score")):
        store.discard(key)
    assert healing(store, stages, said.append)
    with pytest.raises(CorruptEntry, match="the manifest is missing; run the same command again"):
        store.open(f"score/{digest('nothing')}")


def test_a_damaged_decision_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    nodes = [Node("s", "source", {"seed": 1}), Node("n", "score", {}, {"of": "s"})]
    nodes.append(Node("d", "choose", {"threshold": 1.0}, {"of": "n"}))
    refs = execute(nodes, STEPS, store)
    manifest = store.folder(refs["d"].key) / "entry.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"over=True", b"over=Nope"))
    said: list[Event] = []
    assert execute(nodes, STEPS, store, on_event=said.append) == refs
    assert [(e.kind, e.node) for e in said if e.kind in ("discarded", "finished")] == [
        ("discarded", "d"),
        ("finished", "d"),
    ]


def test_a_disk_that_lies_is_given_up(tmp_path: Path) -> None:
    """A step that damages its own input each time ends in one line, not in a loop."""
    store = Store(tmp_path)

    def hurt(task: Task) -> Result:
        for path in store.base.glob("source/*/*/arrays.npz"):
            path.write_bytes(b"")
        return Result(data={"x": float(task.inputs["of"].array("vector")[0])})

    nodes = [Node("s", "source", {"seed": 1}), Node("h", "hurt", {}, {"of": "s"})]
    with pytest.raises(StoreError, match="gives back other bytes than were written"):
        execute(nodes, {**STEPS, "hurt": Step("hurt", 1, hurt)}, store)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write fails as on a read-only file system (the tests may run as root, whom permissions do not stop)."""

    def refuse(name: str) -> None:
        real = getattr(os, name)

        def closed_to_writers(path: Any, *args: Any, **options: Any) -> Any:
            if name == "open" and not args[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return real(path, *args, **options)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

        monkeypatch.setattr(os, name, closed_to_writers)

    for name in ("open", "mkdir", "rename", "replace", "utime", "unlink"):
        refuse(name)


def test_a_read_only_cache_serves_what_it_has(undisturbed: Store, closed: None) -> None:
    store = Store(undisturbed.root)
    assert finish(store) == {"reused": len(grid())}
    with pytest.raises(StoreError, match=r"cache .* cannot be written .*use --cache DIR") as caught:
        execute([Node("new", "source", {"seed": 99})], STEPS, store)
    assert "\n" not in str(caught.value)


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        execute(grid(), STEPS, Store(tmp_path / "cache"))


def test_a_full_disk_is_one_error_and_no_half_entry(tmp_path: Path) -> None:
    script = """
import resource, sys
from toys import STEPS
from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node
from lrfgraph.engine.store import Store
from lrfgraph.errors import StoreError
from lrfgraph.engine.workers import Threads
import dask.threaded
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
nodes = [Node("small", "source", {"seed": 1}), Node("big", "big", {"bytes": 4_000_000})]
try:
    execute(nodes, STEPS, Store(sys.argv[1]), on=Threads(1))
except StoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=ENV, capture_output=True, text=True, check=True
    )
    assert "is full" in done.stdout
    assert "needs 4,000,000 bytes" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    store = Store(tmp_path)
    assert {key.partition("/")[0] for key in keys_of(store)} <= {"source"}
    assert list((store.base / "tmp").iterdir()) == []
    assert verify(store).damaged == {}


INTERRUPTED = """
import signal
import sys
from toys import STEPS
from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node
from lrfgraph.engine.store import Store
from lrfgraph.engine.workers import workers_for
from lrfgraph.errors import Interrupted

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
    store, workers = Store(sys.argv[1]), int(sys.argv[2]) or None
    execute([Node("s", "source", {"seed": 1})], STEPS, store)
    nodes = [Node("s", "source", {"seed": 1})]
    nodes += [Node(f"slow{i}", "slow", {"ticks": 1000 + i}, {"after": "s"}) for i in range(4)]
    try:
        watch = lambda event: print(event.kind, event.node, flush=True)
        execute(nodes, STEPS, store, on=workers_for(2, workers), on_event=watch)
    except Interrupted as error:
        print(error)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_stops_within_two_seconds_and_keeps_what_is_done(tmp_path: Path, workers: int) -> None:
    script = tmp_path / "script.py"  # a file: processes that are spawned import it
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), str(workers)],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    at_work: set[str] = set()
    while len(at_work) < 2:  # one killed while it writes its lease leaves it to age, as test_leases says
        line = process.stdout.readline()
        assert line, process.communicate()
        at_work |= {line} if line.startswith("progress slow") else set()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)  # the step itself would take much longer
    assert process.returncode == 130, error
    assert "interrupted with 0 of 4 nodes done" in out
    assert "the same command goes on from there" in out
    store = Store(tmp_path)
    store.clean()
    patience = time.monotonic() + 5.0  # a killed process is not gone at once on a busy machine
    while held := [path for path in (store.base / "leases").iterdir() if live(path)]:
        assert time.monotonic() < patience, held
        time.sleep(0.05)
    assert store.has(resolve([Node("s", "source", {"seed": 1})], STEPS, store).nodes["s"].key)
