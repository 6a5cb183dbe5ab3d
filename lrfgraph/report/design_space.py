"""The design space as files: every candidate, every measured configuration, and pictures."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrfgraph.engine.nodes import digest
from lrfgraph.errors import OutputError
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.layers.similarity import METRICS
from lrfgraph.network.heads import in_percent, titles
from lrfgraph.report.pictures import caption, draw_design_space, draw_layers, write_picture
from lrfgraph.report.summary import front, layer_rows
from lrfgraph.run.state import Compression

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CANDIDATE_COLUMNS",
    "CONFIGURATION_COLUMNS",
    "candidates",
    "configurations",
    "design_space_figure",
    "layers_figure",
    "write_design_space",
]

CANDIDATE_COLUMNS = (
    "layer",
    "method",
    "rank",
    "parameters",
    "macs",
    "parameters_share",
    "macs_share",
    *METRICS,
    "distortion",
    "weight_error",
    "predicted",
)
"""Shares are of the layer; distortion and weight_error relative squared errors; predicted the output's KL."""

CONFIGURATION_COLUMNS = (
    "name",
    "parameters",
    "macs",
    "parameters_share",
    "macs_share",
    "accuracy_validation",
    "accuracy_test",
    "drop_validation",
    "kl_validation",
)
"""Shares are of the network; drop in points of what the run measures; empty where nothing was measured."""

PICTURES = ("design_space.png", "layers.png")


def candidates(compression: Compression) -> list[dict[str, Any]]:
    """Return one row per candidate that was scored, layers in network order."""
    sizes = {layer.name: layer_cost(layer) for layer in compression.network.layers if layer.kind}
    order = {name: index for index, name in enumerate(sizes)}
    rows = []
    for (layer, method, rank), ref in compression.exploration.scores.items():
        score, whole = compression.driver.data(ref), sizes[layer]
        row = {"layer": layer, "method": method, "rank": rank} | {n: score[n] for n in ("parameters", "macs")}
        row |= {f"{name}_share": score[name] / max(getattr(whole, name), 1) for name in ("parameters", "macs")}
        row |= score["similarity"] | {name: score[name] for name in ("distortion", "weight_error", "predicted")}
        rows.append(row)
    return sorted(rows, key=lambda row: (order[row["layer"]], row["method"], row["parameters"], row["rank"]))


def configurations(compression: Compression) -> list[dict[str, Any]]:
    """Return one row per whole network that was measured: the stages of the run and the points of its search."""
    network = compression.original
    rows: list[dict[str, Any]] = []
    exported = compression.driver.data(compression.exported) if compression.exported else {}
    for name, parts in compression.measured.items():
        counts = {"parameters": network.parameters, "macs": network.macs} if name == "baseline" else exported
        if name == "pruned" and compression.pruned is not None:
            counts = compression.driver.data(compression.pruned)
        measures = {part: parts.get(part, {}) for part in ("validation", "test")}
        rows.append(
            {"name": name, "parameters": counts.get("parameters"), "macs": counts.get("macs")}
            | {f"accuracy_{part}": value.get("accuracy") for part, value in measures.items()}
            | {
                "drop_validation": 100 * measures["validation"]["drop"] if "drop" in measures["validation"] else None,
                "kl_validation": measures["validation"].get("kl"),
            }
        )
    for number, point in enumerate(front(compression)):
        row: dict[str, Any] = {name: point[name] for name in ("parameters", "macs", "chosen")}
        row |= {"name": f"point {number}", "accuracy_validation": point["accuracy"]}
        row |= {f"{name}_validation": point[name] for name in ("drop", "kl")}
        rows.append(row)
    for row in rows:
        if row["parameters"] is not None:
            row["parameters_share"] = row["parameters"] / network.parameters
            row["macs_share"] = row["macs"] / max(network.macs, 1)
    return rows


def design_space_figure(compression: Compression) -> Figure | None:
    """Draw every candidate and every measured configuration; ``None`` where there is no candidate."""
    rows, metric = candidates(compression), compression.driver.recipe.data.metric
    names = _names(compression)
    percent = next(iter(titles(compression.network.head, metric))) in in_percent(compression.network.head, metric)
    return draw_design_space(rows, configurations(compression), names, percent) if rows else None


def layers_figure(compression: Compression) -> Figure | None:
    """Draw the layers before and after they were factorized; ``None`` where nothing was decided."""
    if compression.decision is None:
        return None
    return draw_layers(layer_rows(compression), "pruned" if compression.source is not None else "original")


def _names(compression: Compression) -> tuple[str, str]:
    """What the similarity and the measure are called."""
    recipe = compression.driver.recipe
    return recipe.similarity.metric, next(iter(titles(compression.network.head, recipe.data.metric).values()))


def write_design_space(compression: Compression, folder: Path) -> None:
    """Write ``design_space.csv``, ``configurations.csv`` and the pictures of candidates and of layers.

    Pictures are drawn again only where a table says something new: drawing takes longer than a cached run. What this
    run has nothing to say of goes, it would speak of another.  Raises OutputError.
    """
    try:
        _write(compression, folder)
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be written ({error.strerror}); choose another with --out"
        ) from None


def _write(compression: Compression, folder: Path) -> None:
    files = {
        "design_space.csv": (CANDIDATE_COLUMNS, candidates(compression)),
        "configurations.csv": (CONFIGURATION_COLUMNS, configurations(compression)),
    }
    news = False
    for name, (columns, rows) in files.items():
        if rows:
            news |= _replace(folder / name, _csv(columns, rows))
        else:
            (folder / name).unlink(missing_ok=True)
    drawn = (
        (folder / PICTURES[0], design_space_figure, caption(_names(compression))),
        (folder / PICTURES[1], layers_figure, digest(layer_rows(compression))),
    )
    for path, draw, said in drawn:
        if not news and path.exists() and said.encode() in path.read_bytes():
            continue
        figure = draw(compression)
        if figure is not None:
            write_picture(figure, path, said)
        else:
            path.unlink(missing_ok=True)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _replace(path: Path, text: str) -> bool:
    """Write a file whole; say whether it says anything new."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return True
