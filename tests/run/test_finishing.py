"""What is delivered after fine-tuning: within the limit that was asked for, or the run goes back, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import DATA

from lrfgraph import Recipe
from lrfgraph.api import compress, plan
from lrfgraph.report.account import account
from lrfgraph.report.summary import summary
from lrfgraph.run import finishing
from lrfgraph.selection import recovery

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"


def recipe(cache: Path, max_drop: float, **finetune: object) -> Recipe:
    return Recipe.from_dict(
        {
            "data": {"source": str(IMAGES), "scale": 1 / 255, "calibration": 80, "validation": 60},
            "explore": {"ranks": 6, "methods": ["svd_channel", "svd"]},
            "select": {"max_drop": max_drop},
            "repair": {"rounds": 0, "steps": 5},
            "finetune": {"steps": 60, "batch": 16, "learning_rate": 1e-3, **finetune},
            "run": {"cache": str(cache)},
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture(autouse=True)
def fresh_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is taken not to know its validation images."""
    monkeypatch.setattr(finishing.notes, "known_images", lambda parts, measures: [])


def test_trials_make_it_smaller_and_the_whole_goes_on_from_one(cache: Path) -> None:
    without = compress(MODEL, recipe(cache, 5.0).with_option("finetune.epochs", 0))
    compression = compress(MODEL, recipe(cache, 5.0, steps=240))
    assert without.decision is not None
    assert compression.decision is not None
    assert compression.decision.parameters < without.decision.parameters
    trials = [point for point in compression.points if point.trained]
    assert len({point.trained for point in trials}) == 1
    driver = compression.driver
    tuned = driver.store.manifest(compression.models["finetuned"].key)
    trial = compression.trials[compression.decision.configuration]
    assert tuned["inputs"]["student"] == trial.key
    assert 100 * compression.measured["finetuned"]["validation"]["drop"] <= 5.0
    assert any("points on validation (limit 5)" in note for note in compression.notes)
    again = compress(MODEL, recipe(cache, 5.0, steps=240))
    assert not again.driver.run
    assert plan(MODEL, recipe(cache, 5.0, steps=240))[1]


def test_what_loses_too_much_is_not_delivered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "REST", 1e-9)  # whatever was tried is thought to recover
    spoilt = recipe(cache, 2.0, learning_rate=1e-7)
    compression = compress(MODEL, spoilt)
    refused, decision = compression.refused, compression.decision
    assert refused is not None
    assert decision is not None
    assert refused.drop > 2.0
    assert refused.parameters < decision.parameters
    passing = [point for point in compression.points if point.drop <= 2.0]
    assert decision.parameters == min(point.parameters for point in passing)
    assert 100 * compression.measured[compression.final]["validation"]["drop"] <= 2.0
    assert any("the run went back to" in note for note in compression.notes)
    exported = compression.driver.data(compression.exported) if compression.exported else {}
    assert exported["parameters"] == decision.parameters
    rows = {row["part"]: row for row in account(compression, summary(compression, MODEL))}
    assert rows["fine-tuning"]["delivered"] is False
    assert "more than the limit; the run went back" in rows["fine-tuning"]["brought"]


def test_of_images_known_by_heart_the_loss_alone_decides(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "REST", 1e-9)
    monkeypatch.setattr(finishing.notes, "known_images", lambda parts, measures: ["known"])
    compression = compress(MODEL, recipe(cache, 2.0, learning_rate=1e-7))
    assert compression.refused is None
    assert compression.final == "finetuned"


def test_a_run_stops_after_the_fine_tuning(cache: Path) -> None:
    compression = compress(MODEL, recipe(cache, 5.0).with_option("run.until", "finetune"))
    assert compression.final == "finetuned"
    assert compression.exported is None


def test_a_run_without_repair_goes_back_to_what_was_factorized(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "REST", 1e-9)
    asked = recipe(cache, 5.0, learning_rate=1e-7).with_option("repair.enabled", "false")
    compression = compress(MODEL, asked)
    assert compression.refused is not None
    assert compression.final in ("factorized", "finetuned")
    assert 100 * compression.measured[compression.final]["validation"]["drop"] <= 5.0


def test_exchanges_give_way_to_a_trial_and_this_is_said(cache: Path) -> None:
    compression = compress(MODEL, recipe(cache, 5.0, steps=240).with_option("select.refine", 2))
    assert any(note.startswith("exchanges between layers are left out") for note in compression.notes)
