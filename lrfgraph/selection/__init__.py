"""Pure decisions: candidates in, a configuration out. POLICIES is the table of ways to decide."""

from __future__ import annotations

from lrfgraph.selection.base import Candidate, Choice, Decision, LayerChoices, Policy, Problem, totals
from lrfgraph.selection.budget import budget
from lrfgraph.selection.energy import energy
from lrfgraph.selection.evbmf import evbmf
from lrfgraph.selection.given import given
from lrfgraph.selection.threshold import threshold
from lrfgraph.selection.uniform import uniform

__all__ = ["POLICIES", "Candidate", "Choice", "Decision", "LayerChoices", "Policy", "Problem", "totals"]

POLICIES: dict[str, Policy] = {policy.__name__: policy for policy in (threshold, budget, energy, uniform, evbmf, given)}
