"""What every stage took and what it brought, and what to do about it: nothing is thrown away without a word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lrfgraph.options.finetuning import MOST_PASSES
from lrfgraph.report.tables import Table, count_text, deciding, seconds_text, value_text
from lrfgraph.run.notes import known_images
from lrfgraph.run.state import Compression
from lrfgraph.selection.front import Point

__all__ = ["account", "account_table", "advice", "more_epochs"]

PARTS = {
    "model": ("describe",),
    "images": ("data",),
    "original": ("baseline",),
    "channels": ("couple", "importance", "widths", "prune"),
    "training": ("train",),
    "candidates": ("explore", "candidates", "probe"),
    "choice": ("select", "search"),
    "trials": ("trial",),
    "repair": ("rebuild",),
    "fine-tuning": ("finish",),
    "writing": ("write",),
    "measuring": ("evaluate",),
}
"""What a person calls parts of a run: the stages, as the driver names them, whose seconds each takes."""

RESULTS = {"repair": "repaired", "fine-tuning": "finetuned"}
"""Parts that end in weights, and what the summary calls those: they may be rejected."""

LEAST_SECONDS = 0.005
"""Seconds below which a part of a run is not worth a row."""

LEAST_GAIN = 0.1
"""Points that are worth more epochs."""

WASTE = 0.1
"""Part of a run's time that is worth a word where nothing came of it."""


def account(compression: Compression, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for every part of the run that took time or brought something, in order.

    seconds : of this run.  cost : what its weights took, in whichever run that was, ``None`` where it has none.
    brought : in words.  delivered : whether its weights are in the model that is written; ``None`` where it has none.
    """
    words = _brought(compression, summary)
    rows = []
    for part, stages in PARTS.items():
        seconds = sum(summary["seconds"].get(stage, 0.0) for stage in stages)
        stage = RESULTS.get(part, "")
        known = bool(stage) and summary.get(stage) is not None
        row = {"part": part, "seconds": round(seconds, 3), "cost": _cost(compression, stage) if known else None}
        row |= {"brought": words.get(part, ""), "delivered": stage not in compression.rejected if known else None}
        if part == "fine-tuning" and compression.refused is not None:
            row |= {"brought": _refused(compression, compression.refused), "delivered": False, "cost": row["seconds"]}
        if seconds >= LEAST_SECONDS or row["brought"]:
            rows.append(row)
    return rows


def _cost(compression: Compression, stage: str) -> float:
    """Seconds that the nodes took which a stage's weights were made by."""
    store, key = compression.driver.store, compression.models[stage].key
    manifest = store.manifest(key)
    keys = [key] if stage == "finetuned" else [k for k in manifest["inputs"].values() if k.startswith("repair/")]
    return round(sum(float(store.manifest(each)["seconds"]) for each in keys), 3)


def _brought(compression: Compression, summary: Mapping[str, Any]) -> dict[str, str]:
    """What there is to be said of each part, by its name."""
    network, scores = compression.network, compression.exploration.scores
    words = {"model": f"{sum(bool(layer.kind) for layer in network.layers)} layers with a kernel"}
    baseline = summary["baseline"]
    name, title, percent = deciding(summary)
    value, error = (baseline[field]["validation"] for field in (name, f"{name}_se"))
    if value is not None:
        words["original"] = f"{title} {value_text(value, error, percent)} on validation images"
    if network.data is not None:
        parts = compression.driver.data(network.data)["parts"]
        words["images"] = ", ".join(
            f"{part['images']:,} for {name}" for name, part in parts.items() if name != "repair"
        )
    if compression.pruned is not None:
        words["channels"] = f"{count_text(_pruned_parameters(compression))} parameters left"
    if scores:
        words["candidates"] = f"{len(scores):,} candidates of {len({c.layer for c in scores})} layers"
    if compression.shrinking is not None:
        words["training"] = _training(compression, summary)
    elif compression.decision is not None:
        share = compression.decision.parameters / baseline["parameters"]
        tried = f"{len(compression.points)} configurations measured; " if compression.points else ""
        words["choice"] = f"{tried}{share:.1%} of the parameters kept (policy {compression.decision.policy})"
    trained = [point for point in compression.points if point.trained]
    if trained:
        words["trials"] = _trials(compression, trained)
    before = "pruned" if compression.driver.recipe.prune.alone else "factorized"
    for part, stage in RESULTS.items():
        if summary.get(stage) is not None:
            words[part] = _change(compression, summary, before, stage)
            before = before if stage in compression.rejected else stage
    return words


def _training(compression: Compression, summary: Mapping[str, Any]) -> str:
    """How far ranks shrank in how many epochs, and what that did to the measure on validation images."""
    assert compression.shrinking is not None
    epochs = compression.shrinking["epochs"]
    size = f"{len(epochs)} epochs; {epochs[-1]['parameters'] / summary['baseline']['parameters']:.1%} of the parameters"
    measured = _change(compression, summary, "baseline", "trained") if summary.get("trained") else ""
    return f"{size}; {measured}" if measured else size


def _refused(compression: Compression, refused: Point) -> str:
    """What the whole fine-tuning came to where that is not delivered."""
    share = refused.parameters / compression.original.parameters
    return (
        f"nothing: {share:.1%} of the parameters lose {refused.drop:.2f} points, more than the limit; the run went back"
    )


def _trials(compression: Compression, trained: Sequence[Point]) -> str:
    """What short fine-tunings made of configurations."""
    whole = compression.original.parameters
    losses = (f"{point.parameters / whole:.1%} of the parameters lose {point.drop:.2f}" for point in trained)
    return f"after {trained[0].trained} steps of fine-tuning {', '.join(losses)} points"


def _pruned_parameters(compression: Compression) -> int:
    assert compression.pruned is not None
    return int(compression.driver.data(compression.pruned)["parameters"])


def _change(compression: Compression, summary: Mapping[str, Any], before: str, stage: str) -> str:
    """What weights did to the measure on validation images, or that nothing came of them."""
    name, title, percent = deciding(summary)
    if stage in compression.rejected:
        why = "no nearer to the original" if stage == "repaired" else "no better on validation images"
        return f"nothing: {why}, the weights before it are delivered"
    old, new = (summary[each][name]["validation"] for each in (before, stage))
    if old is None or new is None:
        return ""
    scale, unit = (100, " %") if percent else (1, "")
    return f"{title} {scale * old:.4g} → {scale * new:.4g}{unit} on validation images"


def account_table(summary: Mapping[str, Any]) -> Table:
    """What each part took and brought; what earlier runs had done already says what it took then."""
    rows, total = [], sum(row["seconds"] for row in summary["account"])
    for row in summary["account"]:
        spent = row["seconds"]
        earlier = row["cost"] is not None and row["cost"] > 2 * spent and row["cost"] >= 1
        took = f" (took {seconds_text(row['cost'])} in an earlier run or the search)" if earlier else ""
        share = f"{spent / total:.0%}" if total >= 1 else ""
        rows.append([row["part"], seconds_text(spent) if spent >= 0.05 else "", share, row["brought"] + took])
    return Table(["", "time", "", "brought"], [*rows, ["all", seconds_text(total), "", ""]], right=(1, 2))


# Advice -------------------------------------------------------------------------------------------------------------


def advice(compression: Compression, summary: Mapping[str, Any]) -> list[str]:
    """Return what would make the next run better, in sentences, what matters most first; often there is nothing."""
    network, sentences = compression.original, []
    measured = compression.measured.get("baseline", {}).get("validation", {})
    if network.data is not None and known_images(compression.driver.data(network.data)["parts"], measured):
        sentences.append(
            "the validation images seem to have been trained on; give images that the network has not seen with --val"
        )
    sentences += _waste(summary) if compression.refused is None else []  # its trials are what made it so small
    name, _, percent = deciding(summary)
    after, goal = (summary[stage] and summary[stage][name]["validation"] for stage in ("finetuned", "baseline"))
    if percent and after is not None and goal is not None and "finetuned" not in compression.rejected:
        gain = more_epochs(compression.history or [], 100 * (goal - after))
        if gain >= LEAST_GAIN:
            sentences.append(_longer(compression, gain))
    return sentences


def _longer(compression: Compression, gain: float) -> str:
    """Say what as much fine-tuning again would likely bring, and how to ask for it."""
    history, options = compression.history or [], compression.network.recipe.finetune
    steps = sum(epoch["steps"] for epoch in history)
    if options.minutes is not None:
        how = f"--set finetune.minutes={2 * options.minutes:g}"
    elif options.epochs is not None:
        how = f"--epochs {2 * options.epochs}"
    elif steps > 0.9 * options.steps:
        how = f"--set finetune.steps={2 * options.steps}"
    else:
        how = f"--epochs {2 * MOST_PASSES}"
    return f"{steps:,} more steps of fine-tuning would likely bring {gain:.1f} points ({how})"


def _waste(summary: Mapping[str, Any]) -> list[str]:
    """What took long and is not delivered."""
    total = sum(max(row["seconds"], row["cost"] or 0.0) for row in summary["account"])
    remedies = {
        "repair": "leave it out with --set repair.enabled=false, or give it more images with repair.images",
        "fine-tuning": "leave it out with --epochs 0, or train at another rate with --set finetune.learning_rate=1e-4",
    }
    return [
        f"{row['part']} took {seconds_text(row['cost'])} and nothing of it is delivered; {remedies[row['part']]}"
        for row in summary["account"]
        if row["delivered"] is False and row["cost"] > WASTE * total
    ]


def more_epochs(history: Sequence[Mapping[str, Any]], gap: float) -> float:
    """Return the points that as many epochs again would likely bring.

    history : of the epochs.  gap : points between the original and what the epochs came to.  The loss on validation
    images is taken to fall as a power of the epochs, fitted to those that there were, and the gap with it: a guess that
    errs on the low side, for the loss does not fall to 0. 0 where fewer than three epochs say so, or the best is old.
    """
    losses = [math.inf if epoch["validation_loss"] is None else float(epoch["validation_loss"]) for epoch in history]
    late = any(epoch.get("kept") for epoch in history[-max(len(history) // 3, 1) :])
    if len(losses) < 3 or not late or gap <= 0 or not all(0 < loss < math.inf for loss in losses):
        return 0.0
    x, y = [math.log(epoch) for epoch in range(1, len(losses) + 1)], [math.log(loss) for loss in losses]
    centre = sum(x) / len(x)
    slope = sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)
    return max(gap * (1 - math.pow(2, slope)), 0.0)
