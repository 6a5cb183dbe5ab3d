"""What each stage took and brought; what is not delivered is said, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA

import lrfgraph
from lrfgraph.options.recipe import Recipe
from lrfgraph.report import account as account_module
from lrfgraph.report.account import more_epochs
from lrfgraph.report.tables import Table, columns

OPTIONS: dict[str, Any] = {
    "data": {"calibration": 80, "validation": 60},
    "explore": {"ranks": 3, "methods": ["svd", "svd_channel"]},
    "repair": {"images": 80, "steps": 5, "rounds": 0},
    "scale": 1 / 255,
    "params": 0.5,
    "progress": False,
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> lrfgraph.Result:
    """A run whose fine-tuning spoils the network, and is rejected."""
    cache = tmp_path_factory.mktemp("cache")
    spoilt = {"epochs": 2, "learning_rate": 1000.0}
    return lrfgraph.compress(DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz", cache=cache, finetune=spoilt, **OPTIONS)


def test_what_is_not_delivered_is_said_with_what_it_cost(result: lrfgraph.Result) -> None:
    summary, text = result.summary, str(result)
    assert summary["rejected"][-1] == "finetuned"
    row = next(row for row in summary["account"] if row["part"] == "fine-tuning")
    assert row["delivered"] is False
    assert row["cost"] > 0
    assert "the weights before it are delivered" in row["brought"]
    assert "fine-tuned*" in text
    assert "* not delivered" in text
    assert any(sentence.startswith("fine-tuning took") and "--epochs 0" in sentence for sentence in summary["advice"])


def test_every_stage_has_its_seconds_and_says_what_it_brought(result: lrfgraph.Result) -> None:
    rows = {row["part"]: row for row in result.summary["account"]}
    assert list(rows) == [
        "model",
        "images",
        "original",
        "candidates",
        "choice",
        "repair",
        "fine-tuning",
        "writing",
        "measuring",
    ]
    assert sum(row["seconds"] for row in rows.values()) == pytest.approx(
        sum(result.summary["seconds"].values()), abs=0.02
    )
    scores = result.compression.exploration.scores
    assert rows["candidates"]["brought"] == f"{len(scores)} candidates of 4 layers"
    assert "accuracy" in rows["original"]["brought"]
    assert rows["choice"]["brought"].endswith("of the parameters kept (policy budget)")
    assert rows["repair"]["cost"] > 0
    assert rows["original"]["delivered"] is None
    assert str(result).count("advice: ") == 1


def test_a_run_that_stops_has_an_account_of_what_it_did(tmp_path: Path) -> None:
    stopped = lrfgraph.compress(DATA / "tiny_cnn.keras", cache=tmp_path, until="describe", progress=False)
    assert [row["part"] for row in stopped.summary["account"]] == ["model"]
    assert stopped.summary["advice"] == []


def history(losses: list[float], best: int) -> list[dict[str, Any]]:
    return [{"validation_loss": loss, "kept": number == best} for number, loss in enumerate(losses)]


def test_more_epochs_bring_what_the_losses_promise() -> None:
    falling = [float(0.5 * (epoch + 1) ** -0.5) for epoch in range(8)]
    assert more_epochs(history(falling, 7), 1.0) == pytest.approx(1 - 2**-0.5)
    assert more_epochs(history(falling, 3), 1.0) == 0
    assert more_epochs(history(falling, 7), -0.2) == 0
    assert more_epochs(history(falling[:2], 1), 1.0) == 0
    assert more_epochs(history([0.5] * 5, 4), 1.0) == pytest.approx(0)
    assert more_epochs(history([0.5, float("nan"), 0.3], 2), 1.0) == 0
    assert more_epochs(history([0.1, 0.2, 0.4], 2), 1.0) == 0


def test_a_table_is_text_and_html() -> None:
    table = Table(["name", "n"], [["a<b", "1"]], right=[1])
    assert str(table) == columns(["name", "n"], [["a<b", "1"]], right=[1])
    assert "a&lt;b" in table.html()
    assert table.html().count('style="text-align:right"') == 2


def test_a_measure_of_the_users_is_no_percentage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine.py").write_text(
        "def hits(targets, outputs):\n    return 50.0 * (outputs.argmax(-1) == targets)\n"
    )
    monkeypatch.chdir(tmp_path)
    with np.load(DATA / "tiny_digits.npz", allow_pickle=False) as loaded:
        images = loaded["x_train"], loaded["y_train"], loaded["x_test"], loaded["y_test"]
    result = lrfgraph.compress(
        DATA / "tiny_cnn.keras", images, metric="of_mine:hits", epochs=0, **OPTIONS | {"repair": {"enabled": False}}
    )
    line = next(line for line in str(result.table()).splitlines() if line.startswith("hits, test"))
    assert "%" not in line
    assert float(line.split()[2]) == pytest.approx(result.summary["baseline"]["metric"]["test"], abs=1e-3)
    assert "top-5 accuracy" in str(result.table())
    assert "%" in next(line for line in str(result.table()).splitlines() if line.startswith("accuracy, test"))
    assert "hits 4" in next(row["brought"] for row in result.summary["account"] if row["part"] == "original")


@pytest.mark.parametrize(
    ("options", "steps", "how"),
    [
        ({"epochs": 3}, 30, "--epochs 6"),
        ({}, 1200, "--set finetune.steps=2400"),
        ({}, 60, "--epochs 40"),
        ({"minutes": 1.5}, 60, "--set finetune.minutes=3"),
    ],
)
def test_a_longer_training_is_asked_for_as_this_one_was(
    result: lrfgraph.Result, options: dict[str, Any], steps: int, how: str
) -> None:
    compression, recipe = result.compression, Recipe.from_dict({"finetune": options})
    network = replace(compression.network, recipe=recipe)
    compression = replace(compression, network=network, history=[{"steps": steps}])
    expected = f"{steps:,} more steps of fine-tuning would likely bring 0.3 points ({how})"
    assert account_module._longer(compression, 0.3) == expected
