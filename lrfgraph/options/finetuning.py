"""The options of fine-tuning, and how long it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lrfgraph.options.option import ON, WITH_IMAGES, Section, option
from lrfgraph.options.values import INTEGER, NUMBER, SWITCH, TEXT

__all__ = ["MOST_PASSES", "TRIAL", "FinetuneOptions"]

MOST_PASSES = 20
"""Passes over the training images that a training without a number of epochs makes at most."""

LEAST_EPOCHS = 3
"""Times that such a training is judged on validation images at least."""

TRIAL, MOST_TRIED = 1 / 6, 300
"""Share of a training's steps that a trial of it has, and the most of them."""


@dataclass(frozen=True)
class FinetuneOptions(Section):
    """The one training of the whole compressed network."""

    SECTION = "finetune"
    ONLY_IF = {"finetune.epochs": ON}  # noqa: RUF012 - as of every section, read alone
    epochs: int | None = option(
        None,
        INTEGER,
        "Passes over the training images; 0 for none, auto for as many as finetune.steps say",
        low=0,
        flag="--epochs",
        only_if=WITH_IMAGES,
    )
    steps: int = option(
        1200,
        INTEGER,
        "Steps in all, about; at most 20 passes over the images",
        low=1,
        only_if={"finetune.epochs": None},
    )
    minutes: float | None = option(
        None, NUMBER, "Minutes of steps after which the learning rate has come to 0", above=0
    )
    batch: int = option(128, INTEGER, "Images per step", low=1)
    learning_rate: float | None = option(
        None,
        NUMBER,
        "Learning rate after a short warm-up, falls to 0 as a cosine; auto for the largest that does little harm",
        above=0,
    )
    batchnorm: str = option(
        "fixed", TEXT, "Whether statistics are those of the batch or stay as they are", choices=("batch", "fixed")
    )
    alpha: float = option(
        0.9,
        NUMBER,
        "Weight of the original network's answers against the labels",
        low=0,
        high=1,
        only_if={"finetune.labels": True},
    )
    temperature: float = option(2.0, NUMBER, "Temperature at which answers are compared", above=0)
    crop: int = option(0, INTEGER, "Pixels that images are shifted by at random", low=0)
    flip: bool = option(False, SWITCH, "Mirror images left to right at random")
    blend: float = option(
        0.5,
        NUMBER,
        "Share of each batch that is blended, image by image, with others of it; such images have no label",
        low=0,
        high=1,
    )
    labels: bool = option(True, SWITCH, "Use labels where there are any")
    weight_decay: float = option(0.0, NUMBER, "Decoupled weight decay of kernels that are no factors", low=0)
    seed: int = option(0, INTEGER, "Seed of the order of images and of their shifts", low=0)

    def length(self, images: int) -> tuple[int, int]:
        """Return the epochs of a training on so many images, and the images of each.

        Without a number of epochs they are as long as one another and together as long as `steps` say: an epoch ends
        with a look at the validation images, not with the last of the training images.
        """
        if self.epochs is not None:
            return self.epochs, images
        whole = max(images // self.batch, 1)
        steps = min(self.steps, MOST_PASSES * whole)
        epochs = min(max(-(-steps // whole), LEAST_EPOCHS), steps)
        return epochs, min(steps // epochs * self.batch, images)

    def trial(self, images: int) -> FinetuneOptions:
        """Return the options of a short trial of a training on so many images."""
        epochs, each = self.length(images)
        steps = epochs * max(each // min(self.batch, max(each, 1)), 1)
        minutes = self.minutes and self.minutes * TRIAL
        return replace(self, epochs=None, steps=min(max(round(TRIAL * steps), 1), MOST_TRIED), minutes=minutes)
