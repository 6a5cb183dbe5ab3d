"""Nothing is computed twice: which option changes which keys, and what runs again after a change."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, Finished, with_changes

from lrfgraph import api
from lrfgraph.cli import RecipeCommand, written_out
from lrfgraph.commands.asking import asking
from lrfgraph.engine.nodes import Node, Ref, Task, components_of, digest, key_of
from lrfgraph.images.sources import source_digest
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.methods.base import write_rank
from lrfgraph.options.recipe import OPTIONS, Recipe
from lrfgraph.run import nodes
from lrfgraph.run.state import Exploration, Network
from lrfgraph.run.steps import STEPS
from lrfgraph.selection.problem import CandidateId
from tests.options.another import another_value

# Keys, without running anything -------------------------------------------------------------------------------------

CONV = LayerSpec(
    "conv", "Conv2D", "conv2d", (1, 3, 3, 1, 8), (1, 1), (1, 1), "same",
    input_shapes=((14, 14, 1),), output_shapes=((14, 14, 8),), parameters=80, macs=14112, bias=True, tail="relu",
    identity="conv-weights", upstream="input",
)  # fmt: skip
DENSE = LayerSpec(
    "dense", "Dense", "dense", (1, 1568, 10), input_shapes=((1568,),), output_shapes=((10,),), parameters=15690,
    macs=15680, bias=True, identity="dense-weights", upstream="conv-output",
)  # fmt: skip
METHODS_OF_TODAY = ["svd_channel", "svd_spatial", "tucker", "cp", "tt", "svd", "qr", "ttm"]
BASE = Recipe.from_dict(
    {
        "data": {"source": str(DATA / "tiny_digits.npz"), "scale": 1 / 255, "calibration": 50, "validation": 60},
        "explore": {
            "ranks": 2,
            "weighting": "two_sided",
            "methods": ["svd_channel", "tucker", "cp", "tt", "svd", "ttm"],
        },
        "select": {"policy": "threshold"},
        "repair": {"enabled": True, "images": 80},
        "finetune": {"epochs": 1},
    }
)


def network_of(recipe: Recipe, described: Node) -> tuple[Network, Node]:
    """Return a hand-made network with the images as the `data` step really divides them."""
    ref = Ref("network", key_of(components_of(described, STEPS["describe"].version, {})))
    network = Network(ref, (CONV, DENSE), "network", 15770, 29792, "names", "softmax", "softmax", recipe)
    facts = {"inputs": [["", [14, 14, 1]]], "output_shape": [10], "proposed": "softmax", "activation": "softmax"}
    base = str(DATA)
    node = nodes.data_node(source_digest(recipe.data, DATA), facts, recipe, recipe.data.calibration, base)
    made = STEPS["data"].compute(Task(node.name, node.params, {}, node.locators, lambda: DATA, lambda *_: None))
    assert made.identity
    data = Ref(made.identity, key_of(components_of(node, STEPS["data"].version, {})))
    said = made.data
    return replace(network, data=data, images=said["identities"], locators=node.locators, head=said["head"]), node


class Graph:
    """All nodes of a run and their keys; choices are made up, so that only what a recipe says changes a key."""

    def __init__(self, recipe: Recipe) -> None:
        architecture = recipe.model.architecture and digest(recipe.model.architecture)
        described = nodes.describe_node("model.keras", "model-file", recipe, architecture)
        network, data = network_of(recipe, described)
        self.refs: dict[str, Ref] = {}
        self.keys: dict[str, set[str]] = {}
        baseline = nodes.evaluate_node(network, "baseline", Ref("network", network.model.key), "validation")
        self.add([described, data, baseline])
        exploration = self.explored(network)
        first = {candidate.layer: candidate for candidate in reversed(exploration.factors)}
        chosen = [first[layer.name] for layer in network.factorizable()]
        if network.policy.refines and recipe.select.probes:
            probes = nodes.probe_nodes(network, exploration, chosen)
            self.add(probes.values())
            exploration = replace(exploration, probes=nodes.refs_of(probes, self.refs))
        self.add([nodes.select_node(network, exploration, network.policy)])
        rebuilt = self.add(nodes.rebuild_nodes(network, chosen, exploration))
        last = self.refs[rebuilt[-1].name]
        finished = [nodes.finetune_node(network, "finetune", last)] if network.finetunes else []
        finished = self.add([*finished, nodes.export_node(network, finished[0].name if finished else last)])
        self.add([nodes.evaluate_node(network, "final", self.refs[finished[0].name], "test")])

    def explored(self, network: Network) -> Exploration:
        records, curvatures = nodes.record_nodes(network), nodes.curvature_nodes(network)
        decompositions = nodes.decompose_nodes(network, records, curvatures, None)
        ranks = nodes.rank_nodes(network, decompositions)
        for kind in (records, curvatures, decompositions, ranks):
            self.add(kind.values())
        explored = (nodes.refs_of(kind, self.refs) for kind in (records, curvatures, decompositions, ranks))
        exploration = Exploration(*explored)
        candidates = [
            CandidateId(name, method, self._rank(network.layer(name), method, r))
            for name, method in decompositions
            for r in range(1, network.recipe.explore.ranks + 1)
        ]
        factors, scores = nodes.candidate_nodes(network, exploration, candidates)
        noise = nodes.noise_nodes(network, [layer.name for layer in network.factorizable()])
        for more in (factors, scores, noise):
            self.add(more.values())
        found = (nodes.refs_of(kind, self.refs) for kind in (factors, scores))
        factor_refs, score_refs = found
        return replace(exploration, factors=factor_refs, scores=score_refs, noise=nodes.refs_of(noise, self.refs))

    @staticmethod
    def _rank(layer: LayerSpec, method: str, r: int) -> str:
        return write_rank((r,) * len(METHODS[method].full_rank(layer) or (1,)))

    def add(self, made: Iterable[Node]) -> list[Node]:
        made = list(made)
        for node in made:
            inputs = {n: s if isinstance(s, Ref) else self.refs[s] for n, s in node.inputs.items()}
            identities = {name: ref.identity for name, ref in inputs.items()}
            key = key_of(components_of(node, STEPS[node.step].version, identities))
            self.refs[node.name] = Ref(key, key)
            self.keys.setdefault(node.step, set()).add(key)
        return made


MODEL = {"rebuild", "repair", "finetune", "export", "evaluate"}
FACTORS = {"decompose", "ranks", "factorize", "score", "select"} | MODEL
IMAGES = {"data", "record", "curvature"} | FACTORS
NOTHING: set[str] = set()

CHANGES: dict[str, tuple[Any, set[str]]] = {
    "model.custom": (("package.module:Name",), {"describe"}),
    "model.architecture": ("model.json", {"describe"}),
    "model.unsafe": (True, {"describe"}),
    "data.source": ("images.npz", IMAGES),
    "data.scale": (1 / 127.5, IMAGES),
    "data.mean": ((0.5,), IMAGES),
    "data.std": ((0.5,), IMAGES),
    "data.stats": ("stats.npz", IMAGES),
    "data.channels": ("bgr", IMAGES),
    "data.image_size": ((14, 14), {"data"}),
    "data.calibration": (51, {"data", "record", "curvature"} | FACTORS),
    "data.validation": (50, IMAGES),
    "data.split": ("blocks", IMAGES),
    "data.seed": (1, IMAGES),
    "data.val": (str(DATA / "tiny_digits.npz"), IMAGES),
    "data.metric": ("json:dumps", {"finetune", "export", "evaluate"}),
    "data.head": ("values", {"data", "curvature"} | FACTORS),
    "data.allow_chance": (True, NOTHING),
    "record.rows": (4096, {"record"} | FACTORS),
    "record.moment_rows": (4096, {"record"} | FACTORS),
    "record.max_rows_bytes": (1 << 20, {"record"} | FACTORS),
    "record.seed": (1, {"record", "curvature"} | FACTORS),
    "explore.methods": (("cp", "svd"), {"decompose", "ranks", "factorize", "score", "select"} | MODEL),
    "explore.ranks": (3, {"ranks", "factorize", "score", "select"}),
    "explore.smallest": (0.1, {"ranks"}),
    "explore.largest": (0.5, {"ranks"}),
    "explore.weighting": ("plain", {"curvature"} | FACTORS),
    "explore.skip": (("dense",), {"record", "curvature", "decompose", "ranks", "factorize", "score", "select"} | MODEL),
    "explore.multiple": (8, {"ranks"}),
    "similarity.metric": ("cka", {"select"}),
    "similarity.tap": ("activation", {"score", "select"}),
    "select.policy": ("budget", {"select"}),
    "select.min_similarity": (0.9, {"select"}),
    "select.cost": ("macs", {"select"}),
    "select.mix": (0.25, {"select"}),
    "select.params": (0.5, {"select"}),
    "select.macs": (0.5, {"select"}),
    "select.max_drop": (2.0, NOTHING),
    "select.configuration": ("hybrid.toml", {"select"}),
    "select.point": (3, NOTHING),
    "select.points": (5, NOTHING),
    "select.probes": (2, NOTHING),
    "select.refine": (4, NOTHING),
    "repair.enabled": (False, {"data", "rebuild", "repair", "finetune", "export", "evaluate"}),
    "repair.images": (90, {"data", "repair", "rebuild", "finetune", "export", "evaluate"}),
    "repair.rows": (4096, MODEL),
    "repair.rounds": (1, MODEL),
    "repair.steps": (7, MODEL),
    "repair.ridge": (0.5, MODEL),
    "finetune.epochs": (2, {"finetune", "export", "evaluate"}),
    "finetune.steps": (60, set()),  # of a training whose epochs nobody says
    "finetune.minutes": (1.5, {"finetune", "export", "evaluate"}),
    "finetune.batchnorm": ("batch", {"finetune", "export", "evaluate"}),
    "finetune.blend": (0.25, {"finetune", "export", "evaluate"}),
    "finetune.batch": (64, {"finetune", "export", "evaluate"}),
    "finetune.learning_rate": (1e-4, {"finetune", "export", "evaluate"}),
    "finetune.alpha": (0.5, {"finetune", "export", "evaluate"}),
    "finetune.temperature": (1.0, {"finetune", "export", "evaluate"}),
    "finetune.crop": (2, {"finetune", "export", "evaluate"}),
    "finetune.flip": (True, {"finetune", "export", "evaluate"}),
    "finetune.labels": (False, {"finetune", "export", "evaluate"}),
    "finetune.weight_decay": (0.1, {"finetune", "export", "evaluate"}),
    "finetune.seed": (1, {"finetune", "export", "evaluate"}),
    "dprp.enabled": (True, {"finetune", "export", "evaluate"}),  # nothing is left to fine-tune
    "run.cache": ("elsewhere", NOTHING),
    "run.out": ("elsewhere", NOTHING),
    "run.workers": (4, NOTHING),
    "run.scheduler": ("tcp://host:8786", NOTHING),
    "run.threads": (7, NOTHING),
    "run.max_memory": (10**9, NOTHING),
    "run.until": ("select", NOTHING),
}
"""By option: another value, and the kinds of node of which then at least one key is another."""


SECTIONS = {
    "model": {"describe"},
    "data": IMAGES,
    "record": {"record"} | FACTORS,
    "explore": {"ranks"},
    "similarity": {"select"},
    "select": {"select"},
    "repair": MODEL,
    "finetune": {"finetune", "export", "evaluate"},
    "run": NOTHING,
    "dprp": NOTHING,  # nothing of a run without training; tests/run/test_training_road.py has those with it
    "prune": NOTHING,  # nothing of a run without pruning; tests/run/test_pruning_road.py has those with it
}
"""The same for options that have no row of their own."""
CHANGES |= {
    key: (another_value(option), SECTIONS[option.section]) for key, option in OPTIONS.items() if key not in CHANGES
}


@pytest.fixture(scope="module")
def base() -> Graph:
    return Graph(BASE)


def test_every_option_in_the_table_exists() -> None:
    assert set(CHANGES) == set(OPTIONS)


@pytest.mark.parametrize("option", CHANGES)
def test_an_option_changes_these_keys_and_no_others(option: str, base: Graph, tmp_path: Path) -> None:
    value, expected = CHANGES[option]
    if option == "data.stats":
        np.savez(tmp_path / value, mean=np.zeros((14, 14, 1)), std=np.full((14, 14, 1), 2.0))
        value = str(tmp_path / value)
    if option == "data.source":
        with np.load(DATA / "tiny_digits.npz", allow_pickle=False) as arrays:
            np.savez(tmp_path / value, **{name: np.roll(array, 1, axis=0) for name, array in arrays.items()})
        value = str(tmp_path / value)
    changed = Graph(BASE.with_option(option, value))
    assert {kind for kind in base.keys if base.keys[kind] != changed.keys.get(kind, set())} == expected


SPECIAL = {
    "noise": BASE.with_option("select.policy", "evbmf"),
    "probe": BASE.with_option("select.policy", "budget").with_option("select.probes", 1),
}
"""Recipes with kinds of nodes that the others do not have."""


PRUNING = {"couple", "importance", "widths", "prune", "adjust"}
"""Kinds of nodes of filter pruning."""
TRAINING = {"matricize", "epoch", "absorb"}
"""Kinds of nodes of training with shrinking ranks."""


def test_all_kinds_of_nodes_are_in_the_graph(base: Graph) -> None:
    kinds = set(base.keys).union(*(Graph(recipe).keys for recipe in SPECIAL.values()))
    assert kinds | PRUNING | TRAINING == STEPS.keys()


def test_probes_enter_the_decision() -> None:
    probed = SPECIAL["probe"]
    assert Graph(probed).keys["select"] != Graph(probed.with_option("select.probes", 0)).keys["select"]


def test_one_more_rank_keeps_all_others(base: Graph) -> None:
    more = Graph(BASE.with_option("explore.ranks", 3))
    for kind in ("factorize", "score"):
        assert base.keys[kind] < more.keys[kind]


def test_one_more_method_keeps_all_others() -> None:
    one, two = (Graph(BASE.with_option("explore.methods", names)) for names in (("cp", "svd"), ("cp", "svd", "tucker")))
    for kind in ("decompose", "ranks", "factorize", "score"):
        assert one.keys[kind] < two.keys[kind]


def test_a_metric_more_is_another_score_and_a_format_more_another_export(
    base: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "METRICS", ("cosine", "relative_error", "cka", "energy"))
    monkeypatch.setattr(nodes, "FORMATS", ("compressed.keras",))
    more = Graph(BASE)
    assert not base.keys["score"] & more.keys["score"]
    assert base.keys["export"] != more.keys["export"]
    assert base.keys["factorize"] == more.keys["factorize"]


def test_two_equal_layers_share_their_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = replace(CONV, name="twin", upstream="conv-output")
    plain = BASE.with_option("explore.weighting", "plain")
    alone = Graph(plain)
    monkeypatch.setattr("test_reruns.DENSE", twin)
    both = Graph(plain)
    assert both.keys["factorize"] < alone.keys["factorize"]
    assert len(both.keys["record"]) == 2


GOLDEN: dict[str, str] = {
    "curvature": "9f4166dd20602d7b9d7d38177ddda19194dd1fb5",
    "data": "bb528b2ac682934928033bfefb547b1df9b13cbd",
    "decompose": "ae0a8304cfd20c74ff2fb653aaa953d82ac22961",
    "describe": "896e15752346f5fe1a75d21ab861122dc9a7431b",
    "evaluate": "e6aa76e894e8a1c5cb22dc1f22149cf0fd0240cc",
    "export": "d7d4eae4e5683d8f07573360549badd57d5245e9",
    "factorize": "40b398b0d42f76e663ceade0f1821f304d65c0d3",
    "finetune": "943b1c994ecf4dee434ddaf8d7727cda4d769606",
    "noise": "1bbba73c817e95cf927148a7184b19f7e4942cff",
    "probe": "2eb6c3668e7941b1957282b1a192d43f35bc1d1f",
    "ranks": "faa9cf9a6ccc4b16b10735e7a3d795881a490e21",
    "rebuild": "6ca78c499974bb81fdf7c5b223ba96d1c044c6e7",
    "record": "00c3dd48cc37b83a699018d912d53b83766dd03b",
    "repair": "38c639339fd9786d51aef0750bea672e75073f1a",
    "score": "5cf26673737112225c0aaf409d736cc91a5a7150",
    "select": "d90dd476854566e40ca17a7eb910aa1a97c1a382",
}
"""A digest of the keys of each kind; another one means that what earlier versions cached is not found again."""


@pytest.mark.parametrize("kind", sorted(STEPS.keys() - PRUNING - TRAINING))
def test_golden_keys(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tables that grow, the rows of today: a row more is another key, and no change of what the others are."""
    monkeypatch.setattr(nodes, "METRICS", ("cosine", "relative_error", "cka"))
    monkeypatch.setattr(nodes, "FORMATS", ("compressed.keras", "compressed.h5"))
    graph = Graph(SPECIAL.get(kind, BASE))
    assert digest(sorted(graph.keys[kind])) == GOLDEN[kind]


# What runs again, on a trained network ------------------------------------------------------------------------------

TO_SELECT = ("--until", "select")


def ran(cache: Path, *arguments: str) -> list[str]:
    """Run the main job on a cache and return the names of the nodes that were computed."""
    model, recipe, base = _asked(cache, arguments)
    names: list[str] = []
    api.compress(model, recipe, base=base, on_event=lambda e: names.append(e.node) if e.kind == "finished" else None)
    return names


def _asked(cache: Path, arguments: tuple[str, ...]) -> tuple[Path, Recipe, Path]:
    settings = written_out([*with_changes(arguments[1:]), "--cache", str(cache)], RecipeCommand.flags, ["--set"])
    with asking(Path(arguments[0]), None, list(settings)[1::2]) as asked:
        return Path(arguments[0]), asked.recipe, asked.folder


def kinds(names: list[str]) -> Counter[str]:
    return Counter(name.rsplit("/", 1)[-1] for name in names)


@pytest.fixture
def cache(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run's cache, at another place."""
    return shutil.copytree(finished.cache, tmp_path / "moved")


def test_the_same_again_runs_nothing_wherever_the_cache_lies(finished: Finished, cache: Path) -> None:
    assert ran(cache, *finished.arguments) == []


def test_another_name_and_a_saved_copy_run_nothing(finished: Finished, cache: Path, tmp_path: Path) -> None:
    import keras

    model, *options = finished.arguments
    shutil.copy(model, tmp_path / "another.keras")
    assert ran(cache, str(tmp_path / "another.keras"), *options) == []
    keras.models.load_model(model).save(tmp_path / "again.keras")
    assert ran(cache, str(tmp_path / "again.keras"), *options) == []


def test_a_layer_of_another_name_keeps_it_and_explores_nothing_again(
    finished: Finished, cache: Path, tmp_path: Path
) -> None:
    import keras

    model, *options = finished.arguments
    network = keras.models.load_model(model)
    renamed = next(layer for layer in network.layers if not layer.weights)

    def named(layer: Any) -> Any:
        name = "another_name" if layer is renamed else layer.name
        return layer.__class__.from_config({**layer.get_config(), "name": name})

    other = keras.models.clone_model(network, clone_function=named)
    other.set_weights(network.get_weights())
    other.save(tmp_path / "renamed.keras")
    _, recipe, base = _asked(cache, (model, *options))
    outcome = api.compress(tmp_path / "renamed.keras", recipe, base=base)
    assert outcome.driver.run.keys() == {"describe", "rebuild", "finetune", "export", "evaluate"}
    assert outcome.exported
    written = keras.models.load_model(outcome.driver.store.open(outcome.exported).file("compressed.keras"))
    assert "another_name" in [layer.name for layer in written.layers]


def test_another_threshold_decides_again_and_no_more(finished: Finished, cache: Path) -> None:
    assert ran(cache, *finished.arguments, "--min-similarity", "0.8", *TO_SELECT) == ["select"]


def test_the_same_choice_retrains_nothing(finished: Finished, cache: Path) -> None:
    assert ran(cache, *finished.arguments, "--min-similarity", "0.90000001") == ["select"]


def test_another_choice_runs_what_follows_it(finished: Finished, cache: Path) -> None:
    again = kinds(ran(cache, *finished.arguments, "--min-similarity", "0.7", "--epochs", "0"))
    assert again.keys() <= {"select", "rebuild", "export", "evaluate"}
    assert again["select"] == again["rebuild"] == again["export"] == 1


def test_one_more_rank_runs_the_new_candidates_alone(finished: Finished, cache: Path) -> None:
    before = candidates(cache, *finished.arguments)
    again = ran(cache, *finished.arguments, "--set", "explore.ranks=4", *TO_SELECT)
    assert kinds(again).keys() <= {"ranks", "factorize", "score", "select"}
    after = candidates(cache, *finished.arguments, "--set", "explore.ranks=4")
    assert before < after
    new = {str(candidate) for candidate in after - before}
    assert {name.removesuffix("/score") for name in again if name.endswith("/score")} <= new


def candidates(cache: Path, *arguments: str) -> set[CandidateId]:
    model, recipe, base = _asked(cache, (*arguments, *TO_SELECT))
    return set(api.compress(model, recipe, base=base).exploration.scores)


def test_one_layer_retrained_runs_its_factors_and_the_records_below_it(
    finished: Finished, cache: Path, tmp_path: Path
) -> None:
    import keras

    model, *options = finished.arguments
    network = keras.models.load_model(model)
    layers = [layer for layer in network.layers if layer.__class__.__name__ in ("Conv2D", "Dense")]
    changed = layers[1]
    changed.kernel.assign(changed.kernel.numpy() * 1.01)
    network.save(tmp_path / "retrained.keras")
    plain = ("--set", "explore.weighting=plain")
    ran(cache, model, *options, *plain, *TO_SELECT)
    again = ran(cache, str(tmp_path / "retrained.keras"), *options, *plain, *TO_SELECT)
    layers_of = {
        kind: {n.split("/")[0] for n in again if n.endswith(f"/{kind}")} for kind in ("decompose", "factorize")
    }
    assert layers_of == {"decompose": {changed.name}, "factorize": {changed.name}}
    below = [layer.name for layer in layers[2:]]
    assert [name for name in again if name.endswith("/record")] == [f"{name}/record" for name in below]
    assert {name.split("/")[0] for name in again if name.endswith("/score")} == {changed.name, *below}


def test_other_calibration_images_keep_plain_factors(finished: Finished, cache: Path) -> None:
    plain = ("--set", "explore.weighting=plain", *TO_SELECT)
    ran(cache, *finished.arguments, *plain)
    again = kinds(ran(cache, *finished.arguments, *plain, "--set", "data.seed=1"))
    assert again.keys() == {"data", "record", "score", "select", "evaluate"}


@pytest.mark.parametrize(
    "change",
    [
        (),
        ("--min-similarity", "0.8"),
        ("--min-similarity", "0.90000001"),
        ("--epochs", "2"),
        ("--set", "explore.ranks=4"),
        ("--set", "similarity.tap=activation"),
        ("--set", "record.rows=500"),
    ],
    ids=" ".join,
)
def test_plan_says_what_run_does(change: tuple[str, ...], finished: Finished, cache: Path) -> None:
    """Up to the first decision that is not made yet the two agree node by node, and to the end where there is none."""
    model, recipe, base = _asked(cache, (*finished.arguments, *change))
    driver, complete = api.plan(model, recipe, base=base)
    planned = [
        resolved.node.name
        for lookup in driver.lookups
        for resolved in lookup.resolution.needed(lookup.targets)
        if not resolved.cached
    ]
    again = ran(cache, *finished.arguments, *change)
    assert set(planned) <= set(again)
    assert (set(planned) == set(again)) or not complete
    assert bool(planned) == bool(again)


def test_a_live_run_is_safe_from_gc(finished: Finished, cache: Path) -> None:
    from lrfgraph.engine.maintenance import gc, list_entries
    from lrfgraph.engine.store import Store

    store, kept = Store(cache), []

    def collect(outcome: api.Compression) -> None:
        gc(store, max_size=0)
        kept.extend(info.kind for info in list_entries(store))

    asked_for_the_first_time = ("--min-similarity", "0.123", *TO_SELECT)
    model, recipe, base = _asked(cache, (*finished.arguments, *asked_for_the_first_time))
    assert api.compress(model, recipe, base=base, on_baseline=collect).decision
    assert {"describe", "data", "evaluate"} <= set(kept) <= {"describe", "data", "evaluate", "record", "curvature"}
