"""Write what README.md and docs/ say of results: figures from the result files, and the picture of candidates.

A block between ``<!-- NAME -->`` and ``<!-- end -->`` is what NAME's function makes of its result file.

python pipelines/documents.py [--picture]
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "pipelines" / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured.md")
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#7b4b94", "#00798c", "#8d5524", "#555555")
WIDTH, HEIGHT, MARGIN = 640, 360, 48
BLOCK = re.compile(r"(<!-- (\w+) -->\n)(.*?)(<!-- end -->)", re.S)
NAMES = {
    "resnet20_cifar10": "ResNet-20, CIFAR-10",
    "resnet56_cifar10": "ResNet-56, CIFAR-10",
    "cnn_gtsrb": "CNN, GTSRB",
    "lenet5_mnist": "LeNet-5, MNIST",
    "vgg6_cifar10": "VGG-6, CIFAR-10",
    "vgg_bn_cifar10": "VGG with BatchNorm, CIFAR-10",
    "resnet8_mlperftiny_cifar10": "ResNet-8, CIFAR-10",
    "mobilenet_cifar10": "MobileNet, CIFAR-10",
    "mobilenetv2_imagenet": "MobileNetV2, ImageNet, 224",
}

Result = dict[str, Any]


# Blocks -------------------------------------------------------------------------------------------------------------


def result(name: str) -> Result:
    """Return a result file; raises SystemExit where it does not say what it was measured with."""
    found: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    missing = {"commit", "command", "machine", "finished"} - found.keys()
    if missing:
        raise SystemExit(f"{name}.json does not say its {', '.join(sorted(missing))}; measure it again")
    return found


def written(text: str) -> str:
    """Return a page with its blocks as the result files have them."""
    return BLOCK.sub(lambda match: match[1] + _block(match[2]) + match[4], text)


def _block(name: str) -> str:
    """A result and what it was measured on, which may be older than what is there now."""
    found = result(name)
    changed = " with changes that were not committed" if found["commit"].endswith("+") else ""
    return f"{BLOCKS[name](found)}\nMeasured on commit {found['commit'][:7]}{changed}, {found['finished'][:10]}.\n"


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def demo(found: Result) -> str:
    return f"```\n$ lrfgraph demo\n{found['output']}```\n"


def halves(found: Result) -> str:
    rows = [
        [
            NAMES[row["network"]],
            f"{row['asked']:g}",
            f"{row['delivered']:.2f}",
            f"{row['worst']:.2f}",
            f"{100 * row['removed']:.1f} %",
            f"{100 * row['least removed']:.1f} %",
            row["runs"],
        ]
        for row in found["table"]
        if row["cost"] == "parameters"
    ]
    titles = ("network", "points asked", "points lost", "worst", "parameters removed", "least", "runs")
    return table(titles, rows)


def finetuned(found: Result) -> str:
    rows = []
    for row in found["table"]:
        own = [run for run in found["runs"] if (run["network"], run["limit"]) == (row["network"], row["asked"])]
        before = sum(run["test_drop_before"] for run in own) / len(own)
        lost = f"{before:.2f}", f"{row['delivered']:.2f}", f"{row['worst']:.2f}"
        back = sum(run["went_back"] for run in own)
        rows.append(
            [NAMES[row["network"]], f"{row['asked']:g}", *lost, f"{100 * row['removed']:.1f} %", back, len(own)]
        )
    titles = ("network", "points asked", "repaired", "fine-tuned", "worst", "parameters removed", "went back", "runs")
    return table(titles, rows)


def families(found: Result) -> str:
    rows = []
    for name, row in found["networks"].items():
        if "failed" in row:
            rows.append([name, "", "", "", "", f"failed: {row['failed']}"])
            continue
        size = f"{100 * row['parameters']:.1f} %"
        fits = "as planned, read again" if row["planned"] and row["same_answer"] else "not as planned"
        rows.append([name, row["layers"], f"{row['candidates']:,}", size, f"{row['peak_bytes'] / 1e9:.1f} GB", fits])
    return table(("network", "layers", "candidates", "parameters kept", "memory", ""), rows)


def known_images(found: Result) -> str:
    rows = [
        [NAMES[row["network"]], row["images"], f"{row['accuracy']:.2f} %", f"{row['confidence']:.2f} %"]
        for row in found["rows"]
        if row["network"] in NAMES
    ]
    return table(("network", "images", "accuracy", "mean confidence"), rows)


def equivalence(found: Result) -> str:
    return (
        f"{found['equal']} of {found['edits']} edits gave the same, bit for bit, on a growing cache and on an empty "
        f"one; {found['nodes run that need not']} of {found['nodes run']} nodes were computed though they need not.\n"
    )


def mutants(found: Result) -> str:
    return f"{found['killed']} of {found['mutants']} random changes of the code were noticed by the tests.\n"


def exploration(found: Result) -> str:
    rows = [
        [NAMES[name], f"{row['candidates']:,}", f"{row['seconds']:.1f}", f"{row['naive_over_ours']:.0f} times"]
        for name, row in found["networks"].items()
    ]
    return table(("network", "candidates", "seconds from the process' start", "rebuilding each takes"), rows)


def store(found: Result) -> str:
    rows = [
        [NAMES[name], name_of, f"{row['files']:,}", f"{row['bytes'] / 1e6:.0f} MB"]
        for name, sides in found["networks"].items()
        for name_of, row in (("one Zarr array each, not compressed", sides["against"]), ("now", sides["this"]))
    ]
    return table(("network", "arrays", "files", "on disk"), rows)


def memory(found: Result) -> str:
    rows = []
    for name, row in found["networks"].items():
        peak = max(stage["memory"] for stage in row["stated"].values())
        measured = max(kind["measured_bytes"] for kind in row["measured"].values())
        lost = [f"{100 * row['quality'][stage]['test']['drop']:.1f}" for stage in ("factorized", "repaired")]
        rows.append([NAMES[name], f"{peak / 1e9:.2f} GB", f"{measured / 1e9:.2f} GB", *lost])
    return table(("network", "memory stated", "memory measured", "points lost", "after repair"), rows)


def streams(found: Result) -> str:
    """A row a source that was measured with few images and with ten times as many."""
    sizes: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        sizes.setdefault(row["source"], {})[row["size"]] = row
    rows = []
    for source, own in sizes.items():
        if "large" in own:
            peaks = (f"{own[size]['decoded_gb']:.1f} GB → {own[size]['peak_gb']:.2f} GB" for size in own)
            rows.append([source, *peaks, f"{own['large']['stated_gb']:.2f} GB"])
    return table(("source", "images → memory", "more images → memory", "stated"), rows)


def planning(found: Result) -> str:
    return f"A plan of {found['nodes']:,} nodes that are all in the cache takes {found['seconds']:.1f} s.\n"


def parallel(found: Result) -> str:
    rows = [
        [NAMES[name], way, f"{row['seconds']:.0f}", f"{row['processor_seconds']:.0f}", f"{row['against_first']:.2f}"]
        for name, ways in found["networks"].items()
        for way, row in ways.items()
    ]
    return table(("network", "with", "seconds to the choice", "processor seconds", "times as fast"), rows)


def pruning(found: Result) -> str:
    rows = []
    for name, cases in found["scores"].items():
        for cost in dict.fromkeys(case["cost"] for case in cases):
            own = [case for case in cases if case["cost"] == cost]

            def best(*scores: str, refit: bool = True, own: list[Any] = own) -> float:
                return min(case["kl"] for case in own if case["score"] in scores and case["refit"] is refit)

            columns = [best("features"), best("l1"), best("fpgm"), best("l1", "fpgm", refit=False)]
            rows.append([NAMES[name], cost, *(f"{value:.4f}" for value in columns)])
    return table(("network", "half of the", "`features`", "`l1`", "`fpgm`", "without refit"), rows)


def roads(found: Result) -> str:
    rows = [
        [
            NAMES[name],
            f"{100 * row['share']:.0f} % of the {'MACs' if row['cost'] == 'macs' else 'parameters'}",
            row["road"].upper().replace("THEN", "then"),
            f"{100 * row['first']:.0f} %" if row.get("first") else "",
            f"{row['lost']:.2f} ± {row['lost_se']:.2f}",
            f"{row['kl']:.4f}",
        ]
        for name, cases in found["networks"].items()
        for row in cases
    ]
    return table(("network", "kept", "road", "pruned first to", "points lost", "KL"), rows)


def pruning_agreement(found: Result) -> str:
    rows = found["agreement"].values()
    return (
        f"{len(rows)} networks differ by at most {max(row['difference'] for row in rows):.1e} of their outputs' "
        "scale.\n"
    )


def dprp(found: Result) -> str:
    """Rows of all trainings to a share; one from scratch against the same training at full rank."""
    rows = []
    for part, words in (("trained", "its weights"), ("scratch", "scratch")):
        for row in found[part]:
            if row["share"] < 1:
                lost = row["points_lost"] if part == "trained" else row["lost"]
                cells = [f"{100 * row['parameters']:.1f} %", f"{100 * row['macs']:.1f} %", f"{lost:.2f}"]
                rows.append([NAMES[row["network"]], words, *cells, f"{row['orthogonality']:.0e}"])
    titles = ("network", "from", "parameters kept", "MACs kept", "points lost", "largest of \\|UᵀU − I\\|")
    ratios = [f"{row['ratio']:.2f} times ({row['matricization']})" for row in found["speed"]]
    steps = f"A step at 30 % of the parameters takes {' and '.join(ratios)} the processor time of the first epoch's.\n"
    return table(titles, rows) + "\n" + steps


BLOCKS: dict[str, Callable[[Result], str]] = {
    block.__name__: block
    for block in (
        demo,
        halves,
        finetuned,
        families,
        known_images,
        equivalence,
        mutants,
        exploration,
        planning,
        parallel,
        store,
        memory,
        streams,
        pruning,
        roads,
        pruning_agreement,
        dprp,
    )
}
"""By name of the result file."""


# The picture --------------------------------------------------------------------------------------------------------


def picture() -> str:
    """Return an SVG of all candidates of the demonstration's largest convolution."""
    from lrfgraph import demo
    from lrfgraph.api import compress

    with tempfile.TemporaryDirectory() as folder:
        recipe = demo.recipe()
        select = replace(recipe.select, policy="threshold")
        run = replace(recipe.run, cache=folder, until="select")
        compression = compress(demo.MODEL, replace(recipe, select=select, run=run))
        layers = {layer.name: layer for layer in compression.network.layers}
        scores = {id: compression.driver.data(ref) for id, ref in compression.exploration.scores.items()}
        name = max((id.layer for id in scores), key=lambda n: layers[n].weights if layers[n].spatial else 0)
    whole = layers[name].weights
    points = [
        (id.method, score["parameters"] / whole, score["similarity"]["cosine"])
        for id, score in scores.items()
        if id.layer == name
    ]
    return _svg(name, points)


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
    """Write the blocks of all pages, and the picture if it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", action="store_true", help="draw docs/candidates.svg, too")
    if parser.parse_args().picture:
        (ROOT / "docs" / "candidates.svg").write_text(picture(), encoding="utf-8")
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
