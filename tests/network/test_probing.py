"""Probes say what a full forward pass with the kernel replaced says, and run no more than the rest of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.pieces import Piece, native_kernel
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.network import probing
from lrfgraph.network.describing import describe
from lrfgraph.network.evaluating import compare
from lrfgraph.network.graph import Call, Graph, flatten, run
from lrfgraph.network.heads import HEADS
from lrfgraph.network.operations import kernel_variable
from lrfgraph.network.probing import Probe, probe
from tests.network import models

PROBED = ("stem", "inner", "logits")


def layers_of(model: Any) -> dict[str, LayerSpec]:
    return {layer.name: layer for layer in describe(model).layers if layer.kind}


def probes_of(model: Any, names: Sequence[str], each: int = 2) -> list[Probe]:
    """Probes whose chain is one piece: the kernel itself, somewhat wrong."""
    rng = np.random.default_rng(5)
    layers = layers_of(model)
    return [
        Probe(layers[name], (Piece("mix", layers[name].kernel),), (rng.normal(0, 0.3, layers[name].kernel),))
        for name in names
        for _ in range(each)
    ]


def brute_force(model: Any, one: Probe, images: np.ndarray, head: str) -> float:
    original = np.asarray(model(images, training=False))
    operation = next(call.operation for call in flatten(model).calls if call.path == one.layer.name)
    variable = kernel_variable(operation)
    old = np.asarray(variable)
    variable.assign(native_kernel(one.layer, one.pieces, one.weights))
    made = np.asarray(model(images, training=False))
    variable.assign(old)
    return compare(made, original, HEADS[head])["kl"]


def images_for(model: Any, count: int = 7) -> np.ndarray:
    made: np.ndarray = models.inputs_for(model, images=count)
    return made


@pytest.mark.parametrize("head", ["softmax", "logits", "multilabel", "values"])
@pytest.mark.parametrize("live", [1, 5_000, probing.LIVE_BYTES], ids=["one by one", "chunks", "all at once"])
def test_probing_equals_brute_force(head: str, live: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "LIVE_BYTES", live)
    monkeypatch.setattr(probing, "BATCH", 3)
    model = models.residual()
    probes, images = probes_of(model, PROBED), images_for(model)
    expected = [brute_force(model, one, images, head) for one in probes]
    assert probe(model, probes, images, HEADS[head]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert min(expected) > 1e-4


@pytest.mark.parametrize(("make", "name"), [(models.shared, "shared"), (models.shared_with_nested, "shared")])
def test_a_shared_layer_is_replaced_everywhere(make: Callable[[], Any], name: str) -> None:
    model = make()
    probes, images = probes_of(model, [name]), images_for(model)
    expected = [brute_force(model, one, images, "values") for one in probes]
    assert probe(model, probes, images, HEADS["values"]) == pytest.approx(expected, rel=1e-4)


def test_together_equals_one_by_one() -> None:
    model = models.residual()
    probes, images = probes_of(model, PROBED), images_for(model)
    alone = [probe(model, [one], images, HEADS["logits"])[0] for one in probes]
    assert probe(model, probes[::-1], images, HEADS["logits"])[::-1] == pytest.approx(alone, rel=1e-6)


def test_the_layers_own_kernel_changes_nothing_and_kernels_come_back() -> None:
    model = models.residual()
    layer = layers_of(model)["inner"]
    own = next(call.operation for call in flatten(model).calls if call.path == "inner").kernel
    before = [np.asarray(v) for v in model.variables]
    same = Probe(layer, (Piece("mix", layer.kernel),), (np.asarray(own)[None],))
    found = probe(model, [same, *probes_of(model, PROBED)], images_for(model), HEADS["logits"])
    assert found[0] == pytest.approx(0.0, abs=1e-7)
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(before, model.variables, strict=True))


def test_kernels_come_back_when_a_suffix_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.residual()
    probes = probes_of(model, ["inner"])
    before = [np.asarray(v) for v in model.variables]
    images, ran = images_for(model), 0

    def failing(program: Graph, values: dict[int, Any], calls: Sequence[Call]) -> Any:
        nonlocal ran
        ran += 1
        if ran > len(program.calls) + 5:
            raise MemoryError
        return run(program, values, calls=calls)

    monkeypatch.setattr(probing, "run", failing)
    with pytest.raises(MemoryError):
        probe(model, probes, images, HEADS["logits"])
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(before, model.variables, strict=True))


def test_only_the_rest_of_the_network_runs_for_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.residual()
    probes, images = probes_of(model, PROBED, each=3), images_for(model)
    calls = flatten(model).calls
    starts = [next(call.index for call in calls if call.path == one.layer.name) for one in probes]
    ran: list[int] = []

    def counting(program: Graph, values: dict[int, Any], calls: Sequence[Call]) -> Any:
        ran.extend(call.index for call in calls)
        return run(program, values, calls=calls)

    monkeypatch.setattr(probing, "run", counting)
    probe(model, probes, images, HEADS["logits"])
    sizing, original, prefix = max(starts), len(calls), max(starts)
    assert len(ran) == sizing + original + prefix + sum(len(calls) - start for start in starts)


def test_values_that_nobody_reads_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.residual()
    most = 0
    uses = flatten(model).last_use()

    def watching(program: Graph, values: dict[int, Any], calls: Sequence[Call]) -> Any:
        nonlocal most
        assert all(uses[slot] >= calls[0].index for slot in values)
        most = max(most, len(values))
        return run(program, values, calls=calls)

    monkeypatch.setattr(probing, "run", watching)
    probe(model, probes_of(model, PROBED), images_for(model), HEADS["logits"])
    assert 1 < most <= 3
