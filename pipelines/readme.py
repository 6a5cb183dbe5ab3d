"""Write the parts of README.md that follow from the code: the options table and the picture of candidates.

    python pipelines/readme.py            # the options table
    python pipelines/readme.py --picture  # also docs/candidates.svg, from the demonstration's network

The tests compare the table with the recipe.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrfgraph.cli import OPTIONS
from lrfgraph.options.recipe import Option, fields_of

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- options -->", "<!-- end of options -->"
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#7b4b94", "#00798c", "#8d5524", "#555555")
WIDTH, HEIGHT, MARGIN = 640, 360, 48


def options_table() -> str:
    """Return the Markdown table of all options."""
    flags = {key: f"`--{name.replace('_', '-')}`" for name, key in OPTIONS.items()}
    lines = ["| key | command line | values | default | |", "|---|---|---|---|---|"]
    for option in fields_of():
        cells = [f"`{option.key}`", flags.get(option.key, ""), _values(option), _default(option), option.help]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _values(option: Option) -> str:
    return option.type + (f", {option.allowed}" if option.allowed else "")


def _default(option: Option) -> str:
    return "none" if option.default is None else f"`{option.kind.write(option.default)}`"


def replaced(text: str) -> str:
    """Return README's text with the table of this version."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{options_table()}\n{END}{after}"


def picture() -> str:
    """Return an SVG of all candidates of the demonstration's largest convolution."""
    from lrfgraph import compress, demo

    with tempfile.TemporaryDirectory() as folder:
        recipe = demo.recipe()
        select = replace(recipe.select, policy="threshold")
        run = replace(recipe.run, cache=folder, until="select")
        outcome = compress(demo.MODEL, replace(recipe, select=select, run=run))
        layers = {layer.name: layer for layer in outcome.network.layers}
        name = max((n for n, _, _ in outcome.scores), key=lambda n: layers[n].weights if layers[n].spatial else 0)
        points = [
            (method, outcome.walk.data(ref)["parameters"] / layers[name].weights, outcome.walk.data(ref)["similarity"])
            for (layer, method, _), ref in outcome.scores.items()
            if layer == name
        ]
    return _svg(name, [(method, share, similarity["cosine"]) for method, share, similarity in points])


def _svg(name: str, points: Sequence[tuple[str, float, float]]) -> str:
    methods = list(dict.fromkeys(method for method, _, _ in points))

    def x(share: float) -> float:
        return MARGIN + share * (WIDTH - 2 * MARGIN - 90)

    def y(similarity: float) -> float:
        return HEIGHT - MARGIN - similarity * (HEIGHT - 2 * MARGIN)

    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(MARGIN, 24, f"Candidates of layer {name}: similarity of its output (cosine) by parameters kept"),
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        made += [
            f'<path d="M{x(0):.1f} {y(tick):.1f}H{x(1):.1f}M{x(tick):.1f} {y(0):.1f}V{y(1):.1f}" stroke="#ddd"/>',
            _text(x(0) - 34, y(tick) + 4, f"{tick:.2f}"),
            _text(x(tick) - 12, y(0) + 18, f"{tick:.0%}"),
        ]
    for place, method in enumerate(methods):
        colour = COLOURS[place % len(COLOURS)]
        own = sorted((share, similarity) for m, share, similarity in points if m == method and share <= 1)
        line = " ".join(f"{x(a):.1f},{y(max(b, 0)):.1f}" for a, b in own)
        made.append(f'<polyline points="{line}" fill="none" stroke="{colour}" opacity="0.5"/>')
        made += [f'<circle cx="{x(a):.1f}" cy="{y(max(b, 0)):.1f}" r="3" fill="{colour}"/>' for a, b in own]
        made += [
            f'<circle cx="{WIDTH - 110}" cy="{60 + 20 * place}" r="4" fill="{colour}"/>',
            _text(WIDTH - 100, 64 + 20 * place, method),
        ]
    return "\n".join([*made, "</svg>"]) + "\n"


def _text(x: float, y: float, text: Any) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#333">{text}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--picture", action="store_true", help="draw docs/candidates.svg too (a minute)")
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8")), encoding="utf-8")
    if parser.parse_args().picture:
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "candidates.svg").write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
