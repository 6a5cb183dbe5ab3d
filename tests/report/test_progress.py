"""Progress says where the run is: the stage, what is tried, what the last try gave, and about how long it takes."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from conftest import DATA

from lrfgraph import api
from lrfgraph.engine.events import Event
from lrfgraph.options.recipe import Recipe
from lrfgraph.report import progress as module
from lrfgraph.report.progress import Progress
from lrfgraph.report.status import STAGES, Status
from lrfgraph.run import stages


def status(*events: tuple[float, Event]) -> Status:
    status = Status()
    for now, event in events:
        status.note(event, now)
    return status


SEARCH = (
    (100.0, Event("stage", "", "select", seconds=60.0, done=7, total=10)),
    (100.0, Event("trial", "", "select", done=1, total=8, message="trying 42.0 % of the parameters")),
    (100.5, Event("progress", "", "repair", total=6)),
    (102.0, Event("finished", "conv1/repair", "repair", seconds=1.5)),
    (
        110.0,
        Event("outcome", "", "select", done=1, total=8, message="42.0 % of the parameters lost 0.40 ± 0.20 points"),
    ),
    (110.0, Event("trial", "", "select", done=2, total=8, message="trying 20.0 % of the parameters")),
    (110.5, Event("progress", "", "repair", total=6)),
    (112.0, Event("finished", "conv1/repair", "repair", seconds=1.5)),
)


def test_a_search_says_what_it_tries_and_what_the_last_try_gave() -> None:
    assert status(*SEARCH[:4]).line(103) == "7/10 choosing, 1. trying 42.0 % of the parameters (repair 1 of 6)"
    line = status(*SEARCH).line(120)
    assert line.startswith("7/10 choosing, about 2 min left, 2. trying 20.0 % of the parameters (repair 1 of 6), ")
    assert line.endswith("last: 42.0 % of the parameters lost 0.40 ± 0.20 points")


def test_a_stage_counts_what_is_left_of_its_nodes_and_of_those_to_come() -> None:
    known = status(
        (0.0, Event("stage", "", "candidates", seconds=100.0, done=5, total=9)),
        (0.0, Event("progress", "", "score", total=200, seconds=0.1)),
    )
    assert known.line(0) == "5/9 scoring candidates, about 2 min left"
    for index in range(150):
        known.note(Event("finished", f"{index}/score", "score"), 1.0)
    assert known.left(1.0) == pytest.approx(105.0)
    guessed = status((0.0, Event("stage", "", "candidates", seconds=100.0, done=5, total=9, message="and more")))
    assert guessed.line(0) == "5/9 scoring candidates, more than 2 min left"


def test_a_training_is_told_by_how_far_it_is() -> None:
    training = Event("progress", "finetune", "finetune", done=0, total=100, message="epoch 1 of 5")
    half = Event("progress", "finetune", "finetune", done=50, total=100, message="epoch 3 of 5")
    known = status((0.0, Event("stage", "", "finish", seconds=20.0, done=9, total=10)), (10.0, training), (310.0, half))
    assert known.line(310.0) == "9/10 fine-tuning and writing, about 5 min left, finetune 50 of 100, epoch 3 of 5"


def test_every_stage_has_words() -> None:
    assert {"describe", *(stage.name for stage in stages.STAGES)} == set(STAGES)


def test_a_run_tells_its_stages_and_tries(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = str(tmp_path_factory.mktemp("cache"))
    options: dict[str, Any] = {
        "data": {"source": str(DATA / "tiny_digits.npz"), "scale": 1 / 255, "calibration": 80, "validation": 60},
        "explore": {"ranks": 3, "methods": ("svd", "svd_channel")},
        "select": {"max_drop": 40.0},
        "repair": {"images": 80, "steps": 5, "rounds": 0},
        "finetune": {"epochs": 1},
        "run": {"cache": cache},
    }
    events: list[Event] = []
    api.compress(DATA / "tiny_cnn.keras", Recipe.from_dict(options), on_event=events.append)
    begun = [event for event in events if event.kind == "stage"]
    assert [(event.done, event.total) for event in begun] == [(k, len(begun)) for k in range(1, len(begun) + 1)]
    assert [event.step for event in begun][:2] == ["describe", "data"]
    at = {event.step: event for event in begun}
    assert at["data"].message  # of a first run nobody knows what a repair takes
    assert not at["rebuild"].message
    assert 0 < at["rebuild"].seconds < 60
    tried, gave = ([event for event in events if event.kind == kind] for kind in ("trial", "outcome"))
    assert len(tried) == len(gave) >= 2
    assert [event.done for event in tried] == list(range(1, len(tried) + 1))
    assert "of the parameters lost" in gave[0].message
    again: list[Event] = []
    asked = Recipe.from_dict({**options, "finetune": {"epochs": 2}})
    api.compress(DATA / "tiny_cnn.keras", asked, on_event=again.append)
    first = next(event for event in again if event.kind == "stage" and event.step == "data")
    assert not first.message
    assert first.seconds > 0


def test_nobody_watching_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Progress() as progress:
        for second in range(95):
            now = 1000.0 + second
            progress(SEARCH[0][1] if second == 0 else Event("finished", "a/repair", "repair"))
            if second == 40:
                progress.pause()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("lrfgraph: 7/10 choosing") for line in lines)


def test_a_notebook_writes_its_line_over(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, text: str) -> None:
            shown.append(text)

    def display(text: str, display_id: bool) -> Handle:
        shown.append(text)
        return Handle()

    drawing = types.SimpleNamespace(HTML=lambda text: text, display=display)
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=drawing))
    monkeypatch.setattr(module, "NOTEBOOK", 0.0)
    with Progress() as progress:
        for _, event in SEARCH:
            progress(event)
    assert len(shown) == len(SEARCH) + 1
    assert "1. trying 42.0 % of the parameters (repair 1 of 6)" in shown[3]
    assert shown[-1] == ""
