"""A cluster that runs already: its versions are compared, its memory is divided, a killed worker costs little."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import STEPS

import lrfgraph
from lrfgraph.engine.cluster import check_versions, versions_here
from lrfgraph.engine.events import Event
from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node, Result, Step, Task
from lrfgraph.engine.store import Store
from lrfgraph.engine.workers import Cluster
from lrfgraph.errors import ClusterError


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Any]:
    """Two processes that somebody else started, of two threads each, with 100 bytes of memory each."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        resources={"MEMORY": 100},
        silence_logs=50,
    ) as cluster:
        yield cluster


def slow(memory: int = 0, count: int = 6, ticks: int = 4) -> list[Node]:
    return [Node(f"n{i}", "slow", {"ticks": ticks, "number": i}, memory=memory) for i in range(count)]


def together(elsewhere: Any, store: Path, nodes: list[Node]) -> int:
    """The most nodes that one process was at, at once."""
    at: Counter[int] = Counter()
    most, guard = 0, threading.Lock()

    def watch(event: Event) -> None:
        nonlocal most
        with guard:
            if event.kind == "progress" and event.node and event.done == 0:
                at[int(event.message)] += 1
            elif event.kind == "progress" and event.node and event.done == event.total:
                at[int(event.message)] -= 1
            most = max(most, *at.values(), 0)

    cluster = Cluster(scheduler=elsewhere.scheduler_address)
    try:
        execute(nodes, {"slow": Step("slow", 1, tick)}, Store(store), on=cluster, on_event=watch)
    finally:
        cluster.close()
    return most


def tick(task: Task) -> Result:
    for done in (0, 1):
        task.progress(done, 1, str(os.getpid()))
        time.sleep(0.3 * (1 - done))
    return Result({"x": 1})


def test_tasks_run_beside_each_other_as_far_as_the_memory_of_their_worker_goes(elsewhere: Any, tmp_path: Path) -> None:
    assert together(elsewhere, tmp_path / "small", slow(memory=0)) == 2
    assert together(elsewhere, tmp_path / "fitting", slow(memory=50)) == 2
    assert together(elsewhere, tmp_path / "large", slow(memory=60)) == 1
    assert together(elsewhere, tmp_path / "too large", slow(memory=1000)) == 1


def test_a_worker_of_another_version_is_refused_in_one_line(
    elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lrfgraph, "__version__", "0.0.1")
    cluster = Cluster(scheduler=elsewhere.scheduler_address)
    with pytest.raises(ClusterError, match=r"Dask worker tcp://127.0.0.1:\d+ has lrfgraph .* \(the run has 0.0.1\)"):
        execute(slow(), STEPS, Store(tmp_path), on=cluster)
    cluster.close()
    assert not list(tmp_path.rglob("entry.json"))


def test_a_worker_that_comes_later_checks_itself(
    elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrfgraph.engine import workers

    monkeypatch.setattr(workers, "compare_workers", lambda client: None)
    monkeypatch.setattr(lrfgraph, "__version__", "0.0.1")
    cluster = Cluster(scheduler=elsewhere.scheduler_address)
    with pytest.raises(ClusterError, match=r"Dask worker tcp://127.0.0.1:\d+ has lrfgraph"):
        execute(slow(), STEPS, Store(tmp_path), on=cluster)
    cluster.close()


def test_versions_that_differ_are_named() -> None:
    here = versions_here()
    assert set(here) == {"lrfgraph", "keras", "numpy"}
    check_versions(here, dict(here))
    with pytest.raises(ClusterError) as caught:
        check_versions(here, {**here, "numpy": "1.0", "keras": "none"}, "tcp://other:1")
    line = str(caught.value)
    assert "tcp://other:1" in line
    assert f"keras none (the run has {here['keras']}), numpy 1.0 (the run has {here['numpy']})" in line


def test_a_killed_worker_costs_the_tasks_that_it_was_at(elsewhere: Any, tmp_path: Path) -> None:
    started: list[str] = []
    killed: list[int] = []

    def watch(event: Event) -> None:
        if event.kind == "started":
            started.append(event.node)
        if event.kind == "finished" and not killed:
            nanny = next(iter(elsewhere.workers.values()))
            killed.append(nanny.pid)
            os.kill(nanny.pid, signal.SIGKILL)

    nodes = slow(count=16)
    cluster = Cluster(scheduler=elsewhere.scheduler_address)
    try:
        refs = execute(nodes, STEPS, Store(tmp_path), on=cluster, on_event=watch)
    finally:
        cluster.close()
    assert killed
    assert set(refs) == {node.name for node in nodes}
    again = Counter(started)
    assert sum(again.values()) - len(again) <= 2, "the two that ran on it"
