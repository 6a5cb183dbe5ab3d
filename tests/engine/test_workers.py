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

from lrfgraph.engine.execute import execute
from lrfgraph.engine.nodes import Node
from lrfgraph.engine.store import Store
from lrfgraph.engine.workers import Cluster
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
