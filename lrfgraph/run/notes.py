"""What a person should know of a run's figures, in sentences; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["counts", "gap", "known_images", "same_images"]

GAP_ERRORS = 4.0
"""Standard errors between validation and test that are no chance."""

SURE_OF_FRESH = 2.0
"""Standard errors by which a network is surer than right of images that it was not trained on."""


def known_images(parts: Mapping[str, Any], measures: Mapping[str, float]) -> list[str]:
    """Say so where nothing tells the validation images from ones that the network was trained on.

    parts : of the images, by split.  measures : of the original on validation images.
    """
    surplus = measures.get("overconfidence")
    if surplus is None or parts["validation"]["source"] != "train":
        return []
    if surplus > SURE_OF_FRESH * measures["overconfidence_se"]:
        return []
    return [
        "validation images are of the training part, and the network is no surer of them than it is right, as of "
        "images that it was trained on: on others it may lose more or less; give images that it has not seen with --val"
    ]


def same_images(identities: Mapping[str, str], given: str | None) -> list[str]:
    """Say so where the images that are given to decide on are those of another split.

    identities : of the images, by split.  given : where validation images come from, ``None`` if nobody says.
    """
    twins = {
        "train": "what the network loses on images that it was trained on is another number than on others",
        "test": "what is measured on test images is no account of images that nothing was decided on",
    }
    return [
        f"the images of --val {given} are the {split} images: {why}; give others with --val"
        for split, why in twins.items()
        if given and identities.get(split) == identities["validation"]
    ]


def gap(measured: Mapping[str, Mapping[str, float]], percent: bool = True) -> list[str]:
    """Say so where the original is better on validation than on test images by more than chance would have it.

    percent : whether what is measured is a share of 1.
    """
    values = [measured.get(part, {}) for part in ("validation", "test")]
    if not all("accuracy" in each for each in values):
        return []
    validation, test = (each["accuracy"] for each in values)
    if validation - test <= GAP_ERRORS * math.hypot(*(each["accuracy_se"] for each in values)):
        return []
    reached = " and ".join(f"{value:.2%}" if percent else f"{value:.5g}" for value in (validation, test))
    return [
        f"validation images are not like test images: the original reaches {reached}; "
        "points lost are those of what was decided on, give images that the network has not seen with --val"
    ]


def counts(planned: Mapping[str, int], written: Mapping[str, Any]) -> list[str]:
    """Say which format is left out, and where the file does not have the parameters and MACs that were promised.

    planned : parameters and MACs.  written : what `export` said.
    """
    return [*written["notes"]] + [
        f"{written[name]:,} {name} are in the written file, {plan:,} were planned; please report this"
        for name, plan in planned.items()
        if written[name] != plan
    ]
