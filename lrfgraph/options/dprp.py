"""The options of training with shrinking ranks, and what nobody reads beside it."""

from __future__ import annotations

from dataclasses import dataclass

from lrfgraph.options.option import Section, option
from lrfgraph.options.values import INTEGER, NAMES, NUMBER, SWITCH, TEXT

__all__ = ["ALONE", "SHORT", "UNREAD", "DprpOptions"]

TRAINING = {"dprp.enabled": True}
WITH_TEACHER = TRAINING | {"dprp.from_scratch": False}

UNREAD = ("prune", "explore", "similarity", "select", "repair", "finetune")
"""Sections that are not read where ranks shrink in training: nothing is explored, and nothing is left to retrain."""
SHORT = ("params", "macs", "epochs", "from_scratch", "matricization", "crop", "flip")
"""Options that have a flag, by this name, where nothing else is done."""
ALONE = ("dprp.enabled=true",)
"""What asks for that."""


@dataclass(frozen=True)
class DprpOptions(Section):
    """How a network is trained while the ranks of its layers shrink."""

    SECTION = "dprp"
    ONLY_IF = TRAINING
    enabled: bool = option(False, SWITCH, "Train with shrinking ranks in place of all else", only_if={})
    params: float | None = option(None, NUMBER, "Share of the parameters that is left in the end", above=0, high=1)
    macs: float | None = option(None, NUMBER, "Share of the MACs that is left in the end", above=0, high=1)
    epochs: int = option(20, INTEGER, "Passes over the training images", low=1)
    from_scratch: bool = option(False, SWITCH, "Begin with fresh weights; the given ones are not read")
    matricization: str = option(
        "auto",
        TEXT,
        "How a kernel becomes a matrix: kxI by kxO, kxkxI by O, O by kxkxI, or whichever keeps more of it",
        choices=("auto", "spatial", "channel", "paper"),
    )
    weighting: str = option(
        "plain",
        TEXT,
        "What the matrix is of: the kernel, or the kernel weighted by what flows in, or by what the network minds, too",
        choices=("plain", "input", "two_sided"),
        only_if=WITH_TEACHER,
    )
    spatial: tuple[str, ...] = option((), NAMES, "Layers whose kernel becomes kxI by kxO, as name patterns")
    channel: tuple[str, ...] = option((), NAMES, "Layers whose kernel becomes kxkxI by O, as name patterns")
    skip: tuple[str, ...] = option((), NAMES, "Layers that are trained as they are, as name patterns")
    pace: float = option(
        0.1,
        NUMBER,
        "Share of the network that an epoch removes; more where half of the epochs are too few",
        above=0,
        high=1,
    )
    rule: str = option(
        "fisher",
        TEXT,
        "What tells which ranks matter least: their energy, or the energy as the loss minds it",
        choices=("energy", "fisher"),
    )
    tolerance: float = option(
        0.01, NUMBER, "Share of a layer that an epoch's end may cut off, as the rule counts it", above=0, high=1
    )
    orthogonality: float = option(
        0.3, NUMBER, "Weight of the orthogonality loss; 1 goes to the nearest orthonormal factors", low=0, high=1
    )
    rank: float = option(0.1, NUMBER, "Weight of the rank-reduction loss at the beginning", low=0)
    images: int | None = option(None, INTEGER, "Images of an epoch, none for all", low=1)
    batch: int = option(128, INTEGER, "Images per step", low=1)
    learning_rate: float | None = option(
        None, NUMBER, "Learning rate after the first epoch (default: 2e-4, of fresh weights 1e-3)", above=0
    )
    cooldown: int = option(8, INTEGER, "Last epochs, in which the learning rate falls to 0", low=0)
    batchnorm: str | None = option(
        None,
        TEXT,
        "Whether statistics are those of the batch or stay as they are (default: batch where weights are fresh)",
        choices=("batch", "fixed"),
    )
    alpha: float = option(
        0.9, NUMBER, "Weight of the original network's answers against the labels", low=0, high=1, only_if=WITH_TEACHER
    )
    temperature: float = option(2.0, NUMBER, "Temperature at which answers are compared", above=0, only_if=WITH_TEACHER)
    labels: bool = option(True, SWITCH, "Use labels where there are any", only_if=WITH_TEACHER)
    crop: int = option(0, INTEGER, "Pixels that images are shifted by at random", low=0)
    flip: bool = option(False, SWITCH, "Mirror images left to right at random")
    seed: int = option(0, INTEGER, "Seed of fresh weights, of the order of images and of their shifts", low=0)

    @property
    def weighs(self) -> bool:
        """Whether matrices are weighted by what is recorded of the network: of fresh weights nothing is worth it."""
        return self.weighting != "plain" and not self.from_scratch
