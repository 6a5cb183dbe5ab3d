"""Training with shrinking ranks: what is lost at a share of the parameters, from trained weights and from scratch.

    python pipelines/benchmarks/dprp.py --models MODELS --data DATA --cache CACHE --out dprp.json

``trained``: a network trained on from its own weights; points lost on the official test images, and on each half of
them (nothing is decided on either: the last epoch is the result).  ``scratch``: fresh weights, against the same
training whose ranks do not shrink.  ``losses``: a short training with both regularizing losses, and without one or the
other.  ``speed``: processor seconds of a step in an epoch at 30 % of the parameters against one before any rank went.
Every row has its epochs, the largest entry of |UᵀU − I| and how far the share is from the one asked for.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np
from networks import arguments, model_path, print_table, recipe_of, write

from lrfgraph import api
from lrfgraph.run import nodes

TRAINED = {
    "resnet20_cifar10": {"epochs": "20", "images": "4000", "batch": "64", "crop": "4", "flip": "true"},
}
SCRATCH = {
    "lenet5_mnist": {"epochs": "12", "images": "20000"},
    "cnn_gtsrb": {"epochs": "8", "images": "6000", "batch": "32"},
}
"""Options of the training, of two cores that others use, too."""
PER_EPOCH = (
    "parameters",
    "macs",
    "task_loss",
    "orthogonality_loss",
    "rank_loss",
    "accuracy",
    "seconds",
    "step_cpu_seconds",
)


def main() -> None:
    parser = arguments(__doc__ or "", [*TRAINED, *SCRATCH])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.3], help="of the parameters that are left")
    parser.add_argument("--only", nargs="+", default=["trained", "scratch", "losses", "speed"])
    given = parser.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg(), "set": given.set}
    for part in (trained, scratch, losses, speed):
        if part.__name__ in given.only:
            for row in part(given):
                found.setdefault(part.__name__, []).append(row)
                print_table(["what", row["network"]], [[k, v] for k, v in row.items() if k not in ("epochs", "layers")])
                write(given.out, found)


def trained(given: argparse.Namespace) -> Any:
    for name in filter(TRAINED.get, given.networks):
        for share in given.shares:
            yield measured(name, given, TRAINED[name], share)


def scratch(given: argparse.Namespace) -> Any:
    for name in filter(SCRATCH.get, given.networks):
        options = SCRATCH[name] | {"from_scratch": "true"}
        whole = measured(name, given, options, 1.0)
        yield whole
        for share in given.shares:
            row = measured(name, given, options, share)
            yield row | {"lost": round(100 * (whole["accuracy"] - row["accuracy"]), 3)}


def losses(given: argparse.Namespace) -> Any:
    name = "lenet5_mnist"
    for change in ({}, {"orthogonality": "0"}, {"rank": "0"}):
        options = {"epochs": "4", "images": "10000", "pace": "0.25", "rank": "1", **change}
        yield {"without": list(change)} | measured(name, given, options, 0.5)


def speed(given: argparse.Namespace) -> Any:
    for matricization in ("spatial", "channel"):
        options = TRAINED["resnet20_cifar10"] | {"epochs": "2", "images": "1920", "matricization": matricization}
        row = measured("resnet20_cifar10", given, options, 0.3)
        first, last = (epoch["step_cpu_seconds"] for epoch in row["epochs"])
        kept = {key: row[key] for key in ("network", "share", "parameters", "macs")}
        yield kept | {"matricization": matricization, "first": first, "last": last, "ratio": round(last / first, 3)}


def measured(name: str, given: argparse.Namespace, options: dict[str, str], share: float) -> dict[str, Any]:
    """Train a network to a share of its parameters, and measure it on the test images."""
    asked = {f"dprp__{key}": value for key, value in options.items()}
    recipe = recipe_of(name, given, dprp__params=str(share), data__validation="1000", **asked)
    compression = api.train(model_path(name, given), recipe)
    driver, network, shrinking = compression.driver, compression.network, compression.shrinking
    assert shrinking is not None
    assert compression.decision is not None
    models = {"original": network.original, "trained": compression.models["trained"]}
    judged = {what: nodes.evaluate_node(network, what, model, "test") for what, model in models.items()}
    refs = driver.carry_out("evaluate", list(judged.values()))
    each = {what: driver.store.open(refs[node.name]).array("each") for what, node in judged.items()}
    lost = 100 * (each["original"] - each["trained"])
    epochs, left = shrinking["epochs"], compression.decision.parameters / network.parameters
    return {
        "network": name,
        "share": share,
        "parameters": round(left, 5),
        "macs": round(compression.decision.macs / network.macs, 4),
        "off_target": round(abs(left / share - 1), 5),
        "original": round(float(each["original"].mean()), 5),
        "accuracy": round(float(each["trained"].mean()), 5),
        "points_lost": round(float(lost.mean()), 3),
        "points_lost_se": round(float(lost.std() / np.sqrt(len(lost))), 3),
        "points_lost_halves": [round(float(lost[half::2].mean()), 3) for half in (0, 1)],
        "orthogonality": float(f"{epochs[-1]['orthogonality']:.2g}"),
        "images_per_epoch": recipe.dprp.images,
        "epochs": [{key: epoch.get(key) for key in PER_EPOCH} for epoch in epochs],
        "layers": [
            [layer, before, after]
            for layer, before, after in zip(shrinking["layers"], shrinking["ranks"], epochs[-1]["ranks"], strict=True)
        ],
    }


if __name__ == "__main__":
    main()
