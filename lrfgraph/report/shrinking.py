"""How ranks shrank while a network was trained: a table, a file and two pictures of its epochs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrfgraph.errors import OutputError
from lrfgraph.network.heads import titles
from lrfgraph.report.pictures import new_figure, write_picture
from lrfgraph.report.tables import Table, count_text, deciding, seconds_text
from lrfgraph.run.state import Compression

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "epochs_figure", "epochs_table", "ranks_figure", "write_epochs"]

COLUMNS = (
    "epoch", "parameters", "macs", "task_loss", "orthogonality_loss", "rank_loss", "rank_weight", "lost",
    "orthogonality", "seconds", "step_seconds", "step_cpu_seconds",
)  # fmt: skip
"""lost : largest share of its energy that a layer lost at the epoch's end.  orthogonality : largest entry of
|UᵀU − I|.  step_seconds : median of a training step, the teacher's answers included, by the clock;
step_cpu_seconds : what processors worked meanwhile.  Measures on validation images and the layers' ranks follow."""


def epochs_table(summary: Mapping[str, Any]) -> Table:
    """Size, losses and the measure that decides, epoch by epoch."""
    base, (name, title, percent) = summary["baseline"], deciding(summary)
    rows = []
    for epoch in summary["shrinking"]["epochs"]:
        shares = [f"{epoch[key] / base[key]:.1%}" if base[key] else "–" for key in ("parameters", "macs")]
        losses = [f"{epoch[key]:.4f}" for key in ("task_loss", "orthogonality_loss", "rank_loss")]
        value = epoch.get(name)
        measured = "–" if value is None else f"{100 * value:.2f} %" if percent else f"{value:.5f}"
        rows.append([str(epoch["epoch"]), *shares, *losses, measured, seconds_text(epoch["seconds"])])
    heading = ["epoch", "parameters", "MACs", "task loss", "orthogonality", "rank loss", f"{title}, validation", ""]
    return Table(heading, rows, range(8))


def write_epochs(compression: Compression, folder: Path) -> None:
    """Write ``epochs.csv``, ``epochs.png`` and ``ranks.png`` of a training with shrinking ranks; raises OutputError.

    What another run left there under these names goes.
    """
    shrinking, figures = compression.shrinking, {"epochs.png": epochs_figure, "ranks.png": ranks_figure}
    try:
        if shrinking is None:
            (folder / "epochs.csv").unlink(missing_ok=True)
        else:
            _replace(folder / "epochs.csv", _csv(shrinking["epochs"], shrinking["layers"]))
        for name, draw in figures.items():
            figure = draw(compression)
            if figure is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_picture(figure, folder / name)
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from None


def _csv(epochs: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measured = [name for name in epochs[0] if name not in (*COLUMNS, "ranks", "dense")]
    writer.writerow([*COLUMNS, *measured, *(f"rank of {layer}" for layer in layers)])
    for epoch in epochs:
        cells = [epoch.get(name) for name in (*COLUMNS, *measured)]
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells] + epoch["ranks"])
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def epochs_figure(compression: Compression) -> Figure | None:
    """Draw parameters and MACs across epochs, beside the measure that decides; ``None`` where no ranks shrank."""
    shrinking, original, options = compression.shrinking, compression.original, compression.network.recipe.data
    if shrinking is None:
        return None
    epochs, (name, title) = shrinking["epochs"], next(iter(titles(compression.network.head, options.metric).items()))
    figure = new_figure(12, 4)
    left, middle, right = figure.subplots(1, 3)
    numbers = [0, *(epoch["epoch"] for epoch in epochs)]
    sizes = (("parameters", "parameters", original.parameters), ("macs", "MACs", original.macs))
    for axes, (key, label, before) in zip((left, middle), sizes, strict=True):
        values = [before, *(epoch[key] for epoch in epochs)]
        axes.step(numbers, values, where="post", color="#1b6ca8")
        axes.set(xlabel="epoch", ylabel=label, ylim=(0, 1.05 * before))
        axes.set_title(f"{count_text(values[0])} to {count_text(values[-1])}")
    points = [(epoch["epoch"], epoch[name]) for epoch in epochs if name in epoch]
    right.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, color="#1b6ca8")
    right.set(xlabel="epoch", ylabel=f"{title} on validation images")
    return figure


def ranks_figure(compression: Compression) -> Figure | None:
    """Draw the initial and the final rank of every layer; ``None`` where no ranks shrank."""
    shrinking = compression.shrinking
    if shrinking is None or not shrinking["layers"]:
        return None
    layers, first, last = shrinking["layers"], shrinking["ranks"], shrinking["epochs"][-1]["ranks"]
    figure = new_figure(9, 1.2 + 0.28 * len(layers))
    axes = figure.subplots()
    places = range(len(layers))
    axes.barh(places, first, color="#c9d6df", label="initial rank")
    axes.barh(places, last, height=0.5, color="#1b6ca8", label="final rank")
    for place, before, after in zip(places, first, last, strict=True):
        axes.annotate(f"{after} of {before}", (before, place), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    axes.set(xlabel="rank", xlim=(0, 1.15 * max(first)))
    axes.set_yticks(list(places), list(layers), fontsize=8)
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="lower right")
    return figure
