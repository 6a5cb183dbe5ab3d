"""POLICIES: the rules that take one candidate, or none, for each layer; one file each."""

from __future__ import annotations

from lrfgraph.options.recipe import SelectOptions
from lrfgraph.selection.policies import accuracy, budget, energy, evbmf, given, pareto, threshold, uniform
from lrfgraph.selection.policy import Policy

__all__ = ["POLICIES", "PUBLIC", "policy_in_force"]

_ALL = (accuracy, budget, pareto, threshold, energy, evbmf, uniform, given)
POLICIES: dict[str, Policy] = {module.POLICY.name: module.POLICY for module in _ALL}
PUBLIC = tuple(name for name, policy in POLICIES.items() if policy.public)
"""The policies that users may name."""


def policy_in_force(options: SelectOptions, images: bool) -> Policy:
    """Return the policy that decides: one that nobody may name where an option asks for it, else the named one.

    images : whether there are any; a policy that needs them gives way where there are none.
    """
    for policy in POLICIES.values():
        if not policy.public and any(getattr(options, option) is not None for option in policy.implied_by):
            return policy
    policy = POLICIES[options.policy]
    return policy if images or "images" not in policy.needs else POLICIES[policy.without_images]
