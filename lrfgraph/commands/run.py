"""A run as a person sees it: the baseline first, progress, what came out, and where it lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lrfgraph.api import Compression, compress
from lrfgraph.engine.events import Listener
from lrfgraph.network.heads import in_percent, titles
from lrfgraph.options.asked import Asked
from lrfgraph.report import tables
from lrfgraph.report.progress import Progress
from lrfgraph.report.result import Result
from lrfgraph.report.summary import result_folder

__all__ = ["carry_out", "run_and_report"]


def run_and_report(model: Path, asked: Asked, *, as_json: bool = False) -> dict[str, Any]:
    """Run, write the results and print them; returns the summary."""
    end = "trained" if asked.recipe.dprp.enabled else "pruned" if asked.recipe.prune.alone else "compressed"
    out = Path(asked.recipe.run.out or f"{model.stem}-{end}")
    with Progress() as progress:

        def on_baseline(compression: Compression) -> None:
            if not as_json:
                progress.pause()
                print(_baseline(model, compression), flush=True)

        result = carry_out(model, asked, out, on_event=progress, on_baseline=on_baseline)
    if as_json:
        print(json.dumps(result.summary, indent=1, default=list))
        return result.summary
    here = Path.cwd()
    print(f"\n{result}")
    print(f"results in {out.relative_to(here) if out.is_relative_to(here) else out}")
    return result.summary


def carry_out(
    model: Path,
    asked: Asked,
    out: Path | None,
    *,
    on_event: Listener | None = None,
    on_baseline: Callable[[Compression], None] | None = None,
) -> Result:
    """Run, and write the results where `out` says; that they can be written is found out before."""
    with result_folder(out) if out else nullcontext():
        compression = compress(model, asked.recipe, base=asked.folder, on_event=on_event, on_baseline=on_baseline)
        result = Result(compression, model, asked.notes)
        if out:
            result.write(out)
    return result


def _baseline(model: Path, compression: Compression) -> str:
    """The size of the original, and what was measured of it on validation images."""
    network = compression.network
    size = f"{tables.count_text(network.parameters)} parameters, {tables.count_text(network.macs)} MACs"
    measured = compression.measured.get("baseline", {}).get("validation", {})
    if "accuracy" not in measured:
        return f"{model.name}: {size}, accuracy not measured"
    name, title = next(iter(titles(network.head, network.recipe.data.metric).items()))
    percent = name in in_percent(network.head, network.recipe.data.metric)
    value = tables.value_text(measured["accuracy"], measured["accuracy_se"], percent)
    return f"{model.name}: {size}, {title} on {measured.get('n', 0):,} validation images {value}"
