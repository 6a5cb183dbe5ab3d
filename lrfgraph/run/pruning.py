"""The nodes of filter pruning and the stage that carries them out (METHODS §7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import filter as matching
from fnmatch import fnmatch
from typing import Any

from lrfgraph.engine.nodes import Node, Ref
from lrfgraph.errors import ConfigurationError, ModelError
from lrfgraph.options.pruning import PruneOptions
from lrfgraph.pruning import SCORES
from lrfgraph.pruning.channels import Dependencies, Group
from lrfgraph.run import nodes
from lrfgraph.run.driver import Driver
from lrfgraph.run.state import Compression, Network
from lrfgraph.run.steps.common import geometry
from lrfgraph.run.steps.pruning import dependencies_of, removed_channels

__all__ = ["check", "go_on", "prune"]

Records = dict[str, Mapping[str, Ref]]


def prune(driver: Driver, compression: Compression) -> Compression:
    """Rank the channels of every group, say how many go, and remove them."""
    network = compression.network
    couple = _couple_node(network, driver.data(network.model)["image_shape"])
    coupled = driver.carry_out("couple", [couple])[couple.name]
    driver.data(coupled)
    dependencies = dependencies_of(driver.store.open(coupled))
    chosen, notes = _groups(dependencies, driver.recipe.prune.skip, network)
    compression = compression.noted(*notes)
    if driver.only == "couple":
        return compression
    records = _records(driver, network, list(chosen.values()))
    if driver.only in records:
        return compression
    ranked = {index: _importance_node(network, coupled, group, index, records) for index, group in chosen.items()}
    refs = driver.carry_out("importance", list(ranked.values()))
    if driver.only == "importance":
        return compression
    widths = _widths_node(network, coupled, {index: refs[node.name] for index, node in ranked.items()})
    decided = driver.carry_out("widths", [widths])[widths.name]
    removed = set(removed_channels(driver.data(decided)))
    compression = replace(compression, pruned=decided, final="pruned")
    if driver.only == "widths":
        return compression
    touched = [group for group in chosen.values() if removed & set(group.channels)]
    readers = dict.fromkeys(reader for group in touched for reader in group.readers)
    node = _prune_node(network, coupled, decided, list(readers), records)
    refs = driver.carry_out("prune", [node, *_repair_nodes(network, node)])
    models = {stage: refs[name] for stage, name in (("pruned", "prune"), ("repaired", "adjust")) if name in refs}
    return replace(compression, models=models)


def _repair_nodes(network: Network, pruned: Node) -> list[Node]:
    if not network.repairs:
        return []
    layers = [layer for layer in network.layers if layer.kind and not layer.kept]
    curvatures = nodes.curvature_nodes(network, layers)
    return [*curvatures.values(), _adjust_node(network, pruned, curvatures)]


def go_on(driver: Driver, compression: Compression, model: Ref) -> Compression:
    """Return the run with the pruned network in the original's place: what follows factorizes it.

    Shares that are asked for stay shares of the original.
    """
    from lrfgraph.network.opening.consent import code_digest

    original = compression.network
    size, recipe = driver.data(original.model)["image_shape"], driver.recipe
    driver.data(model)
    plain = recipe.with_option("model.architecture", None)
    code = code_digest(recipe.model.custom) if recipe.model.custom else None
    file = driver.store.open(model).file("model.keras")
    node = nodes.describe_node(str(file), model.identity, plain, None, size, code)
    ref = driver.carry_out("describe", [node])[node.name]
    network = Network.described(ref, driver.data(ref), recipe)
    for key, whole, left in (
        ("select.params", original.parameters, network.parameters),
        ("select.macs", original.macs, network.macs),
    ):
        share = recipe.value(key)
        if share is not None:
            recipe = recipe.with_option(key, min(share * whole / left, 1.0))
    network = replace(network, recipe=recipe, data=original.data, images=original.images)
    network = replace(network, locators=original.locators, head=original.head)
    return replace(compression, network=network, source=original, models={"pruned": model})


def _groups(dependencies: Dependencies, skip: Sequence[str], network: Network) -> tuple[dict[int, Group], list[str]]:
    """The groups that may become narrower, by number, and what is to be said about others."""
    names = [layer.name for layer in network.layers]
    idle = [pattern for pattern in skip if not matching(names, pattern)]
    notes = [f"prune.skip: no layer matches {', '.join(map(repr, idle))}; `inspect` lists the layers"] if idle else []
    chosen = {
        index: group
        for index, group in enumerate(dependencies.groups)
        if len(group.channels) > 1 and not any(fnmatch(layer, pattern) for layer in group.layers for pattern in skip)
    }
    if not chosen:
        reasons = "; ".join(dict.fromkeys(dependencies.kept.values())) or "it has no layer that writes channels"
        raise ModelError(f"no channel of the model can be removed: {reasons}; nothing to prune")
    return chosen, notes


def _records(driver: Driver, network: Network, groups: Sequence[Group]) -> Records:
    """What was recorded of the layers that read the channels, where the score or the refit needs it."""
    options, score = driver.recipe.prune, SCORES[driver.recipe.prune.score]
    if network.data is None or not (score.reads or options.refit):
        return {"record": {}, "curvature": {}}
    names = {reader for group in groups for reader in group.readers}
    layers = [layer for layer in network.layers if layer.name in names]
    recorded = nodes.record_nodes(network, layers)
    curvatures = nodes.curvature_nodes(network, layers) if score.reads else {}
    refs = driver.carry_out("explore", [*recorded.values(), *curvatures.values()])
    return {"record": nodes.refs_of(recorded, refs), "curvature": nodes.refs_of(curvatures, refs)}


def _couple_node(network: Network, image_shape: Sequence[int] | None) -> Node:
    """The same network under other names has other groups, by name; at another size other MACs."""
    params = {"signature": network.signature, "image_shape": image_shape}
    return Node("couple", "couple", params, {"model": network.original}, network.locators_with())


def _importance_node(network: Network, coupled: Ref, group: Group, index: int, records: Records) -> Node:
    score = SCORES[network.recipe.prune.score]
    readers = group.readers if score.reads else ()
    params = {"score": score.name, "version": score.version, "group": index}
    params["layers"] = {name: _layer(network, name) for name in readers}
    inputs: dict[str, str | Ref] = {"dependencies": coupled}
    inputs |= {f"{name}/weights": network.weights(network.layer(name)) for name in (*group.layers, *readers)}
    for kind, refs in records.items():
        inputs |= {f"{name}/{kind}": refs[name] for name in readers if name in refs}
    return Node(f"{group.name}/{score.name}/importance", "importance", params, inputs)


def _layer(network: Network, name: str) -> dict[str, Any]:
    """What a reader's matrix depends on."""
    layer = network.layer(name)
    return {**geometry(layer), "bias": layer.bias, "batchnorm": "norm" if layer.batchnorm else ""}


def _widths_node(network: Network, coupled: Ref, ranked: Mapping[int, Ref]) -> Node:
    options = network.recipe.prune
    spread = options.spread or ("loss" if SCORES[options.score].predicts else "uniform")
    params = {"groups": list(ranked), "keep": options.keep, "params": options.params, "macs": options.macs}
    inputs: dict[str, str | Ref] = {f"{index}/importance": ref for index, ref in ranked.items()}
    return Node("widths", "widths", {**params, "spread": spread}, {"dependencies": coupled, **inputs})


def _prune_node(network: Network, coupled: Ref, decided: Ref, readers: Sequence[str], records: Records) -> Node:
    refits = [name for name in readers if network.recipe.prune.refit and name in records["record"]]
    params = {"refits": refits, "signature": network.signature}
    inputs: dict[str, str | Ref] = {"model": network.original, "dependencies": coupled, "widths": decided}
    inputs |= {f"{name}/weights": network.weights(network.layer(name)) for name in refits}
    inputs |= {f"{name}/record": records["record"][name] for name in refits}
    return Node("prune", "prune", params, inputs, network.locators_with())


def _adjust_node(network: Network, pruned: Node, curvatures: Mapping[str, Node]) -> Node:
    options = {name: getattr(network.recipe.repair, name) for name in ("rows", "rounds", "ridge")}
    options["seed"] = network.recipe.record.seed
    inputs = {**pruned.inputs, "data": network.split("repair")}
    inputs |= {f"{name}/curvature": node.name for name, node in curvatures.items()}
    return Node("adjust", "adjust", {**pruned.params, "options": options}, inputs, pruned.locators)


def check(options: PruneOptions, has_images: bool) -> None:
    """Raise where channels alone go and nobody says how many, or what needs images is asked for without any."""
    if options.alone and options.keep is None and options.params is None and options.macs is None:
        raise ConfigurationError(
            "pruning must be told how much stays, received nothing; give --keep, --params or --macs"
        )
    if SCORES[options.score].reads and not has_images:
        raise ConfigurationError(
            f"score {options.score} looks at activations, received no images; give some with --data, or take "
            f"{'--score l1' if options.alone else '--set prune.score=l1'}"
        )
