"""A run as a person sees it: the baseline first, progress, what came out, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrfgraph.api import Outcome, compress
from lrfgraph.recipe import Recipe
from lrfgraph.report import summary as files
from lrfgraph.report import tables

__all__ = ["run_and_report"]


def run_and_report(model: Path, recipe: Recipe, base: Path, *, as_json: bool = False) -> dict[str, Any]:
    """Run, write the results and print them; returns the summary."""
    from rich.console import Console

    from lrfgraph.report.progress import Progress

    console = Console(quiet=as_json)
    target = Path(recipe.run.out or f"{model.stem}-compressed")
    existed = target.exists()
    folder = files.prepare_folder(target)
    try:
        with Progress(console) as progress:
            outcome = compress(
                model, recipe, base=base, on_event=progress, on_baseline=lambda o: _baseline(console, model, o)
            )
    except BaseException:
        if not existed:
            _remove_empty(folder)
        raise
    said = files.summary(outcome, model)
    files.write(outcome, folder, said)
    if as_json:
        print(json.dumps(said, indent=1, default=list))
        return said
    if outcome.decision:
        tables.print_layers(console, said)
        console.print()
    if outcome.exported:
        tables.print_result(console, said)
    for warning in said["warnings"]:
        console.print(f"note: {warning}", highlight=False, soft_wrap=True)
    console.print(f"results in {folder}", highlight=False, soft_wrap=True)
    return said


def _baseline(console: Any, model: Path, outcome: Outcome) -> None:
    network = outcome.network
    size = f"{tables.count_text(network.parameters)} parameters, {tables.count_text(network.macs)} MACs"
    measured = outcome.measured.get("baseline", {}).get("validation", {})
    said = "accuracy not measured (no images)"
    where = f"on {measured.get('n', 0):,} validation images"
    if "accuracy" in measured:
        value, error = 100 * measured["accuracy"], 100 * measured["accuracy_se"]
        said = f"accuracy {where} {value:.2f} ± {error:.2f} %"
    elif "mse" in measured:
        said = f"mean squared error {where} {measured['mse']:.5f} ± {measured['mse_se']:.5f}"
    console.print(f"{model.name}: {size}, {said}", highlight=False, soft_wrap=True)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
