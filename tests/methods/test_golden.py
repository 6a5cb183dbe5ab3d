"""Golden numbers of every method under every weighting: numbers that change ask for a new version.

Stored factors are keyed by the method's version. A method whose numbers changed gets the next version, a new one gets
its first entry, and ``python -m tests.methods.test_golden`` writes the entries that are missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.pieces import compose
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import Method, write_rank
from lrfgraph.methods.weighting import weigh
from tests.methods.examples import LAYERS, correlated_moments, random_kernel

FILE = Path(__file__).parents[1] / "data" / "golden" / "methods.json"
WEIGHTINGS = ("plain", "input", "two_sided")
SHARES = (0.15, 0.4, 0.8)


def key(name: str, weighting: str) -> str:
    return f"{name}, version {METHODS[name].version}, {weighting}"


CASES = {key(name, weighting): (name, weighting) for name in METHODS for weighting in WEIGHTINGS}


def layers_of(method: Method) -> list[LayerSpec]:
    """The first layer of every family that the method takes."""
    return list({spec.family.name: spec for spec in reversed(LAYERS) if not method.reason(spec)}.values())


def numbers(name: str, weighting: str) -> dict[str, Any]:
    method = METHODS[name]
    return {spec.name: numbers_on(method, weighting, spec) for spec in layers_of(method)}


def numbers_on(method: Method, weighting: str, spec: LayerSpec) -> dict[str, Any]:
    """By rank: the relative error of the kernel, and per piece the norm and one inner product with random numbers."""
    kernel = random_kernel(spec)
    root = np.random.default_rng(5).normal(size=(spec.groups, spec.outputs, spec.outputs))
    moments = None if weighting == "plain" else correlated_moments(spec)
    weighted, undo = weigh(
        method, spec, kernel, moments, root @ root.swapaxes(1, 2) if weighting == "two_sided" else None
    )
    prepared = method.prepare(spec, weighted)
    ranks = method.ranks(spec, prepared, SHARES) or [method.full_rank(spec) or (1,)]
    by_rank = {}
    for rank in ranks:
        weights = undo(method.factorize(spec, prepared, rank))
        error = np.linalg.norm(compose(method.pieces(spec, rank), weights) - kernel) / np.linalg.norm(kernel)
        by_rank[write_rank(rank)] = [significant(error)] + [
            significant(value) for weight in weights for value in (np.linalg.norm(weight), projection(weight))
        ]
    return by_rank


def projection(weight: np.ndarray) -> float:
    return float(np.sum(weight * np.random.default_rng(weight.size).normal(size=weight.shape)))


def significant(value: float) -> float:
    return float(f"{value:.6g}")


def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


@pytest.mark.parametrize("case", CASES)
def test_numbers_change_only_with_the_version(case: str) -> None:
    stored = golden().get(case)
    assert stored is not None, f"no golden numbers of {case}; python -m tests.methods.test_golden writes them"
    received = numbers(*CASES[case])
    assert received.keys() == stored.keys()
    for layer, by_rank in stored.items():
        assert list(received[layer]) == list(by_rank), layer
        for rank, values in by_rank.items():
            np.testing.assert_allclose(received[layer][rank], values, rtol=2e-4, atol=1e-6, err_msg=f"{layer} {rank}")


def test_no_entry_without_a_method() -> None:
    assert golden().keys() == CASES.keys()


if __name__ == "__main__":
    entries = golden()
    written = {case: entries.get(case) or numbers(*how) for case, how in CASES.items()}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(written, indent=1) + "\n")
    print(f"{FILE}: {len(written.keys() - entries.keys())} new, {len(entries.keys() - written.keys())} dropped")
