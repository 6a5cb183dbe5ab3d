"""Files open, with a digest of their content, or are refused in one line that says what to supply."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lrfgraph.errors import ModelError
from lrfgraph.network.opening.loading import load_model, model_digest
from tests.network.models import GRAPHS, inputs_for, outputs_of

FUZZ = Path(__file__).parents[3] / "pipelines" / "benchmarks" / "fuzz_models.py"


def saved(model: Any, path: Path) -> Path:
    from lrfgraph.network.exporting import _quiet

    with _quiet():
        model.save(path)
    return path


def refused(path: Path, *words: str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A model and its two files."""
    model, folder = GRAPHS["sequential"](), tmp_path_factory.mktemp("small")
    return model, saved(model, folder / "model.h5"), saved(model, folder / "model.keras")


def edit(path: Path, target: Path, change: Any) -> Path:
    """Copy a .keras file with its configuration changed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                config = json.loads(data)
                data = json.dumps(change(config) or config).encode()
            out.writestr(name, data)
    return target


@pytest.mark.parametrize("form", ["h5", "keras"])
@pytest.mark.parametrize("name", GRAPHS)
def test_what_keras_writes_opens_with_equal_outputs(name: str, form: str, tmp_path: Path) -> None:
    model = GRAPHS[name]()
    path = saved(model, tmp_path / f"model.{form}")
    if (name, form) == ("shared_with_nested", "keras"):
        refused(path, "Keras cannot build it (Skipping nested container")
        return
    loaded = load_model(path)
    x = inputs_for(model)
    for expected, received in zip(outputs_of(model, x), outputs_of(loaded, x), strict=True):
        np.testing.assert_array_equal(expected, received)
    assert not loaded.compiled


@pytest.mark.parametrize("form", ["h5", "keras"])
def test_the_digest_is_of_the_content(form: str, tmp_path: Path) -> None:
    model = GRAPHS["residual"]()
    path = saved(model, tmp_path / f"one.{form}")
    digest = model_digest(path)
    assert model_digest(path.rename(tmp_path / f"two.{form}")) == digest
    loaded = load_model(tmp_path / f"two.{form}")
    assert model_digest(saved(loaded, tmp_path / f"three.{form}")) == digest
    loaded.compile(optimizer="adam", loss="mse")
    x = inputs_for(model)
    loaded.optimizer.build(loaded.trainable_variables)
    assert model_digest(saved(loaded, tmp_path / f"four.{form}")) == digest
    loaded.get_layer("logits").kernel.assign_add(np.full((8, 3), 1e-3, "float32"))
    assert model_digest(saved(loaded, tmp_path / f"five.{form}")) != digest
    assert outputs_of(loaded, x)[0].shape == (3, 3)


def test_the_digest_imports_no_keras(small: tuple[Any, Path, Path]) -> None:
    code = (
        "import sys; from lrfgraph.network.opening.loading import model_digest\n"
        "[model_digest(p) for p in sys.argv[1:]]\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, *map(str, small[1:])]
    subprocess.run(command, check=True, cwd=FUZZ.parents[2])


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.h5", "cannot be read", "No such file")


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.write_text("not a model")
    refused(path, "no Keras model", "not a model", "give a .keras or .h5 file")
    path.write_bytes(b"")
    refused(path, "no Keras model")


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    refused(path, "git lfs pull")


def test_folders(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    (tmp_path / "saved_model.pb").write_bytes(b"\0")
    refused(tmp_path, "SavedModel", "model.save('model.keras')")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_files(share: float, small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    for source in small[1:]:
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
        refused(path)
        with pytest.raises(ModelError):
            model_digest(path)


def test_weights_only_files_open_with_an_architecture(small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    model = small[0]
    architecture = tmp_path / "model.json"
    architecture.write_text(model.to_json())
    with h5py.File(small[1]) as source, h5py.File(tmp_path / "old.h5", "w") as target:
        for name in source["model_weights"]:
            source.copy(f"model_weights/{name}", target)
        target.attrs.update(source["model_weights"].attrs)
    model.save_weights(tmp_path / "new.weights.h5")
    x = inputs_for(model)
    for path in (tmp_path / "old.h5", tmp_path / "new.weights.h5"):
        refused(path, "no architecture", "--architecture")
        loaded = load_model(path, architecture=architecture)
        np.testing.assert_array_equal(outputs_of(model, x)[0], outputs_of(loaded, x)[0])
    assert "first, norm, head" in refused(tmp_path / "old.h5")
    wrong = json.loads(model.to_json())
    wrong["config"]["layers"][-1]["config"]["units"] = 5
    architecture.write_text(json.dumps(wrong))
    refused(tmp_path / "old.h5", "layer head needs a weight of shape (384, 5)", architecture=architecture)
    architecture.write_text("{}")
    refused(tmp_path / "old.h5", "model.json", "no Keras model", architecture=architecture)


def test_a_subclassed_model(small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config.update(module=None, class_name="MyNet", registered_name="MyNet", config={"dtype": "float32"})

    refused(edit(small[2], tmp_path / "m.keras", change), "MyNet is a subclassed model", "Functional")


def test_lambda_layers_are_refused_unless_trusted(tmp_path: Path) -> None:
    import keras

    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Lambda(lambda v: v * 2.0, name="double")(x)))
    for form in ("h5", "keras"):
        path = saved(model, tmp_path / f"model.{form}")
        refused(path, "layer double is a Lambda", "--unsafe", "Rescaling")
        loaded = load_model(path, unsafe=True)
        values = inputs_for(model)
        np.testing.assert_array_equal(outputs_of(model, values)[0], outputs_of(loaded, values)[0])


@pytest.mark.parametrize("place", ["activation", "kernel_initializer", "kernel_regularizer", "name"])
def test_code_anywhere_in_the_configuration(place: str, small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    code = {"class_name": "__lambda__", "config": {"code": "4wE=", "defaults": None, "closure": None}}

    def change(config: Any) -> None:
        config["config"]["layers"][-1]["config"][place] = code

    refused(edit(small[2], tmp_path / "m.keras", change), "would run code")


@pytest.mark.parametrize(
    "entry",
    [
        {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"},
        {"class_name": "TFSMLayer", "module": "keras.layers", "config": {"filepath": "/"}, "registered_name": None},
        {"class_name": "Popen", "module": "subprocess", "config": {"args": "true"}, "registered_name": None},
        {"class_name": "get_file", "module": "keras.utils", "config": {}, "registered_name": None},
        {"class_name": "function", "module": "builtins", "config": "eval", "registered_name": "eval"},
    ],
)
def test_objects_from_elsewhere(entry: Any, small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["layers"][-1]["config"]["activation"] = entry

    refused(edit(small[2], tmp_path / "m.keras", change))


def test_custom_classes_are_supplied_by_name(
    small: tuple[Any, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_layers.py").write_text("import keras\nclass Twice(keras.layers.ReLU):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)

    def change(config: Any) -> None:
        layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "ReLU")
        layer.update(module=None, class_name="Twice", registered_name="theirs>Twice")

    path = edit(small[2], tmp_path / "m.keras", change)
    refused(path, "layer act needs Twice", "--custom package.module:Twice")
    loaded = load_model(path, custom=["their_layers:Twice"])
    assert type(loaded.get_layer("act")).__name__ == "Twice"
    refused(path, "expected package.module:Name", custom=["Twice"])
    refused(path, "cannot be imported", custom=["no_such_module:Twice"])
    refused(path, "has no Thrice", custom=["their_layers:Thrice"])


def test_an_unknown_activation(small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["layers"][-1]["config"]["activation"] = "wish"

    refused(edit(small[2], tmp_path / "m.keras", change), "wish", "--custom package.module:Name")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    model = GRAPHS["sequential"]()
    kernel = np.asarray(model.get_layer("head").kernel).copy()
    kernel[0, 0] = value
    model.get_layer("head").kernel.assign(kernel)
    for form in ("h5", "keras"):
        refused(saved(model, tmp_path / f"m.{form}"), "head", "NaN or infinite")


@pytest.mark.parametrize(("key", "value"), [("units", 10**9), ("units", 3)])
def test_sizes_that_the_file_does_not_hold(key: str, value: int, small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["layers"][-1]["config"][key] = value

    refused(edit(small[2], tmp_path / "m.keras", change))
    path = tmp_path / "m.h5"
    path.write_bytes(small[1].read_bytes())
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)
    refused(path)
    assert load_model(small[1]).count_params() == small[0].count_params()


def test_a_dataset_that_claims_to_be_huge(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights/dense")
        group.create_dataset("kernel", shape=(10**6, 10**6), chunks=(64, 64), dtype="f4")
    refused(path, "cannot hold them")
    with pytest.raises(ModelError, match="cannot hold them"):
        model_digest(path)


def test_weights_in_another_file_are_not_followed(small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(small[1].read_bytes())
    with h5py.File(path, "r+") as file:
        name = file["model_weights/head"].attrs["weight_names"][0]
        del file[f"model_weights/head/{name}"]
        file[f"model_weights/head/{name}"] = h5py.ExternalLink(str(small[1]), f"model_weights/head/{name}")
    refused(path, "is missing")
    outside = tmp_path / "weights.bin"
    outside.write_bytes(bytes(64))
    with h5py.File(path, "r+") as file:
        del file[f"model_weights/head/{name}"]
        file["model_weights/head"].create_dataset(name, (16,), "f4", external=[(str(outside), 0, 64)])
    refused(path, "point into other files")


def test_mutated_files_are_opened_or_refused(small: tuple[Any, Path, Path], tmp_path: Path) -> None:
    for source in small[1:]:
        command = [sys.executable, str(FUZZ), "--model", str(source), "--count", "40", "--workers", "1"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=FUZZ.parents[2], env=_environment()
        )
        found = json.loads(done.stdout)
        assert found["bad"] == []
        assert found["mutations"] == 40
        assert found["outcomes"]["refused"] >= 5


def _environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(FUZZ.parents[2])}


@pytest.mark.parametrize("form", ["h5", "keras"])
def test_layers_that_applications_bring_need_no_option(form: str, tmp_path: Path) -> None:
    """Keras writes ConvNeXt's own layers into HDF5 files by name alone; another's of that name is not theirs."""
    import keras
    from keras.src.applications.convnext import LayerScale
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    inputs = keras.Input((6, 6, 3))
    scaled = LayerScale(0.3, 4)(keras.layers.Conv2D(4, 3, padding="same")(inputs))
    model = keras.Model(inputs, CustomScaleLayer(0.5)([keras.layers.Conv2D(4, 1)(inputs), scaled]))
    opened = load_model(saved(model, tmp_path / f"model.{form}"))
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    np.testing.assert_array_equal(opened(images), model(images))

    class Other(keras.layers.Layer):
        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "factor": 2.0}

        def call(self, x: Any) -> Any:
            return 2.0 * x

    Other.__name__ = "LayerScale"
    refused(saved(keras.Model(inputs, Other()(inputs)), tmp_path / "other.h5"), "LayerScale", "--custom")
