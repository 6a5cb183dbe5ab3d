"""Workers: a cluster of our own is reached by nobody else, and one that cannot be reached is one line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from toys import STEPS, grid

from lrfgraph.engine.cluster import WorkerContext
from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node, Result, Step, Task
from lrfgraph.engine.store import Store
from lrfgraph.engine.tasks import Work
from lrfgraph.engine.workers import Cluster, Threads, _DaemonThreads, _tasks, workers_for
from lrfgraph.errors import ClusterError

PATIENCE = 10.0


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A port where something else than Dask listens: it answers every connection alike, or (``None``) never."""
    connections: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                connections.append(connection)
                if answer is not None:
                    with contextlib.suppress(OSError):
                        connection.sendall(answer)
                        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for connection in connections:
        connection.close()


def refused(address: str, store: Store, says: str) -> None:
    """A run with this scheduler ends in one line, soon, and has computed nothing."""
    cluster = Cluster(scheduler=address)
    started = time.monotonic()
    with pytest.raises(ClusterError, match=says) as caught:
        execute(grid(1, 1), STEPS, store, on=cluster)
    assert time.monotonic() - started < PATIENCE
    line = str(caught.value)
    assert line.startswith(f"Dask scheduler {address} cannot be reached (")
    assert line.endswith("; check the address, or leave --scheduler out")
    assert "\n" not in line
    cluster.close()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tcp://127.0.0.1:1", "cannot be reached"),
        ("nonsense", "missing port number"),
        ("http://127.0.0.1:80", "unknown address scheme 'http'"),
        ("tls://127.0.0.1:1", "TLS"),
    ],
)
def test_a_scheduler_that_is_not_there_is_one_line(tmp_path: Path, address: str, says: str) -> None:
    refused(address, Store(tmp_path), says)


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20])
def test_what_is_no_scheduler_is_one_line(tmp_path: Path, answer: bytes | None) -> None:
    with listening(answer) as port:
        refused(f"tcp://127.0.0.1:{port}", Store(tmp_path), "cannot be reached")


def test_a_cluster_of_our_own_listens_on_loopback_alone_and_serves_as_a_scheduler(tmp_path: Path) -> None:
    import psutil

    cluster = Cluster(workers=1)
    try:
        execute([Node("s", "source", {"seed": 1})], STEPS, Store(tmp_path / "own"), on=cluster)
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        sockets = [each for process in processes for each in process.net_connections(kind="inet")]
        listeners = [each.laddr for each in sockets if each.status == psutil.CONN_LISTEN]
        assert len(listeners) >= 3, "the scheduler, its dashboard, the worker"
        assert all(ip_address(each.ip).is_loopback for each in listeners), listeners
        scheduler = cluster._cluster.scheduler_address
        other = Cluster(scheduler=scheduler)
        refs = execute(grid(1, 1), STEPS, Store(tmp_path / "other"), on=other)
        assert len(refs) == len(grid(1, 1))
        other.close()
        (worker,) = cluster._cluster.scheduler_info["workers"]
        refused(worker, Store(tmp_path / "refused"), "a Worker answers there")
    finally:
        cluster.close()


@pytest.mark.parametrize(("threads", "together"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_as_many_nodes_run_at_once_as_there_are_threads(tmp_path: Path, threads: int, together: int) -> None:
    guard, running, most = threading.Lock(), [], []

    def step(task: Task) -> Result:
        with guard:
            running.append(task.name)
            most.append(len(running))
        time.sleep(0.1)
        with guard:
            running.remove(task.name)
        return Result({"x": 1})

    nodes = [Node(f"n{number}", "wait", {"number": number}) for number in range(4)]
    execute(nodes, {"wait": Step("wait", 1, step)}, Store(tmp_path), on=Threads(threads))
    assert max(most) == together


def test_threads_that_are_at_something_are_left_behind_after_a_while() -> None:
    pool, let_go = _DaemonThreads(1), threading.Event()
    late = pool.submit(let_go.wait, 20.0)
    started = time.monotonic()
    pool.stop(0.2)
    assert 0.15 < time.monotonic() - started < 5.0
    assert not late.done()
    let_go.set()
    assert late.result(5.0)


def test_threads_end_once_they_have_done_what_was_asked() -> None:
    pool = _DaemonThreads(2)
    results = [pool.submit(pow, number, 2) for number in range(5)]
    failing = pool.submit(pow, "a", 2)
    started = time.monotonic()
    pool.stop(20.0)
    assert time.monotonic() - started < 10.0
    assert [result.result(0.0) for result in results] == [0, 1, 4, 9, 16]
    assert isinstance(failing.exception(0.0), TypeError)
    assert not any(thread.is_alive() for thread in pool._threads)


def test_a_cluster_where_processes_or_a_scheduler_are_asked_for() -> None:
    assert isinstance(workers_for(), Threads)
    threads, processes, scheduler = workers_for(3), workers_for(3, 2), workers_for(scheduler="tcp://127.0.0.1:1")
    assert isinstance(threads, Threads)
    assert threads.count == 3
    assert isinstance(processes, Cluster)
    assert (processes.workers, processes.scheduler) == (2, None)
    assert isinstance(scheduler, Cluster)
    for one in (threads, processes, scheduler):
        one.close()


def test_dask_names_a_graph_without_reading_all_it_holds(tmp_path: Path) -> None:
    """It would digest every parameter of every node once more, and refuse what it cannot write down."""
    from dask import config
    from dask.base import tokenize

    context, names = WorkerContext(Store(tmp_path), "topic", {}), set()
    for key in ("source/1", "source/2"):
        work = Work(Node("n", "source", {"unreadable": object()}), key, {"object": object()}, {})
        with config.set({"tokenize.ensure-deterministic": True}):
            names.add(tokenize(_tasks({"job": (STEPS["source"], [work], [])}, context)))
    assert len(names) == 2
