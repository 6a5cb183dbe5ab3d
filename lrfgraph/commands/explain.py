"""Why a layer became what it became: all its candidates, and what excluded each that was not chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrfgraph import api
from lrfgraph.errors import ModelError, RecipeError
from lrfgraph.layers.pieces import Cost, layer_cost
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.options.asked import Asked
from lrfgraph.options.option import check_choice
from lrfgraph.options.recipe import Recipe
from lrfgraph.report import tables
from lrfgraph.report.progress import Progress
from lrfgraph.selection.policies import POLICIES
from lrfgraph.selection.problem import Candidate, Choice

__all__ = ["excluded", "explain_layer"]

LAST = "select"
"""The kind of node up to which everything is computed that an explanation stands on."""


def explain_layer(model: Path, name: str, asked: Asked, *, as_json: bool = False) -> None:
    """Print the candidates of one layer; what is not in the cache up to the choice is computed first."""
    if asked.here("run.until") and asked.recipe.run.until != LAST:
        raise RecipeError(f"explain computes up to {LAST}, received --until {asked.recipe.run.until}; leave it out")
    for key, what in (("dprp.enabled", "trained with shrinking ranks"), ("prune.alone", "pruned and no more")):
        if asked.recipe.value(key):
            raise RecipeError(
                f"explain is about candidates, and a network that is {what} has none, received {key} = true; leave it "
                "out, or see what summary.json of its run says of the layer"
            )
    recipe = asked.recipe.with_option("run.until", LAST)
    with Progress() as progress:
        compression = api.compress(model, recipe, base=asked.folder, on_event=progress)
    layers = {layer.name: layer for layer in compression.network.layers}
    check_choice("explain", "LAYER", name, layers)
    if compression.decision is None:
        raise ModelError(f"{model}: nothing was chosen yet; run it without --until first")
    choice = next((c for c in compression.decision.choices if c.layer == name), None)
    if choice is None:
        raise ModelError(f"{name} is a {layers[name].class_name}: it has no kernel to factorize")
    account = _account(compression, layers[name], choice)
    if as_json:
        print(json.dumps({**account, "notes": asked.notes}, indent=1, default=list))
        return
    print(_text(account))
    for note in asked.notes:
        print(f"note: {note}")


def _account(compression: api.Compression, layer: LayerSpec, choice: Choice) -> dict[str, Any]:
    driver, decision = compression.driver, compression.decision
    assert decision is not None
    scores = {c: ref for c, ref in compression.exploration.scores.items() if c.layer == layer.name}
    candidates = [Candidate(c, **driver.data(ref)) for c, ref in scores.items()]
    metric = driver.recipe.similarity.metric
    candidates.sort(key=lambda c: (c.parameters, c.macs, -c.similarity[metric]))
    chosen = next((c for c in candidates if c.id == choice.id), None)
    manifests = [driver.store.manifest(ref.key) for ref in scores.values()]
    return {
        "layer": layer.to_json(),
        "cost": [layer_cost(layer).parameters, layer_cost(layer).macs],
        "policy": decision.policy,
        "metric": metric,
        "chosen": [chosen.method, chosen.rank] if chosen else None,
        "reason": choice.reason,
        "candidates": [
            {
                "method": c.method,
                "rank": c.rank,
                "parameters": c.parameters,
                "macs": c.macs,
                "similarity": dict(c.similarity),
                "distortion": c.distortion,
                "excluded": ""
                if c is chosen
                else excluded(c, chosen, candidates, layer_cost(layer), driver.recipe, decision.policy),
                "key": scores[c.id].key,
            }
            for c in candidates
        ],
        "versions": sorted({json.dumps(m["versions"], sort_keys=True) for m in manifests}),
    }


def excluded(
    candidate: Candidate,
    chosen: Candidate | None,
    others: Sequence[Candidate],
    whole: Cost,
    recipe: Recipe,
    policy: str,
) -> str:
    """Say what speaks against a candidate that was not chosen."""
    metric, options = recipe.similarity.metric, recipe.select
    similarity = candidate.similarity[metric]
    budget = options.params is not None or options.macs is not None
    if policy == "threshold" and not budget and similarity < options.min_similarity:
        return f"{metric} below {options.min_similarity:g}"
    if candidate.parameters >= whole.parameters and options.cost == "parameters":
        return "no fewer parameters than the layer"
    better = next((o for o in others if _dominates(o, candidate, metric)), None)
    if better is not None:
        return f"dominated by {better.method} {better.rank}"
    if chosen is None:
        return "the layer is kept"
    if candidate.parameters > chosen.parameters or candidate.macs > chosen.macs:
        return "costs more than the chosen one"
    return f"less similar than the chosen one ({_policy_text(policy)})"


def _policy_text(policy: str) -> str:
    return f"policy {policy}" if POLICIES[policy].public else f"{policy} configuration"


def _dominates(one: Candidate, other: Candidate, metric: str) -> bool:
    ours = (-one.similarity[metric], one.parameters, one.macs)
    theirs = (-other.similarity[metric], other.parameters, other.macs)
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _text(account: Mapping[str, Any]) -> str:
    layer, (parameters, macs), metric = account["layer"], account["cost"], account["metric"]
    kind = layer["kind"] or layer["class_name"]
    lines = [
        f"{layer['name']}: {kind} {tables.kernel_text(layer['kernel'])}, {tables.count_text(parameters)} parameters, "
        f"{tables.count_text(macs)} MACs (bias apart)"
    ]
    if not account["candidates"]:
        return "\n".join([*lines, f"kept: {account['reason']}"])
    rows = []
    for c in account["candidates"]:
        note = c["excluded"] or f"chosen by {_policy_text(account['policy'])}"
        shares = [f"{c['parameters'] / parameters:.1%}", f"{c['macs'] / macs:.1%}" if macs else "–"]
        similar = f"{c['similarity'][metric]:.4f}"
        rows.append([c["method"], c["rank"], str(c["parameters"]), shares[0], shares[1], similar, note])
    titles = ["method", "rank", "parameters", "of layer", "MACs", metric, ""]
    lines += ["", tables.columns(titles, rows, right=(2, 3, 4, 5)), ""]
    if account["chosen"] is None:
        lines.append(f"kept: {account['reason']}")
    versions = ["; ".join(f"{k} {v}" for k, v in json.loads(text).items()) for text in account["versions"]]
    return "\n".join(lines + [f"made with {text}" for text in versions])
