"""The whole shape of the computation on one page: layers and a recipe in, nodes out. Pure; nothing is read or run.

The graph grows in stages, because some results are decisions that say which nodes come next: `describe` names the
layers, `data` the images, `ranks` the candidates of a layer, `select` the configuration. Within a stage every key
is known before anything runs. Nodes come by what they are about, a layer or a candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from lrfgraph.engine.nodes import Node, Ref
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.layers.similarity import ACTIVATIONS, METRICS
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.network.exporting import FORMATS
from lrfgraph.options.finetuning import FinetuneOptions
from lrfgraph.options.recipe import Recipe
from lrfgraph.run.state import Exploration, Network, kept_reason, methods_of, skipped
from lrfgraph.run.steps.common import geometry
from lrfgraph.run.steps.decisions import select_inputs
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.problem import CandidateId

__all__ = [
    "candidate_nodes",
    "curvature_nodes",
    "data_node",
    "decompose_nodes",
    "describe_node",
    "evaluate_node",
    "export_node",
    "finetune_node",
    "noise_nodes",
    "probe_nodes",
    "rank_nodes",
    "rebuild_nodes",
    "record_nodes",
    "refs_of",
    "select_node",
    "share_grid",
]

CURVATURE_IMAGES = 1024
PROBE_IMAGES = 512

Id = TypeVar("Id")
Inputs = dict[str, str | Ref]


def refs_of(nodes: Mapping[Id, Node], refs: Mapping[str, Ref]) -> dict[Id, Ref]:
    """Return the results of nodes by what they are about; those that were not asked for are left out."""
    return {about: refs[node.name] for about, node in nodes.items() if node.name in refs}


def describe_node(
    model: str,
    identity: str,
    recipe: Recipe,
    architecture: str | None,
    image_shape: Sequence[int] | None = None,
    code: str | None = None,
) -> Node:
    """Read the model; `identity` digests the file's content, `architecture` that of the model JSON beside it.

    image_shape : of the images, where the model takes any size.  code : digest of the custom classes' files.
    """
    options = recipe.model
    params = {"model": identity, "custom": list(options.custom), "unsafe": options.unsafe, "architecture": architecture}
    if image_shape is not None:
        params["image_shape"] = list(image_shape)
    if code is not None:
        params["code"] = code
    return Node("model/describe", "describe", params, {}, {"model": model, "architecture": options.architecture})


def data_node(
    source: str, facts: Mapping[str, Any], recipe: Recipe, calibration: int, base: str, cache: str | None = None
) -> Node:
    """Divide the images; `source` is the digest of their content and the statistics', `facts` the model's shapes
    and what it proposes for its head, `cache` where digests of files are remembered."""
    options = _plain(asdict(recipe.data))
    locators = {"data": options, "base": base, "cache": cache}
    used = {name: options[name] for name in ("scale", "mean", "std", "channels", "image_size")}
    params = {"source": source, **facts, "source_options": used, "calibration": calibration}
    params["repair"] = max(recipe.repair.images, calibration) if recipe.repair.enabled else 0
    params |= {name: options[name] for name in ("validation", "split", "seed", "head")}
    return Node("images/data", "data", params, {}, locators)


def _asked(section: Any) -> dict[str, Any]:
    """A section's options but for those that are off: one that nobody asks for is in no key."""
    return {name: value for name, value in asdict(section).items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


# Exploration -------------------------------------------------------------------------------------------------------


def share_grid(count: int, smallest: float, largest: float) -> list[float]:
    """Return `count` shares of a layer's parameters, evenly spread in the logarithm.

    They follow van der Corput's sequence, so that one rank more adds a share and moves none: what was computed
    for the others stays valid.
    """
    shares = []
    for index in range(count):
        position, step, rest = 0.0, 0.5, index
        while rest:
            position, step, rest = position + step * (rest & 1), step / 2, rest >> 1
        shares.append(round(largest * (smallest / largest) ** position, 6))
    return sorted(shares)


def record_nodes(network: Network, layers: Iterable[LayerSpec] | None = None) -> dict[str, Node]:
    """One record a layer, keyed by what feeds the layer and by the calibration images.

    layers : those that can be factorized by default.
    """
    if network.data is None:
        return {}
    options, images = _asked(network.recipe.record), network.split("calibration")
    nodes = {}
    for layer in network.factorizable() if layers is None else layers:
        inputs: Inputs = {"model": Ref(layer.upstream, network.model.key), "data": images}
        locators = network.locators_with(layer=layer.name)
        params = {"options": options, "layer": geometry(layer)}
        nodes[layer.name] = Node(f"{layer.name}/record", "record", params, inputs, locators)
    return nodes


def curvature_nodes(network: Network, layers: Iterable[LayerSpec] | None = None) -> dict[str, Node]:
    """One curvature a layer, keyed by the whole network: only what asks for it depends on layers downstream.

    layers : those that can be factorized by default, where factors or the policy need it.
    """
    needed = network.recipe.explore.weighting == "two_sided" or "curvature" in network.policy.needs
    if network.data is None or (layers is None and not needed):
        return {}
    inputs: Inputs = {"model": network.original, "data": network.split("calibration")}
    params = {"images": CURVATURE_IMAGES, "seed": network.recipe.record.seed, **network.meaning}
    nodes = {}
    for layer in network.factorizable() if layers is None else layers:
        own, locators = {**params, "layer": network.layers.index(layer)}, network.locators_with(layer=layer.name)
        nodes[layer.name] = Node(f"{layer.name}/curvature", "curvature", own, inputs, locators)
    return nodes


def decompose_nodes(
    network: Network, records: Mapping[str, Node], curvatures: Mapping[str, Node], only: Sequence[CandidateId] | None
) -> dict[tuple[str, str], Node]:
    """Decompose every layer by every method that applies, weighted by its record and curvature.

    only : candidates that are given; nothing else is of interest then.
    """
    asked = None if only is None else {candidate[:2] for candidate in only}
    nodes = {}
    for layer in network.factorizable():
        for method in methods_of(layer, network.recipe):
            if asked is not None and (layer.name, method) not in asked:
                continue
            weighting = "plain" if METHODS[method].whitens == "none" else network.recipe.explore.weighting
            inputs: Inputs = {"weights": network.weights(layer)}
            if weighting != "plain" and layer.name in records:
                inputs["record"] = records[layer.name].name
            if weighting == "two_sided" and layer.name in curvatures:
                inputs["curvature"] = curvatures[layer.name].name
            params = {**_method_params(layer, method), "weighting": weighting}
            name = f"{layer.name}/{method}/decompose"
            nodes[layer.name, method] = Node(name, "decompose", params, inputs)
    return nodes


def _method_params(layer: LayerSpec, method: str) -> dict[str, Any]:
    return {"method": method, "version": METHODS[method].version, "layer": geometry(layer)}


def rank_nodes(network: Network, decompositions: Mapping[tuple[str, str], Node]) -> dict[tuple[str, str], Node]:
    """Say which ranks of a (layer, method) are worth a candidate."""
    options = network.recipe.explore
    grid = {"shares": share_grid(options.ranks, options.smallest, options.largest), "multiple": options.multiple}
    nodes = {}
    for (name, method), above in decompositions.items():
        params = {**_method_params(network.layer(name), method), **grid}
        nodes[name, method] = Node(f"{name}/{method}/ranks", "ranks", params, {"prepared": above.name})
    return nodes


def candidate_nodes(
    network: Network, exploration: Exploration, candidates: Sequence[CandidateId]
) -> tuple[dict[CandidateId, Node], dict[CandidateId, Node]]:
    """Factorize and score every candidate."""
    factors, scores = {}, {}
    layers = {layer.name: layer for layer in network.layers}
    weights = {name: network.weights(layers[name]) for name in dict.fromkeys(c.layer for c in candidates)}
    for candidate in candidates:
        layer = layers[candidate.layer]
        tap = network.recipe.similarity.tap if layer.tail in ACTIVATIONS and not layer.family.scatters else "linear"
        params = {**_method_params(layer, candidate.method), "rank": candidate.rank}
        prepared = exploration.decompositions[layer.name, candidate.method]
        factors[candidate] = Node(f"{candidate}/factorize", "factorize", params, {"prepared": prepared})
        inputs: Inputs = {"weights": weights[layer.name], "prepared": prepared, "factors": factors[candidate].name}
        for name, refs in (("record", exploration.records), ("curvature", exploration.curvatures)):
            if layer.name in refs:
                inputs[name] = refs[layer.name]
        params = {**params, "tap": tap, "tail": layer.tail if tap == "activation" else "linear"}
        params["metrics"] = list(METRICS)
        scores[candidate] = Node(f"{candidate}/score", "score", params, inputs)
    return factors, scores


def noise_nodes(network: Network, names: Sequence[str]) -> dict[str, Node]:
    """Find the ranks of layers that stand out from noise, where the policy decides by them."""
    if "noise" not in network.policy.needs:
        return {}
    layers = map(network.layer, names)
    return {
        layer.name: Node(
            f"{layer.name}/noise", "noise", {"layer": geometry(layer)}, {"weights": network.weights(layer)}
        )
        for layer in layers
    }


def probe_nodes(
    network: Network, exploration: Exploration, candidates: Sequence[CandidateId]
) -> dict[CandidateId, Node]:
    """Replace one layer by one candidate and measure what becomes of the network's output.

    On validation images: factors that fit few calibration images too well look harmless on those.
    """
    index = {layer.name: index for index, layer in enumerate(network.layers)}
    nodes = {}
    for candidate in candidates:
        version = METHODS[candidate.method].version
        params = {"method": candidate.method, "version": version, "rank": candidate.rank}
        params |= {"layer": index[candidate.layer], "images": PROBE_IMAGES, **network.meaning}
        inputs: Inputs = {"model": network.original, "data": network.split("validation")}
        inputs |= dict(zip(("factors", "prepared"), exploration.weights(candidate), strict=True))
        locators = network.locators_with(layer=candidate.layer)
        nodes[candidate] = Node(f"{candidate}/probe", "probe", params, inputs, locators)
    return nodes


def select_node(
    network: Network, exploration: Exploration, policy: Policy, options: Mapping[str, Any] | None = None
) -> Node:
    """Pick the configuration from all scores, probes and noise ranks by a policy.

    options : of the policy, in place of the recipe's.
    """
    selected = {name: getattr(network.recipe.select, name) for name in policy.options} if options is None else options
    layers = []
    for layer in network.layers:
        if layer.kind:
            cost = layer_cost(layer)
            layers.append([layer.name, cost.parameters, cost.macs, kept_reason(layer, network.recipe)])
    ids, inputs = select_inputs(exploration.scores, exploration.probes, exploration.noise)
    params = {"layers": layers, "parameters": network.parameters, "macs": network.macs, **ids}
    params |= {"metric": network.recipe.similarity.metric, "options": {"policy": policy.name, **selected}}
    return Node("select", "select", params, inputs)


# What a configuration sets in motion ------------------------------------------------------------------------------


def rebuild_nodes(
    network: Network, configuration: Sequence[CandidateId], exploration: Exploration, repaired_only: bool = False
) -> list[Node]:
    """Rebuild a configuration, and repair it layer by layer where that is asked for.

    Everything is keyed by the chosen factors, not by the policy that chose them: another threshold with the same
    choice retrains nothing. A layer's repair is keyed by the repairs before it, so a change in a late layer repairs
    only what follows. Digests do not know what layers, inputs and outputs are called, the rebuilt model must: its key
    has the network's signature. `repaired_only` leaves out the model before repair.
    """
    chosen = {candidate.layer: candidate for candidate in configuration}
    order = [chosen[layer.name] for layer in network.layers if layer.name in chosen]
    inputs: Inputs = {"model": network.original}
    for index, candidate in enumerate(order):
        factors, prepared = exploration.weights(candidate)
        inputs |= {f"{index}/factors": factors, f"{index}/prepared": prepared}
    params = {"choices": [list(c) for c in order], "signature": network.signature}
    rebuilt = Node("rebuild", "rebuild", params, inputs, network.locators_with())
    if not network.repairs or not order:
        return [rebuilt]
    refits = _refits(network, chosen)
    nodes = _repair_nodes(network, refits, exploration)
    inputs = {"model": network.original} | {f"{i}/repair": node.name for i, node in enumerate(nodes)}
    params = {**params, "choices": [list(c) for c in refits]}
    repaired = Node("repaired/rebuild", "rebuild", params, inputs, network.locators_with())
    return [*([] if repaired_only else [rebuilt]), *nodes, repaired]


def _repair_nodes(network: Network, refits: Sequence[CandidateId], exploration: Exploration) -> list[Node]:
    options = _asked(network.recipe.repair)
    del options["enabled"], options["images"]
    options["seed"] = network.recipe.record.seed
    # by number: what layers are called changes no repair, and two networks may call different layers alike
    number = {layer.name: index for index, layer in enumerate(network.layers)}
    places = [[number[c.layer], c.method, c.rank] for c in refits]
    nodes: list[Node] = []
    for index, candidate in enumerate(refits):
        params = {"options": options, "choice": places[index], "previous": places[:index]}
        inputs: Inputs = {f"previous/{i}": node.name for i, node in enumerate(nodes)}
        inputs |= {"model": network.original, "data": network.split("repair")}
        if candidate.method:
            inputs |= dict(zip(("own/factors", "own/prepared"), exploration.weights(candidate), strict=True))
        if candidate.layer in exploration.curvatures:
            inputs["curvature"] = exploration.curvatures[candidate.layer]
        last, max_memory = index == len(refits) - 1, network.recipe.run.max_memory
        locators = network.locators_with(last=last, max_memory=max_memory)
        nodes.append(Node(f"{candidate.layer}/repair", "repair", params, inputs, locators))
    return nodes


def _refits(network: Network, chosen: Mapping[str, CandidateId]) -> list[CandidateId]:
    """All layers that repair refits, in program order: the replaced ones, and those kept after the first of them.

    A kept layer receives what the layers before it got wrong; refitting its kernel costs nothing in size. Of a
    shared layer's calls, a refit would mend one at the cost of the others.
    """
    refits: list[CandidateId] = []
    for layer in network.layers:
        called_once = len(layer.input_shapes) == 1
        if layer.name in chosen:
            refits.append(chosen[layer.name])
        elif refits and layer.kind and not layer.kept and not skipped(layer, network.recipe) and called_once:
            refits.append(CandidateId(layer.name))
    return refits


def finetune_node(
    network: Network, name: str, model: str | Ref, teacher: Ref | None = None, options: FinetuneOptions | None = None
) -> Node:
    """Fine-tune a rebuilt model.

    teacher : what it learns from, by default the network that was rebuilt.  options : in place of the recipe's.
    """
    data, original = network.split("train", "validation"), teacher or network.original
    asked = _asked(options or network.recipe.finetune)
    if "epochs" in asked:  # they say how long it is
        del asked["steps"]
    params = {"options": asked, **network.judged_by}
    inputs: Inputs = {"student": model, "teacher": original, "data": data}
    return Node(name, "finetune", params, inputs, network.locators_with())


def export_node(network: Network, model: str | Ref) -> Node:
    """Write a model out in every format."""
    return Node("export", "export", {"formats": list(FORMATS)}, {"model": model}, network.locators_with())


def evaluate_node(network: Network, name: str, model: str | Ref, part: str, original: str | Ref | None = None) -> Node:
    """Measure a model on one split, and compare it with what the `original` answered there."""
    inputs: Inputs = {"model": model, "data": network.split(part)}
    if original is not None:
        inputs["original"] = original
    params = {"part": part, **network.judged_by}
    return Node(f"{name}/{part}/evaluate", "evaluate", params, inputs, network.locators_with())
