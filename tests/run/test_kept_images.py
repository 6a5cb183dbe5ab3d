"""Images are what their identity says, whoever reads them, whenever, wherever."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, Call

from lrfgraph import Recipe
from lrfgraph.api import compress
from lrfgraph.engine.events import Event
from lrfgraph.engine.memory import forget
from lrfgraph.engine.nodes import Result, Task
from lrfgraph.errors import DataError
from lrfgraph.images.reading import Reading
from lrfgraph.images.sources import source_digest
from lrfgraph.options.recipe import DataOptions
from lrfgraph.run.nodes import data_node
from lrfgraph.run.steps import STEPS
from lrfgraph.run.steps.sources import images_of
from tests.run.test_steps import given

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (60, 6, 6, 1), dtype=np.uint8)
Y = np.arange(60) % 3
FACTS = {"inputs": [["", [6, 6, 1]]], "output_shape": [3], "proposed": "softmax", "activation": "softmax"}
SHUFFLING = f"""
import numpy as np
def function():
    order = np.random.default_rng().permutation(60)
    x = np.random.default_rng(0).integers(0, 256, {X.shape}, dtype=np.uint8)
    return x[order], (np.arange(60) % 3)[order], x[:9], np.arange(9) % 3
"""


def divided(base: Path, source: str, **facts: Any) -> tuple[Result, dict[str, Any]]:
    """Carry out the `data` step; return its result and where the images are to be found."""
    recipe = Recipe.from_dict({"data": {"source": source, "scale": 0.5, "calibration": 8}, "repair": {"images": 20}})
    node = data_node(source_digest(recipe.data, base), FACTS | facts, recipe, 8, str(base))
    result = STEPS["data"].compute(Task("data", node.params, {}, node.locators, lambda: base, lambda *_: None))
    return result, dict(node.locators)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X[:9], y_test=Y[:9])
    return tmp_path / "d.npz"


def test_measured_and_calibrated_images_are_in_the_entry_as_they_came(npz: Path) -> None:
    result, locators = divided(npz.parent, "d.npz")
    npz.unlink()  # nobody reads the source again
    entry = given(result)
    kept = {name: images_of(entry, locators, name) for name in ("calibration", "repair", "validation")}
    assert [len(images) for images, _ in kept.values()] == [8, 20, 6]
    np.testing.assert_array_equal(kept["repair"][0][:8], kept["calibration"][0][:])
    for images, _ in kept.values():
        assert images.raws[0].dtype == np.uint8
        made = images[:]
        assert made.dtype == np.float32
        for image in made:
            assert (X * np.float32(0.5) == image).all((1, 2, 3)).any()
    _, targets = kept["validation"]
    where = [int(np.flatnonzero((raw == X).all((1, 2, 3)))[0]) for raw in kept["validation"][0].raws[0]]
    np.testing.assert_array_equal(targets, Y[where])


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_source_that_is_another_than_it_was_is_refused(npz: Path, name: str) -> None:
    result, locators = divided(npz.parent, "d.npz")
    images, _ = images_of(given(result), locators, name)
    assert images.shape[1:] == (6, 6, 1)
    for changes in ({"x_train": X[::-1], "x_test": X[9:18]}, {"y_train": Y[::-1], "y_test": Y[1:10]}):
        np.savez(npz, **{"x_train": X, "y_train": Y, "x_test": X[:9], "y_test": Y[:9]} | changes)
        forget()
        with pytest.raises(DataError, match=r"^data .*d\.npz is not what it was when this run looked at it first; run"):
            images_of(given(result), locators, name)
    np.savez(npz, x=X[:10])
    forget()
    with pytest.raises(DataError, match="is not what it was"):
        images_of(given(result), locators, name)


def test_the_same_images_written_anew_are_the_same(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrfgraph.images.archives.IN_MEMORY", 1)
    result, locators = divided(npz.parent, "d.npz")
    entry = given(result)
    before = images_of(entry, locators, "train")[0][:]
    time.sleep(0.05)  # more than a tick of the file system's clock
    np.savez(npz, x_train=X, y_train=Y, x_test=X[:9], y_test=Y[:9])
    np.testing.assert_array_equal(images_of(entry, locators, "train")[0][:], before)


def test_a_source_that_changed_before_it_was_divided_is_refused(npz: Path) -> None:
    recipe = Recipe.from_dict({"data": {"source": "d.npz"}})
    node = data_node(source_digest(recipe.data, npz.parent), FACTS, recipe, 8, str(npz.parent))
    np.savez(npz, x=X[::-1], y=Y)
    with pytest.raises(DataError, match="is not what it was when this run looked at it first"):
        STEPS["data"].compute(Task("data", node.params, {}, node.locators, lambda: npz.parent, lambda *_: None))


def test_statistics_are_in_the_entry_too(npz: Path) -> None:
    np.savez(npz.parent / "s.npz", mean=np.full((6, 6, 1), 3.0), std=2.0)
    recipe = Recipe.from_dict({"data": {"source": "d.npz", "stats": "s.npz"}})
    node = data_node(source_digest(recipe.data, npz.parent), FACTS, recipe, 8, str(npz.parent))
    task = Task("data", node.params, {}, node.locators, lambda: npz.parent, lambda *_: None)
    entry = given(STEPS["data"].compute(task))
    before = images_of(entry, node.locators, "validation")[0][:]
    np.savez(npz.parent / "s.npz", mean=0, std=1)
    forget()
    np.testing.assert_array_equal(images_of(entry, node.locators, "validation")[0][:], before)


def another_process(module: str) -> None:
    """Forget what this process knows of a function's images."""
    forget()
    sys.modules.pop(module, None)


def test_a_function_that_shuffles_is_refused_where_it_would_be_called_again(tmp_path: Path) -> None:
    (tmp_path / "shuffling_images.py").write_text(SHUFFLING)
    result, locators = divided(tmp_path, "shuffling_images:function")
    entry = given(result)
    images_of(entry, locators, "train")  # the same call's arrays
    calibration = images_of(entry, locators, "calibration")[0][:]
    another_process("shuffling_images")
    np.testing.assert_array_equal(images_of(entry, locators, "calibration")[0][:], calibration)
    with pytest.raises(DataError, match=r"^data function shuffling_images:function gives other images, or another or"):
        images_of(entry, locators, "train")
    recipe = Recipe.from_dict({"data": {"source": "shuffling_images:function"}})
    node = data_node(source_digest(recipe.data, tmp_path), FACTS, recipe, 8, str(tmp_path))
    another_process("shuffling_images")
    with pytest.raises(DataError, match="gives other images, or another order, when it is called again"):
        STEPS["data"].compute(Task("data", node.params, {}, node.locators, lambda: tmp_path, lambda *_: None))


def test_a_file_that_changes_while_it_is_read_is_refused(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrfgraph.images import sources

    read = sources.read_npz

    def interrupted(path: Path, reading: Reading) -> Any:
        arrays = read(path, reading)
        np.savez(path, x=X[::-1])
        return arrays

    monkeypatch.setattr(sources, "read_npz", interrupted)
    with pytest.raises(DataError, match=r"data d\.npz changed while it was read; run again when nobody writes it"):
        sources.load(DataOptions(source="d.npz"), npz.parent)


def test_targets_that_do_not_fit_are_said_or_refused(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"output_shape": [6, 6, 1], "proposed": "values", "activation": "linear"}
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    data = divided(tmp_path, "d.npz", **facts)[0].data
    assert data["head"] == "values"
    assert data["notes"][-1].endswith(
        "no targets of the model's output (6, 6, 1): it is measured against its own input"
    )
    other = divided(tmp_path, "d.npz", **facts | {"output_shape": [5, 5, 1]})[0].data
    assert other["notes"][-1].endswith("(5, 5, 1): nothing is measured against them")
    np.savez(tmp_path / "d.npz", x=X, y=X[:, :3])
    with pytest.raises(DataError, match=r"targets have shape \(3, 6, 1\), the model's output \(6, 6, 1\)"):
        divided(tmp_path, "d.npz", **facts)


def overwriting(kind: str, path: Path, arrays: dict[str, Any]) -> Callable[[Event], None]:
    """Overwrite a file once a node of this kind is done, as another program would."""

    def on_event(event: Event) -> None:
        if event.kind == "finished" and event.step == kind:
            np.savez(path, **arrays)

    return on_event


def recipe_of(folder: Path, epochs: int) -> Recipe:
    return Recipe.from_dict(
        {
            "data": {"source": str(folder / "d.npz"), "scale": 1 / 255, "calibration": 60, "validation": 60},
            "explore": {"ranks": 2, "methods": ["svd_channel", "svd"]},
            "select": {"policy": "budget", "params": 0.7},
            "repair": {"rounds": 0, "steps": 2, "images": 100},
            "finetune": {"epochs": epochs},
            "run": {"cache": str(folder / "cache")},
        }
    )


def test_an_overwritten_file_changes_nothing_of_a_run_or_ends_it(tmp_path: Path) -> None:
    with np.load(DATA / "tiny_digits.npz", allow_pickle=False) as loaded:
        arrays = {name: loaded[name] for name in ("x_train", "y_train")}
    found = []
    for name, other in (("whole", arrays), ("overwritten", {k: v[::-1] for k, v in arrays.items()})):
        folder = tmp_path / name
        folder.mkdir()
        np.savez(folder / "d.npz", **arrays)
        forget()

        def on_event(event: Event, write: Any = overwriting("data", folder / "d.npz", other)) -> None:  # noqa: B008
            write(event)
            if event.kind == "finished" and event.step == "data":
                forget()  # as the other processes of a run, which have not read the file before

        outcome = compress(DATA / "tiny_cnn.keras", recipe_of(folder, 0), on_event=on_event)
        found.append((outcome.decision, outcome.measured))
    assert found[0] == found[1]
    np.savez(tmp_path / "overwritten" / "d.npz", **arrays)
    forget()
    with pytest.raises(DataError, match="is not what it was when this run looked at it first"):
        compress(
            DATA / "tiny_cnn.keras",
            recipe_of(tmp_path / "overwritten", 1),
            on_event=lambda event: _damage(event, tmp_path / "overwritten" / "d.npz", arrays),
        )
    assert not list((tmp_path / "overwritten" / "cache" / "v2").glob("finetune/*/*"))


def _damage(event: Event, path: Path, arrays: dict[str, Any]) -> None:
    """Before fine-tuning, which is the first to read the source again."""
    if event.kind == "started" and event.step == "finetune":
        np.savez(path, **{name: array[::-1] for name, array in arrays.items()})
        forget()


def test_the_command_line_says_so_in_one_line(tmp_path: Path, call: Call) -> None:
    (tmp_path / "endless_images.py").write_text(
        "import numpy as np, tensorflow as tf\n"
        "def function(): return tf.data.Dataset.from_tensor_slices(np.zeros((4, 14, 14, 1))).repeat()\n"
    )
    (tmp_path / "lrfgraph.toml").write_text('[data]\nsource = "endless_images:function"\n')
    ended = call("run", DATA / "tiny_cnn.keras", "--recipe", tmp_path / "lrfgraph.toml", "--cache", tmp_path / "cache")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert (
        "the train stream of data function endless_images:function does not end; let it end with .take(n)" in ended.err
    )
