"""Every kind of output from a trained network to a compressed file that is loaded again, through the command line."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, Call

from lrfgraph.images.preprocessing import Images, Preprocessing
from lrfgraph.network.evaluating import measure, predict
from lrfgraph.network.graph import input_names
from lrfgraph.network.heads import HEADS, head_of

SCRIPT = Path(__file__).parent.parent.parent / "pipelines" / "train_heads.py"
TASKS = ("binary_logit", "multilabel", "mask", "open_regression", "two_inputs", "float16")
SETTINGS = {
    "explore.ranks": 3,
    "explore.methods": "svd_channel,svd",
    "data.validation": 60,
    "data.allow_chance": "true",  # a hundred images teach little
    "repair.steps": 3,
    "repair.rounds": 0,
    "select.probes": 1,
    "select.refine": 1,
}
ACTIVATIONS = {"multilabel": "sigmoid", "mask": "sigmoid"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train a task's network on the tiny digits; returns the model's and the images' file."""
    spec = importlib.util.spec_from_file_location("train_heads", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["train_heads"] = script
    spec.loader.exec_module(script)
    with np.load(DATA / "tiny_digits.npz", allow_pickle=False) as loaded:
        digits = {name: loaded[name] for name in loaded.files}
    folder = tmp_path_factory.mktemp("heads")

    @functools.cache
    def train(name: str) -> tuple[str, Path, Path]:
        return script.TASKS[name].head, *script.make(name, digits, folder, 2, 20)

    return train


@pytest.mark.parametrize("task", TASKS)
def test_a_network_is_compressed_fine_tuned_written_and_loaded_again(
    task: str, trained: Any, tmp_path: Path, call: Call
) -> None:
    import keras

    head, model, data = trained(task)
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    policy = ("--max-drop", "100") if task == "mask" else ("--params", "0.7")
    ended = call(
        "run", model, "--data", data, "--scale", "1/255", *policy, "--epochs", "1", *settings,
        "--cache", tmp_path / "cache", "--out", tmp_path / "out",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["head"] == head
    first = next(iter(HEADS[head].measures))
    for stage in ("baseline", "factorized", "repaired", "finetuned", "final"):
        for part in ("validation", "test"):
            assert summary[stage]["accuracy"][part] == summary[stage][first][part] is not None
            assert summary[stage]["accuracy_se"][part] > 0
    assert summary["final"]["parameters"] < summary["baseline"]["parameters"]
    with np.load(data, allow_pickle=False) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    own = json.loads((tmp_path / "out" / "summary.json").read_text())["model"]["path"]
    names = input_names(keras.models.load_model(own, compile=False))
    raws = tuple(arrays["x_test" if len(names) == 1 else f"x_test.{name}"] for name in names)
    how = [Preprocessing((*raw.shape[1:], 1), scale=1 / 255) for raw in raws]
    images = Images(raws, tuple(how))
    for name in ("compressed.keras", "compressed.h5"):
        reloaded = keras.models.load_model(tmp_path / "out" / name, compile=False)
        outputs = predict(reloaded, images)
        labels = images[:] if "y_test" not in arrays else arrays["y_test"]
        measured = measure(
            outputs, HEADS[head].targets(labels, outputs.shape[1:]), head_of(head, ACTIVATIONS.get(task, "linear"))
        )
        assert measured["accuracy"] == pytest.approx(summary["final"]["accuracy"]["test"], abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_network_is_pruned_and_repaired(task: str, trained: Any, tmp_path: Path, call: Call) -> None:
    head, model, data = trained(task)
    settings = ("--set", "data.validation=60", "--set", "data.allow_chance=true", "--set", "repair.images=60")
    words = ("--data", data, "--scale", "1/255", "--keep", "0.6", "--until", "adjust", *settings, "--json")
    ended = call("prune", model, *words, "--cache", tmp_path / "cache", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert summary["head"] == head
    assert summary["pruning"]["parameters"] < summary["baseline"]["parameters"]
    assert all(np.isfinite(group["loss"]) for group in summary["pruning"]["groups"])


@pytest.mark.parametrize("task", TASKS)
def test_a_network_is_trained_with_shrinking_ranks(task: str, trained: Any, tmp_path: Path, call: Call) -> None:
    import keras

    head, model, data = trained(task)
    settings = ("--set", "data.validation=60", "--set", "data.allow_chance=true", "--set", "dprp.batch=20")
    words = ("--data", data, "--scale", "1/255", "--params", "0.8", "--epochs", "2", *settings, "--json")
    ended = call("train", model, *words, "--cache", tmp_path / "cache", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert summary["head"] == head
    assert summary["final"]["parameters"] <= 0.8 * summary["baseline"]["parameters"]
    first = next(iter(HEADS[head].measures))
    for epoch in summary["shrinking"]["epochs"]:
        assert all(np.isfinite(epoch[key]) for key in (first, "task_loss", "orthogonality_loss", "rank_loss"))
    assert summary["trained"][first]["test"] is not None
    keras.models.load_model(tmp_path / "out" / "compressed.keras", compile=False)


def test_every_task_of_the_script_is_one_of_a_head(trained: Any) -> None:
    import sys

    tasks = sys.modules["train_heads"].TASKS
    assert {task.head for task in tasks.values()} == HEADS.keys() - {"logits"}
    assert set(TASKS) <= set(tasks)
