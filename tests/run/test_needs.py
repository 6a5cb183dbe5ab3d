"""What stages need is stated before they begin, grows with what is asked for, and is refused where it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, Call, Finished

from lrfgraph import api
from lrfgraph.errors import CapacityError
from lrfgraph.images.sources import npz_bytes
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import needs as module
from lrfgraph.run import stages
from lrfgraph.run.driver import Driver
from lrfgraph.run.needs import NEEDS, Need, check, needs_of
from lrfgraph.run.state import Network

MODEL, IMAGES = DATA / "tiny_cnn.keras", DATA / "tiny_digits.npz"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Driver, Network]:
    recipe = Recipe.from_dict(
        {
            "data": {"source": str(IMAGES), "scale": 1 / 255},
            "run": {"cache": str(tmp_path_factory.mktemp("cache")), "until": "data"},
            "select": {"policy": "threshold"},
        }
    )
    compression = api.compress(MODEL, recipe)
    return compression.driver, compression.network


def stated(known: tuple[Driver, Network], **options: object) -> dict[str, Need]:
    driver, network = known
    recipe = network.recipe
    for key, value in options.items():
        recipe = recipe.with_option(key.replace("__", "."), value)
    return {need.stage: need for need in needs_of(driver, replace(network, recipe=recipe))}


def test_every_stage_states_its_need() -> None:
    assert list(NEEDS) == [stage.name for stage in stages.STAGES]


BUDGET = {"select__policy": "budget", "select__params": 0.5}


PLAIN = {"dprp__enabled": True, "dprp__weighting": "plain"}


@pytest.mark.parametrize(
    ("stage", "fewer", "more"),
    [
        ("explore", {"explore__weighting": "input"}, {}),
        ("probe", {**BUDGET}, {**BUDGET, "select__probes": 2}),
        ("prune", {}, {"prune__method": "fbp", "prune__keep": 0.5}),
        ("train", {}, {"dprp__enabled": True}),
        ("train", {**PLAIN, "dprp__batch": 16}, PLAIN),
        ("train", PLAIN, {**PLAIN, "dprp__weighting": "two_sided"}),  # what weights the matrices is recorded first
        ("rebuild", {"repair__rows": 16}, {}),
        ("rebuild", {"repair__enabled": False}, {}),
        ("finish", {"finetune__batch": 16}, {"finetune__batch": 4096}),
        ("finish", {"finetune__epochs": 0}, {}),
        ("select", {}, {"select__policy": "accuracy"}),
    ],
)
def test_what_is_asked_for_is_what_is_needed(
    known: tuple[Driver, Network], stage: str, fewer: dict[str, object], more: dict[str, object]
) -> None:
    assert stated(known, **fewer)[stage].memory < stated(known, **more)[stage].memory


def test_probes_are_made_unasked_where_images_are_fewer_than_a_layers_outputs(known: tuple[Driver, Network]) -> None:
    _, network = known
    widest = max(layer.outputs for layer in network.factorizable())
    asked = {count: replace(network, recipe=network.recipe.with_option("select.probes", count)) for count in (0, 2)}
    assert [network.probes(images) for images in (widest - 1, widest)] == [3, 0]
    assert [asked[count].probes(widest - 1) for count in (0, 2)] == [0, 2]
    assert replace(network, data=None).probes(1) == 0


def test_disk_is_stated_as_it_is_used(finished: Finished, call: Call) -> None:
    plan = json.loads(call("plan", *finished.arguments, "--cache", finished.cache, "--json").out)
    stated = {need["stage"]: need["disk"] for need in plan["stages"]}
    for stage, kinds in {"data": ("data",), "explore": ("record", "curvature", "decompose", "ranks")}.items():
        manifests = [file for kind in kinds for file in (finished.cache / "v2" / kind).rglob("entry.json")]
        used = sum(json.loads(file.read_text())["bytes"] for file in manifests)
        assert 0.75 < stated[stage] / used < 1.3, (stated[stage], used)


def test_the_first_stage_that_does_not_fit_is_refused_and_says_what_would(
    known: tuple[Driver, Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, network = known
    network = replace(network, recipe=network.recipe.with_option("finetune.batch", 4096))
    plenty = {need.stage: need.memory for need in needs_of(driver, network)}
    limit = plenty["finish"] - 1
    monkeypatch.setattr(module.memory, "allowance", lambda _: limit)
    check(driver, network, ["data"])
    with pytest.raises(CapacityError, match=r"^finish needs .* set finetune.batch=64 .*or raise run.max_memory$"):
        check(driver, network, ["data", "finish"])
    monkeypatch.setattr(module.memory, "allowance", lambda _: 1000)
    with pytest.raises(CapacityError, match=r"^explore .* raise run.max_memory, or take a machine"):
        check(driver, network, ["explore", "rebuild", "finish"])


def test_a_run_that_does_not_fit_is_refused_in_one_line(call: Call, tmp_path: Path) -> None:
    arguments = MODEL, "--data", IMAGES, "--scale", "1/255", "--cache", tmp_path / "cache", "--out", tmp_path / "out"
    said = call("run", *arguments, "--set", "run.max_memory=300MB")
    assert said.code == 2
    assert len(said.err.splitlines()) == 1
    assert "0.3 GB may be taken" in said.err
    assert "raise run.max_memory" in said.err
    assert not (tmp_path / "out").exists()
    assert said.err.startswith("lrfgraph: data needs about")  # before anything of it is read
    assert (
        f"run would be refused: {said.err.removeprefix('lrfgraph: ')}"
        in call("plan", *arguments, "--set", "run.max_memory=300MB").out
    )
    plan = json.loads(call("plan", *arguments, "--json", "--set", "run.max_memory=300MB").out)
    assert plan["max_memory"] == 300_000_000
    assert plan["refused"] in said.err
    assert [need["stage"] for need in plan["stages"]] == [stage for stage in NEEDS if stage not in ("prune", "train")]
    assert all(need["memory"] > 300_000_000 for need in plan["stages"])


def test_what_is_read_of_a_file_is_known_from_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"x": np.zeros((500, 32, 32, 3), np.uint8), "y": np.zeros(500, np.int64)}
    np.savez_compressed(tmp_path / "images.npz", **arrays)
    assert npz_bytes(tmp_path / "images.npz") == sum(array.nbytes for array in arrays.values())
    monkeypatch.setattr("lrfgraph.images.archives.IN_MEMORY", 100_000)
    assert npz_bytes(tmp_path / "images.npz") == arrays["y"].nbytes  # images are read by their rows
    (tmp_path / "text.npz").write_text("none")
    assert npz_bytes(tmp_path / "text.npz") == 0


def test_more_training_images_need_no_more_memory(known: tuple[Driver, Network], tmp_path: Path) -> None:
    """Those of a folder, and of a large file; what a function returns is in memory anyway."""
    driver, network = known
    count = {"train": 0, "test": 0, "calibration": 400, "repair": 400, "validation": 100}
    stated = {}
    for source, images in (("folder", 10**5), ("folder", 10**7), ("module:function", 10**5)):
        (tmp_path / "folder").mkdir(exist_ok=True)
        recipe = network.recipe.with_option("data.source", source)
        facts = module._facts(network, driver.data(network.model)["structure"], count | {"train": images}, 10_000)
        size = module._source_bytes(recipe.data, tmp_path, 10_000 * images)
        stated[source, images] = [use(replace(facts, source=size)).memory for use in NEEDS.values()]
    assert stated["folder", 10**5] == stated["folder", 10**7]
    assert max(stated["folder", 10**7]) < 10**9 < max(stated["module:function", 10**5])


def test_what_is_cached_is_never_refused(finished: Finished, call: Call) -> None:
    assert call("run", *finished.arguments, "--cache", finished.cache, "--set", "run.max_memory=1MB").code == 0


def test_plan_says_how_to_know_more_before_the_model_is_read(call: Call, tmp_path: Path) -> None:
    said = call("plan", MODEL, "--cache", tmp_path / "none")
    assert "lrfgraph inspect" in said.out


def test_what_activations_took_stays_taken(known: tuple[Driver, Network], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that runs no network states what passes before it took for theirs."""
    before = stated(known)
    monkeypatch.setattr(module, "GAPS", 2 * module.GAPS)
    after = stated(known)
    assert after["data"].memory == before["data"].memory
    grown = {stage: after[stage].memory - before[stage].memory for stage in after if stage != "data"}
    assert min(grown.values()) == grown["baseline"] > 0
    assert grown["candidates"] == grown["explore"] > grown["baseline"]
