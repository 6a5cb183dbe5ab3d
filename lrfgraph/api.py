"""compress(), prune(), train(), plan(), inspect(): what the command line calls, and what a Python program can call."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrfgraph.engine.events import Event
from lrfgraph.engine.execute import healing
from lrfgraph.engine.nodes import digest
from lrfgraph.engine.runs import start_run
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.engine.tasks import warnings_of
from lrfgraph.engine.workers import workers_for
from lrfgraph.errors import ConfigurationError, DataError, StoreError
from lrfgraph.layers.similarity import METRICS
from lrfgraph.methods import METHODS
from lrfgraph.network.heads import HEADS
from lrfgraph.network.opening.consent import absent
from lrfgraph.options.option import check_choice
from lrfgraph.options.recipe import Recipe
from lrfgraph.pruning import SCORES
from lrfgraph.run import stages
from lrfgraph.run.dprp import check as check_training
from lrfgraph.run.driver import Driver, Unplanned
from lrfgraph.run.forecast import later
from lrfgraph.run.joint import check_judge
from lrfgraph.run.needs import Need, needs_of
from lrfgraph.run.needs import check as check_needs
from lrfgraph.run.pruning import check as check_pruning
from lrfgraph.run.state import Compression, Network
from lrfgraph.run.steps import STEPS
from lrfgraph.selection.policies import PUBLIC, policy_in_force

__all__ = [
    "Compression", "Driver", "check", "compress", "inspect", "needs", "plan", "prune", "read", "run_name", "store_of",
    "train",
]  # fmt: skip


def compress(
    model: str | Path,
    recipe: Recipe | None = None,
    *,
    base: str | Path = ".",
    on_event: Callable[[Event], None] | None = None,
    on_baseline: Callable[[Compression], None] | None = None,
) -> Compression:
    """Compress a model file by the recipe; everything is kept in the recipe's cache.

    base : folder that relative paths of the recipe's data start from.  on_baseline : called once the original is
    measured.  Raises LrfError for whatever the user can mend.
    """
    recipe = recipe or Recipe()
    check(recipe)
    store, options = store_of(recipe), recipe.run
    workers = workers_for(options.threads, options.workers, options.scheduler)
    try:
        identity = stages.model_identity(Path(model), store)
        try:
            store.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cache {store.root} cannot be written ({error.strerror}); use --cache DIR") from None
        with start_run(store, run_name(model, identity, recipe)) as live:
            driver = Driver(recipe, store, Path(model), identity, Path(base), on_event, workers=workers, live=live)
            compression = healing(store, lambda: _carry_out(driver, on_baseline), driver.note)
            if store.remote is not None:
                from lrfgraph.engine.exchange import finish

                finish(store, live.record)
            for warning in warnings_of(store):
                driver.note(warning)
            return compression
    finally:
        workers.close()
        if store.remote is not None:
            store.remote.close()


def prune(
    model: str | Path,
    recipe: Recipe | None = None,
    *,
    base: str | Path = ".",
    on_event: Callable[[Event], None] | None = None,
) -> Compression:
    """Remove whole channels of a model file, and factorize nothing; see `compress`."""
    recipe = (recipe or Recipe()).with_option("prune.method", "fbp").with_option("prune.alone", True)
    return compress(model, recipe, base=base, on_event=on_event)


def train(
    model: str | Path,
    recipe: Recipe | None = None,
    *,
    base: str | Path = ".",
    on_event: Callable[[Event], None] | None = None,
) -> Compression:
    """Train the network of a model file while the ranks of its layers shrink; see `compress`."""
    recipe = (recipe or Recipe()).with_option("dprp.enabled", True)
    return compress(model, recipe, base=base, on_event=on_event)


def plan(model: str | Path, recipe: Recipe | None = None, *, base: str | Path = ".") -> tuple[Driver, bool]:
    """Look up what `compress` would run and reuse; nothing is computed or written.

    Returns the driver and whether it came to the end (a decision that is not made yet hides what follows it).
    """
    recipe = recipe or Recipe()
    check(recipe)
    store = store_of(recipe)
    identity = stages.model_identity(Path(model), store, keep=False)
    driver = Driver(recipe, store, Path(model), identity, Path(base), dry=True)
    while True:
        try:
            _carry_out(driver, None)
        except Unplanned:
            return driver, False
        except CorruptEntry as error:  # `compress` would compute it again; here it counts as missing
            if error.key in driver.unreadable:
                raise
            driver.unreadable[error.key] = error.why
        else:
            return driver, True


def needs(model: str | Path, recipe: Recipe | None = None, *, base: str | Path = ".") -> list[Need]:
    """Return the memory and disk that each stage of `compress` needs if nothing of it is in the cache.

    Empty where the model has not been read yet; numbers of images that nobody has counted are taken from the recipe.
    """
    recipe = recipe or Recipe()
    store = store_of(recipe)
    identity = stages.model_identity(Path(model), store, keep=False)
    driver = Driver(recipe, store, Path(model), identity, Path(base), dry=True)
    try:
        compression = stages.describe(driver)
    except (Unplanned, CorruptEntry):
        return []
    with suppress(Unplanned, CorruptEntry):
        compression = stages.divide_images(driver, compression)
    asked = {stage.name for stage in stages.stages_of(recipe)}
    return [need for need in needs_of(driver, compression.network) if need.stage in asked]


def inspect(
    model: str | Path, recipe: Recipe | None = None, *, on_event: Callable[[Event], None] | None = None
) -> Network:
    """Read a model and say what is in it; kept in the cache like everything else."""
    return read(model, recipe, on_event=on_event)[1]


def read(
    model: str | Path, recipe: Recipe | None = None, *, on_event: Callable[[Event], None] | None = None
) -> tuple[Driver, Network]:
    """Read a model, see `inspect`; returns, besides, the driver that has what was read."""
    recipe = recipe or Recipe()
    check(recipe)
    store = store_of(recipe)
    driver = Driver(recipe, store, Path(model), stages.model_identity(Path(model), store), on_event=on_event)
    network = healing(store, lambda: stages.read_model(driver), driver.note)
    store.flush()
    return driver, network


def store_of(recipe: Recipe) -> Store:
    """Return the cache that a recipe names, with the remote behind it; raises StoreError for what is no remote."""
    options, remote = recipe.run, None
    if options.remote is not None:
        from lrfgraph.engine.remote import RemoteStore  # without one, a cached run is over before it is loaded

        remote = RemoteStore(options.remote, options.remote_readonly, options.remote_required)
    return Store(Path(options.cache), remote=remote)


def run_name(model: str | Path, identity: str, recipe: Recipe) -> str:
    """Name a run by its model file and by what is asked for: ``resnet20-1a2b3c4d``."""
    asked: dict[str, Any] = {section: values for section, values in recipe.to_dict().items() if section != "run"}
    asked["until"] = recipe.run.until  # a run that stops early stands on less, and is another one
    stem = re.sub(r"[^A-Za-z0-9_.+-]", "_", Path(model).stem)[:60].lstrip(".+-") or "model"
    return f"{stem}-{digest([identity, asked])[:8]}"


def check(recipe: Recipe) -> None:
    """Check the options whose choices are the entries of a table, and what cannot go together."""
    tables = {
        "data.head": ("auto", *HEADS),
        "prune.score": tuple(SCORES),
        "explore.methods": tuple(METHODS),
        "similarity.metric": tuple(METRICS),
        "select.policy": PUBLIC,
        "run.until": tuple(STEPS),
    }
    for key, names in tables.items():
        section, option = key.split(".")
        value = getattr(getattr(recipe, section), option)
        for name in value if isinstance(value, tuple) else (value,):
            if name is not None:
                check_choice(section, option, name, names)
    if recipe.data.metric is not None and (lacking := absent(recipe.data.metric)):
        raise DataError(f"metric {recipe.data.metric}: {lacking}; give package.module:function that can be imported")
    _check_until(recipe)
    if recipe.prune.method is not None:
        check_pruning(recipe.prune, recipe.data.source is not None)
        if recipe.prune.searches and not recipe.dprp.enabled:
            check_judge(recipe)
        if recipe.select.configuration is not None:
            raise ConfigurationError(
                f"configuration {recipe.select.configuration} is for the network as it is, received prune.method = "
                f"{recipe.prune.method} besides; leave one of them out"
            )
    elif recipe.prune.alone:
        raise ConfigurationError("prune.alone finishes a pruned network, received no prune.method; add --prune fbp")
    if recipe.dprp.enabled:
        check_training(recipe)
        return
    policy = policy_in_force(recipe.select, recipe.data.source is not None)
    if policy.search is not None and recipe.select.cost == "mix":
        raise ConfigurationError(
            f"policy {policy.name} searches along one cost, received select.cost = mix; "
            "use parameters or macs, or --policy threshold"
        )


def _check_until(recipe: Recipe) -> None:
    """Raise for a kind of node that no stage has under what else is asked: all of them would be carried out."""
    whole = stages.stages_of(recipe.with_option("run.until", None))
    kinds = ["describe", *(kind for stage in whole for kind in stage.kinds)]
    if recipe.dprp.enabled:  # nothing is left to retrain
        kinds.remove("finetune")
    if recipe.run.until is not None and recipe.run.until not in kinds:
        raise ConfigurationError(
            f"this run has no nodes of kind {recipe.run.until} to stop after; it has {', '.join(dict.fromkeys(kinds))}"
        )


def _guard(driver: Driver, network: Network, stages: list[str]) -> Callable[[], None] | None:
    """Ask, before something is computed, whether it and all that follows fits; of a cluster nobody knows."""
    if network.recipe.run.scheduler:
        return None
    return lambda: check_needs(driver, network, stages)


def _announce(driver: Driver, compression: Compression, chain: Sequence[stages.Stage], index: int) -> None:
    """Say which stage begins, and what is thought to follow it."""
    if driver.on_event and not driver.dry:
        seconds, known = later(driver, compression, [stage.name for stage in chain[index + 1 :]])
        place = {"done": index + 2, "total": len(chain) + 1}
        driver.tell(
            Event("stage", "", chain[index].name, seconds=seconds, message="" if known else "and more", **place)
        )


def _carry_out(driver: Driver, on_baseline: Callable[[Compression], None] | None) -> Compression:
    driver.restart()
    until = driver.recipe.run.until
    chain = stages.stages_of(driver.recipe)
    driver.tell(Event("stage", "", "describe", done=1, total=len(chain) + 1))
    compression = stages.describe(driver)
    for index, stage in enumerate(chain):
        _announce(driver, compression, chain, index)
        driver.only = until if stage is chain[-1] else None
        if driver.recipe.run.scheduler and not driver.dry:
            driver.memory = {need.stage: need.memory for need in needs_of(driver, compression.network)}
        # of images that are not divided yet, only what it takes to read them is known
        follows = chain[index : index + 1] if stage.name == "data" else chain[index:]
        driver.guard = _guard(driver, compression.network, [each.name for each in follows])
        compression = stage.carry_out(driver, compression)
        if stage.name == "baseline" and on_baseline:
            on_baseline(compression)
    driver.only = driver.guard = None
    if until and not driver.run[until] + driver.reused[until]:
        compression = compression.noted(f"nothing of kind {until} was asked for")
    compression = replace(compression, stopped=until is not None and (not chain or chain[-1].name != "evaluate"))
    if not driver.dry:
        stages.read_ahead(driver, compression)
    return compression
