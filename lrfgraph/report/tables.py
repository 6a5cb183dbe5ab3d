"""What a person sees in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["accuracy", "bytes_text", "count_text", "print_layers", "print_result"]

TITLES = {"baseline": "original", "factorized": "factorized", "repaired": "repaired", "finetuned": "fine-tuned"}


def count_text(n: float) -> str:
    """Write a count for people.

    >>> count_text(274442), count_text(40_810_000), count_text(12)
    ('274.4 k', '40.81 M', '12')
    """
    for size, unit, digits in ((1e9, "G", 2), (1e6, "M", 2), (1e3, "k", 1)):
        if abs(n) >= size:
            return f"{n / size:.{digits}f} {unit}"
    return f"{n:g}"


def bytes_text(n: float) -> str:
    """Write a size for people.

    >>> bytes_text(1331392)
    '1.33 MB'
    """
    return count_text(n).replace(" k", " kB").replace(" M", " MB").replace(" G", " GB") if n >= 1e3 else f"{n:g} B"


def accuracy(stage: Mapping[str, Any], part: str) -> str:
    """Write an accuracy in percent, or a mean squared error, with its standard error."""
    if stage["accuracy"][part] is not None:
        return f"{100 * stage['accuracy'][part]:.2f} ± {100 * stage['accuracy_se'][part]:.2f} %"
    if stage.get("mse", {}).get(part) is not None:
        return f"{stage['mse'][part]:.5f} ± {stage['mse_se'][part]:.5f}"
    return "–"


def print_result(console: Any, said: Mapping[str, Any]) -> None:
    """Print before and after, the seconds by stage and the nodes."""
    from rich.table import Table

    stages = {name: said[name] for name in TITLES if said[name]}
    regression = "mse" in said["baseline"]
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in stages:
        table.add_column(TITLES[name], justify="right")
    base = said["baseline"]

    def row(title: str, key: str, text: Any) -> None:
        cells = []
        for stage in stages.values():
            share = f" ({stage[key] / base[key]:.1%})" if stage is not base and base[key] else ""
            cells.append(text(stage[key]) + share)
        table.add_row(title, *cells)

    row("parameters", "parameters", count_text)
    row("MACs", "macs", count_text)
    row("file", "file_bytes", bytes_text)
    measure = "mean squared error" if regression else "accuracy"
    for part in ("validation", "test"):
        if any(accuracy(stage, part) != "–" for stage in stages.values()):
            table.add_row(f"{measure}, {part}", *(accuracy(stage, part) for stage in stages.values()))
    console.print(table)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in said["seconds"].items() if value >= 0.05)
    run, reused = sum(said["nodes"]["run"].values()), sum(said["nodes"]["reused"].values())
    console.print(f"nodes: {run} run, {reused} reused" + (f"; seconds: {seconds}" if seconds else ""), highlight=False)


def print_layers(console: Any, said: Mapping[str, Any]) -> None:
    """Print what became of every layer."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("layer", "kind", "kernel", "method", "rank"):
        table.add_column(title)
    for title in ("parameters", "MACs", "similarity"):
        table.add_column(title, justify="right")
    for layer in said["layers"]:
        kernel = "×".join(map(str, layer["kernel"][1:] if layer["kernel"][0] == 1 else layer["kernel"]))
        if layer["method"] is None:
            table.add_row(layer["name"], layer["kind"], kernel, f"[dim]kept: {layer['reason']}[/dim]")
            continue
        shares = (f"{after / before:.1%}" if before else "–" for before, after in (layer["parameters"], layer["macs"]))
        metric = said["recipe"]["similarity"]["metric"]
        similar = f"{layer['similarity'][metric]:.4f}" if metric in layer["similarity"] else "–"
        table.add_row(
            layer["name"], layer["kind"], kernel, layer["method"], "x".join(map(str, layer["rank"])), *shares, similar
        )
    console.print(table)
