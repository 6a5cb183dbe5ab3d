"""The whole shape of the computation on one page: layers and a recipe in, nodes out. Pure; nothing is read or run.

The graph grows in stages, because some results are decisions that say which nodes come next: `describe` names the
layers, `data` the images, `ranks` the candidates of a layer, `select` the configuration. Within a stage every key
is known before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from typing import Any, cast

from lrfgraph.engine.nodes import Node, Ref, digest
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.layers.similarity import ACTIVATIONS
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.options.recipe import Recipe, check_choice
from lrfgraph.run.steps.common import geometry

__all__ = [
    "Network",
    "budget_node",
    "candidate_nodes",
    "check_names",
    "curvature_nodes",
    "data_node",
    "describe_node",
    "evaluate_node",
    "explore_nodes",
    "finish_nodes",
    "grid",
    "in_program_order",
    "kept_reason",
    "methods_of",
    "probe_nodes",
    "probes",
    "rebuild_nodes",
    "record_nodes",
    "select_node",
]


LOCAL_POLICIES = ("threshold", "energy", "uniform", "evbmf")
"""Policies that look at layers one by one and need no curvature."""

PROBE_IMAGES = 512


@dataclass(frozen=True)
class Network:
    """What `describe` and `data` said, and the recipe: all that later nodes are built from.

    images : identity of each split's images, empty without data.  locators : how to find the images; no part of a key.
    """

    model: Ref
    layers: tuple[LayerSpec, ...]
    digest: str
    parameters: int
    macs: int
    output: str
    task: str
    recipe: Recipe
    data: Ref | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    locators: Mapping[str, Any] = field(default_factory=dict)

    def locators_with(self, **more: Any) -> dict[str, Any]:
        """Return the locators of a node that opens a model: where the images are, and what the recipe trusts.

        Trust never comes from what the cache says: whoever can write there could have code run.
        """
        options = self.recipe.model
        return {**self.locators, "trust": {"custom": list(options.custom), "unsafe": options.unsafe}, **more}

    def weights(self, index: int) -> Ref:
        """One layer's kernel, bias and folded BatchNorm: identified by their bytes, not by the model they sit in."""
        return Ref(self.layers[index].identity, self.model.key, f"layers/{index}")

    def split(self, *parts: str) -> Ref:
        """One or several splits of the images."""
        assert self.data is not None
        return Ref("+".join(self.images[part] for part in parts), self.data.key)

    def factorizable(self) -> Iterator[tuple[int, LayerSpec]]:
        for index, layer in enumerate(self.layers):
            if not kept_reason(layer, self.recipe):
                yield index, layer


def describe_node(
    model: str, identity: str, recipe: Recipe, architecture: str | None, image_shape: Sequence[int] | None = None
) -> Node:
    """Read the model; `identity` digests the file's content, `architecture` that of the model JSON beside it.

    image_shape : of the images, where the model takes any size.
    """
    options = recipe.model
    params = {"model": identity, "custom": list(options.custom), "unsafe": options.unsafe, "architecture": architecture}
    if image_shape is not None:
        params["image_shape"] = list(image_shape)
    return Node("model/describe", "describe", params, {}, {"model": model, "architecture": options.architecture})


def data_node(source: str, facts: Mapping[str, Any], recipe: Recipe, calibration: int, base: str) -> Node:
    """Divide the images; `source` is the digest of their content and the statistics', `facts` the model's shapes."""
    options = _plain(asdict(recipe.data))
    locators = {"data": options, "base": base}
    used = {name: options[name] for name in ("scale", "mean", "std", "channels", "image_size")}
    params = {"source": source, **facts, "source_options": used, "calibration": calibration}
    params["repair"] = max(recipe.repair.images, calibration) if recipe.repair.enabled else 0
    params |= {name: options[name] for name in ("validation", "split", "seed", "task")}
    return Node("images/data", "data", params, {}, locators)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


# Exploration -------------------------------------------------------------------------------------------------------


def kept_reason(layer: LayerSpec, recipe: Recipe) -> str:
    """Say why a layer is kept whatever the scores, or return ``""``."""
    if layer.kept or not layer.kind:
        return layer.kept or "has no kernel"
    if skipped(layer, recipe):
        return "skipped by explore.skip"
    if not methods_of(layer, recipe):
        wanted = recipe.explore.methods or tuple(METHODS)
        reasons = dict.fromkeys(f"{name}: {METHODS[name].reason(layer)}" for name in wanted)
        return "no method applies (" + "; ".join(reasons) + ")"
    return ""


def skipped(layer: LayerSpec, recipe: Recipe) -> bool:
    return any(fnmatch(layer.name, pattern) for pattern in recipe.explore.skip)


def methods_of(layer: LayerSpec, recipe: Recipe) -> list[str]:
    """Return the names of the methods that apply to a layer and are asked for."""
    wanted = recipe.explore.methods or tuple(METHODS)
    return [name for name in METHODS if name in wanted and not METHODS[name].reason(layer)]


def grid(count: int, smallest: float, largest: float) -> list[float]:
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


def record_nodes(network: Network) -> list[Node]:
    """One record a layer, keyed by what feeds the layer and by the calibration images."""
    if network.data is None:
        return []
    options = asdict(network.recipe.record)
    return [
        Node(
            f"{layer.name}/record",
            "record",
            {"options": options, "layer": geometry(layer)},
            {"model": Ref(layer.upstream, network.model.key), "data": network.split("calibration")},
            network.locators_with(layer=layer.name),
        )
        for _, layer in network.factorizable()
    ]


def curvature_nodes(network: Network) -> list[Node]:
    """One curvature a layer, keyed by the whole network: only what asks for it depends on layers downstream."""
    if network.data is None:
        return []
    params = {"images": 1024, "seed": network.recipe.record.seed}
    return [
        Node(
            f"{layer.name}/curvature",
            "curvature",
            {**params, "layer": index},
            {"model": Ref(network.digest, network.model.key), "data": network.split("calibration")},
            network.locators_with(layer=layer.name),
        )
        for index, layer in network.factorizable()
    ]


def needs_curvature(recipe: Recipe) -> bool:
    return recipe.explore.weighting == "two_sided" or recipe.select.policy not in LOCAL_POLICIES


def explore_nodes(network: Network, only: Mapping[str, str] | None = None) -> list[Node]:
    """Record every layer and decompose it by every method that applies; say which ranks are worth a candidate.

    only : method by layer, where a configuration is given and nothing else is of interest.
    """
    recipe = network.recipe
    nodes = record_nodes(network)
    if needs_curvature(recipe):
        nodes += curvature_nodes(network)
    known = {node.name for node in nodes}
    shares = grid(recipe.explore.ranks, recipe.explore.smallest, recipe.explore.largest)
    for index, layer in network.factorizable():
        for method in methods_of(layer, recipe):
            if only is not None and only.get(layer.name) != method:
                continue
            nodes.append(_decompose(network, index, method, known))
            params = {"method": method, "version": METHODS[method].version, "layer": geometry(layer)}
            params |= {"shares": shares, "multiple": recipe.explore.multiple}
            nodes.append(Node(f"{layer.name}/{method}/ranks", "ranks", params, {"prepared": nodes[-1].name}))
    return nodes


def _decompose(network: Network, index: int, method: str, known: set[str]) -> Node:
    layer, weighting = network.layers[index], network.recipe.explore.weighting
    params = {"method": method, "version": METHODS[method].version, "layer": geometry(layer)}
    inputs: dict[str, str | Ref] = {"weights": network.weights(index)}
    if METHODS[method].whitens == "none":
        weighting = "plain"
    if weighting != "plain" and f"{layer.name}/record" in known:
        inputs["record"] = f"{layer.name}/record"
    if weighting == "two_sided" and f"{layer.name}/curvature" in known:
        inputs["curvature"] = f"{layer.name}/curvature"
    return Node(f"{layer.name}/{method}/decompose", "decompose", {**params, "weighting": weighting}, inputs)


def candidate_nodes(
    network: Network, refs: Mapping[str, Ref], ranks: Mapping[tuple[int, str], Sequence[str]]
) -> list[Node]:
    """Factorize and score every (layer, method, rank); `refs` are the explore stage's results."""
    recipe, nodes = network.recipe, []
    for (index, method), written in ranks.items():
        layer = network.layers[index]
        tap = recipe.similarity.tap if layer.tail in ACTIVATIONS and layer.family != "transposed" else "linear"
        shared = {"method": method, "version": METHODS[method].version, "layer": geometry(layer)}
        prepared = refs[f"{layer.name}/{method}/decompose"]
        measured: dict[str, str | Ref] = {"weights": network.weights(index), "prepared": prepared}
        for source in ("record", "curvature"):
            if f"{layer.name}/{source}" in refs:
                measured[source] = refs[f"{layer.name}/{source}"]
        for rank in written:
            name = f"{layer.name}/{method}/{rank}"
            nodes.append(Node(f"{name}/factorize", "factorize", {**shared, "rank": rank}, {"prepared": prepared}))
            params = {**shared, "rank": rank, "tap": tap, "tail": layer.tail if tap == "activation" else "linear"}
            nodes.append(Node(f"{name}/score", "score", params, {**measured, "factors": f"{name}/factorize"}))
    if recipe.select.policy == "evbmf":
        nodes += [
            Node(f"{network.layers[index].name}/noise", "noise", {"layer": geometry(network.layers[index])}, weights)
            for index, weights in ((i, {"weights": network.weights(i)}) for i in dict.fromkeys(i for i, _ in ranks))
        ]
    return nodes


def probes(network: Network) -> int:
    """Return how many candidates of each layer are probed: none without images or where nobody would ask."""
    options = network.recipe.select
    return 0 if network.data is None or options.policy in LOCAL_POLICIES else options.probes


def probe_nodes(
    network: Network, refs: Mapping[str, Ref], candidates: Sequence[tuple[str, str, str]]
) -> dict[str, Node]:
    """Replace one layer by one candidate (layer, method, rank) and see what the output says.

    Returned by the name under which the `select` step reads the result.
    """
    index = {layer.name: index for index, layer in enumerate(network.layers)}
    nodes = {}
    for layer, method, rank in candidates:
        params = {"method": method, "version": METHODS[method].version, "rank": rank}
        inputs: dict[str, str | Ref] = {
            "model": Ref(network.digest, network.model.key),
            "data": network.split("calibration"),
            "factors": refs[f"{layer}/{method}/{rank}/factorize"],
            "prepared": refs[f"{layer}/{method}/decompose"],
        }
        params |= {"layer": index[layer], "images": PROBE_IMAGES}
        locators = network.locators_with(layer=layer)
        nodes[f"{layer}|probe|{method}/{rank}"] = Node(
            f"{layer}/{method}/{rank}/probe", "probe", params, inputs, locators
        )
    return nodes


def select_node(network: Network, scores: Mapping[str, Ref], policy: str) -> Node:
    """Pick the configuration from all scores, keyed ``layer|method|rank``, and probes, by `policy`."""
    options = asdict(network.recipe.select)
    for name in ("configuration", "point", "points", "max_drop", "probes", "refine"):
        del options[name]
    return _select(network, scores, {"policy": policy} if policy == "given" else {**options, "policy": policy})


def budget_node(
    network: Network, scores: Mapping[str, Ref], params: float | None = None, macs: float | None = None
) -> Node:
    """Solve for the best configuration within shares of the parameters or MACs, whatever the recipe's policy is."""
    return _select(network, scores, {"policy": "budget", "params": params, "macs": macs})


def _select(network: Network, scores: Mapping[str, Ref], options: Mapping[str, Any]) -> Node:
    rows = []
    for layer in network.layers:
        if layer.kind:
            count = layer_cost(layer)
            rows.append([layer.name, count.parameters, count.macs, kept_reason(layer, network.recipe)])
    params = {"layers": rows, "parameters": network.parameters, "macs": network.macs}
    params |= {"metric": network.recipe.similarity.metric, "options": dict(options)}
    return Node("select", "select", params, dict(scores))


# What a configuration sets in motion ------------------------------------------------------------------------------


def rebuild_nodes(
    network: Network, choices: Sequence[tuple[str, str, str]], refs: Mapping[str, Ref], final_only: bool = False
) -> list[Node]:
    """Rebuild a configuration (layer, method, rank), and repair it layer by layer where that is asked for.

    Everything is keyed by the chosen factors, not by the policy that chose them: another threshold with the same
    choice retrains nothing. A layer's repair is keyed by the repairs before it, so a change in a late layer repairs
    only what follows. `final_only` leaves out the model before repair.
    """
    model = Ref(network.digest, network.model.key)
    choices = in_program_order(network, choices)
    written = [list(choice) for choice in choices]
    factors = [
        (refs[f"{layer}/{method}/{rank}/factorize"], refs[f"{layer}/{method}/decompose"])
        for layer, method, rank in choices
    ]
    inputs: dict[str, str | Ref] = {"model": model}
    for index, (own, prepared) in enumerate(factors):
        inputs |= {f"{index}/factors": own, f"{index}/prepared": prepared}
    # Digests do not know what layers are called, the rebuilt model must: the layers it keeps keep their names.
    made = {"choices": written, "names": digest([layer.name for layer in network.layers])}
    nodes = [Node("rebuild", "rebuild", made, inputs, network.locators_with())]
    if not repairs(network) or not choices:
        return nodes
    options = asdict(network.recipe.repair)
    del options["enabled"], options["images"]
    names: list[str] = []
    refitted = [list(choice) for choice in _refitted(network, choices)]
    factors_of = {choice[0]: pair for choice, pair in zip(choices, factors, strict=True)}
    for index, choice in enumerate(refitted):
        layer = choice[0]
        params = {"options": {**options, "seed": network.recipe.record.seed}, "choice": choice}
        before: dict[str, str | Ref] = {f"previous/{i}": name for i, name in enumerate(names)}
        before |= {"model": model, "data": network.split("repair")}
        if layer in factors_of:
            before |= dict(zip(("own/factors", "own/prepared"), factors_of[layer], strict=True))
        if f"{layer}/curvature" in refs:
            before["curvature"] = refs[f"{layer}/curvature"]
        last = index == len(refitted) - 1
        locators = network.locators_with(last=last, max_memory=network.recipe.run.max_memory)
        names.append(f"{layer}/repair")
        nodes.append(Node(names[-1], "repair", {**params, "previous": refitted[:index]}, before, locators))
    if final_only:
        nodes = nodes[1:]
    repaired: dict[str, str | Ref] = {f"{i}/repair": name for i, name in enumerate(names)}
    whole = {**made, "choices": refitted}
    nodes.append(Node("repaired/rebuild", "rebuild", whole, {"model": model, **repaired}, network.locators_with()))
    return nodes


def _refitted(network: Network, choices: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """All layers that repair refits, in program order: the replaced ones, and those kept after the first of them.

    A kept layer, its method and rank empty, receives what the layers before it got wrong; refitting its kernel costs
    nothing in size.
    """
    chosen = {layer: (layer, method, rank) for layer, method, rank in choices}
    found: list[tuple[str, str, str]] = []
    for layer in network.layers:
        if layer.name in chosen:
            found.append(chosen[layer.name])
        elif found and layer.kind and not layer.kept and not skipped(layer, network.recipe) and _called_once(layer):
            found.append((layer.name, "", ""))
    return found


def _called_once(layer: LayerSpec) -> bool:
    """Of a shared layer's calls, a refit would mend one at the cost of the others."""
    return len(layer.input_shapes) == 1


def in_program_order(network: Network, choices: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    order = {layer.name: index for index, layer in enumerate(network.layers)}
    return sorted(choices, key=lambda choice: order[choice[0]])


def repairs(network: Network) -> bool:
    return network.data is not None and network.recipe.repair.enabled


def finish_nodes(network: Network, model: Ref) -> list[Node]:
    """Fine-tune a rebuilt model once, and write it out."""
    nodes, last = [], cast("str | Ref", model)
    if finetunes(network):
        nodes.append(_finetune(network, model))
        last = nodes[-1].name
    return [*nodes, Node("export", "export", {}, {"model": last}, network.locators_with())]


def finetunes(network: Network) -> bool:
    return network.data is not None and "train" in network.images and network.recipe.finetune.epochs > 0


def _finetune(network: Network, student: Ref) -> Node:
    inputs: dict[str, str | Ref] = {
        "student": student,
        "teacher": Ref(network.digest, network.model.key),
        "data": network.split("train", "validation"),
    }
    params = {"options": asdict(network.recipe.finetune), "task": network.task, "output": network.output}
    return Node("finetune", "finetune", params, inputs, network.locators_with())


def evaluate_node(network: Network, name: str, model: str | Ref, part: str, original: str | Ref | None = None) -> Node:
    """Measure a model on one split, and compare it with what the `original` answered there."""
    inputs: dict[str, str | Ref] = {"model": model, "data": network.split(part)}
    if original is not None:
        inputs["original"] = original
    params = {"part": part, "task": network.task, "output": network.output}
    return Node(f"{name}/{part}/evaluate", "evaluate", params, inputs, network.locators_with())


# Names that other rooms' tables own ---------------------------------------------------------------------------------


def check_names(recipe: Recipe, tables: Mapping[str, Sequence[str]]) -> None:
    """Check the options whose choices are the entries of a table, such as ``explore.methods``."""
    for key, names in tables.items():
        section, option = key.split(".")
        value = getattr(getattr(recipe, section), option)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                check_choice(section, option, item, names)
