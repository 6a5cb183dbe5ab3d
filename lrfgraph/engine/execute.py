"""From nodes to results: resolve, build the Dask graph of what is missing, run it, heal what turns out damaged."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lrfgraph.engine.events import Event, Listener
from lrfgraph.engine.nodes import Node, Ref, Step
from lrfgraph.engine.resolve import Resolution, Resolved, resolve
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.engine.tasks import Outcome, Work
from lrfgraph.engine.workers import Graph, Job, Workers, workers_for
from lrfgraph.errors import Interrupted, StoreError

__all__ = ["execute", "healing"]

STRIKES = 3

Found = TypeVar("Found")


def execute(
    nodes: Iterable[Node],
    steps: Mapping[str, Step],
    store: Store,
    *,
    targets: Iterable[str] | None = None,
    on: Workers | None = None,
    threads: int = 2,
    workers: int | None = None,
    scheduler: str | None = None,
    on_event: Listener | None = None,
    on_needed: Callable[[list[Resolved]], None] | None = None,
    max_cache: int | None = None,
) -> dict[str, Ref]:
    """Compute what the store does not hold and return a Ref for every node that it holds then.

    targets : the nodes that are wanted; all by default. What only cached nodes read is not computed.
    on : workers that stay up between calls (`workers_for`); otherwise they are made from `threads`, `workers` and
        `scheduler` for this call.
    on_needed : told which nodes the targets stand on, before anything of them runs.
    max_cache : bytes the cache may have; compared before anything runs with ``locators["bytes"]`` of the nodes.

    An entry that turns out damaged is discarded and computed again, and an event says so. If it is none of these
    nodes', CorruptEntry is raised after it was discarded: the earlier stage has to run again (`healing`). What a
    step raises is raised here, after the nodes running beside it have finished. Ctrl-C raises Interrupted.
    Nothing is imported, started or written if nothing is missing.
    """
    nodes, listener = list(nodes), on_event or _deaf
    targets = None if targets is None else list(targets)
    runner: Workers | None = None
    strikes: Counter[str] = Counter()
    told: set[str] = set()
    try:
        while True:
            resolution = resolve(nodes, steps, store)
            for key, why in resolution.damaged.items():
                _discard(key, why, resolution=resolution, store=store, strikes=strikes, listener=listener)
            needed = resolution.needed(targets)
            if on_needed:
                on_needed(needed)
            _tell_reused(needed, store, told, listener)
            missing = [found for found in needed if not found.cached]
            if not missing:
                return {name: found.ref for name, found in resolution.nodes.items() if found.cached}
            if runner is None:
                _check_budget(missing, store, max_cache)
                runner = on or workers_for(threads, workers, scheduler)
            store.clean()
            outcomes = _run(missing, steps, store, runner, told=told, listener=listener)
            lost = {outcome.lost for outcome in outcomes if outcome.lost}
            for key, why in lost:
                _discard(key, why, resolution=resolution, store=store, strikes=strikes, listener=listener)
            if not lost and not any(outcome.events for outcome in outcomes):
                raise StoreError(f"cache {store.root} does not keep what is written to it; use --cache DIR")
    finally:
        if on is None and runner is not None:
            runner.close()


def healing(store: Store, run: Callable[[], Found], on_event: Listener | None = None) -> Found:
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
    told: set[str],
    listener: Listener,
) -> list[Outcome]:
    done = 0

    def count(event: Event) -> None:
        nonlocal done
        if event.kind in ("finished", "waited"):
            done += 1
            told.add(event.node)
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
    """Return the jobs: one a key, or one for all nodes of a step that computes together.

    Nodes of such a step share a job only at the same distance from the start, which keeps the graph free of cycles.
    """
    by_name = {found.node.name: found for found in missing}
    depth: dict[str, int] = {}
    groups: dict[Any, list[Resolved]] = defaultdict(list)
    job_of: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    token = uuid.uuid4().hex[:8]  # a cluster remembers results by name, also those of an attempt that was discarded
    for found in missing:
        node = found.node
        depth[node.name] = 1 + max((depth[above] for above in found.above if above in by_name), default=0)
        if found.key not in keys:
            at = str(depth[node.name]) if steps[node.step].together else node.name
            keys[found.key] = (f"{node.step}-{token}", at)
            groups[keys[found.key]].append(found)
        job_of[node.name] = keys[found.key]
    jobs: dict[Any, Job] = {}
    for job, members in groups.items():
        before = {job_of[above]: None for found in members for above in found.above if above in by_name}
        works = [Work(found.node, found.key, found.components, found.inputs) for found in members]
        jobs[job] = (steps[members[0].node.step], works, list(before))
    return jobs


def _tell_reused(needed: Sequence[Resolved], store: Store, told: set[str], listener: Listener) -> None:
    for found in needed:
        if found.last_use is not None and found.node.name not in told:
            told.add(found.node.name)
            store.touch(found.key, found.last_use)
            listener(Event("reused", found.node.name, found.node.step))


def _discard(
    key: str, why: str, *, resolution: Resolution, store: Store, strikes: Counter[str], listener: Listener
) -> None:
    found = next((found for found in resolution.nodes.values() if found.key == key), None)
    strikes[key] += 1
    if strikes[key] > STRIKES:
        raise StoreError(f"cache {store.root} gives back other bytes than were written ({why}, {key}); use --cache DIR")
    store.discard(key)
    name, kind = (found.node.name, found.node.step) if found else (key, key.partition("/")[0])
    listener(Event("discarded", name, kind, message=why))
    if found is None:
        raise CorruptEntry(key, why)


def _check_budget(missing: Sequence[Resolved], store: Store, max_cache: int | None) -> None:
    need = sum({found.key: int(found.node.locators.get("bytes", 0)) for found in missing}.values())
    if max_cache is None or not need:
        return
    used = store.bytes_used()
    if used + need > max_cache:
        raise StoreError(
            f"the run needs {need:,} bytes of cache besides the {used:,} in use, "
            f"more than run.max_cache = {max_cache:,}; raise it, or free some with 'lrfgraph cache gc'"
        )


def _deaf(event: Event) -> None:
    """Nobody listens."""
