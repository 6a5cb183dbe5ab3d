"""Progress: one line per stage with nodes done, nodes reused and time left; silent where nobody watches."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lrfgraph.engine.events import Event

__all__ = ["Progress"]


class Progress:
    """Listens to events and draws one bar for what is running; use as a context manager."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
        )
        self.bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.tasks: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if event.kind == "reused":
            return
        task = self.tasks.get(event.step)
        if task is None:
            task = self.tasks[event.step] = self.bars.add_task(event.step, total=None, note="")
        if event.kind == "progress":
            self.bars.update(task, completed=event.done, total=event.total, note=event.message)
        elif event.kind in ("finished", "waited"):
            self.counts[event.step] += 1
            if self.counts[event.step] > 1:
                self.bars.update(task, completed=self.counts[event.step], note=event.node)
