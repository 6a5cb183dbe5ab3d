"""The options of filter pruning, and what nobody reads where nothing else is done."""

from __future__ import annotations

from dataclasses import dataclass

from lrfgraph.options.option import SET, Section, option
from lrfgraph.options.values import NAMES, NUMBER, SWITCH, TEXT

__all__ = ["ALONE", "SHARES", "UNREAD", "PruneOptions"]

WITH_PRUNING = {"prune.method": SET}
WITHOUT_SHARE = WITH_PRUNING | {"prune.keep": None}

UNREAD = ("explore", "similarity", "select")
"""Sections that are not read where channels are pruned and nothing is factorized."""
SHARES = ("params", "macs", "score")
"""Options that have a flag, by this name, where nothing else is done."""
ALONE = ("prune.method=fbp", "prune.alone=true")
"""What asks for that."""


@dataclass(frozen=True)
class PruneOptions(Section):
    """Which channels of the network are removed, and how many."""

    SECTION = "prune"
    ONLY_IF = WITH_PRUNING
    method: str | None = option(
        None, TEXT, "Remove whole channels first: fbp", choices=("fbp",), flag="--prune", only_if={}
    )
    score: str = option("features", TEXT, "What tells which channels matter least")
    keep: float | None = option(
        None, NUMBER, "Share of the channels of every group that is kept", above=0, high=1, flag="--keep"
    )
    params: float | None = option(
        None,
        NUMBER,
        "Share of the parameters that may be kept",
        above=0,
        high=1,
        only_if=WITHOUT_SHARE,
    )
    macs: float | None = option(
        None,
        NUMBER,
        "Share of the MACs that may be kept",
        above=0,
        high=1,
        only_if=WITHOUT_SHARE,
    )
    spread: str | None = option(
        None,
        TEXT,
        "Which groups become narrow: those that lose least, or all alike",
        choices=("loss", "uniform"),
        only_if=WITHOUT_SHARE,
    )
    refit: bool = option(
        True,
        SWITCH,
        "Refit the layers that read removed channels to the original's activations",
        only_if=WITH_PRUNING | {"data.source": SET},
    )
    skip: tuple[str, ...] = option((), NAMES, "Layers whose channels all stay, as name patterns")
    alone: bool = option(False, SWITCH, "Finish the pruned network as it is; nothing is factorized")

    @property
    def searches(self) -> bool:
        """Whether nobody says how much is pruned before the factorization: what is best is tried."""
        shares = self.keep, self.params, self.macs
        return self.method is not None and not self.alone and all(share is None for share in shares)
