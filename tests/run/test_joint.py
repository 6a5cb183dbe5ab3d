"""Pruning of which nobody says how much, before a factorization: shares are tried, and the best is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import DATA, Call

from lrfgraph import api
from lrfgraph.errors import ConfigurationError
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import joint

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"
SMALL = {
    "data": {"source": str(IMAGES), "scale": 1 / 255, "calibration": 100, "validation": 60},
    "explore": {"ranks": 3, "methods": ["svd", "svd_channel"]},
    "repair": {"images": 80, "steps": 5, "rounds": 1},
    "finetune": {"epochs": 0},
}
BUDGET = {"policy": "budget", "params": 0.4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("joint") / "cache"


@pytest.fixture
def run(cache: Path) -> Callable[..., api.Compression]:
    def compress(**sections: Any) -> api.Compression:
        recipe = {**SMALL, "prune": {"method": "fbp"}, "run": {"cache": str(cache)}, **sections}
        return api.compress(MODEL, Recipe.from_dict(recipe))

    return compress


def kl_of(compression: api.Compression) -> float:
    return float(compression.measured[compression.final]["validation"]["kl"])


def size_of(compression: api.Compression) -> int:
    assert compression.decision is not None
    return compression.decision.parameters


def with_share(run: Callable[..., api.Compression], share: float, **select: Any) -> api.Compression:
    """The run that says how much: nothing is pruned at 1."""
    return run(prune={"method": "fbp", "params": share} if share < 1 else {}, select=select)


def test_within_a_budget_nothing_that_was_tried_is_nearer(
    run: Callable[..., api.Compression], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "PATIENCE", len(joint.SHARES))
    compression = run(select=BUDGET)
    others = {share: with_share(run, share, **BUDGET) for share in joint.SHARES if share > 0.4}
    assert all(not other.driver.run["repair"] and not other.driver.run["factorize"] for other in others.values())
    assert kl_of(compression) == min(map(kl_of, others.values()))
    assert kl_of(compression) <= kl_of(others[1.0])
    assert size_of(compression) <= 0.4 * compression.original.parameters
    (account,) = [note for note in compression.notes if note.startswith("nobody said")]
    assert account.count("KL") == len(others)


@pytest.mark.parametrize("best", [1.0, 0.7])
def test_the_share_that_is_best_is_what_the_run_goes_on_with(
    best: float, run: Callable[..., api.Compression], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "_judgement", lambda recipe, trial: (abs(trial.share - best),))
    compression, other = run(select=BUDGET), with_share(run, best, **BUDGET)
    assert compression.exported is not None
    assert other.exported is not None
    assert compression.models["factorized"] == other.models["factorized"]
    assert compression.decision == other.decision
    assert (compression.pruned is None) == (best == 1)
    assert compression.original.parameters == other.original.parameters


def test_it_stops_after_two_shares_that_are_no_better(
    run: Callable[..., api.Compression], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "_judgement", lambda recipe, trial: (-trial.share,))
    (account,) = [note for note in run(select=BUDGET).notes if note.startswith("nobody said")]
    assert account.count("KL") == 1 + joint.PATIENCE


def test_under_a_limit_of_the_drop_the_smallest_is_taken(run: Callable[..., api.Compression]) -> None:
    select = {"policy": "accuracy", "max_drop": 5.0, "refine": 0}
    compression, alone = run(select=select), with_share(run, 1.0, **select)
    assert size_of(compression) <= size_of(alone)
    assert 100 * compression.measured[compression.final]["validation"]["drop"] <= 5.0 + 1e-9


def test_where_no_channel_can_go_nothing_is_pruned_and_the_account_says_why(
    run: Callable[..., api.Compression],
) -> None:
    compression = run(prune={"method": "fbp", "skip": ["*"]}, select=BUDGET)
    assert compression.pruned is None
    (account,) = [note for note in compression.notes if note.startswith("nobody said")]
    assert "no channel of the model can be removed" in account


def test_a_budget_out_of_reach_of_every_share_is_refused(run: Callable[..., api.Compression]) -> None:
    with pytest.raises(ConfigurationError, match="the smallest reachable"):
        run(select={"policy": "budget", "params": 0.0005})


def test_a_run_that_stops_among_channels_does_so_for_every_share(
    run: Callable[..., api.Compression], cache: Path
) -> None:
    compression = run(select={"policy": "budget", "params": 0.6}, run={"cache": str(cache), "until": "widths"})
    assert compression.stopped
    assert compression.driver.run["widths"] + compression.driver.reused["widths"] == 2  # 0.85 and 0.7


def test_the_same_again_and_its_plan_find_everything(run: Callable[..., api.Compression]) -> None:
    run(select=BUDGET)
    again = run(select=BUDGET)
    assert not again.driver.run
    driver, complete = api.plan(MODEL, again.driver.recipe)
    assert complete
    assert not driver.run


def test_another_budget_ranks_and_explores_nothing_again(run: Callable[..., api.Compression]) -> None:
    run(select=BUDGET)
    other = run(select={"policy": "budget", "params": 0.45})
    assert not other.driver.run.keys() & {"importance", "widths", "prune", "record", "decompose", "factorize", "score"}


# The command line ---------------------------------------------------------------------------------------------------

COMMON = ("--data", IMAGES, "--scale", "1/255", "--set", "data.calibration=100", "--set", "data.validation=60")
QUICK = ("--methods", "svd,svd_channel", "--set", "explore.ranks=3", "--epochs", "0")
QUICK += ("--set", "repair.images=80", "--set", "repair.steps=5", "--set", "repair.rounds=1")


def test_the_command_says_what_was_tried(call: Call, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = call("run", MODEL, *COMMON, *QUICK, "--prune", "fbp", "--params", "0.4", "--cache", cache, "--out", out)
    assert said.code == 0, said.err
    assert "nobody said how much is pruned" in said.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["final"]["parameters"] <= 0.4 * summary["baseline"]["parameters"]
    assert any(warning.startswith("nobody said") for warning in summary["warnings"])
    again = call("plan", MODEL, *COMMON, *QUICK, "--prune", "fbp", "--params", "0.4", "--cache", cache)
    assert again.code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prune", "fbp", "--set", "prune.score=l1", "--params", "0.4"), "images with --data"),
        ((*COMMON, "--prune", "fbp", "--policy", "threshold"), "received policy threshold with neither"),
        ((*COMMON, "--prune", "fbp", "--policy", "pareto"), "received policy pareto with neither"),
    ],
)
def test_trials_that_nothing_could_tell_apart_are_refused(
    words: tuple[Any, ...], message: str, call: Call, tmp_path: Path
) -> None:
    said = call("run", MODEL, *words, "--cache", tmp_path / "cache", "--out", tmp_path / "out")
    assert said.code == 2
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
