"""A run from its own folder and from elsewhere: what it writes feeds back, and what it names is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, Call

ROOT = DATA.parent.parent
MINE = """
import keras
import numpy as np


@keras.saving.register_keras_serializable("mine")
class Double(keras.layers.Layer):
    def call(self, x):
        return x + x


def images():
    with np.load({images!r}) as arrays:
        return dict(arrays)
"""


def process(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as its script does: without the working folder on Python's path."""
    command = [sys.executable, "-P", "-m", "lrfgraph", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a model, images, statistics, a configuration and the recipe that names them all."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(DATA / "tiny_cnn.keras", folder / "model.keras")
    shutil.copy(DATA / "tiny_digits.npz", folder / "images.npz")
    np.savez(folder / "stats.npz", mean=np.zeros((14, 14, 1)), std=np.full((14, 14, 1), 255.0))
    (folder / "hybrid.toml").write_text('[layers.hidden]\nmethod = "svd"\nrank = "4"\n')
    (folder / "lrfgraph.toml").write_text(
        '[data]\nsource = "images.npz"\nstats = "stats.npz"\ncalibration = 80\nvalidation = 60\n'
        '[select]\nconfiguration = "hybrid.toml"\n[repair]\nenabled = false\n[finetune]\nepochs = 0\n'
    )
    return folder


def test_a_recipe_as_written_is_the_same_run_from_anywhere(
    project: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    first = call("run", "model.keras", "--out", "out", "--json")
    assert first.code == 0, first.err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = call("run", project / "model.keras", "--recipe", project / "out" / "recipe.toml", "--out", "out", "--json")
    assert again.code == 0, again.err
    summaries = [json.loads(said.out) for said in (first, again)]
    assert summaries[1]["nodes"]["run"] == {}
    assert summaries[0]["run"] == summaries[1]["run"]
    assert summaries[0]["final"] == summaries[1]["final"]
    assert summaries[0]["warnings"] == summaries[1]["warnings"]
    assert (project / "out" / "hybrid.toml").read_text() == (elsewhere / "out" / "hybrid.toml").read_text()
    assert not (elsewhere / "cache").exists()


def test_modules_in_the_working_folder_are_found(project: Path) -> None:
    import keras

    (project / "mine.py").write_text(MINE.format(images=str(project / "images.npz")))
    sys.path.insert(0, str(project))
    try:
        from mine import Double
    finally:
        sys.path.remove(str(project))
    model = keras.models.load_model(project / "model.keras")
    keras.Sequential([model, Double()]).save(project / "custom.keras")
    (project / "lrfgraph.toml").unlink()
    small = ("--set", "data.calibration=80", "--set", "data.validation=60", "--scale", "1/255")
    said = process(
        project, "run", "custom.keras", "--custom", "mine:Double", "--data", "mine:images", *small, "--workers", 1,
        "--until", "data", "--json",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["nodes"]["run"].keys() == {"describe", "data"}
    recipe = project / "custom-compressed" / "recipe.toml"
    said = process(project, "run", "custom.keras", "--recipe", recipe, "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["nodes"]["run"] == {}


def test_a_module_beside_the_model_is_left_alone(project: Path, tmp_path: Path) -> None:
    (project / "evil.py").write_text("open('imported', 'w')\n")
    (project / "lrfgraph.toml").write_text('[model]\ncustom = ["evil:Layer"]\n')
    for command in ("run", "plan"):
        said = process(tmp_path, command, project / "model.keras")
        assert said.returncode == 2
        assert said.stderr.count("\n") == 1
    assert not (tmp_path / "imported").exists()
    assert process(tmp_path, "plan", project / "model.keras", "--recipe", project / "lrfgraph.toml").returncode == 3


# Measures and validation images of the user's own -------------------------------------------------------------------

SMALL = (
    "--set", "data.calibration=80", "--set", "explore.ranks=3", "--set", "explore.methods=svd_channel,svd",
    "--set", "repair.enabled=false", "--scale", "1/255", "--epochs", "0", "--params", "0.5",
)  # fmt: skip
MEASURES = """
def recall_of_small(targets, outputs):
    small = targets < 5
    return float((outputs.argmax(-1) == targets)[small].mean())
"""


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """A folder with training and test images in one file, and fresh ones in another."""
    with np.load(DATA / "tiny_digits.npz", allow_pickle=False) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    fresh = {name: arrays[name][:50] for name in ("x_test", "y_test")}
    np.savez(tmp_path / "fresh.npz", **fresh)
    np.savez(tmp_path / "images.npz", **arrays | {name: arrays[name][50:] for name in fresh})
    return tmp_path


def test_a_measure_of_the_users_decides_and_is_reported(
    divided: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (divided / "my_measures.py").write_text(MEASURES)
    monkeypatch.chdir(divided)
    arguments = ("run", DATA / "tiny_cnn.keras", "--data", "images.npz", *SMALL, "--out", "out")
    own = call(*arguments, "--metric", "my_measures:recall_of_small")
    assert own.code == 0, own.err
    assert "recall_of_small, test" in own.out
    summary = json.loads((divided / "out" / "summary.json").read_text())
    assert summary["baseline"]["accuracy"] == summary["baseline"]["metric"]
    assert summary["baseline"]["accuracy"] != summary["baseline"]["top1"]
    assert summary["final"]["accuracy_se"]["test"] > 0
    before = summary["nodes"]["run"]
    plain = call(*arguments, "--json")
    nodes = json.loads(plain.out)["nodes"]
    assert nodes["run"].keys() == {"evaluate"}
    assert nodes["run"]["evaluate"] == before["evaluate"]


def test_a_measure_without_targets_is_refused(divided: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    (divided / "my_measures.py").write_text(MEASURES)
    with np.load(divided / "images.npz", allow_pickle=False) as loaded:
        np.savez(divided / "unlabelled.npz", x_train=loaded["x_train"])
    monkeypatch.chdir(divided)
    for metric, words in (
        ("my_measures:recall_of_small", "needs targets"),
        ("my_measures", "must be package.module:function"),
        ("no_measures:recall", "no_measures cannot be imported"),
        ("my_measures:recall", "my_measures has no function recall"),
    ):
        command = "plan" if "no_" in metric or metric.endswith("recall") else "run"
        ended = call(command, DATA / "tiny_cnn.keras", "--data", "unlabelled.npz", *SMALL, "--metric", metric)
        assert ended.code == 2
        assert words in ended.err
        assert ended.err.count("\n") == 1
    assert not (divided / "tiny_cnn-compressed").exists()


def test_validation_images_that_the_network_knows_are_named(
    divided: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny network was trained on the training part; on fresh images it is surer than it is right, or is not."""
    monkeypatch.chdir(divided)
    arguments = ("run", DATA / "tiny_cnn.keras", "--data", "images.npz", *SMALL, "--json", "--until", "select")
    known, fresh = (json.loads(call(*arguments, *more).out) for more in ((), ("--val", "fresh.npz")))
    assert sum("give images that it has not seen with --val" in note for note in known["warnings"]) == 1
    assert not any("--val" in note for note in fresh["warnings"])
    assert "validation: 50 images, the given validation part" in fresh["warnings"]
    for source, split in (("images.npz", "test"), ("trained.npz", "train")):
        with np.load(divided / "images.npz", allow_pickle=False) as loaded:
            np.savez(divided / "trained.npz", x=loaded["x_train"], y=loaded["y_train"])
        same = json.loads(call(*arguments[:-1], "data", "--val", source).out)["warnings"]
        assert any(f"are the {split} images" in note for note in same)
    ended = call(*arguments, "--val", "fresh.npz", "--set", "data.validation=60")
    assert ended.code == 2
    assert "data.validation has no effect where data.val is" in ended.err
