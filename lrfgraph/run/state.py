"""What a run knows so far, as the stages find it out: the network, the exploration, the compressed models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from typing import Any

from lrfgraph.engine.nodes import Ref
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.methods import METHODS
from lrfgraph.network.opening.consent import code_digest
from lrfgraph.options.recipe import Recipe
from lrfgraph.run.driver import Driver
from lrfgraph.selection.front import Point
from lrfgraph.selection.policies import policy_in_force
from lrfgraph.selection.policy import Policy
from lrfgraph.selection.problem import CandidateId, Decision

__all__ = ["Compression", "Exploration", "Network", "kept_reason", "methods_of", "skipped"]

PROBES = 3
"""Candidates of a layer that are tried in the network where predictions stand on too few images."""


@dataclass(frozen=True)
class Network:
    """What `describe` and `data` said, and the recipe: all that later nodes are built from.

    signature : digest of the names and configurations that do not act in inference, which a rebuilt model carries on.
    head : what the output means, a row of HEADS.  activation : the last one of the graph.
    images : identity of each split's images, empty without data.  locators : how to find the images; no part of a key.
    """

    model: Ref
    layers: tuple[LayerSpec, ...]
    digest: str
    parameters: int
    macs: int
    signature: str
    head: str
    activation: str
    recipe: Recipe
    data: Ref | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    locators: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def described(cls, model: Ref, data: Mapping[str, Any], recipe: Recipe) -> Network:
        """Return the network that a `describe` node says."""
        layers = tuple(LayerSpec.from_json(layer) for layer in data["layers"])
        structure = data["structure"]
        head = structure["head"] if recipe.data.head == "auto" else recipe.data.head
        meaning = structure["signature"], head, structure["activation"]
        return cls(model, layers, data["network"], data["parameters"], data["macs"], *meaning, recipe)

    @property
    def original(self) -> Ref:
        """The model itself, known by what it computes."""
        return Ref(self.digest, self.model.key)

    def locators_with(self, **more: Any) -> dict[str, Any]:
        """Return the locators of a node that opens a model: where the images are, and what the recipe trusts.

        Trust never comes from what the cache says: whoever can write there could have code run.
        """
        options = self.recipe.model
        return {**self.locators, "trust": {"custom": list(options.custom), "unsafe": options.unsafe}, **more}

    @property
    def meaning(self) -> dict[str, str]:
        """What a step must know of the output to tell how far two of them are apart."""
        return {"head": self.head, "activation": self.activation}

    @property
    def judged_by(self) -> dict[str, Any]:
        """The same for a step that measures: with the user's own measure and the digest of its source, if there is one.

        What it is called and what it says both matter: the recipe names it, so nobody else can have it run.
        """
        metric = self.recipe.data.metric
        return self.meaning if metric is None else {**self.meaning, "metric": [metric, _digest_of_code(metric)]}

    @property
    def policy(self) -> Policy:
        """The policy that decides."""
        return policy_in_force(self.recipe.select, self.data is not None)

    def weights(self, layer: LayerSpec) -> Ref:
        """One layer's kernel, bias and folded BatchNorm: identified by their bytes, not by the model they sit in."""
        return Ref(layer.identity, self.model.key, f"layers/{self.layers.index(layer)}")

    def split(self, *parts: str) -> Ref:
        """One or several splits of the images."""
        assert self.data is not None
        return Ref("+".join(self.images[part] for part in parts), self.data.key)

    def layer(self, name: str) -> LayerSpec:
        return next(layer for layer in self.layers if layer.name == name)

    def factorizable(self) -> Iterator[LayerSpec]:
        return (layer for layer in self.layers if not kept_reason(layer, self.recipe))

    def probes(self, images: int) -> int:
        """How many candidates of a layer are tried in the network, of so many calibration images.

        Fewer images than a layer has outputs cannot say how much each of them matters: probes do.
        """
        asked = self.recipe.select.probes
        if asked is not None or self.data is None:
            return asked or 0
        return PROBES if images < max((layer.outputs for layer in self.factorizable()), default=0) else 0

    @property
    def repairs(self) -> bool:
        return self.data is not None and self.recipe.repair.enabled

    @property
    def finetunes(self) -> bool:
        asked = self.recipe.finetune.epochs != 0 and not self.recipe.dprp.enabled  # nothing is left to retrain
        return self.data is not None and "train" in self.images and asked


@dataclass(frozen=True)
class Exploration:
    """Results by what they are about: a layer, a (layer, method), a candidate."""

    records: Mapping[str, Ref] = field(default_factory=dict)
    curvatures: Mapping[str, Ref] = field(default_factory=dict)
    decompositions: Mapping[tuple[str, str], Ref] = field(default_factory=dict)
    ranks: Mapping[tuple[str, str], Ref] = field(default_factory=dict)
    factors: Mapping[CandidateId, Ref] = field(default_factory=dict)
    scores: Mapping[CandidateId, Ref] = field(default_factory=dict)
    probes: Mapping[CandidateId, Ref] = field(default_factory=dict)
    noise: Mapping[str, Ref] = field(default_factory=dict)

    def weights(self, candidate: CandidateId) -> tuple[Ref, Ref]:
        """A candidate's factors, and what all ranks of its method share."""
        return self.factors[candidate], self.decompositions[candidate.layer, candidate.method]


@dataclass(frozen=True)
class Compression:
    """What a run came to; `report` writes it out.  Each stage returns it with what it found out.

    driver : what carried it out: counts of nodes, seconds, the store.
    source : the network before its channels were pruned, where `network` is the pruned one.
    given : the candidates of a configuration that is used as it is, ``None`` where a policy decides.
    baseline : measures of the original on validation images.  pruned : which channels went.
    decision : one choice a layer.  points : what a policy that searches measured.  limit : points that what is
    delivered may lose, ``None`` where a policy promises none.  trials : models of short trials of fine-tuning, by
    configuration.  refused : what fine-tuning came to where that was too little, as a point.
    models : the entry of each stage (``pruned``, ``trained``, ``factorized``, ``repaired``, ``finetuned``).
    final : the stage that is written out.  rejected : stages whose weights were not carried on.
    exported : entry of the written files.
    shrinking : of training with shrinking ranks: ``layers``, their first ``ranks``, and what each of ``epochs`` says.
    history : of fine-tuning, by epoch.  measured : by stage and split.  notes : what a person should know.
    stopped : whether ``run.until`` cut the stages short.
    """

    driver: Driver = field(repr=False)
    network: Network
    source: Network | None = None
    given: tuple[CandidateId, ...] | None = None
    baseline: Ref | None = None
    pruned: Ref | None = None
    exploration: Exploration = field(default_factory=Exploration)
    decision: Decision | None = None
    points: tuple[Point, ...] = ()
    limit: float | None = None
    trials: Mapping[tuple[CandidateId, ...], Ref] = field(default_factory=dict)
    refused: Point | None = None
    models: Mapping[str, Ref] = field(default_factory=dict)
    final: str = "factorized"
    rejected: tuple[str, ...] = ()
    exported: Ref | None = None
    shrinking: Mapping[str, Any] | None = None
    history: list[dict[str, Any]] | None = None
    measured: Mapping[str, Mapping[str, dict[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def original(self) -> Network:
        """The network that everything is compared with."""
        return self.source or self.network

    def noted(self, *notes: str, **changes: Any) -> Compression:
        """Return it with changes, and more to say."""
        return replace(self, notes=(*self.notes, *notes), **changes)


@cache
def _digest_of_code(function: str) -> str:
    """Digest a function's source once a process: a process imports it once, too."""
    return code_digest([function])


def kept_reason(layer: LayerSpec, recipe: Recipe) -> str:
    """Say why a layer is kept whatever the scores, or return ``""``."""
    if layer.kept or not layer.kind:
        return layer.kept or "has no kernel"
    if skipped(layer, recipe):
        return "skipped by explore.skip"
    if not methods_of(layer, recipe):
        names = recipe.explore.methods or tuple(METHODS)
        reasons = dict.fromkeys(f"{name}: {METHODS[name].reason(layer)}" for name in names)
        return "no method applies (" + "; ".join(reasons) + ")"
    return ""


def skipped(layer: LayerSpec, recipe: Recipe) -> bool:
    return any(fnmatch(layer.name, pattern) for pattern in recipe.explore.skip)


def methods_of(layer: LayerSpec, recipe: Recipe) -> list[str]:
    """Return the names of the methods that apply to a layer and are asked for."""
    names = recipe.explore.methods or tuple(METHODS)
    return [name for name in METHODS if name in names and not METHODS[name].reason(layer)]
