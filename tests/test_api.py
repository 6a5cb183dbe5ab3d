from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, Finished

from lrfgraph import Recipe
from lrfgraph.api import compress, inspect, plan, run_name
from lrfgraph.engine.maintenance import list_entries
from lrfgraph.engine.store import Store
from lrfgraph.errors import DataError

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"
SMALL = {
    "data": {"source": str(IMAGES), "scale": 1 / 255, "calibration": 80, "validation": 60},
    "explore": {"ranks": 3},
    "select": {"policy": "threshold", "min_similarity": 0.9},
    "repair": {"enabled": False},
    "finetune": {"epochs": 0},
}


def recipe(cache: Path, **sections: dict[str, object]) -> Recipe:
    changed = {name: {**SMALL.get(name, {}), **values} for name, values in sections.items()}
    return Recipe.from_dict({**SMALL, **changed, "run": {"cache": str(cache), **changed.get("run", {})}})


def test_without_images_it_says_that_nothing_was_measured(tmp_path: Path) -> None:
    outcome = compress(MODEL, recipe(tmp_path / "cache", data={"source": "none"}))
    assert outcome.exported is not None
    assert outcome.measured == {}
    assert "no accuracy was measured" in outcome.notes[0]
    assert "--data" in outcome.notes[0]
    assert not {"record", "evaluate", "finetune"} & outcome.driver.run.keys()


def test_a_model_at_chance_stops_and_lists_what_was_tried(tmp_path: Path) -> None:
    with np.load(IMAGES, allow_pickle=False) as arrays:
        random = np.random.default_rng(0)
        np.savez(tmp_path / "shuffled.npz", x=arrays["x_train"], y=random.permutation(arrays["y_train"]))
    wrong = recipe(tmp_path / "cache", data={"source": str(tmp_path / "shuffled.npz")})
    with pytest.raises(DataError, match=r"chance level.*--scale 1/255.*data\.allow_chance"):
        compress(MODEL, wrong)
    allowed = wrong.with_option("data.allow_chance", True).with_option("run.until", "select")
    assert compress(MODEL, allowed).stopped


@pytest.mark.parametrize("kind", ["describe", "data", "record", "ranks", "score", "select", "rebuild", "export"])
def test_until_stops_after_a_kind(kind: str, tmp_path: Path) -> None:
    outcome = compress(MODEL, recipe(tmp_path / "cache", run={"until": kind}))
    assert outcome.stopped
    assert kind in outcome.driver.run
    assert (outcome.exported is not None) == (kind == "export")
    assert (outcome.decision is not None) == (kind in ("select", "rebuild", "export"))
    assert ("validation" in outcome.measured.get("baseline", {})) == (kind not in ("describe", "data"))


def test_summary_says_what_the_written_model_has(finished: Finished) -> None:
    import keras

    said = json.loads((finished.out / "summary.json").read_text())
    for name in ("compressed.keras", "compressed.h5"):
        model = keras.models.load_model(finished.out / name, compile=False)
        assert model.count_params() == said["final"]["parameters"]
    assert (finished.out / "compressed.keras").stat().st_size == said["final"]["file_bytes"]
    before, after = (sum(row["parameters"][i] for row in said["layers"]) for i in (0, 1))
    assert said["baseline"]["parameters"] - said["final"]["parameters"] == before - after
    assert said["nodes"]["run"]["finetune"] == 1
    assert said["seconds"].keys() >= {"describe", "explore", "candidates", "finish"}


def test_two_parts_never_share_an_image(finished: Finished) -> None:
    store = Store(finished.cache)
    entry = store.open(list_entries(store, "data")[0].key)
    calibration, validation = (
        {image.tobytes() for image in entry.array(f"{part}/x/0")} for part in ("calibration", "validation")
    )
    assert len(calibration) > 50 < len(validation)
    assert not calibration & validation


def test_a_damaged_entry_is_computed_again_and_said_so(finished: Finished, tmp_path: Path) -> None:
    cache = shutil.copytree(finished.cache, tmp_path / "cache")
    manifest = next((cache / "v2" / "describe").rglob("entry.json"))
    manifest.write_bytes(manifest.read_bytes()[:-20])
    outcome = compress(MODEL, recipe(cache, run={"until": "select"}))
    assert outcome.decision is not None
    assert outcome.driver.run["describe"] == 1


def test_inspect_and_plan_write_nothing_beside_what_they_read(tmp_path: Path) -> None:
    asked = recipe(tmp_path / "cache")
    driver, complete = plan(MODEL, asked)
    assert not complete
    assert driver.run == {"describe": 1}
    assert not (tmp_path / "cache").exists()
    network = inspect(MODEL, asked)
    assert [layer.name for layer in network.factorizable()] == ["conv1", "conv2", "hidden", "digit"]
    assert not plan(MODEL, asked)[1]


def test_a_run_is_named_by_model_and_question(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    name = run_name("models/résumé net.h5", "digest", asked)
    assert name.startswith("r_sum__net-")
    assert name == run_name("other/résumé net.h5", "digest", asked.with_option("run.out", "elsewhere"))
    assert name != run_name("models/résumé net.h5", "digest", asked.with_option("finetune.epochs", 3))
    assert name != run_name("models/résumé net.h5", "digest", asked.with_option("run.until", "select"))


def test_every_input_gets_images(tmp_path: Path) -> None:
    import keras

    left, right = keras.Input((4,)), keras.Input((4,))
    joined = keras.layers.Dense(3)(keras.layers.Add()([left, right]))
    keras.Model([left, right], joined).save(tmp_path / "two.keras")
    with pytest.raises(DataError, match="give an array of each"):
        compress(tmp_path / "two.keras", recipe(tmp_path / "cache"))
