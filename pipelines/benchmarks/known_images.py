"""What tells images that a network was trained on from fresh ones: accuracy, confidence, and both on shifted images.

Five thousand images of the training part and five thousand of the official test set, network by network; the training
files of two networks are subsets of what they saw, so all of these images were. Nothing is compressed.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from networks import NETWORKS, arguments, model_path, print_table, recipe_of, write

COUNT = 5000
SHIFT = 2
"""Pixels (or samples) that images are moved by, along each axis; what comes in is the edge's."""


def main() -> None:
    """Measure every network that classifies, print a table, write the file."""
    parser = arguments(__doc__ or "", [name for name, network in NETWORKS.items() if network.classifies])
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else []
    for name in asked.networks:
        if not any(row["network"] == name for row in rows):
            rows += measure(name, asked)
            write(asked.out, {"images": COUNT, "shift": SHIFT, "rows": rows})
    print_table(list(rows[0]), [list(row.values()) for row in rows])


def measure(name: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for images of the training part and one for those of the test part."""
    from pathlib import Path

    from keras.models import load_model

    from lrfgraph.images import sources
    from lrfgraph.images.preprocessing import preprocessings

    options = recipe_of(name, asked).data
    model = load_model(model_path(name, asked), compile=False)
    inputs = {"": tuple(model.inputs[0].shape[1:])}
    dataset, (how,) = sources.load(options, Path(), inputs), preprocessings(options, inputs)
    rows = []
    for part in ("train", "test"):
        raw, labels = dataset.x(part), dataset.y(part)
        assert labels is not None
        chosen = np.sort(np.random.default_rng(0).permutation(len(raw))[:COUNT])
        images, labels = raw[chosen], labels[chosen]
        row: dict[str, Any] = {"network": name, "images": part}
        for title, each in (("", images), ("shifted_", moved(images))):
            probabilities = softmax(model, model.predict(how.apply(each), batch_size=256, verbose=0))
            row[f"{title}accuracy"] = round(100 * float((probabilities.argmax(1) == labels).mean()), 2)
            row[f"{title}confidence"] = round(100 * float(probabilities.max(1).mean()), 2)
            own = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)
            row[f"{title}loss"] = round(float(-np.log(own).mean()), 4)
        rows.append(row)
    return rows


def moved(images: np.ndarray) -> np.ndarray:
    """Move images by `SHIFT` along their spatial axes, edges repeated."""
    axes = range(1, 3 if images.ndim > 2 else 2)
    for axis in axes:
        positions = np.clip(np.arange(images.shape[axis]) - SHIFT, 0, None)
        images = np.take(images, positions, axis)
    return images


def softmax(model: Any, outputs: np.ndarray) -> np.ndarray:
    """Return probabilities; outputs that do not sum to 1 are logits."""
    if np.allclose(outputs.sum(1), 1, atol=1e-3):
        return outputs
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


if __name__ == "__main__":
    main()
