"""The graph as plain data: nodes, what they refer to, and the key that says what a node's result is.

A key is a digest of the step's name and version, the parameters the step reads and the identities of its
inputs; no source code, file name, path or time enters it. The identity of a big result is how it was made (its
key); the identity of a decision is what it says, so that a new threshold that picks the same configuration
changes nothing downstream.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.rows import ArrayLike, Rows, blocks
from lrfgraph.errors import StoreError

__all__ = [
    "Arrays",
    "Input",
    "Node",
    "Ref",
    "Result",
    "Step",
    "Task",
    "components_of",
    "digest",
    "is_key",
    "key_of",
    "parts_of",
]

Arrays = dict[str, NDArray[Any]]

KEY = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,63})/([0-9a-f]{40})")


_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def digest(value: Any) -> str:
    """Return the 160-bit BLAKE2b digest of bytes, of an array (dtype, shape, C-order little-endian bytes; read block by
    block) or of anything JSON can say (keys sorted, no spaces)."""
    if isinstance(value, np.ndarray | Rows):
        little = value.dtype.newbyteorder("<")
        state = hashlib.blake2b(f"{little.str}{value.shape}".encode(), digest_size=20)
        for block in blocks(value):
            state.update(np.ascontiguousarray(block, little).data if block.size else b"")
        return state.hexdigest()
    if not isinstance(value, bytes):
        value = _json(value).encode()
    return hashlib.blake2b(value, digest_size=20).hexdigest()


@dataclass(frozen=True)
class Ref:
    """A pointer to a result.

    identity : what enters the keys of what reads it.  key : ``kind/digest``, its place in the store.
    part : a prefix of array names, where only a part of the entry is meant (one layer's weights).
    """

    identity: str
    key: str
    part: str = ""


@dataclass(frozen=True)
class Node:
    """One piece of work as plain data.

    name : for people, reads like a path: ``conv2d_3/tucker/24x31/score``.  step : entry of the step table.
    params : only what the step reads; JSON values.  inputs : by name, other nodes' names or finished results.
    locators : what a step must know to find its bytes but that does not change the result (a file's path);
        never part of the key.
    memory : bytes of the process that computes it, where that is known; a cluster whose workers say how much they
        have starts no more than fits. Never part of the key.
    """

    name: str
    step: str
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str | Ref] = field(default_factory=dict)
    locators: Mapping[str, Any] = field(default_factory=dict)
    memory: int = 0


class Input(Protocol):
    """What a step sees of one of its inputs; nothing is read from disk until it is asked for."""

    identity: str

    @property
    def data(self) -> dict[str, Any]: ...

    def array(self, name: str) -> NDArray[Any]: ...

    def rows(self, name: str) -> ArrayLike: ...

    def names(self) -> list[str]: ...

    def file(self, name: str) -> Path: ...


@dataclass(frozen=True)
class Task:
    """What a step is handed: its own parameters and inputs, a scratch folder that outlives an interrupted
    attempt (made when first asked for), and a function to report progress to: done, total, message."""

    name: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Input]
    locators: Mapping[str, Any]
    scratch: Callable[[], Path]
    progress: Callable[[int, int, str], None]


@dataclass(frozen=True)
class Result:
    """What a step gives back.

    data : small results, JSON; they live in the manifest.  arrays : go to Zarr, read block by block; names may contain
    ``/``.
    files : whole files by name, as a path to be moved into the entry.
    identity : set by decisions; ``None`` means the key.
    """

    data: dict[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, ArrayLike] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    identity: str | None = None


@dataclass(frozen=True)
class Step:
    """One entry of the step table.

    version : raised by hand when the numbers change.  together : computes many nodes in one pass (all layers
    recorded in one run of the network; of a step with `small`, those that share a task); without it `compute` is
    called per node; it may yield its results one by one.  decides : its results are decisions (they set
    `Result.identity`); whoever reads one belongs to a later stage, because its key is not known before the decision
    is.  small : of nodes that take no longer than the bookkeeping around them, which ones share a task: those for which
    it returns the same. They are computed without leases, since computing one twice costs less. ``None`` for a node
    that has a task of its own.
    """

    name: str
    version: int
    compute: Callable[[Task], Result]
    together: Callable[[list[Task]], Iterable[Result]] | None = None
    decides: bool = False
    small: Callable[[Node], Hashable | None] | None = None

    def __dask_tokenize__(self) -> tuple[str, int]:
        return self.name, self.version

    def shared(self, node: Node) -> Hashable | None:
        """Return what nodes have in common that share a task as small ones, ``None`` for one that shares none."""
        return self.small(node) if self.small is not None else None


def components_of(node: Node, version: int, identities: Mapping[str, str]) -> dict[str, Any]:
    """Return what `key_of` digests, readable: kept in the manifest so that a miss can be explained later.

    version : of the node's step.  identities : of its inputs, by name.
    """
    return {
        "step": node.step,
        "version": version,
        "params": dict(node.params),
        "inputs": {name: identities[name] for name in sorted(node.inputs)},
    }


def key_of(components: Mapping[str, Any]) -> str:
    """Return the key ``step/digest`` of a node: the one way from components to a key."""
    return f"{components['step']}/{digest(components)}"


def is_key(text: str) -> bool:
    """Say whether a text has the form of a key."""
    return KEY.fullmatch(text) is not None


def parts_of(key: str) -> tuple[str, str]:
    """Return kind and digest of a key, wherever it was read: the one way from a key to a path.

    Raises StoreError for what is no key and could lead anywhere.
    """
    match = KEY.fullmatch(key)
    if match is None:
        raise StoreError(f"keys are a kind and 40 hexadecimal digits, as score/0123…; received {key!r}")
    return match[1], match[2]
