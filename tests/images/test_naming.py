"""Names of arrays: known spellings, the inputs of a network that has several, and what is missing or twice there."""

from __future__ import annotations

import numpy as np
import pytest

from lrfgraph.errors import DataError
from lrfgraph.images.naming import ALIASES, KNOWN_AS, input_names, recognise

X = np.zeros((4, 2))
ONE = {"": (2,)}
TWO = {"left": (2,), "right": (2,)}


def test_every_spelling_is_of_one_name() -> None:
    assert len(KNOWN_AS) == sum(map(len, ALIASES.values()))
    for name, spellings in ALIASES.items():
        assert spellings[0] == name
        for spelling in spellings:
            beside = "x" if name == "x_test" else "x_test"
            assert name in recognise({spelling.upper(): X, beside: X}, "s", ONE)[0]


def test_a_single_input_needs_no_name() -> None:
    assert input_names(ONE) == input_names({}) == ()
    assert input_names(TWO) == ("left", "right")
    assert recognise({"x": X, "left": X}, "s", ONE) == ({"x_train": X}, ("ignored arrays: left",))


@pytest.mark.parametrize("spelling", ["x_train/{}", "x_train.{}", "x_train_{}", "X_Train_{}", "images/{}", "x/{}"])
@pytest.mark.parametrize("by", ["name", "place"])
def test_inputs_may_be_written_in_several_ways(spelling: str, by: str) -> None:
    own = ("left", "right") if by == "name" else ("0", "1")
    arrays, notes = recognise({spelling.format(own[1]): X + 1, spelling.format(own[0]): X, "y": X[:, 0]}, "s", TWO)
    assert sorted(arrays) == ["x_train/left", "x_train/right", "y_train"]
    assert arrays["x_train/right"].max() == 1 > arrays["x_train/left"].max()
    assert notes == ()


def test_an_input_alone_is_one_of_training() -> None:
    arrays, notes = recognise({"left": X, "right": X, "x_test/left": X, "x_test/right": X, "more": X}, "s", TWO)
    assert sorted(arrays) == ["x_test/left", "x_test/right", "x_train/left", "x_train/right"]
    assert notes == ("ignored arrays: more",)


def test_an_array_of_all_inputs_is_taken_apart() -> None:
    arrays, _ = recognise({"x": np.stack([X, X + 1]), "y_train": X[:, 0]}, "s", TWO)
    assert arrays["x_train/left"].max() == 0
    assert arrays["x_train/right"].min() == 1
    assert sorted(arrays) == ["x_train/left", "x_train/right", "y_train"]


@pytest.mark.parametrize("name", ["leftover", "y_left", "x_train-left", "x_trainleft", "y_train/left", "_left"])
def test_what_only_looks_like_an_input_is_ignored(name: str) -> None:
    _, notes = recognise({"left": X, "right": X, name: X}, "s", TWO)
    assert notes == (f"ignored arrays: {name}",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["left"],
            "s has no x_train/right; the model takes the inputs left, right, give an array of each, as x_train/left",
        ),
        (["left", "right", "x_test/right"], "s has no x_test/left"),
        (["x"], "s has no x_train/left"),
        (["left", "right", "x_train/0"], "s names x_train/left twice; received left, right, x_train/0"),
        (["y"], "s has no images; received y, name them x_train and x_test, or x"),
        ([], "s has no images; received nothing"),
    ],
)
def test_what_is_missing_or_twice_there_is_named(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        recognise(dict.fromkeys(names, X), "s", TWO)
