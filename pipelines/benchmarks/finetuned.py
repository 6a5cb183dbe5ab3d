"""The largest reduction that one-shot fine-tuning brings back to within 1.5 points of test accuracy.

    python pipelines/benchmarks/finetuned.py --models MODELS --data DATA --cache CACHE --out finetuned.json

Budgets are tried from the largest down, each one repaired and fine-tuned once; the smallest whose drop on validation
images stays within ``--limit`` is chosen, and that one alone is measured on the test images.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from networks import arguments, model_path, print_table, recipe_of, write

from lrfgraph.api import Compression, compress
from lrfgraph.engine.nodes import Ref
from lrfgraph.errors import ConfigurationError
from lrfgraph.run import nodes

LIMIT = 1.5
SHARES = {
    "cnn_gtsrb": (0.15, 0.11, 0.08, 0.06, 0.05, 0.045, 0.04, 0.03),
    "lenet5_mnist": (0.15, 0.11, 0.08, 0.06, 0.05, 0.045, 0.04, 0.03),
}


def main() -> None:
    parser = arguments(__doc__ or "", list(SHARES))
    parser.add_argument("--shares", type=float, nargs="+", help="shares of the parameters kept, largest first")
    parser.add_argument("--limit", type=float, default=LIMIT, help="points that may be lost on validation images")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the one fine-tuning")
    parser.add_argument("--patience", type=int, default=2, help="budgets over the limit before the sweep ends")
    given = parser.parse_args()
    found = {}
    for name in given.networks:
        found[name] = sweep(name, given)
        print_table(["share", "kept", "drop", "se", "before", "s"], [list(r.values()) for r in found[name]["sweep"]])
        print(f"{name}: {found[name]['chosen']}", flush=True)
        write(given.out, {"limit": given.limit, "epochs": given.epochs, "set": given.set, "networks": found})


def sweep(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune one budget after the other; choose on validation, test what was chosen."""
    rows: list[dict[str, Any]] = []
    chosen: tuple[dict[str, Any], Compression, Ref] | None = None
    over = 0
    for share in given.shares or SHARES[name]:
        started = time.perf_counter()
        try:
            outcome = compress(model_path(name, given), recipe(name, given, share))
        except ConfigurationError as error:
            print(f"{name} at {share}: {error}", flush=True)
            break
        tuned, before, after = finetune(outcome)
        assert outcome.decision is not None
        rows.append(
            {
                "share": share,
                "parameters": outcome.decision.parameters / outcome.network.parameters,
                "drop": round(100 * after["drop"], 3),
                "drop_se": round(100 * after["drop_se"], 3),
                "drop_before": round(100 * before["drop"], 3),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        print(name, rows[-1], flush=True)
        over = 0 if rows[-1]["drop"] <= given.limit else over + 1
        if not over:
            chosen = rows[-1], outcome, tuned
        if over >= given.patience:
            break
    return {"sweep": rows, "chosen": None if chosen is None else tested(*chosen)}


def recipe(name: str, given: argparse.Namespace, share: float) -> Any:
    """Return the recipe of one budget: factors and choice by the network's curvature, repair, one fine-tuning."""
    said = {"select__policy": "budget", "select__params": share, "explore__weighting": "two_sided"}
    made = recipe_of(name, given, finetune__epochs=given.epochs, run__until="select", **said)
    return made.with_option("repair.enabled", True)


def finetune(outcome: Compression) -> tuple[Ref, dict[str, Any], dict[str, Any]]:
    """Return the fine-tuned model, and what was measured on validation images before and after."""
    driver, network, decision = outcome.driver, outcome.network, outcome.decision
    assert decision is not None
    assert outcome.baseline is not None
    chain = nodes.rebuild_nodes(network, decision.configuration, outcome.exploration, repaired_only=True)
    rebuilt = driver.carry_out("rebuild", chain)[chain[-1].name]
    work = [node for node in nodes.finish_nodes(network, rebuilt) if node.step == "finetune"]
    tuned = driver.carry_out("finetune", work)["finetune"] if work else rebuilt
    judged = [
        nodes.evaluate_node(network, title, model, "validation", outcome.baseline)
        for title, model in (("before", rebuilt), ("after", tuned))
    ]
    refs = driver.carry_out("evaluate", judged)
    before, after = (driver.data(refs[node.name]) for node in judged)
    return tuned, before, after


def tested(row: dict[str, Any], outcome: Compression, tuned: Ref) -> dict[str, Any]:
    """Measure the chosen model and the original on the test images, once."""
    driver, network = outcome.driver, outcome.network
    original = nodes.evaluate_node(network, "original", network.original, "test")
    final = nodes.evaluate_node(network, "final", tuned, "test", original.name)
    refs = driver.carry_out("evaluate", [original, final])
    said, whole = driver.data(refs[final.name]), driver.data(refs[original.name])
    return {
        "removed": round(1 - row["parameters"], 4),
        "test": {"original": whole["accuracy"], "compressed": said["accuracy"]},
        "test_drop": round(100 * said["drop"], 3),
        "test_drop_se": round(100 * said["drop_se"], 3),
        "validation_drop": row["drop"],
    }


if __name__ == "__main__":
    main()
