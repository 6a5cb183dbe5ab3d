"""A measure of the user's: what it may return, its standard error, and how it decides."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.errors import DataError
from lrfgraph.network.evaluating import deciding, measure
from lrfgraph.network.heads import OWN, head_of, titles
from lrfgraph.network.measures import standard_error

RANDOM = np.random.default_rng(0)
TARGETS = RANDOM.integers(0, 4, 501)
OUTPUTS = (np.eye(4)[np.where(RANDOM.random(501) < 0.8, TARGETS, 0)] * 3 + 1).astype("float32")

Named = Callable[[Any], str]


@pytest.fixture
def named() -> Iterator[Named]:
    """Makes a function known as ``own_measures:own``."""
    module = types.ModuleType("own_measures")
    sys.modules["own_measures"] = module

    def name(function: Any) -> str:
        module.own = function  # type: ignore[attr-defined]
        return "own_measures:own"

    yield name
    del sys.modules["own_measures"]


def right(targets: Any, outputs: Any) -> Any:
    return outputs.argmax(-1) == targets


def measured(metric: str) -> dict[str, float | int]:
    return measure(OUTPUTS, TARGETS, head_of("logits", "linear", metric))


def test_one_number_an_image_is_its_mean_and_decides(named: Named) -> None:
    own = measured(named(lambda targets, outputs: 0.5 * right(targets, outputs)))
    plain = measure(OUTPUTS, TARGETS, head_of("logits", "linear"))
    assert own["accuracy"] == own[OWN] == pytest.approx(0.5 * plain["accuracy"])
    assert own["n"] == plain["n"]
    assert own["top1"] == plain["accuracy"]
    assert list(titles("logits", "package.module:mine").items())[:2] == [(OWN, "mine"), ("top1", "accuracy")]


def test_one_number_for_all_has_the_standard_error_of_the_mean(named: Named) -> None:
    own = measured(named(lambda targets, outputs: right(targets, outputs).mean()))
    plain = measure(OUTPUTS, TARGETS, head_of("logits", "linear"))
    assert own["accuracy"] == pytest.approx(plain["accuracy"], abs=1e-12)
    assert own["accuracy_se"] == pytest.approx(plain["accuracy_se"], rel=0.3)


def test_a_paired_difference_is_tighter_than_either(named: Named) -> None:
    worse = OUTPUTS.copy()
    worse[:5] = worse[:5, ::-1]
    head = head_of("logits", "linear", named(lambda targets, outputs: float(right(targets, outputs).mean())))
    before, after = (deciding(outputs, TARGETS, head) for outputs in (OUTPUTS, worse))
    assert before is not None
    assert after is not None
    assert standard_error(before - after) < standard_error(before) / 2


def test_it_sees_outputs_as_the_network_gives_them(named: Named) -> None:
    seen = []

    def own(targets: Any, outputs: Any) -> float:
        seen.append((targets, outputs))
        return 1.0

    measure(OUTPUTS, TARGETS, head_of("softmax", "softmax", named(own)))
    np.testing.assert_array_equal(seen[0][0], TARGETS)
    np.testing.assert_array_equal(seen[0][1], OUTPUTS)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda targets, outputs: sys.exit(3), "raised SystemExit"),
        (lambda targets, outputs: outputs, r"must return a number, or one for each of 501 images; received shape"),
        (lambda targets, outputs: np.nan, "received a value that is not finite"),
        (lambda targets: 0.0, "raised TypeError"),
        (lambda targets, outputs: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda targets, outputs: "much", "received|raised"),
    ],
)
def test_what_is_no_measure_is_refused(named: Named, function: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        measured(named(function))


def test_what_it_does_to_its_arrays_is_its_own_business(named: Named) -> None:
    def own(targets: Any, outputs: Any) -> Any:
        each = right(targets, outputs)
        outputs.sort(-1)
        targets[:] = 0
        return each

    head, targets, outputs = head_of("logits", "linear", named(own)), TARGETS.copy(), OUTPUTS.copy()
    measure(outputs, targets, head)
    np.testing.assert_array_equal(outputs, OUTPUTS)
    np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("text", ["x = (", "1 / 0", "raise SystemExit(3)", "import nowhere_at_all"])
def test_a_module_that_cannot_be_imported_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=rf"^metric {name}:own: {name} cannot be imported"):
        head_of("logits", "linear", f"{name}:own")


@pytest.mark.parametrize(
    ("metric", "words"),
    [("no_such_module:own", "cannot be imported"), ("json:no_such_name", "json has no function no_such")],
)
def test_what_cannot_be_imported_is_refused(metric: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        head_of("logits", "linear", metric)
