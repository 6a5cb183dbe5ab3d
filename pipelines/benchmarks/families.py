"""Every family of keras.applications from its file to the compressed one, read again without this package.

    python pipelines/benchmarks/families.py --cache SCRATCH --out families.json

One network of each family with random weights, from both file formats: described, compressed to ``--params`` of its
parameters with 64 images of noise, no labels and no gradient step, repaired, written, and read again by a process that
knows nothing of this package; parameters and MACs of the written file are those that were planned, or it fails. Images
are smaller than 224 (`SIZES`) and ranks fewer than by default, so that all of it takes minutes; layers are as wide as
always. The second format answers from the cache of the first: what both give has one digest.
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
from networks import print_table, write
from pruning import FAMILIES as SIZES

IMAGES = 64
HELD_OUT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--cache", type=Path, required=True, help="folder for models, images and caches")
    parser.add_argument("--networks", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--params", type=float, default=0.6)
    parser.add_argument("--ranks", type=int, default=5)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(compressed(Path(given.one[0]), Path(given.one[1]), given)))
        return
    result: dict[str, Any] = {"networks": {}, "load": os.getloadavg()}
    for name in given.networks:
        result["networks"][name] = family(name, given)
        write(given.out, result)
    print_table(["family", *TITLES], [[name, *map(row.get, TITLES)] for name, row in result["networks"].items()])


TITLES = ("parameters", "planned", "read_again", "same_answer", "seconds", "peak_bytes", "failed")


def family(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run both formats, each in a process of its own, on one cache that is empty at first."""
    given.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.cache) as folder:
        files = written(name, Path(folder))
        rows = []
        for file in files:
            words = [sys.executable, __file__, *sys.argv[1:], "--one", str(file), folder]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                return {"failed": f"{file.suffix}: {done.stderr.strip().splitlines()[-1]}"}
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = rows
    row = first | {"same_answer": second["digest"] == first["digest"], "second_seconds": second["seconds"]}
    print(name, row, flush=True)
    return row


def written(name: str, folder: Path) -> list[Path]:
    """Write a network of a family in both formats, in a process of its own, which gives its memory back."""
    size = SIZES[name]
    program = (
        "import sys, keras; keras.utils.set_random_seed(0); "
        f"model = keras.applications.{name}(weights=None, input_shape=({size}, {size}, 3)); "
        "[model.save(path) for path in sys.argv[1:]]"
    )
    files = [folder / f"{name}.h5", folder / f"{name}.keras"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", program, *map(str, files)], check=True, env=environment, capture_output=True)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES + HELD_OUT, size, size, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", x_train=images[:IMAGES], x_test=images[IMAGES:])
    return files


def compressed(file: Path, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Compress one file; what came out, as the written file says."""
    import resource

    from lrfgraph import api
    from lrfgraph.options.recipe import Recipe

    recipe, started = Recipe(), time.perf_counter()
    options = {
        "data.source": folder / "images.npz", "data.scale": "1/255", "data.validation": HELD_OUT,
        "select.policy": "budget", "select.params": given.params, "explore.ranks": given.ranks,
        "finetune.epochs": 0, "run.cache": folder / "cache",
    }  # fmt: skip
    for key, value in options.items():
        recipe = recipe.with_option(key, str(value))
    compression = api.compress(file, recipe)
    driver, decision = compression.driver, compression.decision
    assert decision is not None
    assert compression.exported is not None
    exported = driver.data(compression.exported)
    return {
        "layers": len(list(compression.network.factorizable())),
        "candidates": len(compression.exploration.scores),
        "parameters": round(exported["parameters"] / compression.network.parameters, 4),
        "planned": (exported["parameters"], exported["macs"]) == (decision.parameters, decision.macs),
        "read_again": len(exported["file_bytes"]),
        "digest": compression.models[compression.final].identity,
        "quality": {stage: measures.get("test") for stage, measures in compression.measured.items()},
        "notes": list(compression.notes),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
