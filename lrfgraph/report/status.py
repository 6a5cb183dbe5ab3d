"""Where a run is, in one line: which stage of how many, what is being tried, what the last try gave, the time left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lrfgraph.engine.events import Event

__all__ = ["STAGES", "Status", "time_left"]

STAGES = {
    "describe": "reading the model",
    "data": "dividing the images",
    "baseline": "measuring the original",
    "prune": "removing channels",
    "train": "training with shrinking ranks",
    "explore": "recording and decomposing layers",
    "candidates": "scoring candidates",
    "probe": "probing",
    "select": "choosing",
    "rebuild": "rebuilding and repairing",
    "finish": "fine-tuning and writing",
    "evaluate": "measuring what came out",
}
"""What a stage does, by its name."""


def time_left(seconds: float) -> str:
    """Write a time that is only guessed, rounded as it deserves.

    >>> time_left(7), time_left(400), time_left(8000)
    ('5 s', '7 min', '2.2 h')
    """
    if seconds < 90:
        return f"{max(5 * round(seconds / 5), 5)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass
class Status:
    """Listens to the events of a run and says where it is; times are the caller's, in seconds.

    number, count : of the stage.  after : seconds thought to follow it, `known` if that is all.  trial : what is being
    tried, and `outcome` what the last try gave.  detail : of a node that takes long.
    """

    stage: str = ""
    number: int = 0
    count: int = 0
    after: float = 0.0
    known: bool = False
    began: float = 0.0
    trial: str = ""
    tried: int = 0
    trials: int = 0
    first_trial: float = 0.0
    outcome: str = ""
    detail: str = ""
    expected: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    each: dict[str, float] = field(default_factory=dict)
    within: dict[str, float] = field(default_factory=dict)
    unit: float = 0.0

    def note(self, event: Event, now: float) -> None:
        """Take note of an event that happened at a time."""
        if event.kind == "stage":
            self._begin(event, now)
        elif event.kind == "trial":
            self.first_trial = self.first_trial or now
            self.trial, self.tried, self.trials, self.detail = event.message, event.done, event.total, ""
            self.expected.clear()
            self.done.clear()
        elif event.kind == "outcome":
            self.outcome = event.message
        elif event.kind == "progress" and not event.node:
            self.expected[event.step] = self.done[event.step] + event.total
            self.each.setdefault(event.step, event.seconds)
        elif event.kind == "progress":
            self.within[event.step] = event.done / max(event.total, 1)
            self.unit = now if event.done == 0 else self.unit or now
            whole = f" of {event.total:,}" if event.total else ""
            self.detail = f"{event.step} {event.done:,}{whole}" + (f", {event.message}" if event.message else "")
        elif event.kind in ("finished", "waited"):
            self.done[event.step] += 1
            self.within.pop(event.step, None)
            self.detail = f"{event.step} {self.done[event.step]:,} of {self.expected[event.step]:,}"

    def _begin(self, event: Event, now: float) -> None:
        self.stage, self.number, self.count = event.step, event.done, event.total
        self.after, self.known, self.began = event.seconds, not event.message, now
        self.trial = self.detail = self.outcome = ""
        self.tried = self.trials = 0
        self.first_trial = self.unit = 0.0
        for counter in (self.expected, self.done, self.each, self.within):
            counter.clear()

    def left(self, now: float) -> float | None:
        """Return the seconds that the run may still take, ``None`` where nobody knows."""
        stage = self._left_of_stage(now)
        return None if stage is None else stage + self.after

    def _left_of_stage(self, now: float) -> float | None:
        """By tries where there are any, else by how far a long node has come, else by nodes."""
        if self.trials:
            if self.tried < 2:
                return None
            return max(self.trials - self.tried + 1, 1) * (now - self.first_trial) / self.tried
        for step in ("finetune", "epoch"):
            share = self.within.get(step)
            if share is not None:
                more = max(self.expected[step] - self.done[step] - 1, 0)  # epochs are nodes one after the other
                return None if share < 0.02 else (now - self.unit) * ((1 - share) + more) / share
        waiting = {step: max(self.expected[step] - self.done[step], 0) for step in self.expected}
        return sum(count * self.each.get(step, 0.0) for step, count in waiting.items())

    def line(self, now: float) -> str:
        """Return the one line."""
        parts = [f"{self.number}/{self.count} {STAGES.get(self.stage, self.stage)}" if self.stage else "starting"]
        left = self.left(now) if self.stage and self.number > 3 else None
        if left is not None and (left >= 1 or not self.known):
            parts.append(f"{'about' if self.known else 'more than'} {time_left(left)} left")
        if self.trial:
            parts.append(f"{self.tried}. {self.trial}" + (f" ({self.detail})" if self.detail else ""))
        elif self.detail:
            parts.append(self.detail)
        if self.outcome:
            parts.append(f"last: {self.outcome}")
        return ", ".join(parts)
