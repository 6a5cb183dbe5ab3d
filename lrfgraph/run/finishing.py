"""What a configuration comes to: rebuilt, repaired, fine-tuned once, and written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lrfgraph.engine.nodes import Ref
from lrfgraph.options.finetuning import FinetuneOptions
from lrfgraph.run import nodes, notes
from lrfgraph.run.driver import Driver
from lrfgraph.run.state import Compression
from lrfgraph.selection.front import Point, limit_note
from lrfgraph.selection.problem import Decision

__all__ = ["finish", "nearer", "rebuild", "with_known_rate"]


def rebuild(driver: Driver, compression: Compression) -> Compression:
    """Rebuild the network with the chosen candidates, and repair it."""
    assert compression.decision is not None
    configuration = compression.decision.configuration
    chain = nodes.rebuild_nodes(compression.network, configuration, compression.exploration)
    refs = driver.carry_out("rebuild", chain)
    names = {"factorized": "rebuild", "repaired": "repaired/rebuild"}
    models = {stage: refs[name] for stage, name in names.items() if name in refs}
    return replace(compression, models={**compression.models, **models})


def finish(driver: Driver, compression: Compression) -> Compression:
    """Fine-tune once what is nearer to the original, repaired or not, and write it out."""
    before = "trained" if driver.recipe.dprp.enabled else "pruned" if driver.recipe.prune.alone else "factorized"
    decision = compression.decision
    tried = decision is not None and decision.configuration in compression.trials
    final, why = (_last(compression), []) if tried else nearer(driver, compression, before)
    compression = compression.noted(*why, final=final, rejected=("repaired",) if why else ())
    if compression.network.finetunes:
        compression = _finetuned(driver, compression)
    if driver.only == "finetune":
        return compression
    node = nodes.export_node(compression.network, compression.models[compression.final])
    compression = replace(compression, exported=driver.carry_out("write", [node])[node.name])
    assert compression.exported is not None
    return compression.noted(*notes.counts(_planned(driver, compression), driver.data(compression.exported)))


def _last(compression: Compression) -> str:
    """Return the last stage before fine-tuning."""
    return "repaired" if "repaired" in compression.models else "factorized"


def nearer(driver: Driver, compression: Compression, before: str) -> tuple[str, list[str]]:
    """Go on from the repaired model, unless on validation images it is further from the original than `before`."""
    if "repaired" not in compression.models:
        return before, []
    judged = {
        stage: nodes.evaluate_node(
            compression.network, stage, compression.models[stage], "validation", compression.baseline
        )
        for stage in (before, "repaired")
    }
    refs = driver.carry_out("evaluate", list(judged.values()))
    far, near = (driver.data(refs[node.name]).get("kl", 0.0) for node in judged.values())
    if near <= far:
        return "repaired", []
    return before, ["repair brought the network no nearer to the original; its weights are kept as they were"]


def _planned(driver: Driver, compression: Compression) -> dict[str, int]:
    """The parameters and MACs that were decided on."""
    decision = compression.decision
    if decision is not None:
        return {"parameters": decision.parameters, "macs": decision.macs}
    assert compression.pruned is not None
    return {name: driver.data(compression.pruned)[name] for name in ("parameters", "macs")}


# Fine-tuning --------------------------------------------------------------------------------------------------------


def _finetuned(driver: Driver, compression: Compression) -> Compression:
    """Fine-tune the network once, from where a trial of it ended if there was one; go back where that is too little."""
    decision, limit = compression.decision, compression.limit
    trial = None if decision is None else compression.trials.get(decision.configuration)
    student = trial or compression.models[compression.final]
    original = compression.original.original
    options = with_known_rate(driver, compression.network.recipe.finetune, compression.trials)
    node = nodes.finetune_node(compression.network, "finetune", student, original, options)
    tuned = driver.carry_out("finish", [node])[node.name]
    if decision is not None and limit is not None and driver.only is None:
        point = _measured(driver, compression, decision, tuned)
        known = _known_images(driver, compression)
        back = None if point.drop <= limit or known else _gone_back(driver, compression, point, limit)
        if back is not None:
            return back
        why = "; of images that the network was trained on that is no reason to go back" if known else ""
        compression = compression.noted(limit_note(point, limit) + (why if point.drop > limit else ""))
    return _with_history(driver, compression, tuned, trial is not None)


def with_known_rate(driver: Driver, options: FinetuneOptions, trials: Mapping[Any, Ref]) -> FinetuneOptions:
    """Return options of fine-tuning with the learning rate that the first trial found, where none is asked for."""
    first = next(iter(trials.values()), None)
    if options.learning_rate is not None or first is None:
        return options
    return replace(options, learning_rate=driver.data(first)["history"][0]["peak"])


def _with_history(driver: Driver, compression: Compression, tuned: Ref, tried: bool) -> Compression:
    """Take a fine-tuned model for the final one, and say so where none of its epochs was any better.

    tried : whether the weights before its first epoch came from a trial.
    """
    history = driver.data(tuned)["history"]
    models = {**compression.models, "finetuned": tuned}
    compression = replace(compression, models=models, final="finetuned", history=history)
    if tried or any(epoch.get("kept") for epoch in history):
        return compression
    idle = "fine-tuning brought nothing on validation images; the weights before it are kept"
    return compression.noted(idle, rejected=(*compression.rejected, "finetuned"))


def _measured(driver: Driver, compression: Compression, decision: Decision, tuned: Ref) -> Point:
    """Return what a fine-tuned network loses on validation images."""
    node = nodes.evaluate_node(compression.network, "finetuned", tuned, "validation", compression.baseline)
    measures = driver.data(driver.carry_out("evaluate", [node])[node.name])
    return Point.measured(-1, decision, measures, sum(epoch["steps"] for epoch in driver.data(tuned)["history"]))


def _known_images(driver: Driver, compression: Compression) -> bool:
    """Whether the network was trained on the validation images: learning others, it forgets some of them."""
    assert compression.network.data is not None
    parts = driver.data(compression.network.data)["parts"]
    return bool(notes.known_images(parts, compression.measured["baseline"]["validation"]))


def _gone_back(driver: Driver, compression: Compression, refused: Point, limit: float) -> Compression | None:
    """Return to the smallest configuration that is known to keep to the limit, ``None`` where there is none."""
    cost = compression.network.recipe.select.cost
    passing = [point for point in compression.points if point.drop <= limit]
    if not passing:
        return None
    chosen = min(passing, key=lambda point: point.macs if cost == "macs" else point.parameters)
    whole = compression.original.parameters
    how = f"{chosen.trained} steps of it" if chosen.trained else "repair"
    why = (
        f"{refused.parameters / whole:.1%} of the parameters lose {refused.drop:.2f} ± {refused.drop_se:.2f} points on "
        f"validation after fine-tuning (limit {limit:g}); the run went back to {chosen.parameters / whole:.1%}, which "
        f"lose {chosen.drop:.2f} ± {chosen.drop_se:.2f} after {how}"
    )
    policy = compression.decision.policy if compression.decision else ""
    compression = compression.noted(why, decision=replace(chosen.decision, policy=policy), refused=refused)
    compression = rebuild(driver, replace(compression, rejected=()))
    if not chosen.trained:
        return replace(compression, final=_last(compression))
    return _with_history(driver, compression, compression.trials[chosen.decision.configuration], False)
