"""A run as a person sees it: the baseline first, progress, what came out, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrfgraph.api import Compression, compress
from lrfgraph.network.heads import titles
from lrfgraph.options.asked import Asked
from lrfgraph.report import summary as results
from lrfgraph.report import tables
from lrfgraph.report.design_space import write_design_space
from lrfgraph.report.progress import Progress
from lrfgraph.report.shrinking import epochs_table, write_epochs

__all__ = ["run_and_report"]


def run_and_report(model: Path, asked: Asked, *, as_json: bool = False) -> dict[str, Any]:
    """Run, write the results and print them; returns the summary."""
    end = "trained" if asked.recipe.dprp.enabled else "pruned" if asked.recipe.prune.alone else "compressed"
    out = Path(asked.recipe.run.out or f"{model.stem}-{end}")
    with results.result_folder(out) as folder, Progress() as progress:

        def on_baseline(compression: Compression) -> None:
            if not as_json:
                progress.pause()
                print(_baseline(model, compression), flush=True)

        compression = compress(model, asked.recipe, base=asked.folder, on_event=progress, on_baseline=on_baseline)
        summary = results.summary(compression, model)
        write_design_space(compression, folder)
        write_epochs(compression, folder)
        summary["warnings"] += asked.notes
        results.write(compression, folder, summary)
    if as_json:
        print(json.dumps(summary, indent=1, default=list))
        return summary
    if compression.pruned:
        print(f"\n{tables.pruning_table(summary)}")
    if compression.shrinking:
        print(f"\n{epochs_table(summary)}")
    if compression.decision:
        print(f"\n{tables.layers_table(summary)}")
    if compression.points:
        print(f"\n{tables.front_table(summary, [point.to_json() for point in compression.points])}")
    if compression.exported:
        print(f"\n{tables.result_table(summary)}")
    print(f"\n{tables.stage_line(summary)}")
    for warning in summary["warnings"]:
        print(f"note: {warning}")
    here = Path.cwd()
    print(f"results in {folder.relative_to(here) if folder.is_relative_to(here) else folder}")
    return summary


def _baseline(model: Path, compression: Compression) -> str:
    """The size of the original, and what was measured of it on validation images."""
    network = compression.network
    size = f"{tables.count_text(network.parameters)} parameters, {tables.count_text(network.macs)} MACs"
    measured = compression.measured.get("baseline", {}).get("validation", {})
    images = f"on {measured.get('n', 0):,} validation images"
    if "accuracy" in measured:
        value, error = 100 * measured["accuracy"], 100 * measured["accuracy_se"]
        title = next(iter(titles(network.head, network.recipe.data.metric).values()))
        quality = f"{title} {images} {value:.2f} ± {error:.2f} %"
    else:
        quality = "accuracy not measured"
    return f"{model.name}: {size}, {quality}"
