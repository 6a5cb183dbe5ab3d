"""What the engine tells whoever is watching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Event", "Listener"]


@dataclass(frozen=True)
class Event:
    """One thing that happened to a node.

    kind : ``reused`` (was in the cache), ``started``, ``finished`` (computed here), ``waited`` (another run
        computed it), ``progress`` (done of total, message; without a node: so many
        of a step are about to run), ``discarded`` (a damaged entry, the message says why), ``warning`` (of no
        node; the message says what a person should know at once).
    node, step : whose.  seconds, bytes : what it cost.
    """

    kind: Literal["reused", "started", "finished", "waited", "progress", "discarded", "warning"]
    node: str
    step: str
    seconds: float = 0.0
    bytes: int = 0
    done: int = 0
    total: int = 0
    message: str = ""


Listener = Callable[[Event], None]
