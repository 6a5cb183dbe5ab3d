"""compress(), plan(), inspect(): what the command line calls, and what a Python program can call."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lrfgraph import __version__
from lrfgraph.engine.events import Event
from lrfgraph.engine.execute import healing
from lrfgraph.engine.nodes import Ref, digest
from lrfgraph.engine.runs import start_run
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.engine.workers import workers_for
from lrfgraph.errors import ConfigurationError, DataError, ModelError, StoreError
from lrfgraph.layers.similarity import METRICS
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import parse_rank, write_rank
from lrfgraph.options.recipe import Recipe
from lrfgraph.run import nodes as pipeline
from lrfgraph.run.driver import Outcome, Stopped, Unplanned, Walk
from lrfgraph.run.nodes import Network
from lrfgraph.run.refinement import refine, refine_found
from lrfgraph.run.search import SEARCHES, Bench
from lrfgraph.run.steps import STEPS
from lrfgraph.selection import POLICIES, Candidate
from lrfgraph.selection.configuration import read_configuration
from lrfgraph.selection.sensitivity import to_probe

__all__ = ["Outcome", "compress", "inspect", "plan", "run_name"]

CHANCE_ERRORS = 3.0
"""Standard errors above chance that a baseline must be, else its preprocessing is taken to be wrong."""

MOST_CALIBRATION = 8192


def compress(
    model: str | Path,
    recipe: Recipe | None = None,
    *,
    base: str | Path = ".",
    on_event: Callable[[Event], None] | None = None,
    on_baseline: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Compress a model file by the recipe; everything is kept in the recipe's cache.

    base : folder that relative paths of the recipe's data start from.  on_baseline : called once the original is
    measured.  Raises LrfError for whatever the user can mend.
    """
    recipe = recipe or Recipe()
    check(recipe)
    store = Store(Path(recipe.run.cache))
    options = recipe.run
    workers = workers_for(options.threads, options.workers, options.scheduler)
    try:
        identity = _identity(Path(model), store)
        try:
            store.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cache {store.root} cannot be written ({error.strerror}); use --cache DIR") from None
        with start_run(store, run_name(model, identity, recipe)) as live:
            walk = Walk(recipe, store, identity, on_event, workers=workers, live=live)
            return healing(store, lambda: _walk(walk, Path(model), Path(base), on_baseline), walk.note)
    finally:
        workers.close()


def plan(model: str | Path, recipe: Recipe | None = None, *, base: str | Path = ".") -> tuple[Walk, bool]:
    """Look up what `compress` would run and reuse; nothing is computed or written.

    Returns the walk and whether it came to the end (a decision that is not made yet hides what follows it).
    """
    recipe = recipe or Recipe()
    check(recipe)
    store = Store(Path(recipe.run.cache))
    walk = Walk(recipe, store, _identity(Path(model), store, keep=False), dry=True)
    try:
        _walk(walk, Path(model), Path(base), None)
    except Unplanned:
        return walk, False
    return walk, True


def inspect(
    model: str | Path, recipe: Recipe | None = None, *, on_event: Callable[[Event], None] | None = None
) -> Network:
    """Read a model and say what is in it; kept in the cache like everything else."""
    recipe = recipe or Recipe()
    check(recipe)
    store = Store(Path(recipe.run.cache))
    walk = Walk(recipe, store, _identity(Path(model), store), on_event)
    return healing(store, lambda: _describe(walk, Path(model)), walk.note)


def run_name(model: str | Path, identity: str, recipe: Recipe) -> str:
    """Name a run by its model file and by what is asked for: ``resnet20-1a2b3c4d``."""
    asked: dict[str, Any] = {section: values for section, values in recipe.to_dict().items() if section != "run"}
    asked["until"] = recipe.run.until  # a run that stops early stands on less, and is another one
    stem = re.sub(r"[^A-Za-z0-9_.+-]", "_", Path(model).stem)[:60].lstrip(".+-") or "model"
    return f"{stem}-{digest([identity, asked])[:8]}"


def check(recipe: Recipe) -> None:
    """Check the options whose choices are the entries of a table, and what cannot go together."""
    tables = {
        "explore.methods": tuple(METHODS),
        "similarity.metric": tuple(METRICS),
        "select.policy": (*POLICIES, *SEARCHES),
        "run.until": tuple(STEPS),
    }
    pipeline.check_names(recipe, tables)
    searches = recipe.select.policy in SEARCHES and recipe.data.source and recipe.select.configuration is None
    if searches and recipe.select.cost == "mix":
        raise ConfigurationError(
            f"policy {recipe.select.policy} searches along one cost, received select.cost = mix; "
            "use parameters or macs, or --policy threshold"
        )


def _walk(walk: Walk, model: Path, base: Path, on_baseline: Callable[[Outcome], None] | None) -> Outcome:
    walk.run.clear()
    walk.reused.clear()
    outcome = Outcome(_describe(walk, model), walk)
    if any(layer.extra.get("assumed_size") for layer in outcome.network.layers):
        outcome.network = _describe(walk, model, _image_shape(walk, outcome, base))
    try:
        _note_idle_patterns(outcome)
        _stop_after(walk, "describe")
        if not any(True for _ in outcome.network.factorizable()):
            raise ModelError(_nothing_to_do(outcome.network))
        given = _given(outcome, base)
        outcome.network = _images(walk, outcome, base)
        _stop_after(walk, "data")
        _baseline(walk, outcome)
        if on_baseline:
            on_baseline(outcome)
        refs = _explore(walk, outcome.network, given)
        outcome.refs = refs
        choices = _choose(walk, outcome, refs, given is not None)
        _finish(walk, outcome, choices, refs)
    except Stopped:
        outcome.stopped = True
    if not walk.dry:
        _read_ahead(walk, outcome)
    if walk.recipe.run.until and not outcome.stopped:
        outcome.notes.append(f"nothing of kind {walk.recipe.run.until} was asked for; the run went to its end")
    return outcome


def _note_idle_patterns(outcome: Outcome) -> None:
    """Say which patterns of explore.skip match no layer: a slip of the pen would compress what should stay."""
    names = [layer.name for layer in outcome.network.layers]
    idle = [pattern for pattern in outcome.network.recipe.explore.skip if not fnmatch.filter(names, pattern)]
    if idle:
        outcome.notes.append(f"explore.skip: no layer matches {', '.join(map(repr, idle))}; `inspect` lists the layers")


def _identity(model: Path, store: Store, keep: bool = True) -> str:
    """Digest a model file's content; the same bytes are opened once."""
    from lrfgraph.network.opening.loading import model_digest

    state = None
    if model.is_file():
        with suppress(OSError), model.open("rb") as file:
            state = f"model {__version__} {hashlib.file_digest(file, hashlib.blake2b).hexdigest()}"
    return store.remembered(state, lambda: model_digest(model), keep)


def _image_shape(walk: Walk, outcome: Outcome, base: Path) -> list[int]:
    """The size of the images, for a network that takes any size: MACs and rows depend on it."""
    from lrfgraph.images.splits import load

    options, said = walk.recipe.data, walk.data(outcome.network.model)["structure"]
    assumed = [int(n) for n in said["shapes"][str(said["inputs"][0])][1:]]
    if options.source is not None and options.image_size is None:
        arrays = load(options, base, tuple(assumed)).arrays
        shape = next(array.shape[1:] for name, array in arrays.items() if name.startswith("x"))
        return [int(n) for n in shape] + [1] * (len(assumed) - len(shape))
    size = list(options.image_size or assumed[:2])
    outcome.notes.append(f"the model takes images of any size; sizes and MACs are those of {'x'.join(map(str, size))}")
    return [*size, *assumed[2:]]


def _read_ahead(walk: Walk, outcome: Outcome) -> None:
    """Read what the report is going to read: here, damage is still healed."""
    lost: CorruptEntry | None = None
    for ref in outcome.scores.values():
        try:
            walk.data(ref)
        except CorruptEntry as error:  # all at once: each return to the beginning takes a walk
            walk.discard(error)
            lost = error
    if lost is not None:
        raise lost
    if outcome.exported is not None:
        for ref in outcome.models.values():
            walk.store.open(ref).file("model.keras")
        entry = walk.store.open(outcome.exported)
        for name in ("compressed.keras", "compressed.h5"):
            entry.file(name)


def _stop_after(walk: Walk, kind: str) -> None:
    if walk.recipe.run.until == kind:
        raise Stopped({})


def _describe(walk: Walk, model: Path, image_shape: Sequence[int] | None = None) -> Network:
    recipe = walk.recipe
    architecture = recipe.model.architecture
    beside = _identity(Path(architecture), walk.store, keep=not walk.dry) if architecture else None
    node = pipeline.describe_node(str(model), walk.identity, recipe, beside, image_shape)
    ref = walk.stage("describe", [node], optional=True)[node.name]
    said = walk.data(ref)
    layers = tuple(LayerSpec.from_json(layer) for layer in said["layers"])
    output = said["structure"]["output"]
    task = "regression" if output == "values" else "classification"
    return Network(ref, layers, said["network"], said["parameters"], said["macs"], output, task, recipe)


def _images(walk: Walk, outcome: Outcome, base: Path) -> Network:
    """Find and divide the images; without any, the run is data-free and says so."""
    from dataclasses import replace

    from lrfgraph.images.splits import source_digest, source_state

    network, recipe = outcome.network, walk.recipe
    if recipe.data.source is None:
        outcome.notes.append(
            "no images given: similarities are those of the weights, no accuracy was measured, nothing was fine-tuned; "
            "give images with --data FILE.npz, --data FOLDER or --data package.module:function"
        )
        return network
    said = walk.data(network.model)["structure"]
    if len(said["inputs"]) != 1 or len(said["outputs"]) != 1:
        raise DataError(
            f"the model has {len(said['inputs'])} inputs and {len(said['outputs'])} outputs; images can be given for "
            "one of each, run it without --data"
        )
    facts = {f"{end}_shape": said["shapes"][str(said[f"{end}s"][0])][1:] for end in ("input", "output")}
    read = lambda: source_digest(recipe.data, base)  # noqa: E731
    source = walk.store.remembered(source_state(recipe.data, base), read, keep=not walk.dry)
    node = pipeline.data_node(source, facts, recipe, _calibration(network), str(base.resolve()))
    ref = walk.stage("data", [node], optional=True)[node.name]
    found = walk.data(ref)
    outcome.notes.extend(found["notes"])
    return replace(network, data=ref, images=found["identities"], locators=node.locators, task=found["task"])


def _calibration(network: Network) -> int:
    """As many images as asked, or four times the widest dense layer: that one has a single row an image."""
    wide = [layer.width for layer in network.layers if layer.kind == "dense" and len(layer.input_shapes[0]) == 1]
    asked = network.recipe.data.calibration
    return max(asked, min(4 * max(wide, default=0), MOST_CALIBRATION))


def _baseline(walk: Walk, outcome: Outcome) -> None:
    """Measure the original first; at chance level nothing that follows would mean anything."""
    network = outcome.network
    if network.data is None:
        return
    original = Ref(network.digest, network.model.key)
    nodes = [pipeline.evaluate_node(network, "baseline", original, "validation")]
    refs = walk.stage("baseline", nodes, optional=True)
    found = walk.data(network.data)
    outcome.baseline = refs[nodes[0].name]
    measured = walk.data(outcome.baseline)
    outcome.measured["baseline"] = {"validation": measured}
    chance = found["chance"]
    if chance is not None and not network.recipe.data.allow_chance:
        limit = chance + CHANCE_ERRORS * measured["accuracy_se"]
        if measured["accuracy"] <= limit and chance < 0.9:
            raise DataError(_at_chance(walk, outcome, measured, chance))


def _at_chance(walk: Walk, outcome: Outcome, measured: Mapping[str, Any], chance: float) -> str:
    from lrfgraph.run.steps.sources import try_preprocessings

    network = outcome.network
    assert network.data is not None
    tried = try_preprocessings(walk.store.open(network.model), walk.store.open(network.data), network.locators_with())
    said = ", ".join(f"{name}: {accuracy:.1%}" for name, accuracy in tried.items())
    return (
        f"the model is at chance level on the validation images ({measured['accuracy']:.1%}, always answering one "
        f"class gives {chance:.1%}): the preprocessing is probably wrong; tried {said}; set it with --scale, --mean, "
        "--std, --channels, or go on with --set data.allow_chance=true"
    )


def _nothing_to_do(network: Network) -> str:
    reasons = dict.fromkeys(pipeline.kept_reason(layer, network.recipe) for layer in network.layers if layer.kind)
    said = "; ".join(reasons) or "it has no convolution and no dense layer"
    return f"no layer of the model can be factorized: {said}; nothing to compress"


def _explore(walk: Walk, network: Network, given: Sequence[tuple[str, str, str]] | None) -> dict[str, Ref]:
    """Everything up to the scores: of all candidates, or of those of a `given` configuration."""
    only = None if given is None else {layer: method for layer, method, _ in given}
    nodes = pipeline.explore_nodes(network, only)
    refs = walk.stage("explore", nodes)
    places = {layer.name: index for index, layer in enumerate(network.layers)}
    if given is not None:
        ranks = {(places[layer], method): [rank] for layer, method, rank in given}
    else:
        found = [name.rsplit("/", 2) for name in refs if name.endswith("/ranks")]
        ranks = {
            (places[layer], method): walk.data(refs[f"{layer}/{method}/ranks"])["ranks"] for layer, method, _ in found
        }
    return refs | walk.stage("candidates", pipeline.candidate_nodes(network, refs, ranks))


def _given(outcome: Outcome, base: Path) -> list[tuple[str, str, str]] | None:
    """Read the configuration that is to be used as it is, if there is one, and hold it against the model."""
    network, path = outcome.network, outcome.network.recipe.select.configuration
    if path is None:
        return None
    layers = {layer.name: layer for layer in network.layers}
    choices = read_configuration(base / path, list(layers), tuple(METHODS))
    for name, method, rank in choices:
        reason = METHODS[method].reason(layers[name]) if layers[name].kind else layers[name].kept or "has no kernel"
        if reason:
            raise ConfigurationError(f"configuration {path}: {name}: {method} does not apply ({reason})")
        if pipeline.kept_reason(layers[name], network.recipe) or method not in pipeline.methods_of(
            layers[name], network.recipe
        ):
            raise ConfigurationError(
                f"configuration {path}: {name}: {method} is excluded by explore.methods or explore.skip; leave them out"
            )
        _check_rank(path, layers[name], method, rank)
    return choices


def _check_rank(path: str, layer: LayerSpec, method: str, rank: str) -> None:
    full, parsed = METHODS[method].full_rank(layer), parse_rank(rank)
    try:
        METHODS[method].pieces(layer, parsed)
        # some methods have chains of several lengths; only like is compared with like
        fits = full is None or len(full) != len(parsed) or all(r <= most for r, most in zip(parsed, full, strict=True))
    except (ValueError, IndexError, KeyError):
        fits = False
    if not fits:
        most = f", its largest is {write_rank(full)}" if full else ""
        raise ConfigurationError(f"configuration {path}: {layer.name}: {method} has no rank {rank}{most}")


def _choose(walk: Walk, outcome: Outcome, refs: dict[str, Ref], given: bool) -> list[tuple[str, str, str]]:
    scores = {}
    for name, ref in refs.items():
        if name.endswith("/score"):
            layer, method, rank, _ = name.rsplit("/", 3)
            scores[f"{layer}|{method}|{rank}"] = outcome.scores[layer, method, rank] = ref
        elif name.endswith("/noise"):
            scores[f"{name.removesuffix('/noise')}|noise|ranks"] = ref
    if not given:
        scores |= _probe(walk, outcome, refs)
    search = SEARCHES.get(_policy(outcome))
    if search is not None and not given:
        assert outcome.baseline is not None
        bench = Bench(walk, outcome.network, refs, scores, outcome.baseline)
        found = refine_found(bench, search(bench))
        outcome.decision, outcome.points = found.decision, found.points
        outcome.notes.extend(found.notes)
        if walk.recipe.run.until == "select":
            raise Stopped({})
    else:
        node = pipeline.select_node(outcome.network, scores, "given" if given else _policy(outcome))
        try:
            ref = walk.stage("select", [node])[node.name]
        except Stopped as stopped:
            outcome.decision = _refined(outcome, refs, scores, _feasible(walk.data(stopped.refs[node.name])), given)
            raise
        outcome.decision = _refined(outcome, refs, scores, _feasible(walk.data(ref)), given)
    return [(c["layer"], c["method"], c["rank"]) for c in outcome.decision["choices"] if c["method"]]


def _feasible(decision: dict[str, Any]) -> dict[str, Any]:
    """Return a decision, or raise what made it impossible."""
    if "infeasible" in decision:
        raise ConfigurationError(decision["infeasible"])
    return decision


def _refined(
    outcome: Outcome, refs: Mapping[str, Ref], scores: Mapping[str, Ref], decision: dict[str, Any], given: bool
) -> dict[str, Any]:
    """Refine what the knapsack came to; other policies mean what they say."""
    if given or _policy(outcome) != "budget" or outcome.baseline is None:
        return decision
    options = outcome.network.recipe.select
    bench = Bench(outcome.walk, outcome.network, refs, scores, outcome.baseline)
    found = refine(bench, decision, options.params, options.macs)
    if found is None:
        return decision
    outcome.notes.append(found.note)
    return found.decision


def _probe(walk: Walk, outcome: Outcome, refs: Mapping[str, Ref]) -> dict[str, Ref]:
    """Probe a few candidates of each layer; results by the names under which a decision reads them."""
    count = pipeline.probes(outcome.network)
    if not count:
        return {}
    found: dict[str, list[Candidate]] = {}
    for (layer, method, rank), ref in outcome.scores.items():
        found.setdefault(layer, []).append(Candidate(layer, method, rank, **walk.data(ref)))
    wanted = [(c.layer, c.method, c.rank) for one in found.values() for c in to_probe(one, count)]
    nodes = pipeline.probe_nodes(outcome.network, refs, wanted)
    made = walk.stage("probe", list(nodes.values()))
    return {name: made[node.name] for name, node in nodes.items()}


def _policy(outcome: Outcome) -> str:
    """The policy in force: one that measures needs images, without any the threshold decides."""
    policy = outcome.network.recipe.select.policy
    return "threshold" if policy in SEARCHES and outcome.network.data is None else policy


def _finish(walk: Walk, outcome: Outcome, choices: list[tuple[str, str, str]], refs: Mapping[str, Ref]) -> None:
    """Rebuild, fine-tune, write out, and only now touch the test images."""
    network = outcome.network
    made = walk.stage("rebuild", pipeline.rebuild_nodes(network, choices, refs))
    stages = {"baseline": Ref(network.digest, network.model.key), "factorized": made["rebuild"]}
    if "repaired/rebuild" in made:
        stages["repaired"] = made["repaired/rebuild"]
    outcome.final = _nearer(walk, outcome, stages)
    finished = walk.stage("finish", pipeline.finish_nodes(network, stages[outcome.final]))
    outcome.exported = finished["export"]
    _check_counts(walk, outcome)
    if "finetune" in finished:
        stages["finetuned"], outcome.final = finished["finetune"], "finetuned"
        outcome.history = walk.data(finished["finetune"])["history"]
        if not any(epoch.get("kept") for epoch in outcome.history):
            outcome.notes.append("fine-tuning brought nothing on validation images; the weights before it are kept")
    outcome.models = {name: ref for name, ref in stages.items() if name != "baseline"}
    if network.data is None:
        return
    parts = [part for part in ("validation", "test") if part in network.images]
    nodes = [
        pipeline.evaluate_node(network, name, ref, part, f"baseline/{part}/evaluate" if name != "baseline" else None)
        for name, ref in stages.items()
        for part in parts
    ]
    measured = walk.stage("evaluate", nodes)
    for name in stages:
        outcome.measured[name] = {part: walk.data(measured[f"{name}/{part}/evaluate"]) for part in parts}


def _nearer(walk: Walk, outcome: Outcome, stages: Mapping[str, Ref]) -> str:
    """Go on from the repaired model, unless on validation images it is further from the original than before."""
    if "repaired" not in stages:
        return "factorized"
    nodes = {
        name: pipeline.evaluate_node(outcome.network, name, stages[name], "validation", outcome.baseline)
        for name in ("factorized", "repaired")
    }
    measured = walk.stage("evaluate", list(nodes.values()), optional=True)
    before, after = (walk.data(measured[node.name]).get("kl", 0.0) for node in nodes.values())
    if after <= before:
        return "repaired"
    outcome.notes.append("repair brought the network no nearer to the original; the factors are kept as they were")
    return "factorized"


def _check_counts(walk: Walk, outcome: Outcome) -> None:
    """Say so if the written file does not have the parameters and MACs that the decision promised."""
    assert outcome.exported is not None
    assert outcome.decision is not None
    counted = walk.data(outcome.exported)
    for name in ("parameters", "macs"):
        if counted[name] != outcome.decision[name]:
            said = f"{counted[name]:,} {name} are in the written file, {outcome.decision[name]:,} were planned"
            outcome.notes.append(f"{said}; please report this")
