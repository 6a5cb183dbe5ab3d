"""The road of training with shrinking ranks: what is computed, kept and written, and what is refused in one line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, Call

from lrfgraph import api
from lrfgraph.engine.memory import forget
from lrfgraph.errors import Interrupted
from lrfgraph.network.counting import count
from lrfgraph.network.shrinking.trainer import Trainer
from lrfgraph.options.recipe import OPTIONS, Recipe
from lrfgraph.run.steps import STEPS

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"
SMALL = {
    "data": {"source": str(IMAGES), "scale": 1 / 255, "calibration": 100, "validation": 60},
    "dprp": {"params": 0.6, "epochs": 4, "pace": 0.2, "cooldown": 2, "batch": 35, "weighting": "two_sided"},
}
Train = Callable[..., api.Compression]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "cache"


@pytest.fixture
def trained(cache: Path) -> Train:
    """Trains with options of ``[dprp]``, all on one cache unless another is given."""

    def run(until: str | None = "absorb", place: Path | None = None, **options: Any) -> api.Compression:
        sections = {
            **SMALL,
            "dprp": {**SMALL["dprp"], **options},
            "run": {"cache": str(place or cache), "until": until},
        }
        return api.train(MODEL, Recipe.from_dict(sections))

    return run


def epochs_of(compression: api.Compression) -> list[dict[str, Any]]:
    assert compression.shrinking is not None
    return list(compression.shrinking["epochs"])


def rows(train: Train, **options: Any) -> list[dict[str, Any]]:
    return epochs_of(train(until="epoch", **options))


def state_of(compression: api.Compression) -> dict[str, np.ndarray]:
    """The weights of the written network."""
    import keras

    model = keras.models.load_model(
        compression.driver.store.open(compression.models["trained"]).file("model.keras"), compile=False
    )
    return {variable.path: np.asarray(variable.value) for variable in model.variables}


def test_a_target_is_met_and_the_written_file_has_it(trained: Train) -> None:
    compression = trained(until=None)
    assert compression.exported is not None
    assert compression.decision is not None
    written = compression.driver.data(compression.exported)
    assert written["parameters"] == compression.decision.parameters
    assert written["macs"] == compression.decision.macs
    assert 0.55 * compression.network.parameters < written["parameters"] <= 0.6 * compression.network.parameters
    assert compression.final == "trained"
    assert compression.measured["trained"]["validation"]["accuracy"] > 0.5
    assert not [note for note in compression.notes if "please report" in note]
    assert not trained(until=None).driver.run


def test_ranks_never_grow_and_their_variables_go(trained: Train) -> None:
    epochs, driver = rows(trained), trained(until=None).driver
    for before, after in itertools.pairwise(epochs):
        assert all(two <= one for one, two in zip(before["ranks"], after["ranks"], strict=True))
        assert after["parameters"] <= before["parameters"]
    assert epochs[0]["parameters"] > epochs[1]["parameters"] == epochs[-1]["parameters"]
    assert [epoch["rank_weight"] > 0 for epoch in epochs] == [True, True, False, False]
    sizes = []
    for manifest in (driver.store.root / "v2" / "epoch").rglob("entry.json"):
        with np.load(manifest.parent / "files" / "state.npz", allow_pickle=False) as state:
            names = set(state.files)
            sizes.append(sum(state[name].size for name in names if name.startswith("momentum/")))
            for name in names:
                if name.startswith("momentum/"):
                    number = name.partition("/")[2]
                    assert state[name].shape == state[f"velocity/{number}"].shape
                    if f"values/{number}" in names:
                        assert state[name].shape == state[f"values/{number}"].shape
    assert len(set(sizes)) > 1


def test_a_killed_training_goes_on_and_comes_to_the_same(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(until=None)
    original = Trainer.epoch

    def killed(self: Trainer, plan: Any, progress: Any) -> Any:
        if plan["number"] == 3:
            raise KeyboardInterrupt
        return original(self, plan, progress)

    monkeypatch.setattr(Trainer, "epoch", killed)
    with pytest.raises(Interrupted):
        trained(until=None, place=tmp_path)
    monkeypatch.undo()
    forget()  # as in a new process: the networks are built from what the cache says
    resumed = trained(until=None, place=tmp_path)
    assert resumed.driver.run["epoch"] == 2
    assert resumed.driver.reused["epoch"] == 2
    expected, received = state_of(whole), state_of(resumed)
    assert expected.keys() == received.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(received[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


RERUNS = [
    ({"epochs": 6}, 4),  # the rate of the first two does not fall yet
    ({"params": 0.65}, 3),
    ({"cooldown": 1}, 2),
    ({"pace": 0.1}, 0),  # four epochs cannot go slower
    ({"orthogonality": 1.0}, 4),
    ({"rank": 0.2}, 4),
    ({"rule": "energy"}, 4),
    ({"tolerance": 0.02}, 4),
    ({"matricization": "channel"}, 4),
    ({"weighting": "input"}, 4),
    ({"learning_rate": 1e-4}, 4),
    ({"spatial": ["conv2"]}, 4),
    ({"skip": ["conv2"]}, 4),
]


@pytest.mark.parametrize(("change", "expected"), RERUNS, ids=[str(change) for change, _ in RERUNS])
def test_what_runs_again_after_a_change(change: dict[str, Any], expected: int, trained: Train, cache: Path) -> None:
    trained()
    sections = {**SMALL, "dprp": {**SMALL["dprp"], **change, "enabled": True}, "run": {"cache": str(cache)}}
    driver, _ = api.plan(MODEL, Recipe.from_dict(sections).with_option("run.until", "absorb"))
    assert driver.run["epoch"] == expected
    assert driver.run["matricize"] == (set(change) & {"matricization", "weighting", "spatial", "skip"} != set())


# Losses -------------------------------------------------------------------------------------------------------------

LONGER = {"epochs": 3, "params": None, "pace": 0.1, "batch": 10, "tolerance": 1e-6, "rank": 3.0, "learning_rate": 3e-3}


def test_without_its_loss_a_quantity_becomes_worse(trained: Train) -> None:
    both = rows(trained, **LONGER)[-1]
    crooked = rows(trained, **{**LONGER, "orthogonality": 0.0})[-1]
    flat = rows(trained, **{**LONGER, "rank": 0.0})[-1]
    assert crooked["orthogonality"] > 1.5 * both["orthogonality"]
    assert flat["rank_loss"] > both["rank_loss"]


def test_without_a_target_the_tolerance_shrinks(trained: Train) -> None:
    options = {"params": None, "epochs": 2, "batch": 35, "rule": "energy"}
    epochs = rows(trained, **options, tolerance=0.2)
    assert epochs[-1]["parameters"] < rows(trained, **options, tolerance=1e-9)[-1]["parameters"]
    assert 0 < max(epoch["lost"] for epoch in epochs) <= 0.2


@pytest.mark.parametrize("rule", ["energy", "fisher"])
@pytest.mark.parametrize("matricization", ["spatial", "channel", "paper"])
def test_every_rule_and_matricization_meets_a_target_of_macs(rule: str, matricization: str, trained: Train) -> None:
    options = {"params": None, "macs": 0.6, "epochs": 2, "rule": rule, "matricization": matricization}
    compression = trained(until=None, **options)
    assert compression.decision is not None
    assert compression.decision.macs <= 0.6 * compression.network.macs
    methods = {choice.id.method for choice in compression.decision.choices if choice.id is not None}
    assert methods <= {"svd", "svd_spatial" if matricization == "spatial" else "svd_channel"}


def test_from_scratch_the_given_weights_are_not_read(trained: Train) -> None:
    first = rows(trained, from_scratch=True, epochs=2)
    assert first[0]["task_loss"] > 1.5  # of ten classes, about the logarithm of ten
    assert rows(trained, epochs=2)[0]["task_loss"] < 0.5
    assert rows(trained, from_scratch=True, epochs=2, seed=1)[0]["task_loss"] != first[0]["task_loss"]


def test_images_of_an_epoch_are_as_many_as_asked(trained: Train, tmp_path: Path) -> None:
    trained(place=tmp_path, images=70, epochs=2)
    manifests = [json.loads(file.read_text()) for file in (tmp_path / "v2" / "epoch").rglob("entry.json")]
    assert sorted(manifest["data"]["steps"] for manifest in manifests) == [2, 4]  # of 35 images each


def test_every_option_that_is_listed_is_read() -> None:
    named = {name for change, _ in RERUNS for name in change} | set(LONGER) | {"enabled", "macs", "images", "seed"}
    named |= {"from_scratch", "alpha", "temperature", "labels", "crop", "flip", "batchnorm", "channel"}
    assert {f"dprp.{name}" for name in named} == {key for key in OPTIONS if key.startswith("dprp.")}


def test_what_weights_the_matrices_is_recorded_and_nothing_else(trained: Train, tmp_path: Path) -> None:
    recorded = {"plain": set(), "input": {"record"}, "two_sided": {"record", "curvature"}}
    for weighting, kinds in recorded.items():
        driver = trained(until="matricize", place=tmp_path / weighting, weighting=weighting).driver
        assert driver.run.keys() - {"describe", "data", "evaluate"} == kinds | {"matricize"}
    fresh = trained(until="matricize", place=tmp_path / "fresh", from_scratch=True)
    assert not fresh.driver.run.keys() & {"record", "curvature"}


@pytest.mark.parametrize("kind", ["record", "matricize", "epoch", "absorb"])
def test_it_stops_after_a_kind(kind: str, trained: Train) -> None:
    compression = trained(until=kind)
    assert compression.stopped
    assert compression.exported is None
    assert kind in compression.driver.run | compression.driver.reused
    assert (compression.shrinking is None) == (kind in ("record", "matricize"))


# The command line ---------------------------------------------------------------------------------------------------

COMMON = ("--data", IMAGES, "--scale", "1/255", "--set", "data.calibration=100", "--set", "data.validation=60")


def test_the_command_writes_a_smaller_model_and_its_log(call: Call, cache: Path, tmp_path: Path) -> None:
    import keras

    out = tmp_path / "out"
    words = [*COMMON, "--params", "0.5", "--epochs", "2", "--crop", "1", "--set", "dprp.batchnorm=batch"]
    said = call("train", MODEL, *words, "--cache", cache, "--out", out)
    assert said.code == 0, said.err
    assert "orthogonality" in said.out
    summary = json.loads((out / "summary.json").read_text())
    parts = {row["part"]: row for row in summary["account"]}
    assert parts["training"]["brought"].startswith("2 epochs; ")
    assert "fine-tuning" not in parts  # what was written was not trained again
    assert sum(row["seconds"] for row in parts.values()) == pytest.approx(sum(summary["seconds"].values()), abs=0.05)
    assert [note for note in summary["warnings"] if note.startswith("dprp.pace = 0.1 does not reach the target")]
    model = keras.models.load_model(out / "compressed.keras", compile=False)
    assert count(model).parameters == summary["final"]["parameters"] == summary["trained"]["parameters"]
    assert summary["finetuned"] is summary["factorized"] is None
    assert summary["trained"]["accuracy"]["test"] is not None
    assert {"epochs.csv", "epochs.png", "ranks.png", "hybrid.toml"} <= {file.name for file in out.iterdir()}
    log = (out / "epochs.csv").read_text().splitlines()
    assert len(log) == 3
    for name in ("parameters", "macs", "task_loss", "orthogonality_loss", "rank_loss", "accuracy", "rank of conv2"):
        assert name in log[0].split(",")
    again = call("run", MODEL, "--recipe", out / "recipe.toml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["nodes"]["run"] == {}
    given = ("--configuration", out / "hybrid.toml", "--epochs", "0", "--set", "repair.enabled=false")
    said = call("run", MODEL, *COMMON, *given, "--cache", cache, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    ranks = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]["parameters"]
    assert ranks == summary["final"]["parameters"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--params", "0.5"), "training needs images, received none"),
        ((*COMMON, "--params", "0.001"), "cannot be reached: rank 1 in every layer leaves"),
        ((*COMMON, "--macs", "1.5"), "macs must be"),
        ((*COMMON, "--set", "dprp.skip=*"), "no layer of the model can lose ranks: skipped by dprp.skip"),
        ((*COMMON, "--set", "dprp.rule=size"), "'size' is unknown"),
        ((*COMMON, "--from-scratch", "--set", "dprp.alpha=0.5"), "has no effect where dprp.from_scratch is true"),
        ((*COMMON, "--from-scratch", "--set", "dprp.batchnorm=fixed"), "statistics that fresh weights do not have"),
        ((*COMMON, "--policy", "budget"), "no such option: --policy"),
        ((*COMMON, "--set", "finetune.epochs=3"), "where a network is trained with shrinking ranks"),
        ((*COMMON, "--set", "dprp.weighting=plain", "--set", "record.seed=1"), "not weighted by what is recorded"),
        ((*COMMON, "--crop", "30"), "[dprp] crop 30 is too large"),
        ((*COMMON, "--until", "select"), "this run has no nodes of kind select to stop after; it has describe, data,"),
        ((*COMMON, "--until", "finetune"), "this run has no nodes of kind finetune"),
        ((*COMMON, "--set", "dprp.learning_rate=1e18"), "training diverged in epoch"),
    ],
)
def test_bad_input_is_one_line(words: tuple[Any, ...], message: str, call: Call, cache: Path, tmp_path: Path) -> None:
    said = call("train", MODEL, *words, "--cache", cache, "--out", tmp_path / "out")
    assert said.code == 2
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [("--set", "dprp.enabled=true", "--set", "dprp.params=0.5"), ("--prune", "fbp", "--set", "prune.alone=true")],
)
def test_candidates_of_a_network_that_has_none_are_not_explained(
    words: tuple[str, ...], call: Call, tmp_path: Path
) -> None:
    said = call("explain", MODEL, "conv2", *COMMON, *words, "--cache", tmp_path / "cache")
    assert said.code == 2
    assert "explain is about candidates" in said.err
    assert not (tmp_path / "cache").exists()


def test_a_pattern_that_matches_nothing_is_noted(trained: Train) -> None:
    compression = trained(until=None, epochs=1, channel=["conv9"])
    assert [note for note in compression.notes if note.startswith("dprp.channel: no layer matches 'conv9'")]


def test_steps_of_training_are_steps() -> None:
    assert {"matricize", "epoch", "absorb"} <= STEPS.keys()


def test_a_share_of_one_trains_the_network_as_it_is(call: Call, cache: Path, tmp_path: Path) -> None:
    words = [*COMMON, "--params", "1", "--epochs", "1", "--from-scratch", "--flip"]
    said = call("train", MODEL, *words, "--cache", cache, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {layer["reason"] for layer in summary["layers"]} == {"nothing is to become smaller"}
    assert summary["final"]["parameters"] == summary["baseline"]["parameters"]
