"""Which epoch of a fine-tuning is taken, and which would have been the best one on test images.

    python pipelines/benchmarks/epochs.py --models MODELS --data DATA --cache CACHE --out epochs.json

Each network is compressed to a share of its parameters, repaired and fine-tuned once; the state before it and after
each epoch is measured on the official test images, which decide nothing. Validation images are once of the training
part, which the network knows by heart, and once the even half of the test images; then the odd half is measured.
Rules: the best accuracy on validation images, the least loss on them moved as training images are (the one in force),
and the last epoch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from halves import halved
from networks import arguments, model_path, print_table, recipe_of, write

from lrfgraph import api
from lrfgraph.network import training
from lrfgraph.network.evaluating import measure, predict
from lrfgraph.network.heads import head_of

SHARES = {"lenet5_mnist": 0.07, "cnn_gtsrb": 0.07, "resnet8_mlperftiny_cifar10": 0.4, "vgg_bn_cifar10": 0.12}
MOVES = {"resnet8_mlperftiny_cifar10": True, "vgg_bn_cifar10": True}
"""Networks whose images are shifted and mirrored in training."""


def main() -> None:
    parser = arguments(__doc__ or "", list(SHARES))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=10000, help="training images of an epoch")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in given.networks:
        for validation in ("known", "fresh"):
            rows.append({"network": name, "validation": validation, **course(name, validation, given)})
            print({key: value for key, value in rows[-1].items() if key != "epochs"}, flush=True)
            write(given.out, {"rows": rows, "rules": rules(rows)})
    print_table(["rule", "validation", "mean points missed", "worst"], [list(row.values()) for row in rules(rows)])


def course(name: str, validation: str, given: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune once, and say what each rule would have taken."""
    from keras.models import load_model

    from lrfgraph.run.steps.sources import images_of

    recipe = recipe_of(name, given, select__policy="budget", select__params=SHARES[name], run__until="rebuild")
    if validation == "fresh":
        recipe = recipe.with_option("data.source", str(halved(recipe, "even", given.cache)))
    compression = api.compress(model_path(name, given), recipe)
    network, store = compression.network, compression.driver.store
    assert network.data is not None
    entry = store.open(network.data)
    splits = {part: images_of(entry, network.locators, part) for part in ("train", "validation", "test")}
    model = load_model(store.open(compression.models["repaired"]).file("model.keras"), compile=False)
    teacher = load_model(model_path(name, given), compile=False)
    options = {"epochs": given.epochs, **({"crop": 4, "flip": True} if name in MOVES else {})}
    head, test = head_of(network.head, network.activation), splits["test"]

    class Watched(training._Run):
        def _measures(self) -> dict[str, float]:
            value = measure(predict(self.student, test[0]), test[1], head)["accuracy"]
            return {**super()._measures(), "test": round(100 * value, 3)}

        def train(self) -> training.History:
            self.before = {"epoch": 0, **self._measures(), "validation_loss": self.best_loss}
            return [self.before, *super().train()]

    few = np.sort(np.random.default_rng(0).permutation(len(splits["train"][0]))[: given.images])
    train = training.Split(splits["train"][0][few], splits["train"][1][few])
    with patch.object(training, "_Run", Watched), tempfile.TemporaryDirectory(dir=given.cache) as scratch:
        held = training.Split(*splits["validation"])
        _, epochs = training.finetune(model, teacher, train, held, options, head, Path(scratch))
    taken = {
        "accuracy": max(epochs, key=lambda epoch: epoch["accuracy"]),
        "loss": min(epochs, key=lambda epoch: epoch["validation_loss"]),
        "last": epochs[-1],
    }
    best = max(epoch["test"] for epoch in epochs)
    missed = {f"missed_by_{rule}": round(best - epoch["test"], 3) for rule, epoch in taken.items()}
    kept = ("epoch", "accuracy", "validation_loss", "test")
    return {"best": best, **missed, "epochs": [{key: epoch[key] for key in kept} for epoch in epochs]}


def rules(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what each rule missed of the best epoch on test images, in points."""
    return [
        {
            "rule": rule,
            "validation": validation,
            "mean": round(float(np.mean(missed)), 3),
            "worst": max(missed),
        }
        for validation in dict.fromkeys(row["validation"] for row in rows)
        for rule in ("accuracy", "loss", "last")
        if (missed := [row[f"missed_by_{rule}"] for row in rows if row["validation"] == validation])
    ]


if __name__ == "__main__":
    main()
