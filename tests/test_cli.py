from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, Call, Finished, with_changes

from lrfgraph.options.recipe import OPTIONS

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"


# Bad input ----------------------------------------------------------------------------------------------------------


def _images(folder: Path, **changed: np.ndarray) -> Path:
    with np.load(IMAGES, allow_pickle=False) as arrays:
        np.savez(folder / "images.npz", **{**arrays, **changed})
    return folder / "images.npz"


def _text_as_h5(folder: Path) -> list[object]:
    (folder / "model.h5").write_text("this is no model\n" * 100)
    return ["run", folder / "model.h5"]


def _truncated(folder: Path) -> list[object]:
    (folder / "model.keras").write_bytes(MODEL.read_bytes()[:5000])
    return ["run", folder / "model.keras"]


def _no_layer(folder: Path) -> list[object]:
    import keras

    keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Softmax()]).save(folder / "m.keras")
    return ["run", folder / "m.keras"]


def _nan(folder: Path) -> list[object]:
    import keras

    model = keras.models.load_model(MODEL)
    kernel = next(variable for variable in model.trainable_variables if variable.name == "kernel")
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    model.save(folder / "nan.keras")
    return ["run", folder / "nan.keras"]


def _wrong_shape(folder: Path) -> list[object]:
    wide = np.zeros((200, 20, 14), np.uint8)
    return ["run", MODEL, "--data", _images(folder, x_train=wide)]


def _wrong_labels(folder: Path) -> list[object]:
    return ["run", MODEL, "--data", _images(folder, y_train=np.full(200, 10))]


def _empty(folder: Path) -> list[object]:
    return ["run", MODEL, "--data", _images(folder, x_train=np.zeros((0, 14, 14)), y_train=np.zeros(0, int))]


def _raises(folder: Path) -> list[object]:
    (folder / "raising.py").write_text("def images():\n    raise RuntimeError('the camera is off')\n")
    return ["run", MODEL, "--data", "raising:images"]


def _unknown_key(folder: Path) -> list[object]:
    (folder / "r.toml").write_text("[select]\nmin_similarty = 0.9\n")
    return ["run", MODEL, "--recipe", folder / "r.toml"]


def _cache_is_file(folder: Path) -> list[object]:
    (folder / "cache").write_text("")
    return ["run", MODEL, "--cache", folder / "cache"]


def _out_in_file(folder: Path) -> list[object]:
    (folder / "file").write_text("")
    return ["run", MODEL, "--out", folder / "file" / "out"]


def _not_toml(folder: Path) -> list[object]:
    (folder / "r.toml").write_text("[select\n")
    return ["run", MODEL, "--recipe", folder / "r.toml"]


def _objects(folder: Path) -> list[object]:
    np.savez(folder / "o.npz", x_train=np.array([{}, {}], dtype=object))
    return ["run", MODEL, "--data", folder / "o.npz"]


def _hybrid(text: str) -> Callable[[Path], list[object]]:
    def make(folder: Path) -> list[object]:
        (folder / "hybrid.toml").write_text(text)
        return ["run", MODEL, "--configuration", folder / "hybrid.toml"]

    return make


def _plain(*arguments: object) -> Callable[[Path], list[object]]:
    return lambda _: list(arguments)


BAD: dict[str, tuple[Callable[[Path], list[object]], tuple[str, ...]]] = {
    "a text file renamed": (_text_as_h5, ("model.h5", "is no Keras model")),
    "a truncated model": (_truncated, ("model.keras", "damaged")),
    "no layer with a kernel": (_no_layer, ("no layer", "nothing to compress")),
    "weights that are NaN": (_nan, ("nan.keras", "NaN")),
    "images of another shape": (_wrong_shape, ("(20, 14", "(14, 14, 1)")),
    "labels out of range": (_wrong_labels, ("labels run from 10 to 10", "10 classes")),
    "no images": (_empty, ("x_train is empty",)),
    "a data function that raises": (_raises, ("raising:images", "RuntimeError", "the camera is off")),
    "python objects as images": (_objects, ("o.npz", "Python objects")),
    "no such data": (_plain("run", MODEL, "--data", "nowhere.npz"), ("nowhere.npz", "does not exist")),
    "threshold above one": (_plain("run", MODEL, "--min-similarity", "1.5"), ("min_similarity", "1.5", "at most 1")),
    "unknown method": (_plain("run", MODEL, "--methods", "cp,tuker"), ("'tuker'", "did you mean 'tucker'?")),
    "unknown key": (_unknown_key, ("'min_similarty'", "did you mean 'min_similarity'?")),
    "unknown setting": (_plain("run", MODEL, "--set", "finetune.epoch=1"), ("'epoch'", "did you mean 'epochs'?")),
    "a setting without value": (_plain("run", MODEL, "--set", "finetune.epochs"), ("section.key=value",)),
    "a recipe that is no TOML": (_not_toml, ("r.toml", "TOML")),
    "no such recipe": (_plain("run", MODEL, "--recipe", "none.toml"), ("none.toml", "cannot be read")),
    "output below a file": (_out_in_file, ("output folder", "--out")),
    "no such model": (_plain("run", "nowhere.h5"), ("nowhere.h5", "No such file")),
    "a folder as model": (_plain("run", "."), ("folder",)),
    "a cache that is a file": (_cache_is_file, ("cache", "cannot be written", "--cache")),
    "unknown command": (_plain("squeeze", MODEL), ("squeeze",)),
    "unknown option": (_plain("run", MODEL, "--polcy", "x"), ("--polcy", "did you mean '--policy'?")),
    "an option that another command has": (_plain("inspect", MODEL, "--data", IMAGES), ("no such option: --data",)),
    "an option without value": (_plain("run", MODEL, "--data"), ("--data", "needs a value")),
    "a switch with a value": (_plain("run", MODEL, "--unsafe=no"), ("--unsafe", "takes no value", "'no'")),
    "no model": (_plain("run"), ("model",)),
    "a search along two costs": (_plain("run", MODEL, "--data", IMAGES, "--set", "select.cost=mix"), ("mix", "macs")),
    "a point of no front": (_plain("select", MODEL, "--point", "1", "--policy", "energy"), ("pareto", "'energy'")),
    "workers that are no number": (_plain("run", MODEL, "--workers", "x"), ("workers", "whole number", "'x'")),
    "until a kind that is none": (_plain("run", MODEL, "--until", "selekt"), ("'selekt'", "did you mean 'select'?")),
    "unknown policy": (_plain("run", MODEL, "--policy", "best"), ("'best'", "threshold")),
    "a configuration for other layers": (
        _hybrid('[layers."conv9"]\nmethod = "cp"\nrank = "3"\n'),
        ("no layer 'conv9'", "did you mean"),
    ),
    "no layer of this name": (_plain("explain", MODEL, "dens", "--set", "explore.ranks=1"), ("'dens'", "choose from")),
    "no cache there": (_plain("cache", "du", "--cache", "nowhere"), ("nowhere", "--cache DIR")),
    "a size in no unit": (_plain("cache", "gc", "--max-size", "5 parsecs"), ("500MB", "'5 parsecs'")),
    "an age in no unit": (_plain("cache", "gc", "--older-than", "30"), ("12h", "'30'")),
    "nothing of this name to list": (_plain("list", "polices"), ("'polices'", "did you mean 'policies'?")),
    "gc without a limit": (_plain("cache", "gc"), ("--max-size", "--older-than")),
}


# What has no effect, contradicts, or would run code that nobody named


def _toml(text: str, *arguments: object) -> Callable[[Path], list[object]]:
    """A recipe in the working folder, which nobody names, and a module that tells when it is imported."""

    def make(folder: Path) -> list[object]:
        (folder / "lrfgraph.toml").write_text(text)
        (folder / "evil.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
        return list(arguments)

    return make


def _named(text: str, *arguments: object) -> Callable[[Path], list[object]]:
    def make(folder: Path) -> list[object]:
        (folder / "r.toml").write_text(text)
        return [*arguments, "--recipe", folder / "r.toml"]

    return make


def _val(**arrays: object) -> Callable[[Path], list[object]]:
    """Validation images of their own that do not fit."""

    def make(folder: Path) -> list[object]:
        np.savez(folder / "val.npz", **arrays)
        return [*WITH_DATA, "--val", folder / "val.npz"]

    return make


RUN, WITH_DATA = ("run", MODEL), ("run", MODEL, "--data", IMAGES)
HYBRID = ("--configuration", "hybrid.toml")

BAD |= {
    "custom objects of a recipe found": (
        _toml('[model]\ncustom = ["evil:Layer"]\n', *RUN),
        ("lrfgraph.toml: model.custom", "evil:Layer", "--custom", "--recipe lrfgraph.toml"),
    ),
    "a data function of a recipe found": (
        _toml('[data]\nsource = "evil:images"\n', *RUN),
        ("data.source", "evil:images", "--data"),
    ),
    "trust in a recipe found": (_toml("[model]\nunsafe = true\n", *RUN), ("model.unsafe = true", "--unsafe")),
    "a scheduler of a recipe found": (
        _toml('[run]\nscheduler = "tcp://evil:8786"\n', *RUN),
        ("run.scheduler", "tcp://evil:8786", "--scheduler"),
    ),
    "code of a recipe found, planned": (
        _toml('[model]\ncustom = ["evil:Layer"]\n', "plan", MODEL),
        ("model.custom", "lets code be run"),
    ),
    "code of a recipe found, explained": (
        _toml('[data]\nsource = "evil:images"\n', "explain", MODEL, "conv1"),
        ("data.source", "lets code be run"),
    ),
    "code of a recipe found, a point selected": (
        _toml('[data]\nsource = "evil:images"\n', "select", MODEL, "--point", "1"),
        ("lets code be run",),
    ),
    "a budget and a drop": (
        _plain(*WITH_DATA, "--params", "0.5", "--max-drop", "1"),
        ("--params", "budget", "--max-drop", "accuracy"),
    ),
    "a drop and a similarity": (
        _plain(*WITH_DATA, "--min-similarity", "0.9", "--max-drop", "1"),
        ("--min-similarity", "--max-drop", "--policy"),
    ),
    "a point and a budget": (_plain(*WITH_DATA, "--point", "1", "--macs", "0.5"), ("--point", "--macs", "--policy")),
    "a similarity and a budget": (
        _plain(*RUN, "--min-similarity", "0.9", "--params", "0.5"),
        ("--min-similarity", "select.params is 0.5"),
    ),
    "a budget of MACs that the policy does not read": (
        _plain(*WITH_DATA, "--policy", "accuracy", "--macs", "0.5"),
        ("--macs has no effect under policy accuracy",),
    ),
    "a similarity under pareto": (
        _plain(*WITH_DATA, "--policy", "pareto", "--min-similarity", "0.9"),
        ("--min-similarity", "threshold, energy"),
    ),
    "a budget against the recipe's policy": (
        _named('[select]\npolicy = "pareto"\n', *WITH_DATA, "--params", "0.5"),
        ("--params", "policy pareto of", "r.toml"),
    ),
    "a point of a policy without a front": (
        _plain(*WITH_DATA, "--policy", "uniform", "--params", "0.5", "--point", "1"),
        ("--point", "pareto"),
    ),
    "probes where none are read": (
        _plain(*WITH_DATA, "--policy", "threshold", "--set", "select.probes=2"),
        ("--set select.probes", "threshold"),
    ),
    "a mix of no mix": (_plain(*RUN, "--set", "select.mix=0.3"), ("select.mix", 'select.cost is "parameters"')),
    "a drop without images": (_plain(*RUN, "--max-drop", "1"), ("--max-drop", "accuracy", "received none", "--data")),
    "a measuring policy without images": (_plain(*RUN, "--policy", "pareto"), ("--policy", "received none", "--data")),
    "epochs without images": (_plain(*RUN, "--epochs", "3"), ("--epochs", "data.source is none", "give --data")),
    "a scale without images": (_plain(*RUN, "--scale", "1/255"), ("--scale", "data.source is none")),
    "a weighting without images": (_plain(*RUN, "--set", "explore.weighting=plain"), ("explore.weighting", "--data")),
    "training options without training": (
        _plain(*WITH_DATA, "--epochs", "0", "--set", "finetune.batch=64"),
        ("finetune.batch", "finetune.epochs is 0"),
    ),
    "repair options without repair": (
        _plain(*WITH_DATA, "--set", "repair.enabled=false", "--set", "repair.steps=9"),
        ("repair.steps", "is false"),
    ),
    "a policy beside a configuration": (_plain(*RUN, *HYBRID, "--policy", "energy"), ("--policy", "--configuration")),
    "ranks beside a configuration": (
        _plain(*RUN, *HYBRID, "--set", "explore.ranks=3"),
        ("explore.ranks", "hybrid.toml"),
    ),
    "a point of a configuration": (_plain("select", MODEL, *HYBRID), ("select takes a point", "--configuration")),
    "a point by another setting of the policy": (
        _plain("select", MODEL, "--set", "select.policy=energy"),
        ("pareto", "'energy'", "use run"),
    ),
    "an option said twice": (
        _plain(*RUN, "--set", "explore.ranks=3", "--set", "explore.ranks=4"),
        ("explore.ranks is said twice", "3 and 4"),
    ),
    "an option said by its flag and by its key": (
        _plain(*WITH_DATA, "--epochs", "3", "--set", "finetune.epochs=4"),
        ("finetune.epochs is said twice", "3 and 4"),
    ),
    "processes beside a cluster": (
        _plain(*RUN, "--workers", "2", "--scheduler", "tcp://localhost:1"),
        ("--workers", "run.scheduler"),
    ),
    "threads beside processes": (
        _plain(*RUN, "--workers", "2", "--set", "run.threads=3"),
        ("run.threads", "run.workers"),
    ),
    "an explanation that stops elsewhere": (
        _plain("explain", MODEL, "conv1", "--until", "rebuild"),
        ("explain", "select", "--until rebuild"),
    ),
    "training for an inspection": (
        _plain("inspect", MODEL, "--set", "finetune.batch=64"),
        ("finetune.batch", "no effect"),
    ),
    "a size that nothing obeys": (_plain(*RUN, "--set", "run.max_cache=5GB"), ("'max_cache' is unknown",)),
    "custom objects in no module": (
        _plain(*RUN, "--custom", "nowhere:Layer"),
        ("'nowhere:Layer'", "cannot be imported"),
    ),
    "images in no module": (_plain(*RUN, "--data", "nowhere:images"), ("nowhere:images", "ModuleNotFoundError")),
    "validation images that are not there": (_plain(*WITH_DATA, "--val", "v.npz"), ("v.npz", "does not exist")),
    "validation images without images": (_plain(*RUN, "--val", IMAGES), ("--val", "data.source is none", "--data")),
    "validation images of another shape": (_val(x=np.zeros((4, 9, 9))), ("(9, 9, 1)", "(14, 14, 1)")),
    "validation labels of another length": (
        _val(x=np.zeros((4, 14, 14)), y=np.zeros(3, int)),
        ("x_val has 4 images", "y_val 3 labels"),
    ),
    "a file without validation images": (_val(weights=np.zeros(4)), ("val.npz has no images", "weights")),
    "a share to hold out beside validation images": (
        _plain(*WITH_DATA, "--val", IMAGES, "--set", "data.validation=0.2"),
        ("data.validation", "data.val is"),
    ),
    "validation images of a recipe found": (
        _toml('[data]\nsource = "x.npz"\nval = "evil:images"\n', *RUN),
        ("data.val", "evil:images", "lets code be run"),
    ),
    "a measure that is no function": (
        _plain(*WITH_DATA, "--metric", "accuracy"),
        ("metric", "package.module:function", "'accuracy'"),
    ),
    "a measure in no module": (_plain(*WITH_DATA, "--metric", "nowhere:f1"), ("nowhere:f1", "cannot be imported")),
    "a measure that its module lacks": (_plain(*WITH_DATA, "--metric", "json:f1"), ("json has no function f1",)),
    "a measure that raises": (_plain(*WITH_DATA, "--metric", "json:loads"), ("json:loads", "raised TypeError")),
    "a measure of a recipe found": (
        _toml('[data]\nsource = "x.npz"\nmetric = "evil:f1"\n', *RUN),
        ("data.metric", "evil:f1", "lets code be run"),
    ),
    "a folder as recipe": (_plain(*RUN, "--recipe", "."), ("recipe .", "cannot be read")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, fragments = BAD[name]
    monkeypatch.chdir(tmp_path)
    arguments = make(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    said = call(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("lrfgraph: ")
    assert said.err.count("\n") == 1
    for fragment in fragments:
        assert fragment in said.err
    assert {path.name for path in tmp_path.iterdir()} - before <= {"cache", "__pycache__"}
    assert not (tmp_path / "imported").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    from lrfgraph.cli import main
    from lrfgraph.errors import ModelError

    with pytest.raises(ModelError):
        main(["run", str(tmp_path / "none.h5"), "--debug"])


# A run and what it leaves -------------------------------------------------------------------------------------------


def test_a_run_leaves_its_results(finished: Finished) -> None:
    names = {"compressed.h5", "compressed.keras", "hybrid.toml", "recipe.toml", "summary.json"}
    pictures = {"configurations.csv", "design_space.csv", "design_space.png", "layers.png"}
    assert {path.name for path in finished.out.iterdir()} == names | pictures
    said = json.loads((finished.out / "summary.json").read_text())
    assert said["format"] == 1
    assert said["final"] == said["finetuned"]
    assert said["final"]["parameters"] < said["baseline"]["parameters"]
    assert 0 < said["final"]["accuracy"]["test"] <= 1
    assert {row["method"] for row in said["layers"]} - {None}


def test_file_sizes_are_those_of_each_stage(finished: Finished) -> None:
    said = json.loads((finished.out / "summary.json").read_text())
    assert said["final"]["file_bytes"] == (finished.out / "compressed.keras").stat().st_size
    assert said["factorized"]["file_bytes"] > 4 * said["factorized"]["parameters"]


def test_a_pattern_that_matches_no_layer_is_named(call: Call, tmp_path: Path) -> None:
    said = call("run", MODEL, "--cache", tmp_path / "c", "--out", tmp_path / "o", "--methods", "svd",
                "--set", 'explore.skip=["fc*", "conv1"]')  # fmt: skip
    assert said.code == 0
    assert "explore.skip: no layer matches 'fc*'" in said.out
    assert "'conv1'" not in said.out


def test_json_is_all_that_is_printed(finished: Finished, call: Call, tmp_path: Path) -> None:
    arguments = [*finished.arguments, "--cache", finished.cache, "--json"]
    said = call("run", *arguments, "--out", tmp_path)
    assert said.code == 0
    assert json.loads(said.out)["nodes"]["run"] == {}
    assert json.loads(call("plan", *arguments).out)["complete"]
    model = finished.arguments[0]
    layers = json.loads(call("inspect", model, "--cache", finished.cache, "--json").out)["layers"]
    kernels = [row for row in layers if row["kind"]]
    explained = json.loads(call("explain", model, kernels[0]["name"], *arguments[1:]).out)
    assert explained["candidates"]
    assert json.loads(call("cache", "du", "--cache", finished.cache, "--json").out)["score"]["entries"] > 0


def test_a_hybrid_edited_by_hand_is_used_as_it_is(finished: Finished, call: Call, tmp_path: Path) -> None:
    cache = shutil.copytree(finished.cache, tmp_path / "cache")
    hybrid = tmp_path / "hybrid.toml"
    name = next(r["name"] for r in json.loads((finished.out / "summary.json").read_text())["layers"] if r["method"])
    hybrid.write_text(f'[layers."{name}"]\nmethod = "keep"\n')
    model, *options = finished.arguments
    images = [*options[: options.index("--policy")], "--set", "repair.enabled=false"]
    said = call(
        "run", model, *images, "--cache", cache, "--configuration", hybrid, "--until", "select",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert said.code == 0
    assert not [row for row in json.loads(said.out)["layers"] if row["method"]]


def test_a_terminal_of_any_width_cuts_nothing_off(
    finished: Finished, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    model, *options = finished.arguments
    strict = with_changes([*options, "--min-similarity", "1.0", "--cache", str(finished.cache), "--until", "select"])
    said = call("run", model, *strict, "--out", tmp_path)
    assert "…" not in said.out
    assert "kept: no candidate reaches cosine 1" in " ".join(said.out.split())


# Looking, without running -------------------------------------------------------------------------------------------


def test_inspect_lists_every_layer(finished: Finished, call: Call) -> None:
    import keras

    said = call("inspect", finished.arguments[0], "--cache", finished.cache)
    assert said.code == 0
    for layer in keras.models.load_model(finished.arguments[0]).layers:
        assert layer.name in said.out or isinstance(layer, keras.layers.InputLayer)
    assert "svd_channel" in said.out


def test_break_even_is_where_the_saving_ends() -> None:
    from lrfgraph.commands.inspect import break_even
    from lrfgraph.layers.pieces import cost
    from lrfgraph.layers.spec import LayerSpec
    from lrfgraph.methods import METHODS

    shape = ((8, 8, 64),)
    kernel, sizes = (1, 3, 3, 64, 64), {"input_shapes": shape, "output_shapes": shape}
    conv = LayerSpec("c", "Conv2D", "conv2d", kernel, (1, 1), (1, 1), "same", **sizes)
    # r (I + S + O) < S I O and r (S I + O) < S I O, counted by hand
    assert break_even(METHODS["cp"], conv) == (36864 // 137,)
    assert break_even(METHODS["svd_channel"], conv) == (57,)
    for name in ("cp", "svd_channel", "svd_spatial", "tucker", "tt"):
        rank = break_even(METHODS[name], conv)
        assert rank is not None
        assert cost(conv, METHODS[name].pieces(conv, rank)).parameters < 36864
    scalar = LayerSpec("s", "Dense", "dense", (1, 1, 4), input_shapes=((1,),), output_shapes=((4,),))
    assert break_even(METHODS["svd"], scalar) is None


def test_explain_names_the_chosen_and_what_excluded_the_rest(finished: Finished, call: Call) -> None:
    said = json.loads((finished.out / "summary.json").read_text())
    layer = next(row for row in said["layers"] if row["method"])
    model, *options = finished.arguments
    told = call("explain", model, layer["name"], *options, "--cache", finished.cache)
    assert told.code == 0
    chosen = [line for line in told.out.splitlines() if line.endswith("chosen by policy threshold")]
    assert [line.split()[0] for line in chosen] == [layer["method"]]
    assert "cosine below 0.9" in told.out
    assert "made with" in told.out


def test_explain_a_layer_without_kernel_says_so(finished: Finished, call: Call) -> None:
    model, *options = finished.arguments
    layers = json.loads(call("inspect", model, "--cache", finished.cache, "--json").out)["layers"]
    name = next(row["name"] for row in layers if row["kind"] is None)
    said = call("explain", model, name, *options, "--cache", finished.cache)
    assert said.code == 2
    assert "no kernel" in said.err


# The cache ----------------------------------------------------------------------------------------------------------


def test_cache_commands(finished: Finished, call: Call, tmp_path: Path) -> None:
    cache = shutil.copytree(finished.cache, tmp_path / "cache")
    at = ("--cache", cache)
    runs = json.loads(call("cache", "ls", *at, "--json").out)
    name = json.loads((finished.out / "summary.json").read_text())["run"]
    assert name in {run["run"] for run in runs}
    assert name in call("cache", "ls", *at).out
    assert "/score" in call("cache", "ls", "--kind", "score", *at).out
    assert "model/describe" in call("cache", "ls", "--run", name, *at).out
    assert call("cache", "verify", *at).code == 0
    assert call("cache", "pin", name, *at).code == 0
    for other in {run["run"] for run in runs} - {name}:
        assert call("cache", "rm", other, *at).code == 0
    assert "removed 0 entries" in call("cache", "gc", "--max-size", "0", *at).out
    assert call("cache", "unpin", name, *at).code == 0
    assert "would remove" in call("cache", "gc", "--max-size", "0", "--dry-run", *at).out
    assert "removed 0" not in call("cache", "rm", "--kind", "score", *at).out
    assert call("cache", "rm", name, *at).code == 0
    assert not list((cache / "v2").glob("describe/*/*"))


def test_verify_finds_a_flipped_byte_and_the_next_run_mends_it(finished: Finished, call: Call, tmp_path: Path) -> None:
    cache = shutil.copytree(finished.cache, tmp_path / "cache")
    chunk = next((cache / "v2" / "record").rglob("rows/c.*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    said = call("cache", "verify", "--cache", cache)
    assert said.code == 1
    assert "1 damaged" in said.out
    assert call("cache", "verify", "--remove", "--cache", cache).code == 0
    again = call("run", *finished.arguments, "--until", "select", "--cache", cache, "--out", tmp_path / "o", "--json")
    assert json.loads(again.out)["nodes"]["run"].keys() == {"record"}


# As a process -------------------------------------------------------------------------------------------------------

WATCH = """
import atexit, sys
atexit.register(lambda: print("loaded:", *sorted({"tensorflow", "keras", "dask", "scipy", "zarr"} & set(sys.modules))))
"""


def _process(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process that says at its end which heavy libraries it had loaded."""
    (tmp_path / "hook").mkdir(exist_ok=True)
    (tmp_path / "hook" / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join([str(tmp_path / "hook"), str(DATA.parent.parent)])
    command = [sys.executable, "-m", "lrfgraph", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.mark.parametrize(
    "more",
    [(), ("--until", "select"), ("--until", "select", "--min-similarity", "0.8")],
    ids=["same", "until", "other"],
)
def test_what_is_cached_needs_no_tensorflow(finished: Finished, tmp_path: Path, more: tuple[str, ...]) -> None:
    cache = shutil.copytree(finished.cache, tmp_path / "cache")
    model, *options = finished.arguments
    said = _process(tmp_path, "run", model, *with_changes([*options, *more]), "--cache", cache)
    assert said.returncode == 0, said.stderr
    assert said.stderr == ""
    assert "tensorflow" not in said.stdout.splitlines()[-1]
    assert "loaded:" in said.stdout.splitlines()[-1]
    if not more:
        assert said.stdout.splitlines()[-1] == "loaded:"
        assert "nodes: 0 run" in said.stdout


def test_help_loads_nothing(tmp_path: Path) -> None:
    said = _process(tmp_path, "--help")
    assert said.returncode == 0
    assert said.stdout.splitlines()[-1] == "loaded:"


def test_tensorflow_starts_without_a_word(tmp_path: Path) -> None:
    said = _process(tmp_path, "inspect", MODEL)
    assert said.returncode == 0
    assert said.stderr == ""
    assert "tensorflow" in said.stdout.splitlines()[-1]


def test_plan_has_an_exit_code_of_its_own(finished: Finished, call: Call, tmp_path: Path) -> None:
    assert call("plan", *finished.arguments, "--cache", finished.cache).code == 0
    assert call("plan", *finished.arguments, "--cache", tmp_path / "none").code == 3
    assert not (tmp_path / "none").exists()


# The tables ---------------------------------------------------------------------------------------------------------


def test_no_two_options_have_one_flag() -> None:
    flags = [option.flag for option in OPTIONS.values() if option.flag]
    assert len(set(flags)) == len(flags)
    assert all(flag.startswith("--") for flag in flags)


@pytest.mark.parametrize("command", ["run", "select", "plan", "explain"])
def test_commands_that_run_take_all_flags(command: str, call: Call) -> None:
    said = call(command, "--help").out
    for option in OPTIONS.values():
        assert not option.flag or f"{option.flag} " in said


def test_a_command_that_looks_takes_what_it_reads(call: Call) -> None:
    said = call("inspect", "--help").out
    for option in OPTIONS.values():
        assert not option.flag or (f"{option.flag} " in said) == option.looking


def test_progress_is_drawn_on_standard_error_where_somebody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrfgraph.engine.events import Event
    from lrfgraph.report.progress import Progress

    events = [
        Event("progress", "", "record", total=2),
        Event("progress", "", "score", total=3),
        Event("reused", "a/score", "score"),
        Event("started", "b/record", "record"),
        Event("progress", "b/record", "record", done=3, total=4, message="images"),
        Event("finished", "b/record", "record", seconds=1.0),
        Event("discarded", "c/score", "score", message="wrong checksum"),
        Event("waited", "c/score", "score"),
    ]
    with Progress() as quiet:
        for event in events:
            quiet(event)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Progress() as drawn:
        for event in events[:5]:
            drawn(event)
        drawn.pause()
        print("between")
        for event in events[5:]:
            drawn(event)
    printed = capsys.readouterr()
    assert printed.out == "between\n"
    assert "record 3 of 4, images" in printed.err
    assert "score 1 of 3" in printed.err
