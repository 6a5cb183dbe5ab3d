"""Probes and exchanges through the whole run; what is kept is nearer to the original, within the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import DATA

from lrfgraph import Recipe
from lrfgraph.api import compress, plan
from lrfgraph.selection import exchanges

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"


def recipe(cache: Path, **select: object) -> Recipe:
    return Recipe.from_dict(
        {
            "data": {"source": str(IMAGES), "scale": 1 / 255, "calibration": 80, "validation": 60},
            "explore": {"ranks": 8, "methods": ["svd_channel", "svd", "cp"]},
            "select": {"policy": "budget", "params": 0.5, **select},
            "repair": {"rounds": 0, "steps": 5},
            "finetune": {"epochs": 0},
            "run": {"cache": str(cache)},
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refined")


@pytest.mark.parametrize("policy", ["budget", "accuracy"])
def test_probes_and_exchanges_keep_the_budget(policy: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"policy": policy, "probes": 2, "max_drop": 5.0}
    if policy == "accuracy":
        asked["params"] = None
    plain = compress(MODEL, recipe(cache, **asked))
    layers = sum(1 for _ in plain.network.factorizable())
    assert plain.driver.run["probe"] + plain.driver.reused["probe"] == 2 * layers
    monkeypatch.setattr(exchanges, "SURE", -1e9)  # whatever is tried is kept
    refined = compress(MODEL, recipe(cache, **asked, refine=2))
    assert refined.decision is not None
    assert plain.decision is not None
    assert any("of 2 exchanges between layers kept" in note for note in refined.notes)
    if policy == "budget":
        assert "2 of 2 exchanges" in refined.notes[-1]
        assert refined.decision.configuration != plain.decision.configuration
        assert refined.decision.parameters <= 0.5 * refined.network.parameters
        assert refined.decision.notes["objective"] >= refined.decision.notes["bound"]
    else:
        assert refined.measured["repaired"]["validation"]["drop"] <= 0.05
    again = compress(MODEL, recipe(cache, **asked, refine=2))
    assert again.decision == refined.decision
    assert not again.driver.run


def test_a_plan_of_more_exchanges_comes_to_where_they_are_not_known_yet(tmp_path: Path) -> None:
    one, more = (recipe(tmp_path, refine=n).with_option("explore.ranks", 24) for n in (1, 4))
    compress(MODEL, one)
    driver, complete = plan(MODEL, one)
    assert complete
    assert not driver.run
    driver, complete = plan(MODEL, more)
    assert not complete
    assert driver.run["evaluate"]


def test_a_plan_of_a_measured_front_is_complete(cache: Path) -> None:
    """Budgets that no configuration meets are answers, too."""
    asked = recipe(cache, policy="pareto", params=None, points=2)
    compress(MODEL, asked)
    driver, complete = plan(MODEL, asked)
    assert complete
    assert not driver.run


def test_an_exchange_that_does_not_pay_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = compress(MODEL, recipe(cache))
    monkeypatch.setattr(exchanges, "SURE", 1e9)
    refined = compress(MODEL, recipe(cache, refine=1))
    assert refined.decision == plain.decision
    assert "0 of 1 exchanges" in refined.notes[-1]
