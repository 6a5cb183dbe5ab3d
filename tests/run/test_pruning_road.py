"""The road of filter pruning: what is computed, kept and written, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, Call

from lrfgraph import api
from lrfgraph.layers.rows import add_moments, grouped
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.network.counting import count
from lrfgraph.options.recipe import OPTIONS, Recipe
from lrfgraph.pruning import SCORES
from lrfgraph.pruning.reading import Record, kernel_and_bias, reader_of
from lrfgraph.run.steps import STEPS
from tests.methods.examples import LAYERS, random_kernel

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"
SMALL = {
    "data": {"source": str(IMAGES), "scale": 1 / 255, "calibration": 100, "validation": 60},
    "prune": {"params": 0.6},
    "repair": {"enabled": False},
    "finetune": {"epochs": 0},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pruned") / "cache"


@pytest.fixture
def pruned(cache: Path) -> Callable[..., api.Compression]:
    """Prunes with options of ``[prune]`` and others, all on one cache."""

    def run(until: str | None = None, **options: Any) -> api.Compression:
        sections = {**SMALL, "prune": {**SMALL["prune"], **options}, "run": {"cache": str(cache), "until": until}}
        return api.prune(MODEL, Recipe.from_dict(sections))

    return run


def groups_of(compression: api.Compression) -> list[Any]:
    assert compression.pruned is not None
    return list(compression.driver.data(compression.pruned)["groups"])


def test_a_target_is_met_and_the_written_file_has_it(pruned: Callable[..., api.Compression]) -> None:
    compression = pruned()
    assert compression.pruned is not None
    assert compression.exported is not None
    planned, written = (compression.driver.data(ref) for ref in (compression.pruned, compression.exported))
    assert written["parameters"] == planned["parameters"] <= 0.6 * compression.network.parameters
    assert written["macs"] == planned["macs"]
    assert compression.measured["pruned"]["validation"]["kl"] > 0
    assert not [note for note in compression.notes if "please report" in note]
    assert not pruned().driver.run


@pytest.mark.parametrize("score", SCORES)
def test_every_score_narrows_the_network_as_it_says(score: str, pruned: Callable[..., api.Compression]) -> None:
    compression = pruned("prune", score=score)
    assert compression.pruned is not None
    counted, planned = count(model_of(compression)), compression.driver.data(compression.pruned)
    assert (counted.parameters, counted.macs) == (planned["parameters"], planned["macs"])


def model_of(compression: api.Compression) -> Any:
    import keras

    file = compression.driver.store.open(compression.models["pruned"]).file("model.keras")
    return keras.models.load_model(file, compile=False)


RERUNS = [
    ({"score": "l1"}, {"importance", "widths", "prune"}),
    ({"params": 0.5}, {"widths", "prune"}),
    ({"refit": False}, {"prune"}),
    ({"skip": ["conv1"]}, {"widths", "prune"}),
    ({"spread": "loss"}, set()),
]


@pytest.mark.parametrize(("change", "expected"), RERUNS, ids=[str(change) for change, _ in RERUNS])
def test_what_runs_again_after_a_change(
    change: dict[str, Any], expected: set[str], pruned: Callable[..., api.Compression]
) -> None:
    pruned("prune")
    assert set(pruned("prune", **change).driver.run) <= expected


def test_every_option_that_is_listed_is_read() -> None:
    named = {name for change, _ in RERUNS for name in change} | {"method", "alone", "keep", "macs"}
    assert {f"prune.{name}" for name in named} == {key for key in OPTIONS if key.startswith("prune.")}


@pytest.mark.parametrize("kind", ["couple", "record", "importance", "widths", "prune"])
def test_it_stops_after_a_kind(kind: str, pruned: Callable[..., api.Compression]) -> None:
    compression = pruned(until=kind, keep=0.37, params=None)
    assert compression.stopped
    assert compression.exported is None
    kinds = compression.driver.run | compression.driver.reused
    later = ["couple", "record", "importance", "widths", "prune"]
    assert kind in kinds
    assert not kinds.keys() & set(later[later.index(kind) + 1 :])


def test_a_share_is_kept_of_every_group_and_skipped_ones_whole(pruned: Callable[..., api.Compression]) -> None:
    compression = pruned(until="widths", keep=0.5, params=None, skip=["conv1"])
    names = {group["name"] for group in groups_of(compression)}
    assert names == {"conv2", "hidden"}
    assert all(
        after == round(0.5 * before) for before, after in (group["channels"] for group in groups_of(compression))
    )


def test_the_refit_brings_the_network_nearer(pruned: Callable[..., api.Compression]) -> None:
    import keras

    with np.load(IMAGES, allow_pickle=False) as arrays:
        x = arrays["x_test"][:200].reshape(-1, 14, 14, 1).astype("float32") / 255
    models = [model_of(pruned("prune", score="l1", refit=refit)) for refit in (True, False)]
    original = np.asarray(keras.models.load_model(MODEL, compile=False)(x))
    near, far = (np.square(np.asarray(model(x)) - original).sum() for model in models)
    assert near < 0.8 * far


def test_repair_brings_the_network_nearer_still(cache: Path) -> None:
    repair = {"images": 100, "rows": 4096, "rounds": 1}
    sections = {**SMALL, "repair": repair, "run": {"cache": str(cache)}}
    compression = api.prune(MODEL, Recipe.from_dict(sections))
    assert compression.final == "repaired"
    before, after = (compression.measured[stage]["validation"]["kl"] for stage in ("pruned", "repaired"))
    assert after < before
    adjusted = compression.driver.data(compression.models["repaired"])
    assert adjusted["errors"]
    sections |= {"repair": {**repair, "rounds": 2}, "run": {"cache": str(cache), "until": "adjust"}}
    assert set(api.prune(MODEL, Recipe.from_dict(sections)).driver.run) == {"adjust"}


def test_a_plan_says_what_is_missing_and_then_nothing(pruned: Callable[..., api.Compression], cache: Path) -> None:
    pruned()
    sections = {**SMALL, "prune": {**SMALL["prune"], "method": "fbp", "alone": True}, "run": {"cache": str(cache)}}
    recipe = Recipe.from_dict(sections)
    driver, complete = api.plan(MODEL, recipe)
    assert complete
    assert not driver.run
    driver, complete = api.plan(MODEL, recipe.with_option("prune.params", 0.3))
    assert not complete
    assert driver.run == {"widths": 1}


# A layer as a reader ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [spec for spec in LAYERS if spec.family.mixes_channels], ids=lambda spec: spec.name)
def test_a_reader_gives_the_layers_outputs(spec: LayerSpec) -> None:
    rng = np.random.default_rng(0)
    positions = spec.positions if spec.rows == "patch" else 1
    rows = rng.normal(size=(50, positions, spec.groups * spec.inputs)).astype("float32")
    total = np.zeros((spec.groups, spec.width + 1, spec.width + 1))
    add_moments(total, spec, rows)
    kernel = random_kernel(spec)
    numbers = np.arange(spec.groups * spec.inputs).reshape(spec.groups, -1)
    for moments in (total / 50, None):
        reader = reader_of(Record(spec, kernel, None, None, rows, moments), numbers)
        assert reader.matrix.shape[:2] == reader.numbers.shape == reader.moments.shape[:2]
        assert np.allclose(reader.moments[:, : spec.width, : spec.width], total[:, :-1, :-1] / 50, rtol=1e-4, atol=1e-5)
        assert np.array_equal(kernel_and_bias(spec, reader.matrix)[0], kernel)
    # what a channel's rows contribute is what the layer makes of an input that has this channel alone
    channel = int(numbers[-1, -1])
    alone = np.where(np.arange(rows.shape[2]) == channel, rows, 0)
    whole = grouped(spec, alone) @ spec.matrix(kernel)
    own = grouped(spec, rows)[-1] * (reader.numbers[-1, : spec.width] == channel) @ reader.matrix[-1, : spec.width]
    assert np.allclose(whole[-1], own, atol=1e-5)


# The command line ---------------------------------------------------------------------------------------------------

COMMON = ("--data", IMAGES, "--scale", "1/255", "--set", "data.calibration=100", "--set", "data.validation=60")


def test_the_command_writes_a_smaller_model(call: Call, cache: Path, tmp_path: Path) -> None:
    import keras

    out = tmp_path / "out"
    said = call("prune", MODEL, *COMMON, "--keep", "0.5", "--epochs", "1", "--cache", cache, "--out", out)
    assert said.code == 0, said.err
    assert "channels of" in said.out
    assert "kept: leaves the network" in said.out
    summary = json.loads((out / "summary.json").read_text())
    model = keras.models.load_model(out / "compressed.keras", compile=False)
    assert count(model).parameters == summary["final"]["parameters"] == summary["pruned"]["parameters"]
    assert summary["finetuned"]["accuracy"]["validation"] is not None
    assert summary["factorized"] is None
    assert summary["repaired"]["parameters"] == summary["pruned"]["parameters"]
    assert {group["name"] for group in summary["pruning"]["groups"]} == {"conv1", "conv2", "hidden"}
    assert (out / "recipe.toml").read_text().count('method = "fbp"') == 1
    assert not (out / "hybrid.toml").exists()
    again = call("run", MODEL, "--recipe", out / "recipe.toml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["nodes"]["run"] == {}


def test_channels_first_and_ranks_after_them(call: Call, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*COMMON, "--prune", "fbp", "--keep", "0.7", "--params", "0.3", "--epochs", "0"]
    words += ["--set", "explore.ranks=3", "--set", "repair.images=80", "--set", "repair.steps=5"]
    said = call("run", MODEL, *words, "--cache", cache, "--out", out)
    assert said.code == 0, said.err
    summary = json.loads((out / "summary.json").read_text())
    sizes = [summary[stage]["parameters"] for stage in ("baseline", "pruned", "factorized")]
    assert sizes == sorted(sizes, reverse=True)
    assert summary["final"]["parameters"] <= 0.3 * sizes[0]  # a share of the original, whatever pruning left
    assert summary["pruned"]["parameters"] == summary["pruning"]["parameters"]
    assert any(layer["method"] for layer in summary["layers"])
    assert not [warning for warning in summary["warnings"] if "please report" in warning]
    again = call("plan", MODEL, *words, "--cache", cache)
    assert again.code == 0
    assert "nothing to run" in again.out
    given = call("run", MODEL, *COMMON, "--prune", "fbp", "--keep", "0.7", "--configuration", out / "hybrid.toml")
    assert given.code == 2
    assert "is for the network as it is" in given.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (COMMON, "told how much stays"),
        (("--keep", "0.5"), "received no images; give some with --data"),
        ((*COMMON, "--keep", "1.5"), "keep must be"),
        ((*COMMON, "--params", "0.001"), "one channel a group is the least that can be kept"),
        ((*COMMON, "--keep", "0.5", "--params", "0.5"), "--params has no effect where prune.keep is 0.5"),
        (COMMON, "give --keep, --params or --macs"),
        (("--keep", "0.5"), "or take --score l1"),
        ((*COMMON, "--keep", "0.5", "--set", "prune.alone=false"), "prune is with prune.alone = true, received false"),
        ((*COMMON, "--keep", "0.5", "--score", "l2"), "'l2' is unknown, did you mean 'l1'?"),
        ((*COMMON, "--keep", "0.5", "--policy", "budget"), "no such option: --policy"),
        ((*COMMON, "--keep", "0.5", "--set", "select.params=0.5"), "nothing is factorized"),
        ((*COMMON, "--keep", "0.5", "--set", "prune.skip=*"), "no channel of the model can be removed"),
    ],
)
def test_bad_input_is_one_line(words: tuple[Any, ...], message: str, call: Call, cache: Path, tmp_path: Path) -> None:
    said = call("prune", MODEL, *words, "--cache", cache, "--out", tmp_path / "out")
    assert said.code == 2
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_images_channels_go_by_their_filters(call: Call, cache: Path, tmp_path: Path) -> None:
    words = ("--keep", "0.5", "--score", "fpgm", "--until", "prune", "--cache", cache, "--out", tmp_path / "out")
    said = call("prune", MODEL, *words)
    assert said.code == 0, said.err
    assert "no accuracy was measured" in said.out


def test_steps_of_pruning_are_steps() -> None:
    assert {"couple", "importance", "widths", "prune", "adjust"} <= STEPS.keys()
