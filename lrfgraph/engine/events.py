"""What the engine, and the run around it, tell whoever is watching."""

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
        Of a run, which has no node: ``stage`` (number `done` of `total` begins; the message says whether `seconds`,
        what is thought to follow it, is all), ``trial`` (something is tried, number `done` of about `total`: the
        message says what) and ``outcome`` (what that gave).
    node, step : whose; of a run the stage.  seconds, bytes : what it cost.
    """

    kind: Literal[
        "reused", "started", "finished", "waited", "progress", "discarded", "warning", "stage", "trial", "outcome"
    ]
    node: str
    step: str
    seconds: float = 0.0
    bytes: int = 0
    done: int = 0
    total: int = 0
    message: str = ""


Listener = Callable[[Event], None]
