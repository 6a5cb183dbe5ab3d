"""Progress of a run: a live line on a terminal, one that is written over in a notebook, else a line now and then.

Drawn on standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import sys
import threading
import time
from html import escape
from typing import Any, Protocol

from lrfgraph.engine.events import Event
from lrfgraph.report.status import Status

__all__ = ["Progress"]

FIRST, EVERY = 30.0, 30.0
"""Seconds before the first line where nobody watches, and between them: what is quick says nothing."""

REFRESHED = 4.0
"""Times a second that a live line is drawn, whether anything happened or not: the time left goes down."""

NOTEBOOK = 0.5
"""Seconds between two updates of a notebook's line."""


class Display(Protocol):
    """Where the line is shown. event : something happened.  close : take the line away."""

    def event(self) -> None: ...

    def close(self) -> None: ...


class Progress:
    """Listens to the events of a run and shows where it is; use as a context manager."""

    def __init__(self) -> None:
        self.status = Status()
        self.display: Display | None = None
        self.guard = threading.Lock()
        self.printed = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def pause(self) -> None:
        """Take the line away, so that something can be printed; it comes back with the next event."""
        if self.display is not None:
            self.display.close()
            self.display = None

    def __call__(self, event: Event) -> None:
        """Take note of an event, and show it."""
        if event.kind == "warning":
            self.pause()
            print(f"note: {event.message}", file=sys.stderr, flush=True)
            return
        with self.guard:
            self.status.note(event, time.monotonic())
        if event.kind == "reused":  # thousands, at once
            return
        if self.display is None:
            self.display = _display(self)
        self.display.event()

    def line(self) -> str:
        """Where the run is at this moment."""
        with self.guard:  # a terminal's thread asks whenever it likes
            return self.status.line(time.monotonic())


def _display(progress: Progress) -> Display:
    if _in_notebook():
        return _Notebook(progress)
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_dumb_terminal:
            return _Terminal(progress, console)
    return _Lines(progress)


def _in_notebook() -> bool:
    """Whether there is a kernel that draws what it is handed; IPython is not imported for it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


class _Terminal:
    """One line that a thread draws again in its place, cut off where the terminal ends."""

    def __init__(self, progress: Progress, console: Any) -> None:
        from rich.live import Live
        from rich.text import Text

        def line() -> Text:
            return Text(progress.line(), no_wrap=True, overflow="ellipsis")

        self.live = Live(get_renderable=line, console=console, refresh_per_second=REFRESHED, transient=True)
        self.live.start()

    def event(self) -> None:
        """Nothing: the thread looks by itself."""

    def close(self) -> None:
        self.live.stop()


class _Notebook:
    """One output that is written over."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.handle, self.shown = progress, None, 0.0

    def event(self) -> None:
        now = time.monotonic()
        if now - self.shown >= NOTEBOOK:
            self.shown = now
            self._show(f"<pre>{escape(self.progress.line())}</pre>")

    def close(self) -> None:
        if self.handle is not None:
            self._show("")

    def _show(self, text: str) -> None:
        display = sys.modules["IPython"].display
        shown = display.HTML(text)
        if self.handle is None:
            self.handle = display.display(shown, display_id=True)
        else:
            self.handle.update(shown)


class _Lines:
    """A line now and then, for logs."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.due = progress, progress.printed + FIRST

    def event(self) -> None:
        now = time.monotonic()
        if self.progress.status.stage and now >= self.due:  # what only looks at a model is no run
            self.progress.printed, self.due = now, now + EVERY
            print(f"lrfgraph: {self.progress.line()}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is drawn that could be taken away; the next lines keep their distance."""
