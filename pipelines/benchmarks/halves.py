"""Asked against delivered drop, by halves of the official test set: one decides, the other is measured once.

The even images of the test set are given as validation to the policy that a user would use (``--policy accuracy
--max-drop L``), the odd ones are the test images of what came out; then they change places. No gradient step, unless
``--finetune`` asks for the default one. Every point that a search measured without one is also measured on images held
out of the training part, which published networks were trained on: what such a validation says beside what fresh images
say. A result file that is there already is gone on with.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from networks import arguments, model_path, print_table, recipe_of, write

from lrfgraph.api import Compression, compress
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes

SIX = (
    "resnet20_cifar10", "cnn_gtsrb", "lenet5_mnist", "vgg6_cifar10", "vgg_bn_cifar10", "resnet8_mlperftiny_cifar10",
)  # fmt: skip
HALVES = {"even": 0, "odd": 1}
TRAINED = 5000
"""Images of the training part that every point is measured on besides."""


def main() -> None:
    """Measure what is missing, print the table and write the file after every run."""
    parser = arguments(__doc__ or "", SIX)
    parser.add_argument("--limits", type=float, nargs="+", default=[1.0, 2.0], help="points that may be lost")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the calibration images")
    parser.add_argument("--finetune", action="store_true", help="fine-tune once, as by default")
    asked = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(asked.out.read_text())["runs"] if asked.out.is_file() else []
    for seed in asked.seeds:
        for name in asked.networks:
            for run in missing(name, seed, asked, runs):
                runs.append(run)
                print({key: value for key, value in run.items() if key != "points"}, flush=True)
                write(asked.out, {"table": table(runs), "runs": runs})
    print_table(list(table(runs)[0]), [list(row.values()) for row in table(runs)])


def missing(name: str, seed: int, asked: argparse.Namespace, runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a run for each half and limit that is not known yet."""
    for half in HALVES:
        for limit in asked.limits:
            about = {"network": name, "decided_on": half, "cost": "parameters", "limit": limit, "seed": seed}
            recipe = recipe_of(name, asked, data__seed=seed, record__seed=seed, select__max_drop=limit)
            about |= {"cost": recipe.select.cost, "finetuned": asked.finetune}
            if not asked.finetune:
                recipe = recipe.with_option("finetune.epochs", 0)
            if not any(about.items() <= ({"finetuned": False} | run).items() for run in runs):
                recipe = recipe.with_option("data.source", str(halved(recipe, half, asked.cache)))
                started = time.perf_counter()
                compression = compress(model_path(name, asked), recipe)
                yield about | summary(compression, recipe) | {"seconds": round(time.perf_counter() - started, 1)}


def halved(recipe: Recipe, half: str, folder: Path) -> Path:
    """Write the data set with one half of its test images as validation, the other as test."""
    source = Path(str(recipe.data.source))
    path = folder.resolve() / f"{source.stem}-{half}.npz"
    if not path.is_file():
        with np.load(source) as loaded:
            arrays = {key: loaded[key] for key in loaded.files}
        start = HALVES[half]
        for letter in "xy":
            whole = arrays.pop(f"{letter}_test")
            arrays[f"{letter}_val"], arrays[f"{letter}_test"] = whole[start::2], whole[1 - start :: 2]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    return path


def summary(compression: Compression, recipe: Recipe) -> dict[str, Any]:
    """Return what was delivered on the deciding and on the other half, and every measured point."""
    network, decision = compression.network, compression.decision
    assert decision is not None
    final = compression.measured[compression.final]
    trained = Trained(compression, recipe)
    before = compression.measured["factorized" if compression.final == "factorized" else "repaired"]
    return {
        "final": compression.final,
        "went_back": compression.refused is not None,
        "test_drop_before": round(100 * before["test"]["drop"], 3),
        "stage_seconds": {stage: round(seconds, 1) for stage, seconds in compression.driver.seconds.items()},
        "removed": round(1 - decision.parameters / network.parameters, 4),
        "macs_removed": round(1 - decision.macs / network.macs, 4),
        **{f"{part}_drop": round(100 * final[part]["drop"], 3) for part in final},
        **{f"{part}_drop_se": round(100 * final[part]["drop_se"], 3) for part in final},
        "trained_accuracy": trained.accuracy,
        "validation_accuracy": round(100 * compression.measured["baseline"]["validation"]["accuracy"], 2),
        "points": [
            {
                "parameters": round(point.parameters / network.parameters, 4),
                "drop": round(point.drop, 3),
                "drop_se": round(point.drop_se, 3),
                "kl": round(point.kl, 5),
                **trained.measures(compression, point.decision.configuration),
            }
            for point in compression.points
            if not point.trained
        ],
    }


class Trained:
    """Images of the training part, whose answers the network may know by heart."""

    def __init__(self, compression: Compression, recipe: Recipe) -> None:
        from keras.models import load_model

        from lrfgraph.network.evaluating import predict
        from lrfgraph.run.steps.sources import images_of

        driver = compression.driver
        entry = driver.store.open(compression.network.data)
        images, labels = images_of(entry, compression.network.locators, "train")
        chosen = np.random.default_rng(0).permutation(len(images))[:TRAINED]
        self.images, self.labels = images[np.sort(chosen)], labels[np.sort(chosen)]
        self.original = predict(load_model(driver.model, compile=False), self.images)
        right = self.original.argmax(1) == self.labels
        self.accuracy = round(100 * float(right.mean()), 2)

    def measures(self, compression: Compression, configuration: Any) -> dict[str, float]:
        """Return what a configuration loses on them, and on how many it answers otherwise than the original."""
        from keras.models import load_model

        from lrfgraph.network.evaluating import predict

        chain = nodes.rebuild_nodes(compression.network, configuration, compression.exploration, repaired_only=True)
        ref = compression.driver.carry_out("rebuild", chain)[chain[-1].name]
        model = load_model(compression.driver.store.open(ref).file("model.keras"), compile=False)
        answers = predict(model, self.images).argmax(1)
        original = self.original.argmax(1)
        lost = (original == self.labels).mean() - (answers == self.labels).mean()
        return {
            "trained_drop": round(100 * float(lost), 3),
            "trained_changed": round(100 * float((answers != original).mean()), 3),
        }


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network, cost and limit: asked, delivered on the half that decided nothing, removed."""
    rows = []

    def kind(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["network"], run["cost"], run["limit"], run.get("finetuned", False)

    for about in dict.fromkeys(map(kind, runs)):
        own = [run for run in runs if kind(run) == about]
        drops = [run["test_drop"] for run in own]
        removed = [run["removed" if about[1] == "parameters" else "macs_removed"] for run in own]
        above = [run for run in own if run["test_drop"] > run["limit"] + 2 * run["test_drop_se"]]
        rows.append(
            {
                "network": about[0],
                "cost": about[1],
                "asked": about[2],
                "fine-tuned": about[3],
                "delivered": round(float(np.mean(drops)), 2),
                "worst": max(drops),
                "removed": round(float(np.mean(removed)), 4),
                "least removed": min(removed),
                "runs": len(own),
                "above by two errors": len(above),
            }
        )
    return rows


if __name__ == "__main__":
    main()
