from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import DATA

from lrfgraph import demo
from lrfgraph.images.preprocessing import preprocessing
from lrfgraph.images.sources import load
from lrfgraph.images.splits import split
from lrfgraph.network.evaluating import measure, predict
from lrfgraph.network.heads import HEADS
from lrfgraph.options.recipe import DataOptions


@pytest.mark.parametrize(
    ("model", "options", "shape", "at_least"),
    [
        (demo.MODEL, demo.recipe().data, (28, 28, 1), 0.985),
        (DATA / "tiny_cnn.keras", DataOptions(source=str(DATA / "tiny_digits.npz"), scale=1 / 255), (14, 14, 1), 0.9),
    ],
)
def test_shipped_models_are_good_on_shipped_images(
    model: Path, options: DataOptions, shape: tuple[int, ...], at_least: float
) -> None:
    import keras

    network = keras.models.load_model(model)
    dataset = load(options, Path(), {"": shape})
    test = split(dataset, options).test
    assert test is not None
    outputs = predict(network, test.images(dataset, [preprocessing(options, shape)]))
    head = HEADS["softmax"]
    assert measure(outputs, head.targets(test.labels(dataset), (10,)), head)["accuracy"] >= at_least


@pytest.mark.parametrize("folder", [demo.FOLDER, DATA])
def test_what_ships_is_small_and_its_licence_named(folder: Path) -> None:
    files = [file for file in folder.iterdir() if file.suffix in (".npz", ".keras")]
    assert len(files) == 2
    said = next(folder.glob("*.md")).read_text()
    for file in files:
        assert file.stat().st_size < 2_000_000
        assert f"`{file.name}`" in said
    assert "MIT" in said
    assert "LeCun" in said


def test_all_classes_ship_alike() -> None:
    with np.load(demo.DATA, allow_pickle=False) as arrays:
        assert np.bincount(arrays["y_train"]).tolist() == [600] * 10
        assert np.bincount(arrays["y_test"]).tolist() == [200] * 10
