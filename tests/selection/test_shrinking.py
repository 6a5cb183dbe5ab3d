"""The course of a training with shrinking ranks, and which ranks go."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.pieces import layer_cost
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.options.dprp import DprpOptions
from lrfgraph.selection.shrinking import Form, course, least_cost, next_forms, next_weight, size_of

CONV = LayerSpec(
    "conv", "Conv2D", "conv2d", (1, 3, 3, 8, 16), (1, 1), (1, 1), "same",
    input_shapes=((8, 8, 8),), output_shapes=((8, 8, 16),), parameters=1152, macs=64 * 1152,
)  # fmt: skip
DENSE = LayerSpec("dense", "Dense", "dense", (1, 64, 32), input_shapes=((64,),), output_shapes=((32,),))
FORMS = [Form(CONV, "svd_spatial", 24), Form(DENSE, "svd", 32)]
SIZE = 1152 + 2048 + 100, 64 * 1152 + 2048
FALLING = [np.geomspace(1, 1e-4, form.rank)[None] for form in FORMS]


def options(**changes: Any) -> DprpOptions:
    return DprpOptions(enabled=True, **changes)


def sizes(forms: list[Form]) -> dict[str, tuple[int, int]]:
    now = size_of(forms, *SIZE)
    return {"params": (SIZE[0], now[0]), "macs": (SIZE[1], now[1])}


# The course ---------------------------------------------------------------------------------------------------------


def test_the_target_is_reached_at_the_pace_and_then_stays() -> None:
    left = [epoch["left"] for epoch in course(options(params=0.5, pace=0.2, epochs=10))]
    assert left[:3] == [{"params": 0.8}, {"params": 0.6}, {"params": 0.5}]
    assert left[3:] == [None] * 7


def test_few_epochs_shrink_faster() -> None:
    left = [epoch["left"] for epoch in course(options(macs=0.4, pace=0.1, epochs=4))]
    assert left == [{"macs": 0.7}, {"macs": 0.4}, None, None]


def test_two_targets_are_reached_together() -> None:
    left = [epoch["left"] for epoch in course(options(params=0.5, macs=0.7, pace=0.25, epochs=8))]
    assert left[:2] == [{"params": 0.75, "macs": 0.75}, {"params": 0.5, "macs": 0.7}]


def test_the_rate_rises_stays_and_falls_without_a_gap() -> None:
    rates = [epoch["rates"] for epoch in course(options(epochs=10, cooldown=4, learning_rate=1.0))]
    assert rates[0] == [0.1, 1.0]
    assert [last for _, last in rates] == [1.0] * 6 + [0.75, 0.5, 0.25, 0.0]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(rates))


@pytest.mark.parametrize("change", [{"epochs": 30}, {"params": 0.3}])
def test_more_epochs_and_smaller_targets_begin_alike(change: dict[str, Any]) -> None:
    short = course(options(**{"params": 0.5, "epochs": 20}))
    other = course(options(**{"params": 0.5, "epochs": 20, **change}))
    alike = next(i for i, (one, two) in enumerate(zip(short, other, strict=False)) if one != two)
    assert alike == (12 if "epochs" in change else 5)


def test_without_a_target_ranks_shrink_until_the_rate_falls() -> None:
    epochs = course(options(epochs=6, cooldown=2))
    assert [epoch["shrinks"] for epoch in epochs] == [True] * 4 + [False] * 2
    assert all(epoch["left"] is None for epoch in epochs)


# Which ranks go -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3])
def test_the_share_is_met_and_hardly_undershot(share: float) -> None:
    forms, lost = next_forms(FORMS, FALLING, FALLING, sizes(FORMS), {"params": share}, 0.01)
    parameters = size_of(forms, *SIZE)[0]
    assert share - 0.03 < parameters / SIZE[0] <= share
    assert all(after.rank <= before.rank for before, after in zip(FORMS, forms, strict=True))
    for form, loss, energy in zip(forms, lost, FALLING, strict=True):
        assert loss == pytest.approx(energy[0, form.rank :].sum() / energy.sum())


def test_the_least_important_ranks_go() -> None:
    weights = [FALLING[0] * 1e6, FALLING[1]]
    forms, _ = next_forms(FORMS, FALLING, weights, sizes(FORMS), {"params": 0.6}, 0.01)
    assert forms[0].dense
    assert not forms[1].dense


def test_ranks_never_grow() -> None:
    forms, _ = next_forms(FORMS, FALLING, FALLING, sizes(FORMS), {"params": 0.4}, 0.01)
    energies = [energy[:, : form.rank] for energy, form in zip(FALLING, forms, strict=True)]
    again, lost = next_forms(forms, energies, energies, sizes(forms), {"params": 0.9}, 0.01)
    assert again == forms
    assert lost == [0.0, 0.0]


def test_the_tolerance_alone_decides_without_a_share() -> None:
    forms, lost = next_forms(FORMS, FALLING, FALLING, sizes(FORMS), None, 0.01)
    for form, loss, energy in zip(forms, lost, FALLING, strict=True):
        assert loss <= 0.01
        assert energy[0, form.rank - 1 :].sum() > 0.01 * energy.sum()
    kept, _ = next_forms(FORMS, FALLING, FALLING, sizes(FORMS), None, 1e-9)
    assert [form.rank for form in kept] == [form.rank for form in FORMS]


def test_a_rank_that_saves_nothing_counts_as_full() -> None:
    form = Form(CONV, "svd_spatial", 15)  # 15·(24 + 48) < 1152, 16·72 is not
    assert form.saves_at(15)
    assert not form.saves_at(16)
    assert form.cost == layer_cost(CONV)
    (after,), _ = next_forms(
        [Form(CONV, "svd_spatial", 20)], *(2 * [[np.r_[np.ones(17), 0, 0, 0][None]]]), {}, None, 0.01
    )
    assert after.dense
    assert after.rank == 17
    assert least_cost(form).parameters == 24 + 48


def test_the_weight_follows_what_the_target_costs() -> None:
    assert next_weight(0.1, [0.02, 0.02], [0.5, 0.5], 0.01) == pytest.approx(0.2)
    assert next_weight(0.1, [0.9, 0.9], [0.5, 0.5], 0.01) == pytest.approx(0.2)
    assert next_weight(0.1, [0.012, 0.0], [0.5, 0.5], 0.01) == pytest.approx(0.06)
    assert next_weight(0.1, [0.0, 0.0], [0.5, 0.5], 0.01) == pytest.approx(0.05)
