"""Nothing is silent: which policy the options ask for, and which options have no effect under what else is asked.

An option that the command line says and that has no effect is an error; one that a recipe file says, a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lrfgraph.errors import RecipeError
from lrfgraph.options import dprp, pruning
from lrfgraph.options.asked import Asked, literal
from lrfgraph.options.option import ON, SET, check_choice, holds
from lrfgraph.options.recipe import OPTIONS
from lrfgraph.selection.policies import POLICIES, PUBLIC, policy_in_force
from lrfgraph.selection.policy import Policy

__all__ = ["Idle", "checked", "idle_options", "with_policy"]

POLICY = "select.policy"


@dataclass(frozen=True)
class Idle:
    """An option without effect. why : the reason.  remedy : what to do beside leaving it out."""

    key: str
    why: str
    remedy: str


def checked(asked: Asked) -> Asked:
    """Return what is asked for with the policy it comes to and notes; raises RecipeError for what is contradictory."""
    alone = asked.recipe.prune.alone or asked.recipe.dprp.enabled
    asked = asked if alone else _with_implied_policy(asked)
    notes = [] if alone else [*_check_images(asked), *_reported_only(asked)]
    for idle in idle_options(asked):
        if asked.here(idle.key):
            raise RecipeError(f"{asked.name(idle.key)} has no effect {idle.why}; leave it out, or {idle.remedy}")
        notes.append(f"{asked.name(idle.key)} has no effect {idle.why}")
    return replace(asked, notes=(*asked.notes, *notes))


def idle_options(asked: Asked) -> Iterator[Idle]:
    """Yield the options that somebody said and that have no effect."""
    policy = policy_in_force(asked.recipe.select, _has_images(asked))
    for key in asked.origins:
        if not asked.means(key):
            continue
        idle = _gated(asked, key) or _unread(asked, key, policy)
        if idle is not None and not _is_off(asked, key):
            yield idle


def _gated(asked: Asked, key: str, gated: str | None = None) -> Idle | None:
    """Say which other option keeps this one from having an effect."""
    recipe, idle = asked.recipe, None
    for gate, needed in OPTIONS[key].only_if.items():
        value = recipe.value(gate)
        if not holds(needed, value):
            verb = "give" if value is None else "change"
            why = f"where {gate} is {literal(gate, recipe)}"
            return Idle(gated or key, why, f"{verb} {asked.spelling(gate).removeprefix('--set ')}")
        idle = idle or _gated(asked, gate, gated or key)
    return idle


def _unread(asked: Asked, key: str, policy: Policy) -> Idle | None:
    """Say that the policy in force does not read an option of ``[select]``."""
    section, _, name = key.partition(".")
    if section in dprp.UNREAD and asked.recipe.dprp.enabled:
        return Idle(key, "where a network is trained with shrinking ranks", "use run")
    if section == "record" and asked.recipe.dprp.enabled and not asked.recipe.dprp.weighs:
        return Idle(key, "where the matrices that are trained are not weighted by what is recorded", "use run")
    if section in pruning.UNREAD and asked.recipe.prune.alone:
        return Idle(key, "where channels are pruned and nothing is factorized", "use run --prune fbp")
    if section != "select" or name in policy.relevant:
        return None
    if not policy.public:
        keys = (f"select.{option}" for option in policy.implied_by)
        implied = asked.name(next(other for other in keys if asked.recipe.value(other) is not None))
        return Idle(key, f"where {implied} is given", f"leave {implied} out")
    if key == POLICY:
        return None
    source = asked.origins.get(POLICY)
    readers = ", ".join(other for other in PUBLIC if name in POLICIES[other].relevant)
    return Idle(
        key,
        f"under policy {policy.name}" + (f" of {source}" if source else ""),
        f"name a policy that reads it: {readers}",
    )


def _is_off(asked: Asked, key: str) -> bool:
    """Whether an option asks for nothing: that is what happens, whoever decides it."""
    value, option = asked.recipe.value(key), OPTIONS[key]
    gates = {gate for other in OPTIONS.values() for gate, needed in other.only_if.items() if needed in (SET, ON, True)}
    return value is None or (not value and (key in gates or value == option.default))


def _has_images(asked: Asked) -> bool:
    return asked.recipe.data.source is not None


def _reported_only(asked: Asked) -> list[str]:
    """Note the options of ``[similarity]`` under a policy that decides by something else."""
    policy = policy_in_force(asked.recipe.select, _has_images(asked))
    if policy.compares:
        return []
    reason = f"only changes what is reported: policy {policy.name} does not decide by similarity"
    keys = [key for key in asked.origins if key.startswith("similarity.") and asked.means(key)]
    return [f"{asked.name(key)} {reason}" for key in keys if not _gated(asked, key)]


# The policy ---------------------------------------------------------------------------------------------------------


def with_policy(asked: Asked, policy: str) -> Asked:
    """Return what is asked for where the command is for one policy; raises RecipeError for another on its line."""
    named = asked.recipe.select.policy
    if asked.here(POLICY) and named != policy:
        raise RecipeError(f"select is for policy {policy}, received {named!r}; use run")
    if asked.recipe.select.configuration is not None:
        name = asked.name("select.configuration")
        raise RecipeError(f"select takes a point of a measured front, received {name}; use run")
    notes = [f"{asked.name(POLICY)} gives way to {policy}, which select is for"] if POLICY in asked.origins else []
    return replace(
        asked,
        recipe=asked.recipe.with_option(POLICY, policy),
        origins={**asked.origins, POLICY: None},
        notes=(*asked.notes, *(notes if named != policy else [])),
    )


def _with_implied_policy(asked: Asked) -> Asked:
    """Return what is asked for with the policy that its options ask for, where nobody names one."""
    if POLICY in asked.origins:
        check_choice("select", "policy", asked.recipe.select.policy, PUBLIC)
        return asked
    for keys in (filter(asked.here, asked.origins), filter(asked.means, asked.origins)):
        options = {key.partition(".")[2] for key in keys if key.startswith("select.") and not _is_off(asked, key)}
        implied = [policy for policy in POLICIES.values() if options.intersection(policy.implied_by)]
        if implied:
            return replace(asked, recipe=asked.recipe.with_option(POLICY, _implied(asked, options, implied)))
    return asked


def _implied(asked: Asked, options: set[str], implied: list[Policy]) -> str:
    """The one policy among those that options ask for; a policy that reads all of them comes before others."""
    if any(not policy.public for policy in implied):
        return asked.recipe.select.policy  # a configuration is in force whatever the policy
    asking = {option for policy in implied for option in policy.implied_by} & options
    fitting = [policy for policy in implied if asking <= policy.relevant] or implied
    if len(fitting) > 1:
        pairs = [(option, policy.name) for policy in fitting for option in policy.implied_by if option in options]
        asks = [f"{asked.name(f'select.{option}')} asks for policy {policy}" for option, policy in pairs]
        raise RecipeError(f"{' and '.join(asks)}; leave one out, or say which with {asked.spelling(POLICY)}")
    return fitting[0].name


def _check_images(asked: Asked) -> list[str]:
    """Refuse, or note, that a policy is asked for which measures on images where there are none."""
    policy = POLICIES[asked.recipe.select.policy]
    if _has_images(asked) or "images" not in policy.needs or asked.recipe.select.configuration is not None:
        return []
    asking = [key for key in (POLICY, *(f"select.{option}" for option in policy.implied_by)) if asked.means(key)]
    for key in asking:
        if asked.here(key):
            raise RecipeError(
                f"{asked.name(key)} asks for policy {policy.name}, which measures on images, received none; "
                f"give images with {asked.spelling('data.source')}"
            )
    if POLICY not in asking:
        return []
    return [f"{asked.name(POLICY)} measures on images, there are none: {policy.without_images} decides"]
