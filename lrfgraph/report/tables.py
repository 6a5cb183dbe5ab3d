"""What a person sees, as plain text or HTML: nothing is cut off, whatever the width."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lrfgraph.network.heads import in_percent, titles

__all__ = [
    "TITLES",
    "Table",
    "age_text",
    "bytes_text",
    "columns",
    "count_text",
    "deciding",
    "front_table",
    "kernel_text",
    "layers_table",
    "measure_text",
    "pruning_table",
    "result_table",
    "seconds_text",
    "stage_line",
    "value_text",
]

TITLES = {
    "baseline": "original",
    "pruned": "pruned",
    "trained": "trained",
    "factorized": "factorized",
    "repaired": "repaired",
    "finetuned": "fine-tuned",
}
NARROWEST = 32


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


def seconds_text(n: float) -> str:
    """Write a duration for people.

    >>> seconds_text(0.042), seconds_text(12.3), seconds_text(400)
    ('0.04 s', '12.3 s', '6 min 40 s')
    """
    if n < 60:
        return f"{n:.2f} s" if n < 1 else f"{n:.1f} s"
    minutes, seconds = divmod(round(n), 60)
    return f"{minutes} min {seconds} s"


def age_text(then: float) -> str:
    """Write how long ago a time was (seconds since 1970)."""
    passed = max(time.time() - then, 0.0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{int(passed // size)} {unit}"
    return f"{int(passed)} s"


def kernel_text(kernel: Sequence[int]) -> str:
    """Write a canonical kernel shape, the groups left out where there is one.

    >>> kernel_text((1, 3, 3, 16, 32)), kernel_text((16, 3, 3, 1, 1))
    ('3×3×16×32', '16×3×3×1×1')
    """
    return "×".join(map(str, kernel[1:] if kernel and kernel[0] == 1 else kernel))


def columns(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Lay out a table; `right` are the columns set to the right. The last column wraps where the terminal ends.

    >>> print(columns(["name", "n", ""], [["a", "10", "it is"], ["bcd", "2", ""]], right=[1]))
    name   n
    a     10  it is
    bcd    2
    """
    lines, last = [list(titles), *(list(row) for row in rows)], len(titles) - 1
    to_the_right = set(right)
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(last)]
    start = sum(widths) + 2 * last
    room = max(shutil.get_terminal_size().columns - start, NARROWEST)
    printed = []
    for line in lines:
        cells = [
            cell.rjust(w) if i in to_the_right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=False))
        ]
        if last in to_the_right:
            wide = max(len(other[last]) for other in lines)
            printed.append("  ".join([*cells, line[last].rjust(wide)]).rstrip())
            continue
        wrapped = textwrap.wrap(line[last], room, break_long_words=False, break_on_hyphens=False) or [""]
        printed.append("  ".join([*cells, wrapped[0]]).rstrip())
        printed += [" " * start + more for more in wrapped[1:]]
    return "\n".join(printed)


@dataclass(frozen=True)
class Table:
    """A table as a person sees it; ``str()`` is its text. right : columns set to the right."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Iterable[int] = ()

    def __str__(self) -> str:
        return columns(self.titles, self.rows, self.right)

    def html(self) -> str:
        """Return it as a table of HTML."""
        right = set(self.right)

        def line(cells: Sequence[str], tag: str) -> str:
            sides = ("right" if place in right else "left" for place in range(len(cells)))
            written = (
                f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>'
                for side, cell in zip(sides, cells, strict=True)
            )
            return f"<tr>{''.join(written)}</tr>"

        lines = [line(self.titles, "th"), *(line(row, "td") for row in self.rows)]
        return f"<table>{''.join(lines)}</table>"


def value_text(value: float | None, error: float | None, percent: bool) -> str:
    """Write a measure with its standard error: a share in percent, anything else as it is.

    >>> value_text(0.99, 0.0028, True), value_text(17.25, 0.125, False), value_text(None, None, True)
    ('99.00 ± 0.28 %', '17.250 ± 0.125', '–')
    """
    if value is None or error is None:
        return "–"
    if percent:
        return f"{100 * value:.2f} ± {100 * error:.2f} %"
    digits = 5 if abs(value) < 10 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def measure_text(summary: Mapping[str, Any], stage: Mapping[str, Any], name: str, part: str) -> str:
    """Write what was measured of a stage of a run."""
    value, error = (stage.get(field, {}).get(part) for field in (name, f"{name}_se"))
    return value_text(value, error, name in in_percent(summary["head"], summary["recipe"]["data"]["metric"]))


def deciding(summary: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Return the measure that decides: its name, its title, and whether it is a share of 1."""
    metric = summary["recipe"]["data"]["metric"]
    name, title = next(iter(_measures(summary).items()))
    return name, title, name in in_percent(summary["head"], metric)


def result_table(summary: Mapping[str, Any]) -> Table:
    """Before and after."""
    stages = {name: summary[name] for name in TITLES if summary[name]}
    base = summary["baseline"]
    rows = []
    for title, key, text in (
        ("parameters", "parameters", count_text),
        ("MACs", "macs", count_text),
        ("file", "file_bytes", bytes_text),
    ):
        cells = []
        for stage in stages.values():
            share = f" ({stage[key] / base[key]:.1%})" if stage is not base and base[key] and stage[key] else ""
            cells.append("–" if stage[key] is None else text(stage[key]) + share)
        rows.append([title, *cells])
    for name, title in _measures(summary).items():
        for part in ("validation", "test"):
            cells = [measure_text(summary, stage, name, part) for stage in stages.values()]
            if any(cell != "–" for cell in cells):
                rows.append([f"{title}, {part}", *cells])
    rejected = dict.fromkeys(summary["rejected"], "*")
    titles = [TITLES[name] + rejected.get(name, "") for name in stages]
    return Table(["* not delivered" if rejected else "", *titles], rows, right=range(1, len(stages) + 1))


def stage_line(summary: Mapping[str, Any]) -> str:
    """Nodes run and reused."""
    run, reused = sum(summary["nodes"]["run"].values()), sum(summary["nodes"]["reused"].values())
    return f"nodes: {run} run, {reused} reused"


def layers_table(summary: Mapping[str, Any]) -> Table:
    """What became of every layer; why one is kept stands at the end of its line."""
    metric = summary["recipe"]["similarity"]["metric"]
    heading = ["layer", "kind", "kernel", "method", "rank", "parameters", "MACs", metric, ""]
    rows = []
    for layer in summary["layers"]:
        head = [layer["name"], layer["kind"], kernel_text(layer["kernel"])]
        if layer["method"] is None:
            rows.append([*head, "–", "", "", "", "", f"kept: {layer['reason']}"])
            continue
        shares = [f"{after / before:.1%}" if before else "–" for before, after in (layer["parameters"], layer["macs"])]
        similar = f"{layer['similarity'][metric]:.4f}" if metric in layer["similarity"] else "–"
        rows.append([*head, layer["method"], "x".join(map(str, layer["rank"])), *shares, similar, ""])
    return Table(heading, rows, right=(5, 6, 7))


def pruning_table(summary: Mapping[str, Any]) -> Table:
    """How many channels are left of every group, and which layers write them; what stays, and why."""
    rows = []
    for group in summary["pruning"]["groups"]:
        before, after = group["channels"]
        others = f"with {', '.join(group['layers'][1:])}" if len(group["layers"]) > 1 else ""
        rows.append([group["name"], str(before), str(after), "; ".join(filter(None, (others, group["note"])))])
    for layer, reason in summary["pruning"]["kept"].items():
        rows.append([layer, "–", "", f"kept: {reason}"])
    return Table(["channels of", "before", "after", ""], rows, right=(1, 2))


def front_table(summary: Mapping[str, Any]) -> Table:
    """The measured points of a front, largest first; ``*`` stands at the one that was chosen."""
    base, (_, title, percent) = summary["baseline"], deciding(summary)
    rows, trials = [], any(point["trained"] for point in summary["front"])
    for number, point in enumerate(summary["front"]):
        shares = [f"{point[key] / base[key]:.1%}" if base[key] else "–" for key in ("parameters", "macs")]
        measured = value_text(point["accuracy"], point["accuracy_se"], percent)
        lost = f"{point['drop']:.2f} ± {point['drop_se']:.2f}"
        steps = [f"{point['trained']} steps" if point["trained"] else ""] if trials else []
        rows.append(
            [f"{number}{'*' if point['chosen'] else ''}", *shares, *steps, measured, lost, f"{point['kl']:.4f}"]
        )
    heading = ["point", "parameters", "MACs", *(["fine-tuned"] if trials else [])]
    heading += [f"{title}, validation", "points lost", "KL to the original"]
    return Table(heading, rows, right=range(1, len(heading)))


def _measures(summary: Mapping[str, Any]) -> dict[str, str]:
    return titles(summary["head"], summary["recipe"]["data"]["metric"])
