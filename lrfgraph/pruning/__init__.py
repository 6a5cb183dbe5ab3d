"""Which channels of a network matter least, and how many of them go: groups, scores, widths. NumPy only."""

from __future__ import annotations

from lrfgraph.pruning.base import Score
from lrfgraph.pruning.features import FEATURES
from lrfgraph.pruning.fpgm import FPGM
from lrfgraph.pruning.l1 import L1

__all__ = ["SCORES"]

SCORES: dict[str, Score] = {score.name: score for score in (FEATURES, L1, FPGM)}
"""Scores of channels by name."""
