"""Two pictures of a run: the design space with what was measured, and the layers before and after."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrfgraph.report.tables import TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["caption", "draw_design_space", "draw_layers", "new_figure", "png", "write_picture"]

Row = Mapping[str, Any]
SHARES = {"parameters_share": ("parameters", "o"), "macs_share": ("MACs", "s")}


def draw_design_space(
    candidates: Sequence[Row], configurations: Sequence[Row], titles: Sequence[str], percent: bool = True
) -> Figure:
    """Draw, left, candidates by their share of the layer's parameters and MACs, and right, measured configurations.

    The one that was chosen has a ring; the dashed line is what the original reaches. What was not repaired yet is left
    out where it was repaired.

    candidates, configurations : rows of the tables of the same names.  titles : of the similarity and the measure.
    percent : whether that measure is a share of 1.
    """
    metric, measure = titles
    figure = new_figure(12, 5)
    left, right = figure.subplots(1, 2)
    markers = dict(zip(dict.fromkeys(row["method"] for row in candidates), "osD^v<>P*X", strict=False))
    for method, marker in markers.items():
        own = [row for row in candidates if row["method"] == method]
        marks = left.scatter(
            *([row[axis] for row in own] for axis in SHARES),
            c=[row[metric] for row in own],
            marker=marker, s=12, alpha=0.7, vmin=0.5, vmax=1.0, label=method, linewidths=0,
        )  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="parameters, share of the layer", ylabel="MACs, share of the layer")
    left.set_title(f"{len(candidates):,} candidates")
    left.legend(fontsize=8)
    figure.colorbar(marks, ax=left, label=f"similarity ({metric})")
    points = [
        row for row in configurations if row.get("accuracy_validation") is not None and row.get("parameters_share")
    ]
    if any(row["name"] == "repaired" for row in points):  # far below, it would leave no room to tell the others apart
        points = [row for row in points if row["name"] != "factorized"]
    heights = [(100 if percent else 1) * float(row["accuracy_validation"]) for row in points]
    for axis, (label, marker) in SHARES.items():
        right.scatter([row[axis] for row in points], heights, marker=marker, label=label)
    baseline = next((height for row, height in zip(points, heights, strict=True) if row["name"] == "baseline"), None)
    if baseline is not None:
        right.axhline(baseline, color="#999999", linewidth=0.8, linestyle="--")
    for row, height in zip(points, heights, strict=True):
        if row.get("chosen"):
            ring = {"facecolors": "none", "edgecolors": "#d1495b", "label": "chosen"}
            right.scatter([row["parameters_share"]], [height], s=120, **ring)
        if not row["name"].startswith("point"):
            place = (row["parameters_share"], height)
            right.annotate(
                TITLES.get(row["name"], row["name"]), place, xytext=(4, -10), textcoords="offset points", fontsize=8
            )
    right.set(
        xscale="log" if points else "linear",
        xlabel="share of the network kept",
        ylabel=f"{measure} on validation images{', %' if percent else ''}",
    )
    right.set_title(f"{len(points)} measured configurations")
    right.legend(fontsize=8)
    return figure


def caption(titles: Sequence[str]) -> str:
    """What the picture of the design space says of itself, in its file."""
    return json.dumps(list(titles))


def draw_layers(layers: Sequence[Row], before_title: str = "original") -> Figure:
    """Draw every layer's parameters before and after; at the bar its method and rank, or that it is kept.

    layers : rows of summary.json's ``layers``.  before_title : what the network was before.
    """
    figure = new_figure(9, 1.2 + 0.28 * len(layers))
    axes = figure.subplots()
    places = range(len(layers))
    before, after = ([max(row["parameters"][which], 1) for row in layers] for which in (0, 1))
    axes.barh(places, before, color="#c9d6df", label=before_title)
    axes.barh(places, after, height=0.5, color="#1b6ca8", label="compressed")
    for place, row, size in zip(places, layers, before, strict=True):
        rank = "x".join(map(str, row["rank"]))
        axes.annotate(
            f"{row['method']} {rank}" if row["method"] else "kept",
            (size, place),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set(xscale="log", xlabel="parameters of the layer", xlim=(max(min(after) / 2, 0.5), 4 * max(before)))
    axes.set_yticks(list(places), [row["name"] for row in layers], fontsize=8)
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="lower right")
    return figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty picture, its sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure, description: str = "") -> bytes:
    """Return a picture as the bytes of a PNG file, which says the description of itself."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written = io.BytesIO()
    FigureCanvasAgg(figure).print_png(written, metadata={"Description": description})
    return written.getvalue()


def write_picture(figure: Figure, path: Path, description: str = "") -> None:
    """Write a picture whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(png(figure, description))
    os.replace(partial, path)
