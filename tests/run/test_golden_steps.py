"""Golden results of every step on a tiny run: numbers that change ask for a new version.

What is stored is keyed by the versions of the steps that made it. A step whose numbers changed gets the next version,
and ``python -m tests.run.test_golden_steps`` writes anew what stands on it, and nothing else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.api import compress, prune, train
from lrfgraph.engine.entry import Entry
from lrfgraph.engine.maintenance import list_entries
from lrfgraph.engine.nodes import Ref
from lrfgraph.engine.store import Store
from lrfgraph.methods import METHODS
from lrfgraph.options.recipe import Recipe
from lrfgraph.run.steps import STEPS

DATA = Path(__file__).parents[1] / "data"
FILE = DATA / "golden" / "steps.json"
ORDER = (
    "describe", "data", "record", "curvature", "couple", "importance", "widths", "prune", "adjust", "decompose",
    "ranks", "factorize", "score", "noise", "probe", "select", "repair", "rebuild", "finetune", "matricize", "epoch",
    "absorb", "export", "evaluate",
)  # fmt: skip
USED = ("svd_channel", "cp", "svd")
"""All methods have golden numbers of their own; here a matrix method and an alternating one are enough."""
MEASURED_ANEW = {"file_bytes", "seconds", "step_seconds", "step_cpu_seconds", "peak", "difference"}
"""What differs from run to run."""
RELATIVE = dict.fromkeys(("adjust", "repair", "rebuild", "finetune", "epoch", "absorb", "evaluate"), 2e-2)
"""Solvers and training amplify the rounding of another processor's sums; all other steps agree to `CLOSE`."""
CLOSE = 2e-3
RECIPE = {
    "data": {"source": str(DATA / "tiny_digits.npz"), "scale": 1 / 255, "calibration": 80, "validation": 60},
    "explore": {"ranks": 2, "methods": list(USED)},
    "select": {"policy": "budget", "params": 0.6, "probes": 1},
    "repair": {"rounds": 1, "steps": 5, "rows": 2000},
    "finetune": {"epochs": 1, "batch": 40},
}


def versions(kind: str) -> dict[str, int]:
    """The versions that a kind's numbers stand on: its own, those of the steps before it, and those of methods."""
    steps = {name: STEPS[name].version for name in ORDER[: ORDER.index(kind) + 1]}
    return steps | ({name: METHODS[name].version for name in USED} if "decompose" in steps else {})


@cache
def results() -> dict[str, dict[str, Any]]:
    """By kind and node, the numbers of a run, of one that decides by noise, one that prunes, and one that trains."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.from_dict(RECIPE).with_option("run.cache", folder)
        compress(DATA / "tiny_cnn.keras", recipe)
        noise = recipe.with_option("select.policy", "evbmf").with_option("select.params", None)
        compress(DATA / "tiny_cnn.keras", noise.with_option("select.probes", 0).with_option("run.until", "select"))
        pruned = Recipe.from_dict({**RECIPE, "prune": {"keep": 0.5}, "select": {}, "explore": {}})
        for kind in ("prune", "adjust"):
            prune(DATA / "tiny_cnn.keras", pruned.with_option("run.cache", folder).with_option("run.until", kind))
        shrinking = {"params": 0.6, "epochs": 3, "batch": 40, "labels": False, "weighting": "plain"}
        trained = Recipe.from_dict({"data": RECIPE["data"], "dprp": shrinking}).with_option("run.cache", folder)
        train(DATA / "tiny_cnn.keras", trained.with_option("run.until", "absorb"))
        store = Store(Path(folder))
        by_kind: dict[str, dict[str, Any]] = {kind: {} for kind in ORDER}
        for info in list_entries(store):
            entry = store.open(Ref(info.key, info.key))
            by_kind[info.kind][f"{info.name} {len(by_kind[info.kind])}"] = numbers(entry)
    return {kind: joined(entries) for kind, entries in by_kind.items()}


def joined(entries: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Entries by the names of their nodes alone; those of one name in the order of their numbers."""
    by_name: dict[str, list[list[float]]] = {}
    for name, values in entries.items():
        by_name.setdefault(name.rpartition(" ")[0], []).append(values)
    return {name: [value for values in sorted(several) for value in values] for name, several in by_name.items()}


def numbers(entry: Entry) -> list[float]:
    """What an entry says, and of each array and weight its norm and one inner product with random numbers."""
    arrays = [entry.array(name) for name in sorted(entry.names())]
    if "files/model.keras" in entry.manifest["files"]:
        from keras.models import load_model

        arrays += load_model(entry.file("model.keras"), compile=False).get_weights()
    if "files/state.npz" in entry.manifest["files"]:
        with np.load(entry.file("state.npz"), allow_pickle=False) as saved:
            arrays += [saved[name] for name in sorted(saved.files)]
    said = [significant(value) for value in leaves(entry.data)]
    return said + [significant(value) for array in arrays if array.dtype.kind in "biuf" for value in moments(array)]


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            if name not in MEASURED_ANEW:
                yield from leaves(value[name])
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, int | float):
        yield float(value)


def moments(array: np.ndarray) -> tuple[float, float]:
    random = np.random.default_rng(array.size).normal(size=array.shape)
    return float(np.linalg.norm(array)), float(np.sum(np.asarray(array, np.float64) * random))


def significant(value: float) -> float:
    return float(f"{value:.6g}")


def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def test_every_step_has_its_place_in_the_order() -> None:
    assert set(ORDER) == STEPS.keys()
    assert golden().keys() == STEPS.keys()


@pytest.mark.parametrize("kind", ORDER)
def test_numbers_change_only_with_a_version(kind: str) -> None:
    stored = golden().get(kind, {"versions": None})
    assert stored["versions"] == versions(kind), "python -m tests.run.test_golden_steps writes golden numbers anew"
    received = results()[kind]
    assert received, "the run has no node of this kind"
    assert received.keys() == stored["numbers"].keys()
    for node, values in stored["numbers"].items():
        scale = max(map(abs, values), default=0.0)
        tolerance = RELATIVE.get(kind, CLOSE)
        np.testing.assert_allclose(received[node], values, rtol=tolerance, atol=1e-3 * tolerance * scale, err_msg=node)


if __name__ == "__main__":
    old = golden()
    kept = {kind: old[kind] for kind in ORDER if kind in old and old[kind]["versions"] == versions(kind)}
    new = {kind: {"versions": versions(kind), "numbers": results()[kind]} for kind in ORDER if kind not in kept}
    FILE.write_text(json.dumps({kind: (kept | new)[kind] for kind in ORDER}) + "\n")
    print(f"{FILE}: written anew {', '.join(new) or 'nothing'}")
