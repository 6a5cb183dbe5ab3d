"""Steps: what they make of their inputs, apart from store and graph; decisions say what they are known by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lrfgraph.engine.nodes import Ref, Result, Task
from lrfgraph.errors import ConfigurationError
from lrfgraph.layers.pieces import compose, cost
from lrfgraph.layers.rows import add_moments, grouped
from lrfgraph.layers.similarity import METRICS, from_rows
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank
from lrfgraph.run.steps import STEPS, candidates
from lrfgraph.run.steps.common import geometry, layer_of
from lrfgraph.run.steps.decisions import decision_of, select, select_inputs
from lrfgraph.selection.problem import CandidateId
from tests.methods.examples import LAYERS, layer, random_kernel


def entry(data: Mapping[str, Any] | None = None, identity: str = "", **arrays: Any) -> Any:
    """A finished result, as a step sees one of its inputs."""
    named = {name.replace("__", "/"): np.asarray(array) for name, array in arrays.items()}
    return SimpleNamespace(
        identity=identity or str(id(arrays)),
        data=dict(data or {}),
        array=named.__getitem__,
        rows=named.__getitem__,
        names=lambda: list(named),
    )


def given(result: Result, identity: str = "") -> Any:
    return entry(result.data, identity, **{name.replace("/", "__"): array for name, array in result.arrays.items()})


def run(compute: Any, params: Mapping[str, Any], **inputs: Any) -> Result:
    return compute(Task("a", params, inputs, {}, Path, lambda done, total, message: None))  # type: ignore[no-any-return]


CONV, DENSE = layer("conv2d", (1, 3, 3, 6, 8), size=6), layer("dense", (1, 12, 10))
GROUPED = layer("conv2d", (2, 3, 3, 4, 6), size=6)


def record_of(spec: LayerSpec, n: int = 300) -> Any:
    rng = np.random.default_rng(1)
    positions = spec.positions if spec.rows == "patch" else 1
    rows = (rng.normal(size=(n, positions, spec.groups * spec.inputs)) + 0.4).astype("float32")
    total = np.zeros((spec.groups, spec.width + 1, spec.width + 1))
    add_moments(total, spec, rows)
    return entry(identity=f"record of {spec.name}", rows=rows, moments=total / n)


def weights_of(spec: LayerSpec, **more: Any) -> Any:
    rng = np.random.default_rng(2)
    bias = rng.normal(size=spec.groups * spec.outputs).astype("float32")
    return entry(identity=spec.name + "".join(more), kernel=random_kernel(spec), bias=bias, **more)


def scored(
    spec: LayerSpec, method: str, rank: str, weights: Any, tap: str = "linear", **inputs: Any
) -> tuple[Any, Any]:
    """The score of one candidate, and its kernel."""
    params = {"method": method, "version": 1, "layer": geometry(spec), "weighting": "input", "rank": rank}
    prepared = given(run(candidates.decompose, params, weights=weights, **inputs))
    factors = given(run(candidates.factorize, params, prepared=prepared))
    params |= {"tap": tap, "tail": "relu" if tap == "activation" else "linear"}
    found = run(candidates.score, params, weights=weights, prepared=prepared, factors=factors, **inputs)
    made = candidates.factors_of(spec, method, rank, factors, prepared)
    return found.data, compose(METHODS[method].pieces(spec, parse_rank(rank)), [w.astype(np.float64) for w in made])


def outputs(spec: LayerSpec, record: Any, kernel: Any, bias: Any, scale: Any = 1.0, shift: Any = 0.0) -> np.ndarray:
    made = grouped(spec, record.array("rows")).astype(np.float64) @ spec.matrix(kernel.astype(np.float64))
    return (np.moveaxis(made, 0, 1).reshape(made.shape[1], -1) + bias) * scale + shift


def test_every_step_is_listed_under_its_own_name() -> None:
    for name, step in STEPS.items():
        assert step.name == name
        assert step.version >= 1


@pytest.mark.parametrize("tap", ["linear", "activation"])
@pytest.mark.parametrize(
    ("spec", "method", "rank"),
    [(CONV, "tucker", "3x4"), (CONV, "cp", "5"), (GROUPED, "svd_channel", "2"), (DENSE, "svd", "3")],
)
def test_a_score_is_what_the_layers_outputs_say(spec: LayerSpec, method: str, rank: str, tap: str) -> None:
    """BatchNorm folded, bias in its place, before or after the activation."""
    rng = np.random.default_rng(3)
    scale, shift = rng.uniform(0.5, 2, spec.groups * spec.outputs), rng.normal(size=spec.groups * spec.outputs)
    plain = weights_of(spec)
    folded = plain.array("bias") * scale + shift
    weights, record = weights_of(spec, scale=scale, shift=folded), record_of(spec)
    found, kernel = scored(spec, method, rank, weights, tap, record=record)
    y, z = (outputs(spec, record, k, plain.array("bias"), scale, shift) for k in (plain.array("kernel"), kernel))
    tail = (lambda x: np.maximum(x, 0)) if tap == "activation" else (lambda x: x)
    wanted = from_rows(tail(y), tail(z))
    for metric in METRICS if spec.groups == 1 or tap == "activation" else ("cosine", "relative_error"):
        assert found["similarity"][metric] == pytest.approx(wanted[metric], abs=2e-4)
    assert found["distortion"] == pytest.approx(np.sum((y - z) ** 2) / np.sum(y**2), rel=1e-3)
    error = kernel - plain.array("kernel")
    assert found["weight_error"] == pytest.approx(np.sum(error**2) / np.sum(plain.array("kernel") ** 2), rel=1e-4)
    counted = cost(spec, METHODS[method].pieces(spec, parse_rank(rank)))
    assert (found["parameters"], found["macs"]) == (counted.parameters, counted.macs)
    assert found["predicted"] is None


def test_without_images_the_weights_alone_are_compared() -> None:
    weights = entry(identity="no bias", kernel=random_kernel(CONV))
    found, kernel = scored(CONV, "tucker", "3x4", weights)
    original = weights.array("kernel").astype(np.float64)
    cosine = np.sum(kernel * original) / np.linalg.norm(kernel) / np.linalg.norm(original)
    assert found["similarity"]["cosine"] == pytest.approx(cosine)
    assert found["distortion"] == pytest.approx(found["weight_error"], rel=1e-6)


def test_curvature_predicts_and_a_transposed_layer_spreads_it_over_its_positions() -> None:
    spec = layer("conv2d_transpose", (1, 3, 3, 6, 4), size=6, stride=2)
    rng = np.random.default_rng(5)
    g = rng.normal(size=(30, 4))
    h, record = (g.T @ g / 30)[None], record_of(spec)
    weights = weights_of(spec)
    found, kernel = scored(spec, "tucker", "3x2", weights, record=record, curvature=entry(curvature=h, identity="h"))
    error = spec.matrix(kernel - weights.array("kernel"))[0].reshape(6, 9, 4)
    x = record.array("rows")[:, 0].astype(np.float64)
    each = np.einsum("ni,iso->nso", x, error)
    wanted = 0.5 * np.einsum("nso,op,nsp->", each, h[0], each) / len(x)
    assert found["predicted"] == pytest.approx(wanted, rel=1e-4)


def test_ranks_are_multiples_where_that_is_asked_for_and_known_by_what_they_say() -> None:
    prepared = given(
        run(
            candidates.decompose,
            {"method": "tucker", "layer": geometry(CONV), "weighting": "plain"},
            weights=weights_of(CONV),
        )
    )
    params = {"method": "tucker", "layer": geometry(CONV), "shares": [0.1, 0.3, 0.5, 0.9], "multiple": 1}
    one, two = (run(candidates.ranks, params | {"multiple": m}, prepared=prepared) for m in (1, 2))
    assert one.data["ranks"] != two.data["ranks"]
    assert all(r == 1 or r % 2 == 0 for rank in two.data["ranks"] for r in parse_rank(rank))
    assert one.identity == run(candidates.ranks, params, prepared=prepared).identity != two.identity


def test_noise_ranks_tell_a_kernel_of_low_rank_from_noise() -> None:
    rng = np.random.default_rng(6)
    spec = layer("conv2d", (1, 3, 3, 32, 48))
    core = rng.normal(size=(3, 3, 4, 6))
    low = np.einsum("hwab,ia,ob->hwio", core, rng.normal(size=(32, 4)), rng.normal(size=(48, 6)))[None]
    noisy = low / low.std() + 0.1 * rng.normal(size=low.shape)
    found = run(candidates.noise, {"layer": geometry(spec)}, weights=entry(kernel=noisy)).data["ranks"]
    assert found == [[4, 32], [6, 48]]
    bare = run(candidates.noise, {"layer": geometry(spec)}, weights=entry(kernel=rng.normal(size=low.shape)))
    assert [rank for rank, _ in bare.data["ranks"]] == [1, 1]


def score(parameters: int, cosine: float) -> Any:
    similarity = {"cosine": cosine, "relative_error": cosine, "cka": cosine}
    data = {"parameters": parameters, "macs": 10, "similarity": similarity, "distortion": 1 - cosine}
    return entry(data | {"weight_error": 0.1, "predicted": None})


def test_select_reads_scores_by_name_and_is_known_by_its_choices() -> None:
    options = {
        "policy": "threshold",
        "min_similarity": 0.9,
        "cost": "parameters",
        "mix": 0.5,
        "params": None,
        "macs": None,
    }
    params = {
        "layers": [["block/a|b", 100, 1000, ""], ["head", 50, 50, "skipped by explore.skip"]],
        "parameters": 170,
        "macs": 1100,
        "metric": "cosine",
        "options": options,
    }
    layer_name = "block/a|b"
    known = {("cp", "4"): (30, 0.95), ("tucker", "2x3"): (20, 0.92), ("cp", "1"): (5, 0.5)}
    refs = {CandidateId(layer_name, *about): Ref("", "") for about in known}
    about, inputs = select_inputs(refs, {}, {})
    scores = dict(zip(inputs, (score(*values) for values in known.values()), strict=True))
    params |= about
    found = run(select, params, **scores)
    first, second = found.data["choices"]
    assert (first["layer"], first["method"], first["rank"]) == (layer_name, "tucker", "2x3")
    assert second == {"layer": "head", "method": None, "reason": "skipped by explore.skip"}
    assert (found.data["parameters"], found.data["macs"]) == (90, 110)
    assert decision_of(found.data).configuration == (CandidateId(layer_name, "tucker", "2x3"),)
    assert decision_of(found.data).to_json() == found.data
    same = run(select, params | {"options": options | {"min_similarity": 0.91}}, **scores)
    other = run(select, params | {"options": options | {"min_similarity": 0.94}}, **scores)
    assert found.identity == same.identity != other.identity
    about, inputs = select_inputs(refs, {}, {layer_name: Ref("", "")})
    noise = entry({"ranks": [[2, 8], [3, 8]]})
    asked = params | about | {"options": options | {"policy": "evbmf"}}
    evbmf = run(select, asked, **scores, **{next(reversed(inputs)): noise})
    assert evbmf.data["choices"][0]["rank"] == "2x3"


def test_a_budget_that_nobody_meets_is_an_answer_too() -> None:
    params = {"layers": [["a", 100, 1000, ""]], "parameters": 170, "macs": 1100, "metric": "cosine"}
    params |= {"options": {"policy": "budget", "params": 0.1}, "scores": [], "probes": [], "noise": []}
    found = run(select, params)
    assert "smallest reachable" in found.data["infeasible"]
    with pytest.raises(ConfigurationError, match="smallest reachable"):
        decision_of(found.data)


@pytest.mark.parametrize("spec", LAYERS, ids=[spec.name for spec in LAYERS])
def test_geometry_is_all_that_a_factorization_needs_of_a_layer(spec: LayerSpec) -> None:
    back = layer_of({"layer": geometry(spec)})
    assert geometry(back) == geometry(spec)
    for method in METHODS.values():
        assert method.reason(back) == method.reason(spec)
        if not method.reason(spec) and (rank := method.full_rank(spec)):
            assert cost(back, method.pieces(back, rank)) == cost(spec, method.pieces(spec, rank))
