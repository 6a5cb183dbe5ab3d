"""From nodes to results: resolve, build the Dask graph of what is missing, run it, heal what turns out damaged."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lrfgraph.engine.events import Event, Listener
from lrfgraph.engine.nodes import Node, Ref, Step
from lrfgraph.engine.resolve import Resolution, Resolved, resolve
from lrfgraph.engine.runs import LiveRun
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.engine.tasks import JobOutcome, Work, warnings_of
from lrfgraph.engine.workers import Graph, Job, Threads, Workers
from lrfgraph.errors import Interrupted, StoreError

__all__ = ["execute", "healing"]

STRIKES = 3

Value = TypeVar("Value")


def execute(
    nodes: Iterable[Node],
    steps: Mapping[str, Step],
    store: Store,
    *,
    targets: Iterable[str] | None = None,
    on: Workers | None = None,
    on_event: Listener | None = None,
    run: LiveRun | None = None,
) -> dict[str, Ref]:
    """Compute what the store does not hold and return a Ref for every node that it holds then.

    targets : names of the nodes whose results are asked for; all by default. What only cached nodes read is not
        computed.
    on : where tasks run (`workers_for`), left open for the next call; two threads by default.
    run : the record that names what the targets stand on, before anything of them runs.

    An entry that turns out damaged is discarded and computed again, and an event says so. If it is none of these
    nodes', CorruptEntry is raised after it was discarded: the earlier stage has to run again (`healing`). What a
    step raises is raised here, after the nodes running beside it have finished. Ctrl-C raises Interrupted.
    Nothing is imported, started or written if nothing is missing. Seven parameters: the graph, where it is kept, and
    four that most callers leave alone.
    """
    nodes, listener, runner = list(nodes), on_event or _deaf, on or Threads(2)
    targets = None if targets is None else list(targets)
    strikes: Counter[str] = Counter()
    announced: set[str] = set()
    finished: Counter[str] = Counter()
    while True:
        resolution = resolve(nodes, steps, store)
        for warning in warnings_of(store):
            listener(warning)
        for key, why in resolution.damaged.items():
            _discard(key, why, resolution=resolution, store=store, strikes=strikes, listener=listener)
        needed = resolution.needed(targets)
        if run is not None and run.add(node.key for node in needed) and _some_went(needed, store):
            continue  # `gc` took them before they were named; it takes none now
        _announce_reused(needed, store, announced, listener)
        missing = [node for node in needed if not node.cached]
        for step, count in Counter(node.node.step for node in missing).items():
            listener(Event("progress", "", step, total=count))
        if not missing:
            return {name: node.ref for name, node in resolution.nodes.items() if node.cached}
        if any(finished[node.node.name] > STRIKES for node in missing):
            raise StoreError(f"cache {store.root} does not get the results of its workers; give them a run.remote")
        store.clean()
        outcomes = _run(missing, steps, store, runner, announced=announced, listener=listener)
        finished.update(event.node for outcome in outcomes for event in outcome.events)
        lost = {outcome.lost for outcome in outcomes if outcome.lost}
        for key, why in lost:
            _discard(key, why, resolution=resolution, store=store, strikes=strikes, listener=listener)
        if not lost and not any(outcome.events for outcome in outcomes):
            raise StoreError(f"cache {store.root} does not keep what is written to it; use --cache DIR")


def healing(store: Store, run: Callable[[], Value], on_event: Listener | None = None) -> Value:
    """Call `run`, again and again as long as it stumbles over a damaged entry, which is discarded each time.

    For a driver of several stages: what it reads between them may be damaged too.
    """
    strikes: Counter[str] = Counter()
    while True:
        try:
            return run()
        except CorruptEntry as error:
            strikes[error.key] += 1
            if strikes[error.key] > STRIKES:
                raise
            store.discard(error.key)
            kind = error.key.partition("/")[0]
            (on_event or _deaf)(Event("discarded", error.key, kind, message=error.why))


def _run(
    missing: Sequence[Resolved],
    steps: Mapping[str, Step],
    store: Store,
    runner: Workers,
    *,
    announced: set[str],
    listener: Listener,
) -> list[JobOutcome]:
    done = 0

    def count(event: Event) -> None:
        nonlocal done
        if event.kind in ("finished", "waited"):
            done += 1
            announced.add(event.node)
        listener(event)

    try:
        outcomes = runner.run(graph_of(missing, steps), store, count)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted with {done} of {len(missing)} nodes done; they are kept in {store.root}, "
            "the same command goes on from there"
        ) from None
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return outcomes


def graph_of(missing: Sequence[Resolved], steps: Mapping[str, Step]) -> Graph:
    """Return the jobs: one a key, one for all nodes of a step that computes together, one for small ones of a kind.

    Nodes share a job only at the same distance from the start, which keeps the graph free of cycles.
    """
    by_name = {resolved.node.name: resolved for resolved in missing}
    depth: dict[str, int] = {}
    groups: dict[Any, list[Resolved]] = defaultdict(list)
    job_of: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    jobs_at: dict[Any, Any] = {}
    token = uuid.uuid4().hex[:8]  # a cluster remembers results by name, also those of an attempt that was discarded
    for resolved in missing:
        node = resolved.node
        depth[node.name] = 1 + max((depth[above] for above in resolved.above if above in by_name), default=0)
        if resolved.key not in keys:
            step = steps[node.step]
            shared = step.shared(node) if step.small else (step.together is not None) or None
            job = (f"{node.step}-{token}", node.name)
            if shared is not None:  # a job is called after its first node
                job = jobs_at.setdefault((node.step, depth[node.name], shared), job)
            keys[resolved.key] = job
            groups[job].append(resolved)
        job_of[node.name] = keys[resolved.key]
    jobs: dict[Any, Job] = {}
    for job, members in groups.items():
        before = {job_of[above]: None for member in members for above in member.above if above in by_name}
        works = [Work(member.node, member.key, member.components, member.inputs) for member in members]
        jobs[job] = (steps[members[0].node.step], works, list(before))
    return jobs


def _some_went(needed: Sequence[Resolved], store: Store) -> bool:
    return any(node.cached and not store.has(node.key) for node in needed)


def _announce_reused(needed: Sequence[Resolved], store: Store, announced: set[str], listener: Listener) -> None:
    for resolved in needed:
        if resolved.last_use is not None and resolved.node.name not in announced:
            announced.add(resolved.node.name)
            store.touch(resolved.key, resolved.last_use)
            listener(Event("reused", resolved.node.name, resolved.node.step))


def _discard(
    key: str, why: str, *, resolution: Resolution, store: Store, strikes: Counter[str], listener: Listener
) -> None:
    owner = next((node for node in resolution.nodes.values() if node.key == key), None)
    strikes[key] += 1
    if strikes[key] > STRIKES:
        raise StoreError(f"cache {store.root} gives back other bytes than were written ({why}, {key}); use --cache DIR")
    store.discard(key)
    name, kind = (owner.node.name, owner.node.step) if owner else (key, key.partition("/")[0])
    listener(Event("discarded", name, kind, message=why))
    if owner is None:
        raise CorruptEntry(key, why)


def _deaf(event: Event) -> None:
    """Nobody listens."""
