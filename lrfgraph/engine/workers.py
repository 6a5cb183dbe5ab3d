"""Where tasks run: threads of this process, or processes of a Dask cluster. Both take the same graph."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Protocol

from lrfgraph.engine.cluster import WorkerContext, check_versions, compare_workers, versions_here
from lrfgraph.engine.events import Event, Listener
from lrfgraph.engine.nodes import Step
from lrfgraph.engine.store import Store
from lrfgraph.engine.tasks import JobOutcome, Local, Work, compute
from lrfgraph.errors import ClusterError, StoreError

__all__ = ["Cluster", "Graph", "Job", "Threads", "Workers", "one_blas_thread", "workers_for"]

PATIENCE = 0.5
GLANCE = 0.1
REACH_SECONDS = 8.0
LOOPBACK = "127.0.0.1"
MEMORY = "MEMORY"
"""The resource of Dask in which a worker says how many bytes of memory it has."""

BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

_blas_guard = threading.Lock()
_blas: dict[str, Any] = {"depth": 0}

Job = tuple[Step, Sequence[Work], Sequence[Any]]
Graph = Mapping[Any, Job]


class Workers(Protocol):
    """Something that runs a graph of jobs ``{key: (step, works, keys of what must come first)}``."""

    def run(self, graph: Graph, store: Store, listener: Listener) -> list[JobOutcome]:
        """Run all jobs; on KeyboardInterrupt stop within two seconds and raise it on."""
        ...

    def close(self) -> None: ...


def workers_for(threads: int = 2, workers: int | None = None, scheduler: str | None = None) -> Workers:
    """Return threads, or a cluster where a number of processes or a scheduler's address is given.

    Nothing is started before the first job, so that a run which finds everything in the cache starts nothing.
    """
    return Cluster(workers, scheduler) if workers or scheduler else Threads(threads)


class Threads:
    """Threads of this process, BLAS kept to one thread on each."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)

    def run(self, graph: Graph, store: Store, listener: Listener) -> list[JobOutcome]:
        context = Local(store, listener)
        pool, scheduler = _DaemonThreads(self.count), _DaemonThreads(1)
        try:
            with one_blas_thread():
                results = scheduler.submit(_all_of, graph, context, pool)
                scheduler.stop(0.0)
                # Dask waits without a time limit, where a signal that comes just before is not seen: wait for it here
                while not results.done():
                    wait([results], timeout=GLANCE)
        except BaseException:
            # a thread cannot be killed: wait a moment for those that are nearly done, then leave them behind
            context.stop()
            pool.stop(PATIENCE)
            context.let_go()
            raise
        pool.stop(PATIENCE)
        return list(results.result())

    def close(self) -> None:
        """Nothing stays open between runs."""


class Cluster:
    """Processes that `distributed` starts here (spawned, never forked), or a cluster that runs already.

    It stays up between runs: starting processes and importing what they need takes seconds.
    """

    def __init__(self, workers: int | None = None, scheduler: str | None = None) -> None:
        self.workers, self.scheduler = workers, scheduler
        self._client: Any = None
        self._cluster: Any = None

    def run(self, graph: Graph, store: Store, listener: Listener) -> list[JobOutcome]:
        from distributed import as_completed

        client = self._start()
        compare_workers(client)
        topic = f"lrfgraph-{uuid.uuid4().hex}"
        guard = threading.Lock()

        def emit(event: Event) -> None:
            with guard:
                listener(event)

        client.subscribe_topic(topic, lambda message: emit(Event(**message[1]["event"])))
        outcomes: list[JobOutcome] = []
        futures: list[Any] = []
        try:
            context = WorkerContext(store, topic, versions_here())
            futures = client.get(_tasks(graph, context), list(graph), sync=False, resources=_resources(graph, client))
            for _, outcome in as_completed(futures, loop=client.loop, with_results=True):
                outcomes.append(outcome)
                for event in outcome.events:
                    emit(event)
                if outcome.error:
                    break
        except BaseException:
            self._kill()
            raise
        else:
            client.cancel([future for future in futures if not future.done()])
        finally:
            if self._client is not None:
                client.unsubscribe_topic(topic)
        return outcomes

    def close(self, patience: float = 10.0) -> None:
        """Stop what was started here; a cluster that ran already is left running."""
        client, cluster, self._client, self._cluster = self._client, self._cluster, None, None
        with contextlib.suppress(Exception):
            if client is not None:
                client.close(timeout=patience)
        with contextlib.suppress(Exception):
            if cluster is not None:
                cluster.close(timeout=patience)

    def _kill(self) -> None:
        """Stop now: closing waits for what the processes are at, and killing them costs only the nodes in flight."""
        for nanny in getattr(self._cluster, "workers", {}).values():
            with contextlib.suppress(OSError, AttributeError, TypeError):
                nanny.close_gracefully()  # a nanny that does not know starts its process anew
                os.kill(nanny.pid, signal.SIGKILL)
        self.close(patience=0.5)

    def _start(self) -> Any:
        if self._client is None:
            from distributed import Client, LocalCluster

            if self.scheduler is None:
                self._cluster = LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=1,
                    processes=True,
                    host=LOOPBACK,  # whoever reaches a worker can have it run code
                    dashboard_address=f"{LOOPBACK}:0",
                    memory_limit=0,
                    silence_logs=50,
                    env=_environment(self.workers or 1),
                )
            else:
                _reach(self.scheduler)
            self._client = Client(self._cluster if self.scheduler is None else self.scheduler, set_as_default=False)
        return self._client


def _environment(workers: int) -> dict[str, str]:
    """Return what limits the threads inside a worker: processes side by side share the cores of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {**dict.fromkeys(BLAS_VARIABLES, "1"), "TF_NUM_INTRAOP_THREADS": str(max(cores // workers, 1))}


def _resources(graph: Graph, client: Any) -> Callable[[Any], dict[str, int]] | None:
    """Return the memory that each task asks of its worker, ``None`` where no worker says how much it has.

    What is larger than the largest worker asks for all of that one: it may be too much, yet nothing runs beside it.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    most = max((int(worker.get("resources", {}).get(MEMORY, 0)) for worker in workers), default=0)
    if not most:
        return None
    asked = {key: max(work.node.memory for work in works) for key, (_, works, _) in graph.items()}
    needs = {key: {MEMORY: min(memory, most)} for key, memory in asked.items() if memory}
    return lambda key: needs.get(key, {})


def _reach(address: str) -> None:
    """Raise ClusterError unless a Dask scheduler answers at an address; a client that fails is slow and loud."""
    import asyncio

    from distributed.core import rpc
    from distributed.security import Security

    async def ask() -> dict[str, Any]:
        async with rpc(address, timeout=REACH_SECONDS, connection_args=Security().get_connection_args("client")) as one:
            answer: dict[str, Any] = await one.identity()
            return answer

    def wait_for_answer() -> dict[str, Any]:
        return asyncio.run(asyncio.wait_for(ask(), REACH_SECONDS))

    try:
        with ThreadPoolExecutor(1) as pool:  # this thread may have a loop of its own, as in a notebook
            kind = pool.submit(wait_for_answer).result().get("type")
    except Exception as error:  # whatever listens there may answer anything
        reason = " ".join(str(error).split()) or f"no answer within {REACH_SECONDS:g} s"
    else:
        if kind == "Scheduler":
            return
        reason = f"a {kind} answers there"
    raise ClusterError(
        f"Dask scheduler {address} cannot be reached ({reason}); check the address, or leave --scheduler out"
    )


def _tasks(graph: Graph, context: Any) -> dict[Any, Any]:
    from dask.task_spec import Task, TaskRef

    return {
        key: Task(key, _compute, works, step, context, *(TaskRef(above) for above in before))
        for key, (step, works, before) in graph.items()
    }


def _all_of(graph: Graph, context: Local, pool: Executor) -> list[JobOutcome]:
    """Run all jobs on threads; a single one needs no scheduler, and Dask a tenth of a second to load."""
    if len(graph) == 1:
        ((step, works, _),) = graph.values()
        return [_compute(works, step, context)]
    from dask import threaded

    return list(threaded.get(_tasks(graph, context), list(graph), pool=pool))


def _compute(works: Sequence[Work], step: Step, context: Any, *before: JobOutcome) -> JobOutcome:
    if isinstance(context, WorkerContext):
        try:
            check_versions(context.versions)
        except ClusterError as error:
            return JobOutcome(error=error)
        context.store = store_of_worker(context.store)
        with one_blas_thread():
            outcome = compute(works, step, context, *before)
        try:
            context.store.flush()  # whoever reads it next may have another disk
        except StoreError as error:
            return replace(outcome, error=outcome.error or error)
        return outcome
    return compute(works, step, context, *before)


def store_of_worker(store: Store) -> Store:
    """Return the store that a worker works in: where a remote is shared, its own folder if Dask's configuration there
    names one (``lrfgraph.cache``, in the environment ``DASK_LRFGRAPH__CACHE``)."""
    from dask import config

    folder = config.get("lrfgraph.cache", None)
    if store.remote is None or folder is None:
        return store
    return Store(folder, stale_after=store.stale_after, remote=store.remote)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread: faster where tasks run side by side, and the sums are the same on every machine.

    Libraries that are loaded already are limited; those a step imports later read the environment.
    """
    from threadpoolctl import threadpool_limits

    with _blas_guard:
        _blas["depth"] += 1
        if _blas["depth"] == 1:
            _blas["before"] = {name: os.environ.get(name) for name in BLAS_VARIABLES}
            os.environ.update(dict.fromkeys(BLAS_VARIABLES, "1"))
            _blas["limits"] = threadpool_limits(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _blas_guard:
            _blas["depth"] -= 1
            if _blas["depth"] == 0:
                _blas.pop("limits").restore_original_limits()
                for name, value in _blas.pop("before").items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value


class _DaemonThreads(Executor):
    """A pool whose threads do not keep the process alive: the standard one is waited for at exit, Ctrl-C or not."""

    def __init__(self, count: int) -> None:
        self._max_workers = count  # dask asks the pool for it
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def call() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(call)
        return future

    def stop(self, patience: float) -> None:
        """End the threads, waiting at most `patience` seconds for what they are at."""
        for _ in self._threads:
            self._calls.put(None)
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
