"""Filter pruning: pruned networks against masked originals, and scores of channels at equal cost before fine-tuning.

    python pipelines/benchmarks/pruning.py --models MODELS --data DATA --cache CACHE --out pruning.json

``agreement``: 30 % of the channels of every group removed at random; the largest difference between the pruned
network's outputs (before a softmax) and those of the original in which no sum reads the removed channels, as a share
of their scale; of every .h5 file in the folder of models.  ``families``: the same for networks of keras.applications
with random weights, written and read again.  ``scores``: every score at the same share of the parameters, and of the
MACs; KL to the original and accuracy on test images, no gradient step.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from networks import arguments, model_path, print_table, recipe_of, write

NETWORKS = ["resnet20_cifar10", "resnet56_cifar10", "cnn_gtsrb", "vgg_bn_cifar10", "mobilenet_cifar10"]
FAMILIES = {
    "ConvNeXtTiny": 64, "DenseNet121": 64, "EfficientNetB0": 64, "EfficientNetV2B0": 64, "InceptionResNetV2": 96,
    "InceptionV3": 96, "MobileNet": 64, "MobileNetV2": 64, "MobileNetV3Small": 64, "NASNetMobile": 64, "ResNet50": 64,
    "ResNet50V2": 64, "VGG16": 32, "Xception": 96,
}  # fmt: skip
"""One network of every family, and the size of its images here."""

WAYS = [(score, spread) for spread in ("uniform", "loss") for score in ("l1", "fpgm", "features")]
SHARE = 0.3
"""Share of the channels that are removed at random."""


def main() -> None:
    parser = arguments(__doc__ or "", NETWORKS)
    parser.add_argument("--only", nargs="+", default=["agreement", "families", "scores"])
    parser.add_argument("--images", type=int, default=1000, help="test images that are measured")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.7, 0.5])
    parser.add_argument("--costs", nargs="+", default=["params", "macs"], choices=["params", "macs"])
    given = parser.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg()}
    for measure in (agreement, families, scores):
        if measure.__name__ in given.only:
            for name, row in measure(given):
                found.setdefault(measure.__name__, {})[name] = row
                write(given.out, found)


def agreement(given: argparse.Namespace) -> Any:
    from lrfgraph.network.opening.loading import load_model

    for path in sorted(given.models.glob("*.h5")):
        row = compared(with_open_end(load_model(path)))
        print_table(["what", path.stem], [[key, value] for key, value in row.items() if key != "kept"])
        yield path.stem, row


def families(given: argparse.Namespace) -> Any:
    import keras

    for name, size in FAMILIES.items():
        options = {"weights": None, "input_shape": (size, size, 3), "classes": 10, "classifier_activation": None}
        model = getattr(keras.applications, name)(**options)
        rng = np.random.default_rng(0)
        for variable in model.variables:
            if variable.dtype == "float32":
                spread = 1 / np.sqrt(max(1, int(np.prod(variable.shape[:-1]))))
                value = rng.normal(0, spread, variable.shape)
                variable.assign(rng.uniform(0.5, 1.5, variable.shape) if "variance" in variable.name else value)
        row = compared(model)
        print_table(["what", name], [[key, value] for key, value in row.items() if key != "kept"])
        yield name, row
        keras.backend.clear_session()


def with_open_end(model: Any) -> Any:
    """Return a network that gives what it has before a softmax, which would hide differences where it is sure."""
    import keras

    last = model.layers[-1]
    if type(last).__name__ in ("Softmax", "Activation"):
        model, last = keras.Model(model.inputs, last.input), model.layers[-2]
    if hasattr(last, "activation"):
        last.activation = keras.activations.linear
    return model


def compared(model: Any) -> dict[str, Any]:
    """Remove channels at random; how far the pruned network is from the masked original, and from itself read again."""
    import keras

    from lrfgraph.network.counting import count
    from lrfgraph.network.pruning.narrowing import masked_outputs, narrow
    from lrfgraph.network.pruning.walking import walk

    started = time.perf_counter()
    walked = walk(model)
    dependencies = walked.dependencies(model.count_params())
    rng = np.random.default_rng(0)
    removed = [
        int(channel)
        for group in dependencies.groups
        for channel in rng.permutation(group.channels)[: int(SHARE * len(group.channels))]
    ]
    small = narrow(model, walked, removed)
    x = rng.normal(size=(8, *model.inputs[0].shape[1:])).astype("float32")
    expected = np.asarray(masked_outputs(walked, removed, x)[0])
    received = np.asarray(small(x, training=False))
    with tempfile.TemporaryDirectory() as folder:
        small.save(Path(folder) / "small.keras")
        again = np.asarray(keras.models.load_model(Path(folder) / "small.keras", compile=False)(x, training=False))
    counted, scale = count(small), max(float(np.abs(expected).max()), 1e-30)
    return {
        "groups": len(dependencies.groups),
        "channels": sum(len(group.channels) for group in dependencies.groups),
        "removed": len(removed),
        "difference": float(np.abs(expected - received).max() / scale),
        "read_again": float(np.abs(again - received).max() / scale),
        "parameters": counted.parameters / dependencies.parameters,
        "macs": counted.macs / max(dependencies.macs, 1),
        "counted_as_planned": (counted.parameters, counted.macs) == dependencies.size(removed),
        "statistics_over_fewer_channels": sum(bool(group.note) for group in dependencies.groups),
        "kept": dict(dependencies.kept),
        "seconds": round(time.perf_counter() - started, 1),
    }


# Scores at equal cost -----------------------------------------------------------------------------------------------


def scores(given: argparse.Namespace) -> Any:
    for name in given.networks:
        rows = []
        ways = itertools.product(given.costs, given.shares, WAYS, (False, True))
        for cost, share, (score, spread), refit in ways:
            row = {"cost": cost, "share": share, "score": score, "spread": spread, "refit": refit}
            rows.append(row | pruned(name, given, row))
            yield name, rows
        titles = list(rows[0])
        print_table([name, *titles[1:]], [[row[title] for title in titles] for row in rows])


def pruned(name: str, given: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    from lrfgraph import api
    from lrfgraph.network.evaluating import compare, measure, predict
    from lrfgraph.network.heads import head_of
    from lrfgraph.run.steps.common import network_of
    from lrfgraph.run.steps.sources import images_of

    options = {"prune__score": row["score"], "prune__spread": row["spread"], "run__until": "prune"}
    options |= {f"prune__{row['cost']}": str(row["share"]), "prune__refit": str(row["refit"]).lower()}
    options |= {"data__validation": "500"}
    compression = api.prune(model_path(name, given), recipe_of(name, given, **options))
    driver, network = compression.driver, compression.network
    assert compression.pruned is not None
    assert network.data is not None
    locators, head = network.locators_with(), head_of(network.head, network.activation)
    images, labels = images_of(driver.store.open(network.data), locators, "test")
    stride = max(len(images) // given.images, 1)
    x = [each[::stride] for each in images[:]] if isinstance(images[:], tuple) else images[:][::stride]
    original = predict(network_of(driver.store.open(network.model), locators["trust"]), x)
    outputs = predict(network_of(driver.store.open(compression.models["pruned"]), locators["trust"]), x)
    measured = measure(outputs, labels[::stride], head) | compare(outputs, original, head)
    widths = driver.data(compression.pruned)
    return {
        "parameters": round(widths["parameters"] / network.parameters, 4),
        "macs": round(widths["macs"] / network.macs, 4),
        "kl": round(measured["kl"], 5),
        "accuracy": round(measured["accuracy"], 4),
        "original": round(float(measure(original, labels[::stride], head)["accuracy"]), 4),
        "images": len(outputs),
        "predicted": round(sum(group["loss"] for group in widths["groups"]), 5),
        "seconds": round(sum(driver.seconds.values()), 1),
    }


if __name__ == "__main__":
    main()
