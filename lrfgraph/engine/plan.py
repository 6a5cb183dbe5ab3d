"""What would run, why, and what it will cost, from what the store remembers of earlier runs."""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from lrfgraph.engine.maintenance import keys_of
from lrfgraph.engine.resolve import Resolution, Resolved
from lrfgraph.engine.store import CorruptEntry, Store

__all__ = ["Estimate", "Plan", "PlannedNode", "plan"]

INDEXED = 2000
COMPARED = 32
MANY_SHOWN = 3


@dataclass(frozen=True)
class PlannedNode:
    """A node that is needed. why : what it is not in the cache for, ``""`` if it is.

    seconds, bytes : medians of the entries of its step, ``None`` if there are none.
    """

    name: str
    step: str
    key: str
    cached: bool
    why: str = ""
    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Estimate:
    """What the missing nodes of a step, or all of them, will cost; `unknown` of them have no record to go by."""

    nodes: int
    seconds: float
    bytes: int
    unknown: int


@dataclass(frozen=True)
class Plan:
    """The needed nodes in order, and totals by step (in the order of the graph) and together."""

    nodes: tuple[PlannedNode, ...]
    steps: Mapping[str, Estimate]
    total: Estimate

    @property
    def missing(self) -> list[PlannedNode]:
        return [node for node in self.nodes if not node.cached]


@dataclass(frozen=True)
class _Known:
    """An earlier entry: its node's name, its components flattened, seconds and bytes."""

    name: str
    parts: Mapping[str, str]
    seconds: float
    bytes: int


class _Index:
    """The entries of one kind, the most recently used first, found by name or by all components but one."""

    def __init__(self, known: list[_Known]) -> None:
        self.known = known
        self.by_name: dict[str, list[_Known]] = defaultdict(list)
        self.by_rest: dict[int, _Known] = {}
        for entry in known:
            self.by_name[entry.name].append(entry)
            for rest in _all_but_one(entry.parts):
                self.by_rest.setdefault(rest, entry)
        self.seconds = median(entry.seconds for entry in known) if known else None
        self.bytes = int(median(entry.bytes for entry in known)) if known else None

    def nearest(self, name: str, parts: Mapping[str, str]) -> _Known | None:
        """Return the entry with the fewest differing components, of the same name if there is one."""
        named = self.by_name.get(name, [])[:COMPARED]
        if not named:
            for rest in _all_but_one(parts):
                if rest in self.by_rest:
                    return self.by_rest[rest]
        return min(named or self.known[:COMPARED], key=lambda entry: len(_differing(entry.parts, parts)), default=None)


def plan(resolution: Resolution, store: Store, targets: Iterable[str] | None = None) -> Plan:
    """Explain and estimate what `execute` would do.

    Reads at most `INDEXED` manifests of a kind, and only of kinds that have missing nodes.
    """
    needed = resolution.needed(targets)
    indexes = {kind: _index(store, kind) for kind in {resolved.node.step for resolved in needed if not resolved.cached}}
    whys: dict[str, str] = {}
    planned = []
    for resolved in needed:
        node = resolved.node
        if resolved.cached:
            planned.append(PlannedNode(node.name, node.step, resolved.key, cached=True))
            continue
        index = indexes[node.step]
        why = resolution.damaged.get(resolved.key)
        why = whys[node.name] = f"damaged in the cache: {why}" if why else _why(resolved, index, whys)
        planned.append(PlannedNode(node.name, node.step, resolved.key, False, why, index.seconds, index.bytes))
    counted = {node.key: node for node in planned if not node.cached}.values()
    by_step: dict[str, list[PlannedNode]] = defaultdict(list)
    for one in counted:
        by_step[one.step].append(one)
    return Plan(tuple(planned), {step: _sum(members) for step, members in by_step.items()}, _sum(counted))


def _sum(nodes: Collection[PlannedNode]) -> Estimate:
    return Estimate(
        len(nodes),
        sum(node.seconds or 0.0 for node in nodes),
        sum(node.bytes or 0 for node in nodes),
        sum(node.seconds is None for node in nodes),
    )


def _why(resolved: Resolved, index: _Index, whys: Mapping[str, str]) -> str:
    """Say which component differs from the nearest entry; what differs in an input is that input's reason."""
    parts = _flatten(resolved.components)
    nearest = index.nearest(resolved.node.name, parts)
    if nearest is None:
        return "never computed"
    differing = _differing(nearest.parts, parts)
    if not differing:
        return "another run is just computing it"
    reasons = []
    for part in differing[:MANY_SHOWN]:
        head, _, name = part.partition(".")
        if head == "inputs" and part in parts:
            source = resolved.node.inputs[name]
            reason = whys.get(source, "") if isinstance(source, str) else ""
            reasons.append(f"input {name} differs" + (f" because {reason}" if reason else ""))
        else:
            reasons.append(f"{part} {_short(nearest.parts.get(part))} → {_short(parts.get(part))}")
    if len(differing) > MANY_SHOWN:
        reasons.append(f"{len(differing) - MANY_SHOWN} more")
    return ", ".join(reasons)


def _index(store: Store, kind: str) -> _Index:
    recent = heapq.nlargest(INDEXED, ((store.last_use(key) or 0.0, key) for key in keys_of(store, kind)))
    known = []
    for _, key in recent:
        try:
            manifest = store.manifest(key)
        except CorruptEntry:
            continue
        parts = _flatten(manifest["components"])
        known.append(_Known(manifest["name"], parts, manifest["seconds"], manifest["bytes"]))
    return _Index(known)


def _flatten(components: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in components.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value, sort_keys=True)
    return flat


def _differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _all_but_one(parts: Mapping[str, str]) -> list[int]:
    """Return, for each component, a number that stands for all the others."""
    hashes = {name: hash((name, value)) for name, value in parts.items()}
    whole = 0
    for value in hashes.values():
        whole ^= value
    return [hash((name, whole ^ value)) for name, value in hashes.items()]


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= 40 else f"{value[:37]}…"
