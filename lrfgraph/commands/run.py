"""A run as a person sees it: the baseline first, progress, what came out, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrfgraph.api import Compression, compress
from lrfgraph.options.recipe import Recipe
from lrfgraph.report import summary as files
from lrfgraph.report import tables
from lrfgraph.report.design_space import write_design_space
from lrfgraph.report.progress import Progress

__all__ = ["run_and_report"]


def run_and_report(model: Path, recipe: Recipe, base: Path, *, as_json: bool = False) -> dict[str, Any]:
    """Run, write the results and print them; returns the summary."""
    with files.result_folder(Path(recipe.run.out or f"{model.stem}-compressed")) as folder, Progress() as progress:

        def on_baseline(outcome: Compression) -> None:
            if not as_json:
                progress.pause()
                print(_baseline(model, outcome), flush=True)

        outcome = compress(model, recipe, base=base, on_event=progress, on_baseline=on_baseline)
        said = files.summary(outcome, model)
        note = write_design_space(outcome, folder)
        said["warnings"] += [note] if note else []
        files.write(outcome, folder, said)
    if as_json:
        print(json.dumps(said, indent=1, default=list))
        return said
    if outcome.decision:
        print(f"\n{tables.layers_table(said)}")
    if outcome.points:
        print(f"\n{tables.front_table(said, [point.to_json() for point in outcome.points])}")
    if outcome.exported:
        print(f"\n{tables.result_table(said)}")
    print(f"\n{tables.stage_line(said)}")
    for warning in said["warnings"]:
        print(f"note: {warning}")
    print(f"results in {folder}")
    return said


def _baseline(model: Path, outcome: Compression) -> str:
    network = outcome.network
    size = f"{tables.count_text(network.parameters)} parameters, {tables.count_text(network.macs)} MACs"
    measured = outcome.measured.get("baseline", {}).get("validation", {})
    said = "accuracy not measured"
    where = f"on {measured.get('n', 0):,} validation images"
    if "accuracy" in measured:
        value, error = 100 * measured["accuracy"], 100 * measured["accuracy_se"]
        said = f"accuracy {where} {value:.2f} ± {error:.2f} %"
    elif "mse" in measured:
        said = f"mean squared error {where} {measured['mse']:.5f} ± {measured['mse_se']:.5f}"
    return f"{model.name}: {size}, {said}"
