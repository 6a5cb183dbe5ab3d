"""What happens inside one Dask task: lease, compute, commit. The same on a thread and on a remote worker.

A task never raises: it hands back a JobOutcome, so that one damaged input or one failing step does not take down
what runs beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from lrfgraph.engine.entry import Entry
from lrfgraph.engine.events import Event, Listener
from lrfgraph.engine.files import out_of_space
from lrfgraph.engine.leases import Lease, Waiting
from lrfgraph.engine.memory import trim
from lrfgraph.engine.nodes import Node, Ref, Result, Step, Task
from lrfgraph.engine.scratch import Scratch
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.errors import StoreError

__all__ = ["Context", "JobOutcome", "Local", "Work", "compute", "warnings_of"]

POLL = (0.002, 0.1)
LONG = 0.5
"""Seconds after which a job is thought to have used, and freed, much memory."""


@dataclass(frozen=True)
class Work:
    """One node to compute, with all that a worker must know."""

    node: Node
    key: str
    components: Mapping[str, Any]
    inputs: Mapping[str, Ref]

    def __dask_tokenize__(self) -> str:
        """Say which it is in a word: Dask would digest all that the graph holds once more."""
        return self.key


@dataclass(frozen=True)
class JobOutcome:
    """What became of a task.

    events : ``finished`` and ``waited``, one a node.  lost : key of a damaged input, and why.
    error : what the step raised.  idle : nothing was done, since something before failed or the run was stopped.
    """

    events: tuple[Event, ...] = ()
    lost: tuple[str, str] | None = None
    error: Exception | None = None
    idle: bool = False


def warnings_of(store: Store) -> Iterator[Event]:
    """Yield what the store's remote has to say and has not said yet."""
    for note in store.remote.notes() if store.remote else ():
        yield Event("warning", "", "", message=note)


class Context(Protocol):
    """Where a task runs."""

    store: Store

    def emit(self, event: Event) -> None: ...

    def stopped(self) -> bool: ...

    def stop(self) -> None: ...

    def holds(self, lease: Lease) -> None: ...

    def drops(self, lease: Lease) -> None: ...


@dataclass
class Local:
    """The context of threads in this process; remembers what is held, so that Ctrl-C can let go of it."""

    store: Store
    listener: Listener
    _stop: threading.Event = field(default_factory=threading.Event)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _held: dict[str, Lease] = field(default_factory=dict)

    def emit(self, event: Event) -> None:
        with self._guard:
            self.listener(event)

    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def holds(self, lease: Lease) -> None:
        self._held[lease.token] = lease

    def drops(self, lease: Lease) -> None:
        self._held.pop(lease.token, None)
        lease.release()

    def let_go(self) -> None:
        """Release every lease of abandoned threads."""
        for lease in list(self._held.values()):
            self.drops(lease)


class _StoppedError(Exception):
    """The run was stopped while the task waited."""


def compute(works: Sequence[Work], step: Step, context: Context, *before: JobOutcome) -> JobOutcome:
    """Compute nodes of one step and commit each; `before` are the outcomes of what they read.

    With several works, `step.together` computes those that no other run has committed meanwhile, in one pass; small
    ones are computed one after the other, without leases.
    """
    if context.stopped() or any(outcome.idle or outcome.lost or outcome.error for outcome in before):
        return JobOutcome(idle=True)
    leases: dict[str, Lease] = {}
    scratches = {work.key: context.store.scratch(work.key) for work in works}
    events: list[Event] = []
    began = time.monotonic()
    try:
        mine = _claimed(works, step, context, leases, events)
        context.store.bring(ref.key for work in mine for ref in work.inputs.values())
        for work, result, seconds in _results(mine, step, context, scratches):
            event = _commit(work, step, result, seconds, context.store)
            scratches[work.key].remove()
            if work.key in leases:
                context.drops(leases.pop(work.key))
            events.append(event)
            context.emit(event)
            for warning in warnings_of(context.store):
                context.emit(warning)
    except CorruptEntry as error:
        return JobOutcome(tuple(events), lost=(error.key, error.why))
    except _StoppedError:
        return JobOutcome(tuple(events), idle=True)
    except Exception as error:
        context.stop()
        return JobOutcome(tuple(events), error=_explained(error, works, scratches, context.store))
    finally:
        for scratch in scratches.values():
            scratch.give_up()
        for lease in leases.values():
            with suppress(OSError):
                context.drops(lease)
        if time.monotonic() - began > LONG:
            trim()
    return JobOutcome(tuple(events))


def _claimed(
    works: Sequence[Work], step: Step, context: Context, leases: dict[str, Lease], events: list[Event]
) -> list[Work]:
    """Return the works that are left to this job, each with its lease in `leases` unless they are small ones."""
    there: set[str] = set()
    for work in sorted(works, key=lambda work: work.key):  # two runs that want the same never wait for each other
        started = time.monotonic()
        if step.shared(work.node) is not None:
            lease = None
            if not context.store.has(work.key):
                continue
        else:
            lease = _lease(work, context)
        if lease is not None:
            leases[work.key] = lease
            continue
        there.add(work.key)
        events.append(Event("waited", work.node.name, work.node.step, time.monotonic() - started))
        context.emit(events[-1])
    return [work for work in works if work.key not in there]


def _lease(work: Work, context: Context) -> Lease | None:
    """Wait for the right to compute; ``None`` if the entry is there by then."""
    store = context.store
    waiting, pause = Waiting(store.lease_path(work.key), store.stale_after), POLL[0]
    while True:
        with store.writing(work.key):
            lease = waiting.acquire()
        if lease is not None:
            context.holds(lease)
        if store.has(work.key):
            if lease is not None:
                context.drops(lease)
            return None
        if lease is not None:
            return lease
        if context.stopped():
            raise _StoppedError
        time.sleep(pause)
        pause = min(POLL[1], pause * 1.5)


def _explained(error: Exception, works: Sequence[Work], scratches: Mapping[str, Scratch], store: Store) -> Exception:
    """Return the error, or what it means if a step ran out of space in the folder it was given."""
    reason = out_of_space(error)
    if reason and not isinstance(error, StoreError) and any(scratch.path for scratch in scratches.values()):
        explained = store.full(reason, f"computing {works[0].node.name}")
        explained.__cause__ = error
        return explained
    return error


def _results(
    works: Sequence[Work], step: Step, context: Context, scratches: Mapping[str, Scratch]
) -> Iterator[tuple[Work, Result, float]]:
    if not works:
        return
    opened: dict[Ref, Entry] = {}  # what several nodes read is looked at once
    tasks = [_task(work, context, scratches[work.key], opened) for work in works]
    for work in works:
        context.emit(Event("started", work.node.name, work.node.step))
    started = time.monotonic()
    if step.together is None:
        for work, task in zip(works, tasks, strict=True):
            if context.stopped():
                raise _StoppedError
            result = step.compute(task)
            yield work, result, time.monotonic() - started
            started = time.monotonic()
        return
    share = 0.0
    for index, (one, output) in enumerate(zip_longest(works, step.together(tasks))):
        if one is None or output is None:
            raise ValueError(
                f"step {step.name} gave another number of results than the {len(works)} nodes it was handed"
            )
        now = time.monotonic()
        if index == 0:  # what came before the first result served all of them
            share = (now - started) / len(works)
        yield one, output, share if index == 0 else share + now - started
        started = time.monotonic()


def _commit(work: Work, step: Step, result: Result, seconds: float, store: Store) -> Event:
    if result.identity is not None and not step.decides:
        raise ValueError(f"step {step.name} sets an identity; declare it with Step(…, decides=True)")
    size = store.commit(
        work.key,
        result,
        name=work.node.name,
        components=work.components,
        inputs={name: ref.key for name, ref in work.inputs.items()},
        seconds=seconds,
    )
    return Event("finished", work.node.name, work.node.step, seconds, size)


def _task(work: Work, context: Context, scratch: Scratch, opened: dict[Ref, Entry]) -> Task:
    node, store = work.node, context.store

    def progress(done: int, total: int, message: str) -> None:
        context.emit(Event("progress", node.name, node.step, done=done, total=total, message=message))

    def folder() -> Path:
        with store.writing(work.key):
            return scratch.open()

    for ref in work.inputs.values():
        if ref not in opened:
            opened[ref] = store.open(ref)
    inputs = {name: opened[ref] for name, ref in work.inputs.items()}
    return Task(node.name, node.params, inputs, node.locators, folder, progress)
