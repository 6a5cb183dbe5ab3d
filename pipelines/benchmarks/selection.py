"""What selection and repair reach without any gradient step: points lost on test at given budgets, network by network.

Configurations are chosen from calibration images alone (exchanges, ``--set select.refine=N``, from validation images);
each is repaired, and its test accuracy measured once. A result file that is there already is gone on with: what it
holds is not measured again, so that one file can take several calls.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from networks import arguments, model_path, recipe_of, write

from lrfgraph.api import Compression, compress
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes

LIMIT = 1.5
"""Points of test accuracy that "removed at" allows."""

PARAMS: dict[str, Sequence[float]] = {
    "resnet20_cifar10": (0.60, 0.50, 0.35, 0.33, 0.31),
    "resnet56_cifar10": (0.26, 0.24, 0.21),
    "cnn_gtsrb": (0.12, 0.10, 0.095, 0.09),
    "vgg6_cifar10": (0.22, 0.20, 0.18),
    "vgg_bn_cifar10": (0.16, 0.14, 0.12),
    "lenet5_mnist": (0.09, 0.085, 0.08),
    "resnet8_mlperftiny_cifar10": (0.50, 0.47, 0.44),
    "squeezenet_cifar10": (0.55, 0.45),
    "mobilenet_cifar10": (0.60, 0.50),
    "conv1d_mnist1d": (0.20, 0.12, 0.08),
}
MACS: dict[str, Sequence[float]] = {
    "resnet20_cifar10": (0.40, 0.36, 0.33),
    "cnn_gtsrb": (0.25, 0.22, 0.19),
    "lenet5_mnist": (0.21, 0.18, 0.15),
    "vgg6_cifar10": (0.31, 0.27, 0.23),
    "resnet8_mlperftiny_cifar10": (0.70, 0.64, 0.58),
}
SINGLE = ("svd_channel", "svd_spatial", "tucker", "cp", "tt")


def main() -> None:
    """Run the asked comparisons and print a row for each configuration."""
    parser = arguments(__doc__ or "", tuple(PARAMS))
    parser.add_argument("--axis", choices=("params", "macs"), default="params", help="what the budget limits")
    parser.add_argument("--shares", type=float, nargs="+", help="shares kept; default: a few around 1.5 points lost")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of calibration and validation")
    parser.add_argument("--compare", action="store_true", help="at each share also the other criteria and methods")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
    for name in given.networks:
        shares = given.shares or (PARAMS if given.axis == "params" else MACS).get(name, ())
        for seed in given.seeds:
            for row in measure(name, given, shares, seed, rows):
                rows.append(row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
                write(given.out, {"limit": LIMIT, "removed": removed(rows), "rows": rows})


def measure(
    name: str, given: argparse.Namespace, shares: Sequence[float], seed: int, known: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield one row per configuration of one network and seed that is not known yet."""
    recipe = recipe_of(name, given, explore__weighting="two_sided", repair__enabled=True, data__seed=seed)
    recipe = recipe.with_option("record.seed", seed).with_option("run.until", "select")
    recipe = recipe.with_option("select.policy", "budget").with_option("select.params", 0.9)
    for share in shares:
        variants = [("hybrid", recipe)]
        if given.compare:
            variants += list(_variants(recipe))
        for title, variant in variants:
            refine = variant.select.refine
            what = {"network": name, "axis": given.axis, "seed": seed, "variant": title, "share": share}
            what |= {"refine": refine} if refine else {}
            if not any(what.items() <= row.items() and row.get("refine", 0) == refine for row in known):
                yield what | _row(name, given, variant, share)


def _variants(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Single methods for convolutions, single methods for dense layers, and the two criteria that look at one layer."""
    for method in SINGLE:
        yield f"{method} alone", recipe.with_option("explore.methods", f"{method},svd,qr,ttm")
    for method in ("svd", "qr", "ttm"):
        yield f"dense by {method}", recipe.with_option("explore.methods", ",".join((*SINGLE, method)))
    plain = recipe.with_option("repair.enabled", False)
    for policy in ("threshold", "energy", "uniform"):
        yield f"{policy}, no repair", plain.with_option("select.policy", policy)
    for policy in ("threshold", "energy"):
        weights_alone = plain.with_option("select.policy", policy).with_option("explore.weighting", "plain")
        yield f"{policy}, factors of the weights alone, no repair", weights_alone
    yield "budget, no repair", plain


def _row(name: str, given: argparse.Namespace, recipe: Recipe, share: float) -> dict[str, Any]:
    other = "macs" if given.axis == "params" else "params"
    recipe = recipe.with_option(f"select.{given.axis}", share).with_option(f"select.{other}", None)
    started = time.perf_counter()
    outcome = compress(model_path(name, given), recipe)
    said = _on_test(outcome)
    network, decision = outcome.network, outcome.decision
    assert decision is not None
    used = sorted({candidate.method for candidate in decision.configuration})
    return {
        "parameters": round(decision.parameters / network.parameters, 4),
        "macs": round(decision.macs / network.macs, 4),
        "lost": round(100 * said["drop"], 3),
        "lost_se": round(100 * said["drop_se"], 3),
        "kl": round(said["kl"], 5),
        "methods": "+".join(used),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _on_test(outcome: Compression) -> dict[str, Any]:
    """Rebuild and repair the chosen configuration and measure it on the test images, against the original."""
    driver, network, decision = outcome.driver, outcome.network, outcome.decision
    assert decision is not None
    chain = nodes.rebuild_nodes(network, decision.configuration, outcome.exploration, repaired_only=True)
    model = driver.carry_out("rebuild", chain)[chain[-1].name]
    judged = nodes.evaluate_node(network, "baseline", network.original, "test")
    final = nodes.evaluate_node(network, "final", model, "test", judged.name)
    refs = driver.carry_out("evaluate", [judged, final])
    return driver.data(refs[final.name])


def removed(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the largest share removed by a hybrid without exchanges that loses at most `LIMIT` points.

    By axis and network: the mean over the seeds, and what holds for each of them.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row["variant"] == "hybrid" and "refine" not in row:
            kept = row["parameters"] if row["axis"] == "params" else row["macs"]
            seeds = found.setdefault((row["axis"], row["network"]), {})
            within = round(1 - kept, 4) if row["lost"] <= LIMIT else 0.0
            seeds[row["seed"]] = max(seeds.get(row["seed"], 0.0), within)
    return {
        f"{axis}, {network}": {
            "mean": round(sum(seeds.values()) / len(seeds), 4),
            "least": min(seeds.values()),
            "seeds": len(seeds),
        }
        for (axis, network), seeds in found.items()
    }


if __name__ == "__main__":
    main()
