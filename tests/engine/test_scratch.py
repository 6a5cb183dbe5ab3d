"""Scratch: an interrupted attempt is gone on with, and two attempts at once never write into each other's files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import ENV
from toys import STEPS

from lrfgraph.engine.execute import execute
from lrfgraph.engine.leases import live, owner, signature
from lrfgraph.engine.maintenance import fingerprints, gc, verify
from lrfgraph.engine.nodes import Node, Result, Step, Task, digest
from lrfgraph.engine.resolve import resolve
from lrfgraph.engine.store import Store
from lrfgraph.engine.workers import Threads
from lrfgraph.errors import OutputError, StoreError

KEY = f"toy/{digest('toy')}"
DEAD = f"{owner()[0]}.999999999.1.0"
ELSEWHERE = "another-host.1.1.0"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def left_behind(store: Store, name: str, epoch: int) -> Path:
    """The folder of an earlier attempt, as old as its epoch is low."""
    folder = store.scratch(KEY).home / name
    folder.mkdir(parents=True)
    (folder / "epoch").write_text(str(epoch))
    os.utime(folder / "epoch", (1000 + epoch, 1000 + epoch))
    os.utime(folder, (1000, 1000))
    return folder


def test_nothing_is_made_before_it_is_asked_for(store: Store) -> None:
    scratch = store.scratch(KEY)
    scratch.give_up()
    scratch.remove()
    assert not store.base.exists()
    assert scratch.open() == scratch.open()
    assert scratch.open().name.startswith(signature())


def test_the_next_attempt_goes_on_where_the_last_one_gave_up(store: Store) -> None:
    first, second = store.scratch(KEY), store.scratch(KEY)
    path = first.open()
    (path / "epoch").write_text("3")
    first.give_up()
    assert not path.exists()
    assert (second.open() / "epoch").read_text() == "3"
    second.remove()
    assert not second.home.exists()


def test_the_newest_of_the_dead_is_taken_over_and_the_rest_goes_with_the_commit(store: Store) -> None:
    left_behind(store, "given-up." + DEAD, 1)
    newest = left_behind(store, DEAD, 3)
    left_behind(store, f"{owner()[0]}.999999998.1.0", 2)
    scratch = store.scratch(KEY)
    assert (scratch.open() / "epoch").read_text() == "3"
    assert not newest.exists()
    scratch.remove()
    assert not scratch.home.exists()


@pytest.mark.parametrize("name", [f"{signature()}.99", ELSEWHERE], ids=["ours", "elsewhere"])
def test_what_may_be_alive_is_copied_and_left_alone(store: Store, name: str) -> None:
    theirs = left_behind(store, name, 3)
    scratch = store.scratch(KEY)
    ours = scratch.open()
    assert (ours / "epoch").read_text() == "3"
    (ours / "epoch").write_text("4")
    assert (theirs / "epoch").read_text() == "3"
    scratch.remove()
    assert theirs.exists()


def test_leftovers_of_keys_that_are_computed_are_cleaned(store: Store) -> None:
    dead, theirs = left_behind(store, DEAD, 1), left_behind(store, ELSEWHERE, 1)
    store.clean()
    assert dead.exists(), "it is still to be gone on with"
    store.commit(KEY, Result({"x": 1}))
    store.clean()
    assert not dead.exists()
    assert theirs.exists()
    os.utime(theirs.parent, (1000, 1000))
    gc(store, older_than=60)
    assert not store.scratch(KEY).home.exists()


TWO = """
import os, sys, time
from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node, Result, Step
from lrfgraph.engine.store import Store

def train(task):
    folder = task.scratch()
    start = int((folder / "epoch").read_text()) if (folder / "epoch").exists() else 0
    print("from", start, flush=True)
    for epoch in range(start, 6):
        time.sleep(0.1)
        for file in ("epoch.tmp", "weights"):
            (folder / file).write_text(str(epoch + 1))
        (folder / "epoch.tmp").replace(folder / "epoch")
        print("epoch", epoch + 1, flush=True)
    return Result({"epochs": 6}, files={"weights": folder / "weights"})

store = Store(sys.argv[1], stale_after=0.5)
execute([Node("t", "train")], {"train": Step("train", 1, train)}, store, on_event=lambda e: print(e.kind, flush=True))
"""


def start(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TWO, str(cache)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    while (said := process.stdout.readline()) != f"{line}\n":
        assert said, process.communicate()[1]


def test_a_process_that_was_stopped_and_its_successor_both_end_well(store: Store) -> None:
    first = start(store.root)
    until(first, "epoch 2")
    first.send_signal(signal.SIGSTOP)
    second = start(store.root)
    out, error = second.communicate(timeout=60)
    assert second.returncode == 0, error
    assert "from 2" in out.splitlines(), "what the first had got is not done again"
    first.send_signal(signal.SIGCONT)
    out, error = first.communicate(timeout=60)
    assert first.returncode == 0, error
    assert "finished" in out.splitlines()
    assert verify(store).damaged == {}
    (said,) = fingerprints(store)
    assert store.open(said).file("weights").read_text() == "6"
    assert list((store.base / "tmp").iterdir()) == list((store.base / "scratch").iterdir()) == []
    assert list((store.base / "leases").iterdir()) == []


def test_a_killed_process_is_gone_on_with(store: Store) -> None:
    first = start(store.root)
    until(first, "epoch 3")
    first.kill()
    first.communicate()
    out, error = start(store.root).communicate(timeout=60)
    assert "from 3" in out.splitlines(), error
    assert list((store.base / "scratch").iterdir()) == []


def test_a_lease_that_was_taken_over_is_not_kept_warm_by_the_one_who_lost_it(store: Store) -> None:
    from lrfgraph.engine.leases import BEAT, Waiting

    path = store.lease_path(KEY)
    lease = Waiting(path).acquire()
    assert lease is not None
    path.write_text(json.dumps({"host": "another-host", "pid": 1, "started": 1, "token": "theirs"}))
    os.utime(path, (1000, 1000))
    time.sleep(1.5 * BEAT)
    assert path.stat().st_mtime == 1000
    assert not live(path)
    lease.release()


def raised(kind: Callable[[], BaseException]) -> Callable[[Task], Result]:
    def step(task: Task) -> Result:
        task.scratch()
        raise kind()

    return step


def chained() -> Exception:
    error = OutputError("compressed.keras: cannot be written")
    error.__cause__ = OSError(28, "No space left on device")
    return error


@pytest.mark.parametrize(
    "kind",
    [
        lambda: OSError(28, "No space left on device"),
        lambda: OSError(122, "Disk quota exceeded", "scratch/x"),
        lambda: RuntimeError("Can't decrement id ref count (errno = 28, error message = 'No space left on device')"),
        chained,
    ],
)
def test_a_step_that_runs_out_of_scratch_is_one_line(store: Store, kind: Callable[[], BaseException]) -> None:
    steps = {"full": Step("full", 1, raised(kind))}
    with pytest.raises(StoreError, match=r"^cache .* is full \(.*\) while computing f; .* --cache DIR$"):
        execute([Node("f", "full")], steps, store, on=Threads(1))


def test_other_errors_of_a_step_stay_what_they_are(store: Store) -> None:
    steps = {"wrong": Step("wrong", 1, raised(lambda: OSError(2, "No such file")))}
    with pytest.raises(FileNotFoundError):
        execute([Node("f", "wrong")], steps, store)

    def unrelated(task: Task) -> Result:
        raise OSError(28, "No space left on device", "/tmp/elsewhere")

    with pytest.raises(OSError, match="elsewhere") as caught:
        execute([Node("f", "wrong")], {"wrong": Step("wrong", 1, unrelated)}, store)
    assert not isinstance(caught.value, StoreError)


def test_a_disk_that_fills_up_below_a_step(small_disk: Callable[[str], Path]) -> None:
    def write(task: Task) -> Result:
        path = task.scratch() / "large"
        path.write_bytes(bytes(4_000_000))
        return Result(files={"large": path})

    store = Store(small_disk("1m"))
    nodes = [Node("small", "source", {"seed": 1}), Node("large", "write")]
    steps: dict[str, Any] = {**STEPS, "write": Step("write", 1, write)}
    execute(nodes[:1], steps, store)
    with pytest.raises(StoreError, match=r"is full \(No space left on device\) while computing large"):
        execute(nodes, steps, store)
    assert verify(store).damaged == {}
    assert resolve(nodes, steps, store).nodes["small"].cached
