"""How much is pruned before the factorization, where nobody says: a few shares are tried, and none at all (METHODS §7).

A trial is what a run with that share would do up to its repaired configuration: nodes like all others, so another
budget ranks no channel again and explores no pruned network anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lrfgraph.engine.events import Event
from lrfgraph.errors import ConfigurationError, ModelError
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes
from lrfgraph.run.driver import Driver
from lrfgraph.run.finishing import nearer
from lrfgraph.run.pruning import go_on, prune
from lrfgraph.run.state import Compression
from lrfgraph.selection.policies import policy_in_force

__all__ = ["SHARES", "best_share", "check_judge", "prune_first"]

SHARES = (1.0, 0.85, 0.7, 0.5, 0.3)
"""What pruning may leave, the mildest first: the same for every budget, which therefore shares what they explored."""

PATIENCE = 2
"""Shares in a row that are no better, after which smaller ones are not tried: each is a run of its own."""

COSTS = {"params": "parameters", "macs": "MACs"}

Stage = Callable[[Driver, Compression], Compression]


@dataclass(frozen=True)
class Trial:
    """What came of a share. start : what a run with this share factorizes.  size : what is left, of what is judged."""

    share: float
    start: Compression
    size: int
    kl: float


def prune_first(driver: Driver, compression: Compression) -> Compression:
    """Prune as asked; what follows factorizes the pruned network, repaired or not, whichever is nearer."""
    compression = prune(driver, compression)
    if driver.recipe.prune.alone or driver.only:
        return compression
    final, why = nearer(driver, compression, "pruned")
    return go_on(driver, compression.noted(*why), compression.models[final])


def check_judge(recipe: Recipe) -> None:
    """Raise where trials of several shares could not be told apart: no images, or no policy that says what is best."""
    shares = "prune.keep, prune.params or prune.macs"
    if recipe.data.source is None:
        raise ConfigurationError(
            f"pruning must be told how much stays, received nothing; give {shares}, or images with --data: what is "
            "best is then tried"
        )
    policy = policy_in_force(recipe.select, images=True)
    if not (_budget(recipe) or _by_size(recipe)):
        raise ConfigurationError(
            f"how much is pruned first can be tried for a budget or a limit of the drop, received policy "
            f"{policy.name} with neither; give {shares}, or --params, --macs or --max-drop"
        )


def best_share(driver: Driver, compression: Compression, factorize: Sequence[Stage]) -> Compression:
    """Return the run with the share of the original left by pruning that its factorized network is best with.

    Within a budget, the best is the nearest to the original on validation images, after repair; within a limit of the
    drop, the smallest.  factorize : the stages that follow pruning, up to the rebuilt and repaired network.
    """
    recipe, trials = driver.recipe, list[Trial]()
    refused: dict[float, ConfigurationError | ModelError] = {}
    shares = [share for share in SHARES if share == 1 or share > max(_budget(recipe).values(), default=0.0)]
    for share in shares:
        start = _with_share(compression, share)
        if driver.only:  # a run that stops while channels are ranked and removed does so for every share
            if share < 1:
                prune(driver, start)
            continue
        _tell(driver, "trial", len(trials) + 1, len(shares), f"{_text(recipe, share)}, then factorizing")
        try:
            trial = _tried(driver, start, share, factorize)
        except (ConfigurationError, ModelError) as error:  # a budget out of reach, no channel that could go
            refused[share] = error
            continue
        trials.append(trial)
        _tell(driver, "outcome", len(trials), len(shares), f"KL to the original {trial.kl:.4f}, {trial.size:,} left")
        best = min(trials, key=lambda each: _judgement(recipe, each))
        if len(trials) - trials.index(best) > PATIENCE:
            break
    if driver.only:
        return compression
    if not trials:
        raise next(iter(refused.values()))
    return best.start.noted(_account(recipe, trials, refused, best))


def _with_share(compression: Compression, share: float) -> Compression:
    """The run as if this share had been asked for, of the cost that is to become small."""
    recipe = compression.network.recipe
    for cost in _budget(recipe) or [_by_size(recipe)]:
        recipe = recipe.with_option(f"prune.{cost}", share)
    return replace(compression, network=replace(compression.network, recipe=recipe))


def _tried(driver: Driver, start: Compression, share: float, factorize: Sequence[Stage]) -> Trial:
    start = prune_first(driver, start) if share < 1 else start
    network = start.network  # fine-tuning would bring all shares on, and takes long
    trial = replace(start, network=replace(network, recipe=network.recipe.with_option("finetune.epochs", 0)))
    for stage in factorize:
        trial = stage(driver, trial)
    final, _ = nearer(driver, trial, "factorized")
    judged = nodes.evaluate_node(trial.network, final, trial.models[final], "validation", trial.baseline)
    kl = driver.data(driver.carry_out("evaluate", [judged])[judged.name]).get("kl", 0.0)
    assert trial.decision is not None
    size = getattr(trial.decision, "macs" if _costs(driver.recipe)[0] == "macs" else "parameters")
    return Trial(share, start, size, kl)


# What is best -------------------------------------------------------------------------------------------------------


def _budget(recipe: Recipe) -> dict[str, float]:
    """The shares that factorization may keep, where the policy keeps to any."""
    policy = policy_in_force(recipe.select, images=True)
    asked = {name: getattr(recipe.select, name) for name in COSTS if name in policy.relevant}
    return {name: share for name, share in asked.items() if share is not None}


def _by_size(recipe: Recipe) -> str:
    """The cost that becomes as small as a limit of the drop lets it; ``""`` of other policies, fronts among them."""
    relevant = policy_in_force(recipe.select, images=True).relevant
    if "max_drop" not in relevant or "points" in relevant:
        return ""
    return "macs" if recipe.select.cost == "macs" else "params"


def _costs(recipe: Recipe) -> list[str]:
    return list(_budget(recipe)) or [_by_size(recipe)]


def _judgement(recipe: Recipe, trial: Trial) -> tuple[float, ...]:
    return (trial.kl,) if _budget(recipe) else (trial.size, trial.kl)


# What is said -------------------------------------------------------------------------------------------------------


def _text(recipe: Recipe, share: float) -> str:
    if share == 1:
        return "pruning nothing"
    return f"pruning to {share:.0%} of the {' and '.join(COSTS[cost] for cost in _costs(recipe))}"


def _account(recipe: Recipe, trials: Sequence[Trial], refused: Mapping[float, Exception], best: Trial) -> str:
    tried = [f"{_text(recipe, each.share)}: KL {each.kl:.4f}, {each.size:,} left" for each in trials]
    tried += [f"{_text(recipe, share)}: {error}" for share, error in refused.items()]
    text = f"{_text(recipe, best.share)} is taken"
    return "; ".join(["nobody said how much is pruned before the factorization", *tried, text])


def _tell(driver: Driver, kind: str, number: int, count: int, message: str) -> None:
    assert kind in ("trial", "outcome")
    driver.tell(Event(kind, "", "prune", done=number, total=count, message=message))  # type: ignore[arg-type]
