"""Networks of keras.applications at 224 pixels, random weights: explored, repaired; memory and disk stated and taken.

    python pipelines/benchmarks/large.py --cache SCRATCH --out large.json [--images FILE.npz]

Each row is a network and a number of images, none for a run without data; explored by all methods, a configuration of
`--params` of the parameters chosen by predicted loss, repaired, and written, in a process of its own on an empty cache.
Images are noise unless a file of images of this size is given (arrays ``x_train``, ``x_test``). What is stated and what
is measured are those of `memory.py`; seconds are wall and processor time.
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
from memory import account
from networks import print_table, write

SIZE, HELD_OUT = 224, 32
ROWS = [
    ("EfficientNetB0", 256), ("ResNet50", 256), ("VGG16", 256), ("ConvNeXtTiny", 256), ("ConvNeXtXLarge", 0),
    ("ConvNeXtXLarge", 64),
]  # fmt: skip
"""A network and how many images it is compressed with; the last two have 350 million parameters."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--cache", type=Path, required=True, help="folder for models, images and caches")
    names = [f"{name}:{images}" for name, images in ROWS]
    parser.add_argument("--rows", nargs="+", default=names, metavar="NETWORK:IMAGES")
    parser.add_argument("--images", type=Path, help="a .npz file of images of this size")
    parser.add_argument("--params", type=float, default=0.6)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="any recipe option")
    parser.add_argument("--minutes", type=float, default=60, help="after which a network is given up")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(Path(given.one[0]), int(given.one[1]), given)))
        return
    result: dict[str, Any] = {"networks": json.loads(given.out.read_text())["networks"] if given.out.exists() else {}}
    for row in given.rows:
        name, _, images = row.partition(":")
        result["networks"][row] = alone(name, int(images), given)
        result["load"] = os.getloadavg()
        write(given.out, result)
        print(row, json.dumps({k: v for k, v in result["networks"][row].items() if k != "stated"}), flush=True)
    print_table(
        ["network", "stated GB", "measured GB", "minutes", "processor minutes"],
        [[name, *figures(row)] for name, row in result["networks"].items()],
    )


def figures(row: dict[str, Any]) -> list[Any]:
    if "failed" in row:
        return [row["failed"]]
    memory = [row["memory"][side] / 1e9 for side in ("stated", "measured")]
    return [*memory, row["seconds"] / 60, row["processor_seconds"] / 60]


def alone(name: str, images: int, given: argparse.Namespace) -> dict[str, Any]:
    """Write the network and its images, and run it in a process of its own."""
    given.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.cache) as folder:
        program = (
            "import sys, keras; keras.utils.set_random_seed(0); "
            f"keras.applications.{name}(weights=None).save(sys.argv[1])"
        )
        file = Path(folder) / f"{name}.keras"
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run([sys.executable, "-c", program, str(file)], check=True, env=environment, capture_output=True)
        if images:
            write_images(Path(folder) / "images.npz", images, given.images)
        words = [sys.executable, __file__, *sys.argv[1:], "--one", str(file), str(images)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60 * given.minutes)
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {given.minutes:g} minutes"}
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]}
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row


def write_images(path: Path, count: int, source: Path | None) -> None:
    rng = np.random.default_rng(0)
    if source is None:
        images = rng.integers(0, 256, (count + 2 * HELD_OUT, SIZE, SIZE, 3), dtype=np.uint8)
    else:
        with np.load(source) as file:
            images = np.concatenate([file["x_train"], file["x_test"]])
        images = images[rng.permutation(len(images))[: count + 2 * HELD_OUT]]
    np.savez(path, x_train=images[: count + HELD_OUT], x_test=images[count + HELD_OUT :])


def measured(file: Path, images: int, given: argparse.Namespace) -> dict[str, Any]:
    from lrfgraph.options.recipe import Recipe

    recipe = Recipe().with_option("run.cache", str(file.parent / "cache"))
    options: dict[str, Any] = {"select.policy": "budget", "select.params": given.params}
    if images:
        options |= {
            "data.source": file.parent / "images.npz", "data.scale": "1/128", "data.mean": 1,
            "data.validation": HELD_OUT, "data.calibration": images, "finetune.epochs": 0,
        }  # fmt: skip
    for key, value in options.items():
        recipe = recipe.with_option(key, str(value))
    for setting in given.set:
        recipe = recipe.with_option(*setting.split("=", 1))
    started = time.process_time()
    row = account(file, recipe, file.parent / "cache")
    return row | {"processor_seconds": round(time.process_time() - started, 1)}


if __name__ == "__main__":
    main()
