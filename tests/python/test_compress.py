"""The same from Python: what a program holds goes in, and an object that it can look at comes back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA

import lrfgraph
from lrfgraph.errors import DataError, LrfError, ModelError, RecipeError
from lrfgraph.options.recipe import OPTIONS
from lrfgraph.python.question import WORDS, question
from tests.options.another import another_value

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"
SMALL: dict[str, Any] = {
    "data": {"calibration": 80, "validation": 60},
    "explore": {"ranks": 3, "methods": ["svd", "svd_channel"]},
    "repair": {"enabled": False},
    "scale": 1 / 255,
    "params": 0.5,
    "epochs": 1,
    "progress": False,
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def network() -> Any:
    import keras

    return keras.models.load_model(MODEL)


@pytest.fixture(scope="module")
def arrays() -> Mapping[str, Any]:
    with np.load(IMAGES, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


def test_a_model_and_arrays_in_memory(network: Any, arrays: Mapping[str, Any], tmp_path: Path) -> None:
    pairs = (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])
    result = lrfgraph.compress(network, pairs, **SMALL)
    assert result.model.count_params() == result.summary["final"]["parameters"] < network.count_params() / 2
    assert result.model.predict(arrays["x_test"][:4] / 255, verbose=0).shape == (4, 10)
    assert "accuracy, test" in str(result.table())
    assert str(result.table()) in str(result)
    assert all(picture.startswith(b"\x89PNG") for picture in result.pictures.values())
    assert result.pictures.keys() == {"design_space.png", "layers.png"}
    html = result._repr_html_()
    assert html.count("<table>") == len(result.tables())
    assert html.count("data:image/png;base64,") == 2
    assert "parameters" in repr(result)
    assert result.front == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]
    folder = result.write("out")
    assert json.loads((folder / "summary.json").read_text())["final"] == result.summary["final"]
    again = lrfgraph.compress(MODEL, IMAGES, **SMALL)
    assert again.summary["nodes"]["run"].keys() <= {"data", "describe"}
    assert again.summary["final"]["accuracy"] == result.summary["final"]["accuracy"]
    other = lrfgraph.compress(network, pairs, **SMALL | {"params": 0.4, "until": "select"})
    assert other.summary["nodes"]["run"].keys() == {"select"}
    with pytest.raises(LrfError, match="stopped before a model was written"):
        print(other.model)
    assert len(list((tmp_path / "cache" / "given").iterdir())) == 2


def test_the_readme_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DATA.parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 1
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    assert "accuracy, test" in capsys.readouterr().out
    smaller, model = names["smaller"], names["model"]
    assert smaller.count_params() <= 0.1 * model.count_params()
    assert names["result"].summary["final"]["accuracy"]["test"] > 0.95


def test_streams_of_tensorflow_batched_or_not(arrays: Mapping[str, Any]) -> None:
    import tensorflow as tf

    pairs = tf.data.Dataset.from_tensor_slices((arrays["x_train"][..., None], arrays["y_train"]))
    options = SMALL | {"until": "data", "params": None}
    first = lrfgraph.compress(MODEL, pairs, **options)
    assert first.summary["nodes"]["run"]["data"] == 1
    assert lrfgraph.compress(MODEL, pairs.batch(32), **options).summary["nodes"]["run"] == {}
    assert lrfgraph.compress(MODEL, {"train": pairs}, **options).summary["nodes"]["run"] == {}


def test_a_search_has_a_front_and_validation_images_of_its_own(network: Any, arrays: Mapping[str, Any]) -> None:
    options = SMALL | {"data": {"calibration": 80}, "params": None, "max_drop": 40.0, "epochs": 0}
    fresh = arrays["x_test"][:80], arrays["y_test"][:80]
    result = lrfgraph.compress(network, (arrays["x_train"], arrays["y_train"]), val=fresh, **options)
    assert [point["chosen"] for point in result.front].count(True) == 1
    assert "validation: 80 images, the given validation part" in result.summary["warnings"]


def test_a_used_folder_keeps_nothing_of_an_earlier_run(network: Any, arrays: Mapping[str, Any], tmp_path: Path) -> None:
    images, out = (arrays["x_train"], arrays["y_train"]), tmp_path / "out"
    network.save(tmp_path / "model.h5")
    result = lrfgraph.compress(tmp_path / "model.h5", images, out=out, **SMALL | {"epochs": 0})
    of_ranks = {"hybrid.toml", "design_space.csv", "design_space.png", "layers.png"}
    assert of_ranks < {file.name for file in out.iterdir()}
    assert result.summary["factorized"]["file_bytes"] == (out / "compressed.h5").stat().st_size
    options = {name: SMALL[name] for name in ("data", "scale", "progress")}
    pruned = lrfgraph.prune(tmp_path / "model.h5", images, keep=0.5, epochs=0, out=out, **options)
    assert not of_ranks & {file.name for file in out.iterdir()}
    assert pruned.summary["repaired"]["file_bytes"] == (out / "compressed.h5").stat().st_size
    assert pruned.summary["pruned"]["file_bytes"] is None  # it was never written in the original's format
    assert "–" in next(line for line in str(pruned.table()).splitlines() if line.startswith("file"))


@pytest.mark.parametrize("key", OPTIONS)
def test_every_option_can_be_said(key: str) -> None:
    """In its section or, if it has a flag, by itself: both come to the same recipe, or to the same line."""
    option, value = OPTIONS[key], another_value(OPTIONS[key])
    ways: list[dict[str, Any]] = [{word: value} for word, other in WORDS.items() if other is option]
    ways += [{option.section: {option.name: value}}] if option.section != "model" else []
    assert ways
    answers = []
    for words in ways:
        try:
            with question(MODEL, None, None, words) as (_, asked):
                answers.append(asked.recipe.value(key))
        except RecipeError as error:
            answers.append(str(error))
    assert not any("--" in str(answer) for answer in answers)
    assert answers == answers[:1] * len(answers)


def test_a_recipe_gives_way_to_keywords(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[explore]\nranks = 7\n[finetune]\nbatch = 9\n")
    for recipe in ("r.toml", {"explore": {"ranks": 7}}, lrfgraph.Recipe().with_option("explore.ranks", 7)):
        with question(MODEL, None, recipe, {"explore": {"ranks": 5}}) as (_, asked):
            assert asked.recipe.explore.ranks == 5
        with question(MODEL, None, recipe, {}) as (_, asked):
            assert asked.recipe.explore.ranks == 7


def test_prune_takes_shares_of_its_own(network: Any, arrays: Mapping[str, Any]) -> None:
    options = {name: SMALL[name] for name in ("data", "repair", "scale", "progress")}
    result = lrfgraph.prune(network, (arrays["x_train"], arrays["y_train"]), keep=0.5, epochs=0, **options)
    assert result.summary["pruning"]["groups"]
    assert result.model.count_params() < network.count_params()


def test_train_takes_words_of_its_own(network: Any, arrays: Mapping[str, Any]) -> None:
    images = arrays["x_train"], arrays["y_train"]
    words = {name: SMALL[name] for name in ("data", "scale", "progress")}
    result = lrfgraph.train(network, images, params=0.7, epochs=2, **words)
    assert result.summary["final"]["parameters"] == result.model.count_params() < network.count_params()
    with pytest.raises(RecipeError, match="keyword 'max_drop' is unknown"):
        lrfgraph.train(network, images, max_drop=1.0)


IMAGE = np.zeros((8, 14, 14, 1), np.float32)
BAD: dict[str, tuple[type[LrfError], tuple[Any, ...], dict[str, Any], str]] = {
    "no model": (ModelError, (3,), {}, "must be a Keras model, or the path .*received int"),
    "no file": (ModelError, ("absent.keras",), {}, "absent.keras"),
    "three values": (DataError, (MODEL, (IMAGE,) * 3), {}, "images gave 3 values; give a dict"),
    "nothing in it": (DataError, (MODEL, ()), {}, "images gave 0 values"),
    "a list": (DataError, (MODEL, [IMAGE, IMAGE[:, 0, 0, 0]]), {}, "images are no arrays .* give a tuple"),
    "a number": (DataError, (MODEL, 3), {}, r"x_train is empty; received shape \(\)"),
    "text": (DataError, (MODEL, {"x": np.array(["a"])}), {}, "x must hold numbers"),
    "an unknown keyword": (RecipeError, (MODEL,), {"max_dorp": 1}, "did you mean 'max_drop'"),
    "an unknown option": (RecipeError, (MODEL,), {"select": {"polcy": 1}}, "did you mean 'policy'"),
    "no dictionary": (RecipeError, (MODEL,), {"select": 3}, "select must be a dictionary"),
    "out of range": (RecipeError, (MODEL, IMAGE), {"max_drop": -1}, "max_drop must be a number, at least 0"),
    "two images": (RecipeError, (MODEL, IMAGE), {"data": {"source": "x.npz"}}, "given twice"),
    "two values": (RecipeError, (MODEL,), {"params": 0.5, "select": {"params": 0.4}}, "select.params is said twice"),
    "no effect": (RecipeError, (MODEL,), {"crop": 2}, "unknown"),
    "idle": (RecipeError, (MODEL,), {"finetune": {"crop": 2}}, r"finetune=dict\(crop=…\) has no effect"),
    "no recipe": (RecipeError, (MODEL,), {"recipe": 3}, "recipe must be a file, a dictionary or a Recipe"),
    "classes of a model": (RecipeError, ("keras model",), {"custom": "a:B"}, "custom has no effect on a Keras model"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(case: str, network: Any) -> None:
    error, (model, *images), words, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        lrfgraph.compress(network if model == "keras model" else model, *images, progress=False, **words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        {"remote": "ftp://x"},
        {"until": "nonsense"},
        {"max_drop": 1.0, "configuration": "hybrid.toml"},
        {"prune": {"method": "fbp"}, "configuration": "hybrid.toml"},
        {"data": {"metric": "nowhere:measure"}},
    ],
    ids=str,
)
def test_a_refused_call_leaves_nothing(words: dict[str, Any], network: Any, tmp_path: Path) -> None:
    pairs = np.repeat(IMAGE, 4, 0), np.zeros(32, np.int64)
    for call in (lrfgraph.compress, lrfgraph.plan):
        with pytest.raises(LrfError):
            call(network, pairs, **words)
    assert list(tmp_path.iterdir()) == []


def test_classes_that_no_module_has_are_refused(network: Any) -> None:
    import keras

    class Double(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x + x

    with pytest.raises(ModelError, match="define it in a module of its own"):
        lrfgraph.compress(keras.Sequential([network, Double()]), progress=False)
