"""Draw the picture of README.md, docs/candidates.svg: all candidates of one layer of the demonstration's network.

python pipelines/readme.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#7b4b94", "#00798c", "#8d5524", "#555555")
WIDTH, HEIGHT, MARGIN = 640, 360, 48


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

    elements = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(MARGIN, 24, f"Candidates of layer {name}: similarity of its output (cosine) by parameters kept"),
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        elements += [
            f'<path d="M{x(0):.1f} {y(tick):.1f}H{x(1):.1f}M{x(tick):.1f} {y(0):.1f}V{y(1):.1f}" stroke="#ddd"/>',
            _text(x(0) - 34, y(tick) + 4, f"{tick:.2f}"),
            _text(x(tick) - 12, y(0) + 18, f"{tick:.0%}"),
        ]
    for place, method in enumerate(methods):
        colour = COLOURS[place % len(COLOURS)]
        own = sorted((share, similarity) for m, share, similarity in points if m == method and share <= 1)
        line = " ".join(f"{x(a):.1f},{y(max(b, 0)):.1f}" for a, b in own)
        elements.append(f'<polyline points="{line}" fill="none" stroke="{colour}" opacity="0.5"/>')
        elements += [f'<circle cx="{x(a):.1f}" cy="{y(max(b, 0)):.1f}" r="3" fill="{colour}"/>' for a, b in own]
        elements += [
            f'<circle cx="{WIDTH - 110}" cy="{60 + 20 * place}" r="4" fill="{colour}"/>',
            _text(WIDTH - 100, 64 + 20 * place, method),
        ]
    return "\n".join([*elements, "</svg>"]) + "\n"


def _text(x: float, y: float, text: Any) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#333">{text}</text>'


def main() -> None:
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "candidates.svg").write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
