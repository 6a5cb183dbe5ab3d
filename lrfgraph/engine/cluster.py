"""What goes to a worker of a cluster with each task, and whether that worker may compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lrfgraph.engine.events import Event
from lrfgraph.engine.leases import Lease
from lrfgraph.engine.store import Store
from lrfgraph.errors import ClusterError

__all__ = ["WorkerContext", "check_versions", "compare_workers", "versions_here"]


class WorkerContext:
    """The context of a task on a worker of a cluster; it travels there with the task.

    versions : of the process that asks, see `check_versions`.
    """

    def __init__(self, store: Store, topic: str, versions: Mapping[str, str]) -> None:
        self.store, self.topic, self.versions = store, topic, versions

    def __dask_tokenize__(self) -> str:
        return self.topic

    def emit(self, event: Event) -> None:
        if event.kind in ("finished", "waited"):
            return  # the outcome brings it
        from distributed import get_worker

        get_worker().log_event(self.topic, {"event": vars(event)})  # distributed adds the worker beside it

    def stopped(self) -> bool:
        return False

    def stop(self) -> None:
        """The client cancels the rest when it sees the outcome."""

    def holds(self, lease: Lease) -> None:
        """A lease ends with its worker."""

    def drops(self, lease: Lease) -> None:
        lease.release()


def _portable() -> Callable[[], dict[str, str]]:
    def versions_here() -> dict[str, str]:
        """Return the versions that must be the same everywhere; nothing is imported that takes long."""
        from importlib import import_module, metadata

        versions = {}
        for name in ("lrfgraph", "keras", "numpy"):
            try:
                own = import_module(name).__version__ if name == "lrfgraph" else metadata.version(name)
            except ImportError:  # a missing distribution is one too
                own = "none"
            versions[name] = str(own)
        return versions

    return versions_here


versions_here = _portable()
"""Made inside a function, so that it travels by value: a worker may have no lrfgraph, or another one."""


def check_versions(wanted: Mapping[str, str], here: Mapping[str, str] | None = None, worker: str = "") -> None:
    """Raise ClusterError unless `here`, a worker's versions (of this process by default), are those wanted.

    The same key would stand for other numbers.
    """
    here = versions_here() if here is None else here
    differing = [
        f"{name} {here.get(name)} (the run has {own})" for name, own in wanted.items() if here.get(name) != own
    ]
    if differing:
        raise ClusterError(
            f"Dask worker {worker or _address()} has {', '.join(differing)}; install the run's versions there"
        )


def compare_workers(client: Any) -> None:
    """Check the versions of all workers that are there; those that come later check themselves."""
    wanted = versions_here()
    for worker, here in client.run(versions_here).items():
        check_versions(wanted, here, worker)


def _address() -> str:
    from distributed import get_worker

    return str(get_worker().address)
