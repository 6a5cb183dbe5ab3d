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
    """Listens to events and draws one bar for what is running; use as a context manager."""

    def __init__(self) -> None:
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}
        self.done: Counter[str] = Counter()
        self.reused: Counter[str] = Counter()

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
        """Take note of an event."""
        if event.kind == "reused":
            self.reused[event.step] += 1
            return
        if not sys.stderr.isatty():
            return
        task = self._task(event.step)
        note = f"{self.reused[event.step]} reused" if self.reused[event.step] else ""
        if event.kind == "progress":
            self.bars.update(task, completed=event.done, total=event.total, note=event.message or note)
        elif event.kind in ("finished", "waited"):
            self.done[event.step] += 1
            self.bars.update(task, note=f"{self.done[event.step]} nodes done" + (f", {note}" if note else ""))

    def _task(self, step: str) -> Any:
        if self.bars is None:
            self.bars = _bars()
            self.bars.start()
        if step not in self.tasks:
            self.tasks[step] = self.bars.add_task(step, total=None, note="")
        return self.tasks[step]


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
