"""Golden results of every step on tiny inputs: numbers that change ask for a new version.

What is stored is keyed by a step's version. Each step runs on inputs that no other step made, or on those of the
steps that `AFTER` names, whose versions are then part of its entry's name. ``python -m tests.run.test_golden_steps``
writes the entries that are missing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from lrfgraph.engine.nodes import Node, Ref, Result, Task
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes
from lrfgraph.run.state import Exploration, Network
from lrfgraph.run.steps import STEPS, passes, probes
from lrfgraph.run.steps import models as model_steps
from lrfgraph.selection.problem import CandidateId

DATA = Path(__file__).parents[1] / "data"
FILE = DATA / "golden" / "steps.json"
MODEL = DATA / "tiny_cnn.keras"
ELSEWHERE = {"data", "finetune", "export", "evaluate"}
"""Steps of sources, training and files, which read what is no tiny input; their tests compare them with references."""

AFTER = {
    "ranks": ("decompose",),
    "factorize": ("decompose",),
    "score": ("decompose", "factorize"),
    "probe": ("decompose", "factorize"),
    "repair": ("decompose", "factorize"),
    "rebuild": ("decompose", "factorize", "repair"),
}
KINDS = sorted(STEPS.keys() - ELSEWHERE)


def key(kind: str) -> str:
    after = "".join(f", after {name} {STEPS[name].version}" for name in AFTER.get(kind, ()))
    return f"{kind}, version {STEPS[kind].version}{after}"


# Running steps on their own -----------------------------------------------------------------------------------------


def entry(result: Result, identity: str, part: str = "") -> Any:
    """A result as the step that reads it sees it."""
    arrays = {name.removeprefix(f"{part}/"): value for name, value in result.arrays.items() if name.startswith(part)}
    return SimpleNamespace(
        identity=identity,
        data=json.loads(json.dumps(result.data)),
        array=lambda name: np.asarray(arrays[name]),
        names=lambda: list(arrays),
        file=lambda name: result.files[name],
    )


def computed(node: Node, folder: Path, **inputs: Any) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    params = json.loads(json.dumps(node.params))
    task = Task(node.name, params, inputs, node.locators, lambda: folder, lambda done, total, message: None)
    return STEPS[node.step].compute(task)


def images_of(*_: Any) -> tuple[np.ndarray, None]:
    """Smooth noise in place of a split's images."""
    raw = np.random.default_rng(3).random((96, 16, 16, 1))
    smooth = sum(raw[:, i : i + 14, j : j + 14] for i in range(3) for j in range(3)) / 9
    return smooth.astype("float32"), None


def synthetic(layer: LayerSpec) -> tuple[Result, Result]:
    """A record and a curvature of a layer that no step made."""
    rng = np.random.default_rng(layer.weights)
    positions = layer.positions if layer.rows == "patch" else 1
    rows = rng.normal(0.3, 1.0, (300, positions, layer.groups * layer.inputs)).astype("float32")
    flat = np.concatenate([rows.reshape(300, 1, -1).swapaxes(0, 1), np.ones((1, 300, 1))], axis=2)
    root = rng.normal(size=(layer.groups, layer.outputs, layer.outputs))
    record = Result({}, {"rows": rows, "moments": flat.swapaxes(1, 2) @ flat / 300})
    return record, Result({}, {"curvature": root @ root.swapaxes(1, 2)})


@cache
def results() -> dict[str, list[Result]]:
    """Every step's results, by kind; files stay where a folder of this process is."""
    folder = Path(tempfile.mkdtemp())
    patches = [mock.patch.object(module, "images_of", images_of) for module in (passes, probes, model_steps)]
    for patch in patches:
        patch.start()
    try:
        return _results(folder)
    finally:
        for patch in patches:
            patch.stop()


def _results(folder: Path) -> dict[str, list[Result]]:
    recipe = Recipe().with_option("explore.ranks", 3).with_option("record.rows", 64).with_option("repair.steps", 10)
    recipe = recipe.with_option("repair.rows", 2000)
    described = computed(nodes.describe_node(str(MODEL), "digest", recipe, None), folder / "describe")
    model = entry(described, "network")
    network = network_of(described.data, recipe)
    every: dict[str, list[Result]] = {"describe": [described], "noise": [], "score": [], "probe": []}
    images = SimpleNamespace(identity="images", data={})
    for kind, of_layers in (("record", nodes.record_nodes), ("curvature", nodes.curvature_nodes)):
        every[kind] = [computed(node, folder, model=model, data=images) for node in of_layers(network).values()]

    layers = {layer.name: layer for layer in network.factorizable()}
    chosen = {}
    for name in ("decompose", "ranks", "factorize"):
        every[name] = []
    records, curvatures = (f(network) for f in (nodes.record_nodes, nodes.curvature_nodes))
    decompositions = nodes.decompose_nodes(network, records, curvatures, None)
    rank_nodes = nodes.rank_nodes(network, decompositions)
    for (name, method), node in decompositions.items():
        record, curvature = (entry(each, f"{name} synthetic") for each in synthetic(layers[name]))
        weights = entry(described, layers[name].identity, f"layers/{network.layers.index(layers[name])}")
        decomposition = computed(node, folder, weights=weights, record=record, curvature=curvature)
        prepared = entry(decomposition, "prepared")
        ranks = computed(rank_nodes[name, method], folder, prepared=prepared)
        every["decompose"].append(decomposition)
        every["ranks"].append(ranks)
        if not ranks.data["ranks"]:
            continue
        candidate = CandidateId(name, method, ranks.data["ranks"][0])
        exploration = Exploration(
            factors={candidate: Ref("f", "f")}, decompositions={(name, method): Ref("d", "d")},
            records={name: Ref("r", "r")}, curvatures={name: Ref("c", "c")},
        )  # fmt: skip
        factor_nodes, score_nodes = nodes.candidate_nodes(network, exploration, [candidate])
        factors = computed(factor_nodes[candidate], folder, prepared=prepared)
        every["factorize"].append(factors)
        measured = {"weights": weights, "record": record, "curvature": curvature}
        found = {"prepared": prepared, "factors": entry(factors, "factors")}
        every["score"].append(computed(score_nodes[candidate], folder, **measured, **found))
        chosen[name] = candidate, found
    noise = replace(network, recipe=recipe.with_option("select.policy", "evbmf"))
    for name, node in nodes.noise_nodes(noise, list(layers)).items():
        weights = entry(described, name, f"layers/{network.layers.index(layers[name])}")
        every["noise"].append(computed(node, folder, weights=weights))
    for candidate, found in chosen.values():
        exploration = Exploration(factors={candidate: Ref("f", "f")}, decompositions={candidate[:2]: Ref("d", "d")})
        probe = nodes.probe_nodes(network, exploration, [candidate])[candidate]
        every["probe"].append(computed(probe, folder, model=model, data=images, **found))
    every |= _models(network, model, images, chosen, folder)
    every["select"] = [select(network, every["score"], list(chosen.values()))]
    return every


def _models(
    network: Network, model: Any, images: Any, chosen: Mapping[str, tuple[CandidateId, dict[str, Any]]], folder: Path
) -> dict[str, list[Result]]:
    """Repair and rebuild one candidate of every layer."""
    candidates = [candidate for candidate, _ in chosen.values()]
    exploration = Exploration(
        factors={c: Ref("f", "f") for c in candidates},
        decompositions={c[:2]: Ref("d", "d") for c in candidates},
    )
    rebuilt: list[Result] = []
    repaired: list[Result] = []
    for node in nodes.rebuild_nodes(network, candidates, exploration):
        inputs = {"model": model}
        if node.step == "repair":
            _, found = chosen[node.params["choice"][0]]
            inputs |= {"data": images} | {f"own/{name}": value for name, value in found.items()}
            inputs |= {f"previous/{i}": entry(each, "previous") for i, each in enumerate(repaired)}
            repaired.append(computed(node, folder, **inputs))
            continue
        for index, (_, found) in enumerate(chosen.values()):
            inputs |= {f"{index}/{name}": value for name, value in found.items()}
        if node.name != "rebuild":
            inputs |= {f"{index}/repair": entry(each, "repair") for index, each in enumerate(repaired)}
        rebuilt.append(computed(node, folder / node.name.replace("/", "-"), **inputs))
    return {"repair": repaired, "rebuild": rebuilt}


def network_of(described: Mapping[str, Any], recipe: Recipe) -> Network:
    structure = described["structure"]
    return Network(
        Ref("network", "describe/model"),
        tuple(LayerSpec.from_json(json.loads(json.dumps(layer))) for layer in described["layers"]),
        described["network"],
        described["parameters"],
        described["macs"],
        "softmax",
        structure["activation"],
        recipe,
        data=Ref("images", "data/images"),
        images={part: part for part in ("calibration", "repair", "validation")},
    )


def select(network: Network, scores: list[Result], chosen: list[tuple[CandidateId, Any]]) -> Result:
    """A budget over synthetic scores: every candidate costs a share and loses what a seed says."""
    rng = np.random.default_rng(1)
    candidates = {}
    for (last, _), score in zip(chosen, scores[-len(chosen) :], strict=True):
        whole = next(layer for layer in network.layers if layer.name == last.layer).weights
        for step in range(1, 9):
            loss = float(rng.uniform(0.5, 1.5) / step**2)
            data = {**score.data, "parameters": whole * step // 9, "macs": whole * step // 9, "distortion": loss}
            data |= {"predicted": loss, "similarity": dict.fromkeys(score.data["similarity"], 1 - loss / 4)}
            candidates[CandidateId(last.layer, "svd", str(step))] = Result(data)
    recipe = network.recipe.with_option("select.policy", "budget").with_option("select.params", 0.4)
    exploration = Exploration(scores={candidate: Ref(str(candidate), "s") for candidate in candidates})
    budget = replace(network, recipe=recipe)
    node = nodes.select_node(budget, exploration, budget.policy)
    by_identity = {str(candidate): entry(result, "score") for candidate, result in candidates.items()}
    inputs = {name: by_identity[ref.identity] for name, ref in node.inputs.items() if isinstance(ref, Ref)}
    return computed(node, Path(tempfile.gettempdir()), **inputs)


# Numbers ------------------------------------------------------------------------------------------------------------


def numbers(result: Result) -> dict[str, float]:
    """All numbers of a result by name: those of its data, norm and projection of each array, a model's outputs."""
    values = dict(_leaves(result.data, ""))
    for name, array in result.arrays.items():
        values |= {f"{name} norm": float(np.linalg.norm(array)), f"{name} projection": projection(array)}
    if "model.keras" in result.files:
        import keras

        model = keras.models.load_model(result.files["model.keras"], compile=False)
        outputs = np.asarray(model(images_of()[0][:8], training=False))
        values |= {"model parameters": float(model.count_params()), "model projection": projection(outputs)}
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def projection(array: np.ndarray) -> float:
    return float(np.sum(array * np.random.default_rng(array.size).normal(size=array.shape)))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool | int | float):
        yield name, float(value)
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key_of_item, item in items:
            yield from _leaves(item, f"{name}/{key_of_item}")


def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_change_only_with_the_version(kind: str) -> None:
    stored = golden().get(key(kind))
    assert stored is not None, f"no golden numbers of {key(kind)}; python -m tests.run.test_golden_steps writes them"
    received = [numbers(result) for result in results()[kind]]
    assert len(received) == len(stored) > 0
    for ours, expected in zip(received, stored, strict=True):
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert ours[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name


def test_no_entry_without_a_step() -> None:
    assert golden().keys() == {key(kind) for kind in KINDS}


def write(make: Callable[[], dict[str, list[Result]]] = results) -> None:
    entries = golden()
    written = {key(kind): entries.get(key(kind)) or [numbers(result) for result in make()[kind]] for kind in KINDS}
    FILE.write_text(json.dumps(written, indent=1) + "\n")
    print(f"{FILE}: {len(written.keys() - entries.keys())} new, {len(entries.keys() - written.keys())} dropped")


if __name__ == "__main__":
    write()
