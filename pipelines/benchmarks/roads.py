"""Filter pruning alone, factorization alone, and one after the other, at equal cost, before and after fine-tuning.

    python pipelines/benchmarks/roads.py --models MODELS --data DATA --cache CACHE --out roads.json

``--shares`` are of the parameters, or of the MACs, of the original.  How much is pruned before the factorization is
what a run comes to where nobody says it: several shares are tried, none among them, and the nearest to the original on
validation images (KL) is taken; ``tried`` is its account.
"""

from __future__ import annotations

import argparse
from typing import Any

from networks import arguments, model_path, print_table, recipe_of, write

NETWORKS = ["cnn_gtsrb", "vgg_bn_cifar10", "resnet20_cifar10", "resnet56_cifar10"]


def main() -> None:
    parser = arguments(__doc__ or "", NETWORKS)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.1])
    parser.add_argument("--costs", nargs="+", default=["params", "macs"], choices=["params", "macs"])
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning")
    given = parser.parse_args()
    result: dict[str, Any] = {"networks": {}}
    for name in given.networks:
        rows = result["networks"].setdefault(name, [])
        for cost in given.costs:
            for share in given.shares:
                rows += measured(name, given, cost, share)
                write(given.out, result)
        titles = ("cost", "share", "road", "parameters", "macs", "kl", "lost", "lost_se", "lost_finetuned", "seconds")
        print_table([name, *titles], [["", *map(row.get, titles)] for row in rows])


def measured(name: str, given: argparse.Namespace, cost: str, share: float) -> list[dict[str, Any]]:
    """Return a row for each road at one share."""
    budget = {f"select__{cost}": share, "select__policy": "budget"}
    roads = {
        "fbp": {"prune__method": "fbp", "prune__alone": True, f"prune__{cost}": share},
        "lrf": budget,
        "fbp then lrf": {"prune__method": "fbp", **budget},
    }
    return [{"cost": cost, "share": share, "road": road, **row_of(name, given, asked)} for road, asked in roads.items()]


def row_of(name: str, given: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Compress a network one way; what is left of it, and what was lost, in points."""
    from lrfgraph import api

    asked = {key: str(value).lower() for key, value in options.items()} | {"finetune__epochs": str(given.epochs)}
    compression = api.compress(model_path(name, given), recipe_of(name, given, **asked))
    driver, stages = compression.driver, dict(compression.measured)
    account = [note for note in compression.notes if note.startswith("nobody said how much is pruned")]
    first = driver.data(compression.pruned)["parameters"] if compression.pruned is not None else None
    assert compression.exported is not None
    exported, finetuned = driver.data(compression.exported), stages.pop("finetuned", None)
    # the stage that was gone on from, with the measure before fine-tuning
    final = compression.final if compression.final in stages else list(stages)[-1]
    test, validation = stages[final]["test"], stages[final]["validation"]
    return {
        "tried": account,
        "first": None if first is None else round(first / compression.original.parameters, 4),
        "parameters": round(exported["parameters"] / compression.original.parameters, 4),
        "macs": round(exported["macs"] / compression.original.macs, 4),
        "validation_kl": round(validation["kl"], 5),
        "kl": round(test["kl"], 5),
        "lost": round(100 * test["drop"], 2),
        "lost_se": round(100 * test["drop_se"], 2),
        "lost_finetuned": None if finetuned is None else round(100 * finetuned["test"]["drop"], 2),
        "seconds": round(sum(driver.seconds.values()), 1),
    }


if __name__ == "__main__":
    main()
