"""Peak memory of a run on few images, and on ten times as many: a folder, files, a stream of tf.data.

    python pipelines/benchmarks/streams.py --cache SCRATCH --out streams.json

Images (224×224, colour, drawn from a seed) and a small network with random weights are written into a folder of its own
under ``--cache``. Each run, up to the kind of node ``--until``, has a process of its own and an empty cache; measured
are the peak of its resident memory, its seconds, and what `lrfgraph plan` states for the widest stage.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from networks import print_table, write

SIDE, CLASSES = 224, 10
IMAGE_BYTES = SIDE * SIDE * 3
SIZES = {"small": 0.2e9, "large": 2e9}
"""Bytes of all images, decoded."""

OPTIONS = {
    "data": {"scale": 1 / 255, "calibration": 256, "allow_chance": True},
    "explore": {"ranks": 2, "methods": ["svd"]},
    "repair": {"images": 256},
    "finetune": {"epochs": 1},
    "select": {"policy": "threshold", "min_similarity": 0.9},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the images and the caches")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--until", default="ranks", help="kind of node to stop after")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*asked.one, asked)))
        return
    asked.cache.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for source in asked.sources:
        for size, decoded in SIZES.items():
            with tempfile.TemporaryDirectory(dir=asked.cache) as folder:
                count = int(decoded // IMAGE_BYTES)
                alone = [sys.executable, __file__, *sys.argv[1:], "--cache", folder, "--one", source]
                subprocess.run([*alone, f"write {count}"], stdout=subprocess.PIPE, check=True)
                done = subprocess.run([*alone, f"run {count}"], stdout=subprocess.PIPE, check=True)
            rows.append({"source": source, "size": size} | json.loads(done.stdout.splitlines()[-1]))
            write(asked.out, {"until": asked.until, "image_bytes": IMAGE_BYTES, "rows": rows})
    print_table(list(rows[0]), [list(row.values()) for row in rows])


def measure(source: str, task: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Write images and the network, or run on them and return what that took."""
    what, count = task.split()
    images, model = asked.cache / "images", asked.cache / "model.keras"
    if what == "write":
        SOURCES[source](images, int(count))
        network().save(model)
        return {}
    import lrfgraph
    from lrfgraph import Recipe, api

    given = images if images.exists() else images.with_suffix(".npz")
    data = given if given.exists() else stream(int(count))
    options = {**OPTIONS, "run": {"cache": str(asked.cache / "cache"), "until": asked.until}}
    started = time.perf_counter()
    lrfgraph.compress(model, data, recipe=options, progress=False)
    seconds, peak = time.perf_counter() - started, peak_bytes()
    if not given.exists():
        (given,) = (asked.cache / "cache" / "given").iterdir()
    recipe = Recipe.from_dict({**options, "data": {**OPTIONS["data"], "source": str(given)}})
    stated = max(need.memory for need in api.needs(model, recipe))
    return {
        "images": int(count),
        "decoded_gb": round(int(count) * IMAGE_BYTES / 1e9, 2),
        "peak_gb": round(peak / 1e9, 3),
        "stated_gb": round(stated / 1e9, 3),
        "cache_gb": round(bytes_of(asked.cache / "cache") / 1e9, 3),
        "seconds": round(seconds, 1),
    }


def peak_bytes() -> int:
    """Return the most memory that this process has had resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def bytes_of(folder: Path) -> int:
    return sum(os.stat(Path(above) / name).st_size for above, _, names in os.walk(folder) for name in names)


# Images -------------------------------------------------------------------------------------------------------------


def drawn(count: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield images of smooth colours with some noise, and their classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = np.kron(coarse, np.ones((SIDE // 8, SIDE // 8, 1), np.uint8))
        yield smooth ^ random.integers(0, 8, smooth.shape, dtype=np.uint8), number % CLASSES


def folder(place: Path, count: int) -> None:
    """Class folders of JPEG files, every tenth image a PNG."""
    from PIL import Image

    for number in range(CLASSES):
        (place / str(number)).mkdir(parents=True)
    for number, (image, label) in enumerate(drawn(count)):
        Image.fromarray(image).save(place / str(label) / f"{number:06}.{'jpg' if number % 10 else 'png'}")


def archive(save: Callable[..., None]) -> Callable[[Path, int], None]:
    def npz(place: Path, count: int) -> None:
        images, labels = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty(count, np.int64)
        for number, (image, label) in enumerate(drawn(count)):
            images[number], labels[number] = image, label
        save(place.with_suffix(".npz"), x_train=images, y_train=labels)

    return npz


def stream(count: int) -> Any:
    """Return a tf.data.Dataset of batches that are drawn when they are asked for."""
    import tensorflow as tf

    def element(number: Any) -> tuple[Any, Any]:
        pixels = tf.random.stateless_uniform((SIDE, SIDE, 3), tf.stack([number, 0]), 0, 256, tf.int32)
        return tf.cast(pixels, tf.uint8), number % CLASSES

    return tf.data.Dataset.range(count).map(element).batch(64)


SOURCES: dict[str, Callable[[Path, int], None]] = {
    "folder": folder,
    "npz": archive(np.savez),
    "npz, compressed": archive(np.savez_compressed),
    "tf.data": lambda place, count: None,
}


def network() -> Any:
    """Return a small network that takes pictures of this size."""
    import keras

    keras.utils.set_random_seed(0)
    blocks = (keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu") for width in (16, 32, 64))
    ends = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES, activation="softmax")
    return keras.Sequential([keras.Input((SIDE, SIDE, 3)), *blocks, *ends])


if __name__ == "__main__":
    main()
