"""One similarity threshold for all layers: each method alone against the hybrid, no repair, no fine-tuning.

    python pipelines/benchmarks/thresholds.py --models MODELS --data DATA --cache CACHE --out thresholds.json

Exit status 1 where the hybrid needs more parameters than the best single method at the same threshold.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from networks import arguments, model_path, print_table, recipe_of, write

from lrfgraph.api import compress
from lrfgraph.methods import METHODS
from lrfgraph.run import nodes

THRESHOLDS = (0.99, 0.98, 0.97, 0.95)
HYBRID = "hybrid"


def main() -> int:
    parser = arguments(__doc__ or "", ["resnet20_cifar10"])
    parser.add_argument("--thresholds", type=float, nargs="+", default=list(THRESHOLDS), help="similarities asked for")
    given = parser.parse_args()
    rows, worse = [], []
    for name in given.networks:
        for threshold in given.thresholds:
            found = {method: measure(name, given, threshold, method) for method in (HYBRID, *METHODS)}
            best = min((method for method in METHODS), key=lambda method: found[method]["parameters"])
            rows += [
                {"network": name, "threshold": threshold, "method": method} | said for method, said in found.items()
            ]
            if found[HYBRID]["parameters"] > found[best]["parameters"]:
                worse.append(f"{name} at {threshold}: hybrid keeps more than {best}")
            write(given.out, {"rows": rows, "worse": worse})
            print_table(list(rows[0]), [list(row.values()) for row in rows[-len(found) :]])
    print("\n".join(worse) or "the hybrid never needs more parameters than the best single method")
    return int(bool(worse))


def measure(name: str, given: argparse.Namespace, threshold: float, method: str) -> dict[str, Any]:
    """Return shares kept and validation accuracy of one configuration."""
    recipe = recipe_of(name, given, select__policy="threshold", select__min_similarity=threshold, run__until="select")
    if method != HYBRID:
        recipe = recipe.with_option("explore.methods", method)
    outcome = compress(model_path(name, given), recipe.with_option("repair.enabled", False))
    decision, network, driver = outcome.decision, outcome.network, outcome.driver
    assert decision is not None
    configuration = decision.configuration
    accuracy = outcome.measured["baseline"]["validation"]["accuracy"]
    if configuration:
        chain = nodes.rebuild_nodes(network, configuration, outcome.exploration, repaired_only=True)
        model = driver.carry_out("rebuild", chain)[chain[-1].name]
        judged = nodes.evaluate_node(network, "final", model, "validation")
        accuracy = driver.data(driver.carry_out("evaluate", [judged])[judged.name])["accuracy"]
    return {
        "layers": len(configuration),
        "parameters": decision.parameters / network.parameters,
        "macs": decision.macs / network.macs,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    sys.exit(main())
