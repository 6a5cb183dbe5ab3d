"""Which nodes have which key, and which of them the store holds already. Nothing is computed and nothing changed.

Every key is known before anything runs: an input is a finished Ref or another node, whose identity is its key.
A decision's identity is what it says, so it has to be made before what reads it can be resolved: the driver
builds the graph in stages and each decision ends one. A decision that the store holds is as good as made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrfgraph.engine.nodes import Node, Ref, Step, components_of, key_of
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.errors import StoreError

__all__ = ["Resolution", "Resolved", "resolve"]


@dataclass(frozen=True)
class Resolved:
    """A node with its key. last_use : when the entry was last used, ``None`` if the store does not hold it."""

    node: Node
    key: str
    identity: str
    components: Mapping[str, Any]
    inputs: Mapping[str, Ref]
    last_use: float | None

    @property
    def cached(self) -> bool:
        return self.last_use is not None

    @property
    def ref(self) -> Ref:
        return Ref(self.identity, self.key)

    @property
    def above(self) -> list[str]:
        """The names of the nodes it reads."""
        return [source for source in self.node.inputs.values() if isinstance(source, str)]


@dataclass(frozen=True)
class Resolution:
    """All nodes by name, inputs before what reads them. damaged : keys whose entry cannot be read, and why."""

    nodes: Mapping[str, Resolved]
    damaged: Mapping[str, str]

    def needed(self, targets: Iterable[str] | None = None) -> list[Resolved]:
        """Return the nodes that `targets` (all by default) stand on, in order: a cached node needs nothing."""
        if targets is None:
            return list(self.nodes.values())
        names, waiting = set(), list(targets)
        while waiting:
            name = waiting.pop()
            if name not in self.nodes:
                raise StoreError(f"the graph has no node {name!r} to compute")
            if name not in names:
                names.add(name)
                if not self.nodes[name].cached:
                    waiting += self.nodes[name].above
        return [node for name, node in self.nodes.items() if name in names]


def resolve(
    nodes: Iterable[Node], steps: Mapping[str, Step], store: Store, unreadable: Mapping[str, str] | None = None
) -> Resolution:
    """Find every node's key and whether the store holds it; decisions are read.

    What is missing here is asked of the store's remote, if it has one.
    unreadable : keys that a reader who changes nothing has found damaged, and why; they are as good as missing.
    One look per key: that is as quick as listing the folders for 5,000 nodes in a store of 20,000 entries, and
    does not grow with what other runs left there. Raises StoreError for a graph that is not one: a name twice, an
    unknown step or input, a cycle, or a reader of a decision that is not made yet.
    """
    ordered = _in_order(list(nodes))
    resolution = _resolve(ordered, steps, store, unreadable or {})
    missing = [node.key for node in resolution.nodes.values() if not node.cached and node.key not in resolution.damaged]
    return _resolve(ordered, steps, store, unreadable or {}) if missing and store.look_up(missing) else resolution


def _resolve(
    nodes: Sequence[Node], steps: Mapping[str, Step], store: Store, unreadable: Mapping[str, str]
) -> Resolution:
    resolved: dict[str, Resolved] = {}
    damaged: dict[str, str] = {}
    for node in nodes:
        step = steps.get(node.step)
        if step is None:
            raise StoreError(f"{node.name}: step {node.step!r} is unknown; choose from {', '.join(steps)}")
        inputs: dict[str, Ref] = {}
        for name, source in node.inputs.items():
            if isinstance(source, Ref):
                inputs[name] = source
                continue
            above = resolved[source]
            if steps[above.node.step].decides and not above.cached:
                raise StoreError(f"{node.name} reads {source}, a decision that is not made yet; it is a later stage")
            inputs[name] = above.ref
        components = components_of(node, step.version, {name: ref.identity for name, ref in inputs.items()})
        key = identity = key_of(components)
        last_use = store.last_use(key)
        if step.decides and last_use is None and store.look_up([key]):
            last_use = store.last_use(key)
        if key in unreadable and last_use is not None:
            damaged[key], last_use = unreadable[key], None
        elif step.decides and last_use is not None:
            try:
                identity = str(store.manifest(key)["identity"])
            except CorruptEntry as error:
                damaged[key], last_use = error.why, None
        resolved[node.name] = Resolved(node, key, identity, components, inputs, last_use)
    return Resolution(resolved, damaged)


def _in_order(nodes: Sequence[Node]) -> list[Node]:
    """Sort nodes so that inputs come first, otherwise as given."""
    by_name = {node.name: node for node in nodes}
    if len(by_name) < len(nodes):
        names = [node.name for node in nodes]
        raise StoreError(f"two nodes have the name {next(n for n in names if names.count(n) > 1)!r}")
    done: dict[str, bool] = {}  # False while what a node reads is being placed
    ordered: list[Node] = []
    for first in nodes:
        waiting = [first]
        while waiting:
            node = waiting[-1]
            if done.get(node.name):
                waiting.pop()
                continue
            fresh = node.name not in done
            done[node.name] = False
            above = [source for source in node.inputs.values() if isinstance(source, str) and not done.get(source)]
            if not above:
                done[node.name] = True
                ordered.append(waiting.pop())
                continue
            for source in above:
                if source not in by_name:
                    raise StoreError(f"{node.name} reads {source!r}, which is not in the graph")
                if not fresh or done.get(source) is False:
                    raise StoreError(f"the graph has a cycle through {source!r}")
                waiting.append(by_name[source])
    return ordered
