"""A model as a person sees it before anything is done to it: every layer, its cost, and what could replace it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrfgraph import api
from lrfgraph.layers.pieces import cost, layer_cost
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import Method, Rank, write_rank
from lrfgraph.options.asked import Asked
from lrfgraph.report import tables
from lrfgraph.report.progress import Progress
from lrfgraph.run.state import Network, kept_reason, methods_of

__all__ = ["break_even", "inspect_model"]


def break_even(method: Method, layer: LayerSpec) -> Rank | None:
    """Return the largest rank with fewer parameters than the layer, ``None`` if even rank 1 has as many.

    Where a method has several ranks they are equal here, none above its largest.
    """
    whole, full = layer_cost(layer).parameters, method.full_rank(layer)

    def rank(r: int) -> Rank:
        return (r,) if full is None else tuple(min(r, most) for most in full)

    def saves(r: int) -> bool:
        return cost(layer, method.pieces(layer, rank(r))).parameters < whole

    low, high = 0, max(full) if full else layer.weights
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if saves(middle) else (low, middle - 1)
    return rank(low) if low else None


def inspect_model(model: Path, asked: Asked, *, as_json: bool = False) -> None:
    """Print every layer of a model file."""
    with Progress() as progress:
        network = api.inspect(model, asked.recipe, on_event=progress)
    rows = list(_rows(network))
    if as_json:
        totals = {"parameters": network.parameters, "macs": network.macs}
        print(json.dumps({"model": {"path": str(model), "digest": network.digest}, **totals, "layers": rows}, indent=1))
        return
    print(f"{model.name}: {tables.count_text(network.parameters)} parameters, {tables.count_text(network.macs)} MACs\n")
    titles = ["layer", "kind", "kernel", "parameters", "", "MACs", "", "break-even ranks"]
    print(tables.columns(titles, map(_cells, rows), right=range(3, 7)))


def _rows(network: Network) -> Iterator[dict[str, Any]]:
    for layer in network.layers:
        kept = kept_reason(layer, network.recipe)
        methods = [] if kept else methods_of(layer, network.recipe)
        ranks = {name: break_even(METHODS[name], layer) for name in methods}
        yield {
            "name": layer.name,
            "class": layer.class_name,
            "kind": layer.kind or None,
            "kernel": list(layer.kernel),
            "parameters": layer.parameters,
            "parameters_share": layer.parameters / max(network.parameters, 1),
            "macs": layer.macs,
            "macs_share": layer.macs / max(network.macs, 1),
            "break_even": {name: rank and list(rank) for name, rank in ranks.items()},
            "kept": kept,
        }


def _cells(row: dict[str, Any]) -> list[str]:
    ranks = [f"{name} {write_rank(rank) if rank else 'none'}" for name, rank in row["break_even"].items()]
    kept = f"kept: {row['kept']}" if row["kind"] else ""
    cells = [row["name"], row["kind"] or row["class"], tables.kernel_text(row["kernel"]) or "–"]
    for key in ("parameters", "macs"):
        cells += [tables.count_text(row[key]), f"{row[f'{key}_share']:.1%}"] if row[key] else ["–", ""]
    return [*cells, ", ".join(ranks) or kept]
