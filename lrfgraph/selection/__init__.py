"""Pure decisions: candidates in, a configuration out. POLICIES is the table of ways to decide."""

from __future__ import annotations

from lrfgraph.selection.policies.budget import budget
from lrfgraph.selection.policies.energy import energy
from lrfgraph.selection.policies.evbmf import evbmf
from lrfgraph.selection.policies.given import given
from lrfgraph.selection.policies.threshold import threshold
from lrfgraph.selection.policies.uniform import uniform
from lrfgraph.selection.problem import Candidate, Choice, Decision, LayerChoices, Policy, Problem, totals

__all__ = ["POLICIES", "Candidate", "Choice", "Decision", "LayerChoices", "Policy", "Problem", "totals"]

POLICIES: dict[str, Policy] = {policy.__name__: policy for policy in (threshold, budget, energy, uniform, evbmf, given)}
