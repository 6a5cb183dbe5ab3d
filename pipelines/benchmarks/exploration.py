"""Seconds of an exploration from nothing: record, factorize, score, select, all methods, process start included.

    python pipelines/benchmarks/exploration.py --models MODELS --data DATA --cache SCRATCH --out exploration.json

Each run starts with an empty cache in a folder of its own under ``--cache``.  The same machine, in the same minutes,
also runs two yardsticks: one forward pass over the calibration images, and the naive way (rebuild the network and run
it on the calibration images for every candidate), measured on a few candidates and multiplied.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from networks import NETWORKS, arguments, model_path, print_table, recipe_of, write

IMAGES = 1024
SAMPLE = 5


def main() -> None:
    parser = arguments(__doc__ or "", ["resnet20_cifar10"])
    parser.add_argument("--ranks", type=int, default=16, help="ranks per layer and method")
    parser.add_argument("--repeat", type=int, default=1, help="runs; the fastest counts")
    given = parser.parse_args()
    found = {}
    for name in given.networks:
        runs = [explore(name, given) for _ in range(given.repeat)]
        best = min(runs, key=lambda run: run["seconds"])
        yardsticks = measure_yardsticks(name, given, best["candidates"])
        found[name] = best | {"all_seconds": [run["seconds"] for run in runs]} | yardsticks
        found[name] |= {
            "forward_passes": round(best["seconds"] / yardsticks["forward_seconds"], 1),
            "naive_over_ours": round(yardsticks["naive_seconds"] / best["seconds"], 1),
        }
        print_table(["what", name], list(found[name].items()))
        write(given.out, {"networks": found, "cores": os.cpu_count(), "load": os.getloadavg()})


def explore(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run ``lrfgraph run --until select`` in a fresh process on an empty cache."""
    network = NETWORKS[name]
    given.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.cache) as folder:
        options = {**network.options, "explore.ranks": given.ranks, "select.policy": "threshold"}
        if network.stats:
            options["data.stats"] = (given.models / network.stats).resolve()
        command = [sys.executable, "-m", "lrfgraph", "run", str(model_path(name, given).resolve()), "--json"]
        command += ["--data", str((given.data / f"{network.data}.npz").resolve()), "--until", "select"]
        command += ["--cache", f"{folder}/cache", "--out", f"{folder}/out"]
        for setting in [*(f"{key}={value}" for key, value in options.items()), *given.set]:
            command += ["--set", setting]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=folder, env=_environment())
        seconds = time.perf_counter() - started
        said = json.loads(done.stdout)
    nodes = said["nodes"]["run"]
    return {
        "seconds": round(seconds, 2),
        "candidates": nodes["score"],
        "nodes": sum(nodes.values()),
        "stages": said["seconds"],
        "peak_memory_bytes": said["peak_memory_bytes"],
    }


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def measure_yardsticks(name: str, given: argparse.Namespace, candidates: int) -> dict[str, Any]:
    """Time a forward pass and, on a few candidates, the naive way."""
    from lrfgraph.api import compress
    from lrfgraph.methods import METHODS
    from lrfgraph.methods.base import parse_rank
    from lrfgraph.network.evaluating import predict
    from lrfgraph.network.rebuilding import Chain, rebuild
    from lrfgraph.run.steps.candidates import factors_of
    from lrfgraph.run.steps.common import layers_of, network_of

    with tempfile.TemporaryDirectory(dir=given.cache) as folder:
        recipe = recipe_of(name, given, explore__ranks=2, explore__methods="tucker,cp,svd", select__policy="threshold")
        recipe = recipe.with_option("run.until", "select").with_option("run.cache", folder)
        outcome = compress(model_path(name, given), recipe)
        store, exploration = outcome.driver.store, outcome.exploration
        entry = store.open(outcome.network.model)
        model, layers = network_of(entry, {"custom": [], "unsafe": False}), layers_of(entry)
        shape = model.input_shape[1:]
        x = np.random.default_rng(0).normal(size=(IMAGES, *shape)).astype("float32")
        predict(model, x)
        forward = min(_timed(lambda: predict(model, x)) for _ in range(3))
        scored = sorted(exploration.scores)
        naive = []
        for candidate in scored[:: max(len(scored) // SAMPLE, 1)][:SAMPLE]:
            layer, method, rank = candidate
            refs = exploration.weights(candidate)
            weights = factors_of(layers[layer], method, rank, *(store.open(ref) for ref in refs))
            chain = Chain(method, METHODS[method].pieces(layers[layer], parse_rank(rank)), weights, None)
            naive.append(_timed(lambda layer=layer, chain=chain: predict(rebuild(model, {layer: chain}), x)))
    return {
        "forward_seconds": round(forward, 3),
        "naive_seconds_each": round(float(np.median(naive)), 3),
        "naive_seconds": round(float(np.median(naive)) * candidates, 1),
    }


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
