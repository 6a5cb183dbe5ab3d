"""Pure decisions: candidates in, a configuration out. POLICIES is the table of ways to decide."""

from __future__ import annotations

from lrfgraph.selection.base import Candidate, Choice, Decision, LayerChoices, Policy, Problem, totals
from lrfgraph.selection.budget import budget
from lrfgraph.selection.given import given
from lrfgraph.selection.threshold import threshold

__all__ = ["POLICIES", "Candidate", "Choice", "Decision", "LayerChoices", "Policy", "Problem", "totals"]

POLICIES: dict[str, Policy] = {"threshold": threshold, "budget": budget, "given": given}
