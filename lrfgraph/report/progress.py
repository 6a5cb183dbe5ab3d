"""Progress: one line per stage with nodes done, nodes reused and time left; silent where nobody watches.

Drawn on standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from lrfgraph.engine.events import Event

__all__ = ["Progress"]


class Progress:
    """Listens to events and draws a bar for each kind of node that is being computed; use as a context manager."""

    def __init__(self) -> None:
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}
        self.expected: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.reused: Counter[str] = Counter()
        self.within: set[str] = set()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def pause(self) -> None:
        """Take the bars away, so that something can be printed; they come back with the next event."""
        if self.bars is not None:
            self.bars.stop()
            self.bars, self.tasks = None, {}

    def __call__(self, event: Event) -> None:
        """Take note of an event; one of kind ``progress`` without a node says how many nodes a stage will compute."""
        step = event.step
        if event.kind == "warning":
            self.pause()
            print(f"note: {event.message}", file=sys.stderr, flush=True)
        elif event.kind == "progress" and not event.node:
            self.expected[step] = self.done[step] + event.total
        elif event.kind == "reused":
            self.reused[step] += 1
        elif event.kind in ("finished", "waited"):
            self.done[step] += 1
        if event.kind in ("reused", "discarded") or not event.node or not sys.stderr.isatty():
            return
        if event.kind == "progress":
            # A pass over images or epochs: its own count says more than that of nodes, which all end with it.
            self.within.add(step)
            self.bars_for(step).update(self.tasks[step], completed=event.done, total=event.total, note=event.message)
        elif step not in self.within:
            self.bars_for(step).update(
                self.tasks[step], completed=self.done[step], total=self.expected[step] or None, note=self._note(step)
            )
        if self.done[step] >= self.expected[step] > 0 and step in self.tasks:
            self.bars.update(self.tasks[step], visible=False)

    def _note(self, step: str) -> str:
        return f"{self.done[step]} nodes done, {self.reused[step]} reused"

    def bars_for(self, step: str) -> Any:
        """Return the bars, started, with one for this kind of node."""
        if self.bars is None:
            self.bars = _bars()
            self.bars.start()
        if step not in self.tasks:
            self.tasks[step] = self.bars.add_task(step, total=None, note="")
        return self.bars


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
