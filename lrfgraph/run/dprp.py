"""The nodes of training with shrinking ranks, and the stage that carries them out (METHODS §6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import filter as matching
from fnmatch import fnmatch
from typing import Any

from lrfgraph.engine.nodes import Node, Ref
from lrfgraph.errors import ConfigurationError, DataError, ModelError
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import write_rank
from lrfgraph.options.dprp import DprpOptions
from lrfgraph.options.recipe import Recipe
from lrfgraph.run.driver import Driver
from lrfgraph.run.nodes import curvature_nodes, record_nodes
from lrfgraph.run.state import Compression, Network
from lrfgraph.run.steps.dprp import forms_of
from lrfgraph.selection.problem import CandidateId, Choice, Decision
from lrfgraph.selection.shrinking import Form, course, least_cost, pace_of

__all__ = ["check", "train"]

MATRICIZATIONS = {"spatial": "svd_spatial", "channel": "svd_channel", "paper": "svd_channel"}
"""The method whose two factors a matricization gives; O by kxkxI is the transpose of kxkxI by O, U and V exchanged."""

SCHEDULE = ("enabled", "params", "macs", "epochs", "pace", "cooldown", "learning_rate")
STRUCTURE = ("matricization", "weighting", "spatial", "channel", "skip")
"""Options that say which epochs there are, and what the first begins with: no epoch reads them."""


def check(recipe: Recipe) -> None:
    """Raise where the recipe lacks what training cannot do without, or asks for what does not go with it."""
    options = recipe.dprp
    for key in ("prune.method", "select.configuration"):
        if recipe.value(key) is not None:
            raise ConfigurationError(
                f"dprp.enabled trains the network as it is, received {key} = {recipe.value(key)} besides; "
                "leave one of them out"
            )
    if recipe.data.source is None:
        raise ConfigurationError("training needs images, received none; give some with --data")
    if options.from_scratch and options.batchnorm == "fixed":
        raise ConfigurationError(
            "dprp.batchnorm = fixed keeps statistics that fresh weights do not have; leave it out with --from-scratch"
        )


def train(driver: Driver, compression: Compression) -> Compression:
    """Train the network while its ranks shrink, one node an epoch."""
    network, options = compression.network, driver.recipe.dprp
    methods = _methods(network, options)
    notes = _idle_patterns(network, options)
    if "train" not in network.images:
        raise DataError("training needs training images, received none; give some with --data")
    _check_labels(driver, network, options)
    _check_target(network, options, methods)
    recorded = _recorded(network, options, methods)
    refs = driver.carry_out("train", [*recorded.values()])
    if driver.only in ("record", "curvature"):
        return compression.noted(*notes)
    nodes = _nodes(network, options, methods, {name: refs[node.name] for name, node in recorded.items()})
    refs = driver.carry_out("train", nodes)
    compression = compression.noted(*notes, *_hurry(options))
    if driver.only == "matricize" or (driver.only and driver.dry):  # a plan has looked up what it stops after alone
        return compression
    epochs = [refs[node.name] for node in nodes if node.step == "epoch"]
    history = [{**driver.data(ref)["row"]} for ref in epochs]
    first = [rank for _, _, rank, _ in driver.data(refs["matricize"])["forms"]]
    shrinking = {"layers": [network.layers[number].name for number in methods], "ranks": first, "epochs": history}
    compression = replace(compression, shrinking=shrinking)
    if driver.only:
        return compression
    decision = _decision(driver, network, options, epochs[-1])
    return replace(compression, decision=decision, models={"trained": refs["absorb"]}, final="trained")


# What is trained, and how -------------------------------------------------------------------------------------------


def _methods(network: Network, options: DprpOptions) -> dict[int, list[str]]:
    """The layers that shrink, by number, and the methods whose matrix each may become; none where all is to stay."""
    methods: dict[int, list[str]] = {}
    if not shrinks(options):
        return methods
    for number, layer in enumerate(network.layers):
        if not reason(layer, options):
            methods[number] = _matrices(layer, options)
    if not methods:
        reasons = dict.fromkeys(reason(layer, options) for layer in network.layers if layer.kind)
        raise ModelError(
            f"no layer of the model can lose ranks: {'; '.join(reasons) or 'it has none'}; nothing to train"
        )
    return methods


def shrinks(options: DprpOptions) -> bool:
    """Whether anything is to become smaller: ``--params 1`` asks for a training of the network as it is."""
    targets = [share for share in (options.params, options.macs) if share is not None]
    return not targets or min(targets) < 1


def reason(layer: LayerSpec, options: DprpOptions) -> str:
    """Say why a layer is trained as it is, or return ``""``."""
    if not shrinks(options):
        return "nothing is to become smaller"
    if layer.kept or not layer.kind:
        return layer.kept or "has no kernel"
    if any(fnmatch(layer.name, pattern) for pattern in options.skip):
        return "skipped by dprp.skip"
    matrices = _matrices(layer, options)
    if not matrices:
        return "its kernel is no matrix of several ranks"
    return "" if any(Form(layer, method, 1).saves_at(1) for method in matrices) else "rank 1 saves nothing"


def _matrices(layer: LayerSpec, options: DprpOptions) -> list[str]:
    """The methods whose matrix the layer may become: as asked, or another where that does not apply."""
    asked = options.matricization
    for name in ("spatial", "channel"):
        if any(fnmatch(layer.name, pattern) for pattern in getattr(options, name)):
            asked = name
    wanted = ["svd_spatial", "svd_channel"] if asked == "auto" else [MATRICIZATIONS[asked]]
    several = [name for name in ("svd_spatial", "svd_channel", "svd") if _has_ranks(layer, name)]
    return [name for name in wanted if name in several] or several[-1:]


def _has_ranks(layer: LayerSpec, name: str) -> bool:
    method = METHODS[name]
    if method.reason(layer):
        return False
    full = method.full_rank(layer)
    return full is not None and full[0] > 1


def _idle_patterns(network: Network, options: DprpOptions) -> list[str]:
    names, notes = [layer.name for layer in network.layers], []
    for key in ("spatial", "channel", "skip"):
        idle = [pattern for pattern in getattr(options, key) if not matching(names, pattern)]
        if idle:
            notes.append(f"dprp.{key}: no layer matches {', '.join(map(repr, idle))}; `inspect` lists the layers")
    return notes


def _hurry(options: DprpOptions) -> list[str]:
    """Say where a target is too far for the pace that was asked for."""
    pace, asked = pace_of(options), options.pace
    if pace <= asked + 1e-9:
        return []
    enough = 2 * math.ceil((1 - min(s for s in (options.params, options.macs) if s is not None)) / asked - 1e-9)
    return [
        f"dprp.pace = {asked:g} does not reach the target in the first half of {options.epochs} epochs: {pace:.2g} of "
        f"the network goes an epoch; {enough} epochs would do"
    ]


def _check_labels(driver: Driver, network: Network, options: DprpOptions) -> None:
    from lrfgraph.network.heads import HEADS

    assert network.data is not None
    labels = driver.data(network.data)["parts"]["train"]["labels"] or HEADS[network.head].own_input
    if options.from_scratch and not labels:
        raise DataError("fresh weights learn from targets, received none; give some, or leave --from-scratch out")


def _check_target(network: Network, options: DprpOptions, methods: dict[int, list[str]]) -> None:
    """Refuse a target that even rank 1 everywhere does not reach, before anything is trained."""
    for name, whole, key in (("parameters", network.parameters, "params"), ("MACs", network.macs, "macs")):
        share, least = getattr(options, key), whole
        for number, each in methods.items():
            layer, attribute = network.layers[number], "macs" if key == "macs" else "parameters"
            smallest = max(getattr(least_cost(Form(layer, method, 1)), attribute) for method in each)
            least += smallest - getattr(layer_cost(layer), attribute)
        if share is not None and least > share * whole:
            raise ConfigurationError(
                f"--{key} {share:g} cannot be reached: rank 1 in every layer leaves {least / whole:.3g} of the {name}; "
                "ask for more"
            )


# Nodes --------------------------------------------------------------------------------------------------------------


def _recorded(network: Network, options: DprpOptions, methods: dict[int, list[str]]) -> dict[str, Node]:
    """What weights the matrices, by the name it has among the inputs."""
    layers = {number: network.layers[number] for number in methods} if options.weighs else {}
    records = record_nodes(network, layers.values())
    curvatures = curvature_nodes(network, layers.values()) if options.weighting == "two_sided" else {}
    return {
        f"{number}/{kind}": by_layer[layer.name]
        for number, layer in layers.items()
        for kind, by_layer in (("record", records), ("curvature", curvatures))
        if layer.name in by_layer
    }


def _nodes(
    network: Network, options: DprpOptions, methods: dict[int, list[str]], recorded: dict[str, Ref]
) -> list[Node]:
    layers = [[number, names] for number, names in methods.items()]
    params: dict[str, Any] = {"layers": layers, "scratch": options.from_scratch}
    params["seed"] = options.seed if options.from_scratch else 0
    inputs: dict[str, str | Ref] = {"model": network.original, **recorded}
    start = Node("matricize", "matricize", params, inputs, network.locators_with())
    read = {name: value for name, value in asdict(options).items() if name not in SCHEDULE + STRUCTURE}
    read = {name: value for name, value in read.items() if value is not None}
    nodes = [start]
    for plan in course(options):
        params = {"plan": plan, "options": read, "by_macs": options.params is None and options.macs is not None}
        inputs = {"state": nodes[-1].name, "model": network.original}
        inputs["data"] = network.split("train", "validation")
        name = f"{plan['number']}/epoch"
        nodes.append(Node(name, "epoch", params | network.judged_by, inputs, network.locators_with()))
    inputs = {"state": nodes[-1].name, "model": network.original}
    return [*nodes, Node("absorb", "absorb", {"signature": network.signature}, inputs, network.locators_with())]


def _decision(driver: Driver, network: Network, options: DprpOptions, last: Ref) -> Decision:
    """What became of every layer, as a policy would say it."""
    data = driver.data(last)
    forms = {form.layer.name: form for form in forms_of(data, driver.store.open(network.model))}
    choices = []
    for layer in network.layers:
        form = forms.get(layer.name)
        if form is None or form.dense:
            why = reason(layer, options) if form is None else "its rank saves nothing"
            choices.append(Choice(layer.name, reason=why))
        else:
            its, rank = form.cost, write_rank((form.rank,))
            choices.append(Choice(layer.name, CandidateId(layer.name, form.method, rank), "", its.parameters, its.macs))
    row = data["row"]
    kinds: Sequence[Choice] = [c for c, layer in zip(choices, network.layers, strict=True) if layer.kind]
    return Decision("dprp", tuple(kinds), row["parameters"], row["macs"])
