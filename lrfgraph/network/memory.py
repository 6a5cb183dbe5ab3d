"""Memory of a pass over images, asked before it begins: bytes an image takes, images in flight, what there is.

How many images are in flight decides how sums of floats are rounded. It follows from the network alone, never from the
machine: a small machine and a large one get the same bits for the same key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from lrfgraph.network.graph import Graph, flatten

__all__ = [
    "CHUNK_BYTES",
    "Traffic",
    "allowance",
    "available",
    "held",
    "images_forward",
    "images_in_flight",
    "stream_limit",
]

CHUNK_BYTES = 256 << 20
"""What the activations of all images in flight may take."""

MOST_STREAM_BYTES = 128 << 20
"""What streams of repair take in memory, at most: a file in the page cache of an idle machine is about as fast."""

SHARE = 0.8
"""Of the memory that is left, what a run may take where nobody says."""

CGROUPS = {
    True: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    False: ("sys/fs/cgroup", "memory.max", "memory.current"),
}
"""Folder and files of both versions; the first names its controllers."""


@dataclass(frozen=True)
class Traffic:
    """What flows between the calls of a flat program, and how large it is for one image.

    calls : slots that each call reads and writes.  inputs, outputs : slots of the network.  sizes : bytes by slot.
    """

    calls: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sizes: Mapping[int, int]

    @classmethod
    def of(cls, graph: Graph, model: Any, image_shape: tuple[int, ...] | None = None) -> Traffic:
        """Measure a graph; open axes take their lengths from `image_shape`."""
        shapes: Mapping[int, tuple[int | None, ...]] = graph.shapes
        if any(None in shape[1:] for shape in shapes.values()):
            from lrfgraph.network.counting import static_shapes

            shapes = static_shapes(graph, model, image_shape)
        return cls.of_shapes([(call.inputs, call.outputs) for call in graph.calls], graph.inputs, graph.outputs, shapes)

    @classmethod
    def of_shapes(
        cls,
        calls: Iterable[tuple[Sequence[int], Sequence[int]]],
        inputs: Sequence[int],
        outputs: Sequence[int],
        shapes: Mapping[int, Sequence[int | None]],
    ) -> Traffic:
        """Take shapes with their batch axis; values are float32."""
        sizes = {slot: 4 * prod(n or 1 for n in shape[1:]) for slot, shape in shapes.items()}
        pairs = tuple((tuple(read), tuple(written)) for read, written in calls)
        return cls(pairs, tuple(inputs), tuple(outputs), sizes)

    @cached_property
    def last(self) -> dict[int, int]:
        """By slot, the index of the last call that reads it."""
        last = {slot: index for index, (read, _) in enumerate(self.calls) for slot in read}
        return last | dict.fromkeys(self.outputs, len(self.calls))

    @cached_property
    def forward(self) -> int:
        """Bytes of an image at the widest point of a forward pass that keeps nothing it does not need.

        A call's outputs count twice: a layer that adds a bias or applies an activation makes them twice.
        """
        live, most = set(self.inputs), 0
        for index, (_, written) in enumerate(self.calls):
            live.update(written)
            most = max(most, self._bytes(live) + self._bytes(written))
            live = {slot for slot in live if self.last.get(slot, -1) > index}
        return most

    @cached_property
    def backward(self) -> int:
        """Bytes of an image in a forward and a backward pass: every call's outputs stay for the way back."""
        return sum(self._bytes(written) for _, written in self.calls) + self.forward

    def standing(self, index: int) -> int:
        """Bytes of what an image has alive before the call `index`: what that one reads, or a later one."""
        slots = {*self.inputs, *(slot for _, written in self.calls[:index] for slot in written)}
        return self._bytes({slot for slot in slots if self.last.get(slot, -1) >= index})

    def _bytes(self, slots: Iterable[int]) -> int:
        return sum(self.sizes[slot] for slot in slots)


def images_in_flight(each: int, most: int) -> int:
    """Return how many images, `each` of so many bytes, run at once; at least one, at most `most`."""
    return max(1, min(most, CHUNK_BYTES // max(each, 1)))


def images_forward(model: Any, most: int, image_shape: tuple[int, ...] | None = None) -> int:
    """Return how many images run forward through a model at once."""
    return images_in_flight(Traffic.of(flatten(model), model, image_shape).forward, most)


def stream_limit(limit: int | None) -> int:
    """Return the bytes that streams of repair may take in memory; what is more waits in a file."""
    return min(MOST_STREAM_BYTES, allowance(limit) // 4)


# What there is ------------------------------------------------------------------------------------------------------


def allowance(limit: int | None) -> int:
    """Return the bytes that this process may take: what it is told, else what it has and a share of what is left."""
    return held() + int(SHARE * available()) if limit is None else limit


def held(root: Path = Path("/")) -> int:
    """Return the bytes that this process has in memory."""
    with suppress(OSError, ValueError):
        return int((root / "proc/self/statm").read_text().split()[1]) * int(os.sysconf("SC_PAGE_SIZE"))
    return 0


def available(root: Path = Path("/")) -> int:
    """Return the bytes that are left on this machine or, where that is less, in this process' cgroup."""
    return min([_machine(root), *_cgroups(root)])


def _machine(root: Path) -> int:
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))


def _cgroups(root: Path) -> list[int]:
    """What the limits of this process' cgroups leave, of both versions; those without a limit say nothing."""
    left = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            home, limit, usage = CGROUPS["memory" in controllers.split(",")]
            for part in ("", *_above(path)):
                with suppress(OSError, ValueError):  # "max": no limit
                    most, used = (int((root / home / part / name).read_text()) for name in (limit, usage))
                    left.append(max(most - used, 0))
    return left


def _above(path: str) -> list[str]:
    """A cgroup's path and those above it: all their limits hold."""
    parts = Path(path).parts[1:]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
