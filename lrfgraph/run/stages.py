"""The stages of a run, one function each: what is known so far in, the same and what the stage found out back.

A run that is to stop after a kind of node is the same list of stages, cut.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrfgraph import __version__
from lrfgraph.engine.nodes import Ref
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.errors import DataError, ModelError
from lrfgraph.network.heads import HEADS, titles
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes, notes
from lrfgraph.run.beside import passes_beside
from lrfgraph.run.choosing import choose, probe
from lrfgraph.run.dprp import train
from lrfgraph.run.driver import Driver
from lrfgraph.run.finishing import finish, rebuild
from lrfgraph.run.given import given_candidates
from lrfgraph.run.joint import best_share, prune_first
from lrfgraph.run.state import Compression, Exploration, Network, kept_reason
from lrfgraph.selection.problem import CandidateId

__all__ = ["STAGES", "Stage", "describe", "inputs_of", "model_identity", "read_ahead", "read_model", "stages_of"]

CHANCE_ERRORS = 3.0
"""Standard errors above chance that a baseline must be, else its preprocessing is taken to be wrong."""

MOST_CALIBRATION = 8192


@dataclass(frozen=True)
class Stage:
    """A stage and the kinds of nodes after which a run can stop there."""

    name: str
    kinds: tuple[str, ...]
    carry_out: Callable[[Driver, Compression], Compression]


# The model ----------------------------------------------------------------------------------------------------------


def model_identity(model: Path, store: Store, keep: bool = True) -> str:
    """Digest a model file's content; the same bytes are opened once."""
    from lrfgraph.network.opening.loading import model_digest

    state = None
    if model.is_file():
        with suppress(OSError), model.open("rb") as file:
            state = f"model {__version__} {hashlib.file_digest(file, hashlib.blake2b).hexdigest()}"
    return store.remembered(state, lambda: model_digest(model), keep)


def describe(driver: Driver) -> Compression:
    """Read the model: its layers, and what they cost at the size of the images."""
    compression = Compression(driver, read_model(driver))
    if any(layer.extra.get("assumed_size") for layer in compression.network.layers):
        shape, note = _image_shape(driver, compression.network)
        compression = compression.noted(*note, network=read_model(driver, shape))
    names = [layer.name for layer in compression.network.layers]
    idle = [pattern for pattern in driver.recipe.explore.skip if not fnmatch.filter(names, pattern)]
    if idle:  # a slip of the pen would compress what should stay
        note = [f"explore.skip: no layer matches {', '.join(map(repr, idle))}; `inspect` lists the layers"]
        compression = compression.noted(*note)
    uncounted = driver.data(compression.network.model)["structure"]["uncounted"]
    if uncounted:
        layers = ", ".join(f"{path} ({class_name})" for path, class_name in uncounted)
        compression = compression.noted(f"MACs leave out what cannot be counted: {layers}")
    return compression


def read_model(driver: Driver, image_shape: Sequence[int] | None = None) -> Network:
    """Describe the model file; open axes count as `image_shape` says, else as a size that is assumed."""
    from lrfgraph.network.opening.consent import code_digest

    recipe = driver.recipe
    architecture = recipe.model.architecture
    beside = model_identity(Path(architecture), driver.store, keep=not driver.dry) if architecture else None
    code = code_digest(recipe.model.custom) if recipe.model.custom else None
    node = nodes.describe_node(str(driver.model), driver.identity, recipe, beside, image_shape, code)
    ref = driver.carry_out("describe", [node])[node.name]
    return Network.described(ref, driver.data(ref), recipe)


def _image_shape(driver: Driver, network: Network) -> tuple[list[int], list[str]]:
    """The size of the images, for a network that takes any size: MACs and rows depend on it."""
    from lrfgraph.images.sources import load

    options, structure = driver.recipe.data, driver.data(network.model)["structure"]
    assumed = [int(n) for n in structure["shapes"][str(structure["inputs"][0])][1:]]
    if options.source is not None and options.image_size is None:
        arrays = load(options, driver.base, inputs_of(structure), driver.reading()).arrays
        shape = next(array.shape[1:] for name, array in arrays.items() if name.startswith("x"))
        return [int(n) for n in shape] + [1] * (len(assumed) - len(shape)), []
    size = list(options.image_size or assumed[:2])
    note = f"the model takes images of any size; sizes and MACs are those of {'x'.join(map(str, size))}"
    return [*size, *assumed[2:]], [note]


def inputs_of(structure: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The network's inputs: name to shape without the batch axis; a single one's name is nobody's business."""
    names = structure["names"] if len(structure["inputs"]) > 1 else [""]
    shapes = (structure["shapes"][str(slot)][1:] for slot in structure["inputs"])
    return {name: tuple(shape) for name, shape in zip(names, shapes, strict=True)}


# Images and the original --------------------------------------------------------------------------------------------


def divide_images(driver: Driver, compression: Compression) -> Compression:
    """Divide the images, and read the configuration that is to be used as it is, if there is one."""
    network, recipe = compression.network, driver.recipe
    if not (recipe.prune.alone or recipe.dprp.enabled):
        if not any(True for _ in network.factorizable()):
            raise ModelError(_nothing_to_do(network))
        compression = replace(compression, given=given_candidates(driver, network))
    if recipe.data.source is None:
        return compression.noted(
            "no images given: similarities are those of the weights, no accuracy was measured, nothing was fine-tuned; "
            "give images with --data FILE.npz, --data FOLDER or --data package.module:function"
        )
    return _divided(driver, compression)


def _divided(driver: Driver, compression: Compression) -> Compression:
    from lrfgraph.images.sources import source_digest

    network, recipe, base = compression.network, driver.recipe, driver.base
    structure = driver.data(network.model)["structure"]
    if len(structure["outputs"]) != 1:
        raise DataError(
            f"the model has {len(structure['outputs'])} outputs; only one can be measured, run it without --data"
        )
    facts: dict[str, Any] = {"inputs": [[name, list(shape)] for name, shape in inputs_of(structure).items()]}
    facts["output_shape"] = structure["shapes"][str(structure["outputs"][0])][1:]
    facts |= {"proposed": network.head, "activation": network.activation}
    reading = driver.reading()
    source, count = source_digest(recipe.data, base, reading), _calibration_count(network)
    node = nodes.data_node(source, facts, recipe, count, str(base.resolve()), str(reading.cache))
    ref = driver.carry_out("data", [node])[node.name]
    data = driver.data(ref)
    network = replace(network, data=ref, images=data["identities"], locators=node.locators, head=data["head"])
    if recipe.data.metric and not (data["parts"]["validation"]["labels"] or HEADS[network.head].own_input):
        where = recipe.data.val or recipe.data.source
        raise DataError(f"--metric {recipe.data.metric} needs targets, {where} has none of validation images")
    same = notes.same_images(data["identities"], recipe.data.val)
    return compression.noted(*data["notes"], *same, network=network)


def _calibration_count(network: Network) -> int:
    """As many images as asked, or four times the widest dense layer: that one has a single row an image."""
    wide = [layer.width for layer in network.layers if layer.kind == "dense" and len(layer.input_shapes[0]) == 1]
    asked = network.recipe.data.calibration
    return max(asked, min(4 * max(wide, default=0), MOST_CALIBRATION))


def _nothing_to_do(network: Network) -> str:
    reasons = dict.fromkeys(kept_reason(layer, network.recipe) for layer in network.layers if layer.kind)
    text = "; ".join(reasons) or "it has no convolution and no dense layer"
    return f"no layer of the model can be factorized: {text}; nothing to compress"


def measure_original(driver: Driver, compression: Compression) -> Compression:
    """Measure the original first; at chance level nothing that follows would mean anything."""
    network = compression.network
    if network.data is None:
        return compression
    node = nodes.evaluate_node(network, "baseline", network.original, "validation")
    following = {stage.name for stage in stages_of(driver.recipe)}
    baseline = driver.carry_out("baseline", [node, *passes_beside(driver, network, following)])[node.name]
    measures, chance = driver.data(baseline), driver.data(network.data)["chance"]
    own = network.recipe.data.metric is not None
    first = list(titles(network.head, network.recipe.data.metric))[own]  # chance is known of the head's own measure
    if chance is not None and first in measures and not network.recipe.data.allow_chance:
        limit = chance + CHANCE_ERRORS * measures[f"{first}_se"]
        if measures[first] <= limit and chance < 0.9:
            raise DataError(_at_chance(driver, network, measures[first], chance))
    compression = replace(compression, baseline=baseline, measured={"baseline": {"validation": measures}})
    return compression.noted(*notes.known_images(driver.data(network.data)["parts"], measures))


def _at_chance(driver: Driver, network: Network, accuracy: float, chance: float) -> str:
    from lrfgraph.run.steps.sources import try_preprocessings

    assert network.data is not None
    tried = try_preprocessings(
        driver.store.open(network.model), driver.store.open(network.data), network.locators_with()
    )
    accuracies = ", ".join(f"{name}: {value:.1%}" for name, value in tried.items())
    return (
        f"the model is at chance level on the validation images ({accuracy:.1%}, {HEADS[network.head].blind} gives "
        f"{chance:.1%}): the preprocessing is probably wrong; tried {accuracies}; set it with --scale, --mean, --std, "
        "--channels, or go on with --set data.allow_chance=true"
    )


# Channels -----------------------------------------------------------------------------------------------------------


def remove_channels(driver: Driver, compression: Compression) -> Compression:
    """Prune the network, as much as is asked for or as turns out best; what follows factorizes the pruned one."""
    if driver.recipe.prune.searches:
        stages = explore, score_candidates, probe, choose, rebuild
        return best_share(driver, compression, stages)
    return prune_first(driver, compression)


# Candidates ---------------------------------------------------------------------------------------------------------


def explore(driver: Driver, compression: Compression) -> Compression:
    """Record every layer, decompose it by every method that applies, and say which ranks are worth a candidate."""
    network = compression.network
    records, curvatures = nodes.record_nodes(network), nodes.curvature_nodes(network)
    decompositions = nodes.decompose_nodes(network, records, curvatures, compression.given)
    ranks = nodes.rank_nodes(network, decompositions)
    layers = [*records.values(), *curvatures.values()]
    refs = driver.carry_out("explore", [*layers, *decompositions.values(), *ranks.values()])
    exploration = Exploration(
        nodes.refs_of(records, refs),
        nodes.refs_of(curvatures, refs),
        nodes.refs_of(decompositions, refs),
        nodes.refs_of(ranks, refs),
    )
    return replace(compression, exploration=exploration)


def score_candidates(driver: Driver, compression: Compression) -> Compression:
    """Factorize and score every candidate, or those of a configuration that is given."""
    network, exploration = compression.network, compression.exploration
    candidates = compression.given
    if candidates is None:
        candidates = tuple(
            CandidateId(layer, method, rank)
            for (layer, method), ref in exploration.ranks.items()
            for rank in driver.data(ref)["ranks"]
        )
    factors, scores = nodes.candidate_nodes(network, exploration, candidates)
    noise = nodes.noise_nodes(network, list(dict.fromkeys(layer for layer, _ in exploration.ranks)))
    refs = driver.carry_out("candidates", [*factors.values(), *scores.values(), *noise.values()])
    exploration = replace(
        exploration,
        factors=nodes.refs_of(factors, refs),
        scores=nodes.refs_of(scores, refs),
        noise=nodes.refs_of(noise, refs),
    )
    return replace(compression, exploration=exploration)


# The end --------------------------------------------------------------------------------------------------------------


def evaluate(driver: Driver, compression: Compression) -> Compression:
    """Measure every stage on validation images, and only now touch the test images."""
    network = compression.network
    if network.data is None:
        return compression
    parts = [part for part in ("validation", "test") if part in network.images]
    models: Mapping[str, Ref] = {"baseline": compression.original.original, **compression.models}
    measures = {
        (stage, part): nodes.evaluate_node(
            network, stage, model, part, f"baseline/{part}/evaluate" if stage != "baseline" else None
        )
        for stage, model in models.items()
        for part in parts
    }
    refs = nodes.refs_of(measures, driver.carry_out("evaluate", list(measures.values())))
    measured: dict[str, dict[str, Any]] = {
        stage: {part: driver.data(refs[stage, part]) for part in parts} for stage in models
    }
    compression = replace(compression, measured=measured)
    return compression.noted(*notes.gap(measured["baseline"], percent=network.recipe.data.metric is None))


def read_ahead(driver: Driver, compression: Compression) -> None:
    """Read what the report is going to read: here, damage is still healed."""
    lost: CorruptEntry | None = None
    for ref in compression.exploration.scores.values():
        try:
            driver.data(ref)
        except CorruptEntry as error:  # all at once: each return to the beginning takes a while
            driver.discard(error)
            lost = error
    if lost is not None:
        raise lost
    if compression.exported is not None:
        for ref in compression.models.values():
            driver.store.open(ref).file("model.keras")
        entry = driver.store.open(compression.exported)
        for name in entry.data["file_bytes"]:
            entry.file(name)


PRUNING = ("couple", "record", "curvature", "importance", "widths", "prune", "adjust")
STAGES = (
    Stage("data", ("data",), divide_images),
    Stage("baseline", (), measure_original),
    Stage("prune", PRUNING, remove_channels),
    Stage("train", ("record", "curvature", "matricize", "epoch", "absorb"), train),
    Stage("explore", ("record", "curvature", "decompose", "ranks"), explore),
    Stage("candidates", ("factorize", "score", "noise"), score_candidates),
    Stage("probe", ("probe",), probe),
    Stage("select", ("select",), choose),
    Stage("rebuild", ("rebuild", "repair"), rebuild),
    Stage("finish", ("finetune", "export"), finish),
    Stage("evaluate", ("evaluate",), evaluate),
)
"""What follows `describe`, in order."""

FACTORIZING = {"explore", "candidates", "probe", "select", "rebuild"}
"""Stages of a run that does not stop at the pruned network, and is not trained with shrinking ranks."""


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages that a recipe asks for, up to the one with the kind of node that it stops after."""
    kind, prune, training = recipe.run.until, recipe.prune, recipe.dprp.enabled
    if kind == "describe":
        return ()
    stages = tuple(
        stage
        for stage in STAGES
        if (stage.name != "prune" or prune.method)
        and (stage.name != "train" or training)
        and not ((prune.alone or training) and stage.name in FACTORIZING)
    )
    ends = (index for index, stage in enumerate(stages, 1) if kind in stage.kinds)
    return stages[: next(ends, len(stages))]
