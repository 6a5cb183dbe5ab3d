"""Every network, end to end: a run completes, full rank changes nothing, declared costs are those of the files.

    python pipelines/benchmarks/zoo.py --models MODELS --data DATA --cache CACHE --out zoo.json

Exit status 1 where anything fails.  The files' check in a fresh process is part of every run (step `export`).
"""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

import numpy as np
from networks import NETWORKS, arguments, model_path, print_table, recipe_of, write

from lrfgraph.api import compress
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS

TOLERANCE = 1e-4
IMAGES = 16


def main() -> int:
    parser = arguments(__doc__ or "", list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=0, help="epochs of fine-tuning")
    parser.add_argument("--policy", default="threshold", help="how the configuration is chosen")
    parser.add_argument("--repair", action="store_true", help="repair it, too")
    given = parser.parse_args()
    found, rows = {}, []
    for name in given.networks:
        started = time.perf_counter()
        try:
            said = measure(name, given)
        except Exception as error:
            traceback.print_exc()
            said = {"problems": [f"{type(error).__name__}: {error}"]}
        said["seconds"] = round(time.perf_counter() - started, 1)
        found[name] = said
        worst = max(said.get("full_rank", {}).values(), default=float("nan"))
        kept = said.get("parameters", [0, float("nan")])
        rows.append([name, kept[1] / max(kept[0], 1), worst, said["seconds"], "; ".join(said["problems"]) or "ok"])
        print(f"{name}: {'; '.join(said['problems']) or 'ok'} ({said['seconds']} s)", flush=True)
        write(given.out, {"tolerance": TOLERANCE, "networks": found})
    print_table(["network", "kept", "full rank", "seconds", "problems"], rows)
    return int(any(said["problems"] for said in found.values()))


def measure(name: str, given: Any) -> dict[str, Any]:
    """Run one network, compare what was declared with what was written, and rebuild it at full rank."""
    recipe = recipe_of(name, given, finetune__epochs=given.epochs, select__policy=given.policy)
    outcome = compress(model_path(name, given), recipe.with_option("repair.enabled", given.repair))
    assert outcome.decision is not None
    assert outcome.exported is not None
    counted = outcome.driver.data(outcome.exported)
    problems = [
        f"declared {getattr(outcome.decision, key):,} {key}, counted {counted[key]:,}"
        for key in ("parameters", "macs")
        if getattr(outcome.decision, key) != counted[key]
    ]
    factorized = outcome.decision.configuration
    if not factorized:
        problems.append("nothing was factorized")
    exact = full_rank(outcome)
    problems += [f"{method} at full rank is off by {error:.1e}" for method, error in exact.items() if error > TOLERANCE]
    splits = {
        stage: {p: m.get("accuracy", m.get("mse")) for p, m in parts.items()}
        for stage, parts in outcome.measured.items()
    }
    return {
        "problems": problems,
        "parameters": [outcome.network.parameters, counted["parameters"]],
        "macs": [outcome.network.macs, counted["macs"]],
        "layers": [len(factorized), sum(1 for _ in outcome.network.factorizable())],
        "measured": splits,
        "full_rank": exact,
        "nodes": {"run": dict(outcome.driver.run), "reused": dict(outcome.driver.reused)},
        "stages": {stage: round(seconds, 2) for stage, seconds in outcome.driver.seconds.items()},
    }


def full_rank(outcome: Any) -> dict[str, float]:
    """Return, by method, the largest change of the output (relative to its scale) when all layers are at full rank.

    A last softmax is left out: on random inputs it is saturated and would hide any error.
    """
    import keras

    from lrfgraph.network.graph import input_structure
    from lrfgraph.network.rebuilding import Chain, rebuild
    from lrfgraph.run.steps.common import fresh_network_of

    entry = outcome.driver.store.open(outcome.network.model)
    model, rng = fresh_network_of(entry, {"custom": [], "unsafe": False}), np.random.default_rng(0)
    if getattr(getattr(model.layers[-1], "activation", None), "__name__", "") == "softmax":
        model.layers[-1].activation = keras.activations.linear
    elif isinstance(model.layers[-1], keras.layers.Softmax):
        model = keras.Model(model.inputs, model.layers[-1].input)
    x = keras.tree.map_structure(
        lambda t: rng.normal(size=(IMAGES, *(n or 32 for n in t.shape[1:]))).astype("float32"), input_structure(model)
    )
    wanted = np.asarray(model(x, training=False))
    errors = {}
    for name, method in METHODS.items():
        chains = {}
        for index, layer in outcome.network.factorizable():
            rank = "" if method.reason(layer) else method.full_rank(layer)
            if rank:
                kernel = entry.array(f"layers/{index}/kernel").astype(np.float64)
                chains[layer.name] = Chain(name, method.pieces(layer, rank), factors(method, layer, kernel, rank), None)
        if chains:
            made = np.asarray(rebuild(model, chains)(x, training=False))
            errors[name] = float(np.abs(made - wanted).max() / np.abs(wanted).max())
    return errors


def factors(method: Any, layer: LayerSpec, kernel: Any, rank: Any) -> Any:
    return method.factorize(layer, method.prepare(layer, kernel), rank)


if __name__ == "__main__":
    sys.exit(main())
