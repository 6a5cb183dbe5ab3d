"""What a user's function may return, and what is made of it: the same arrays whichever way they are said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.engine.memory import forget
from lrfgraph.errors import DataError
from lrfgraph.images import functions
from lrfgraph.images.functions import Elements, call_function, import_function, join_elements

X, Y = np.arange(24.0).reshape(6, 2, 2), np.arange(6)
INPUTS = {"left": (2, 2), "right": (2,)}


class Stream:
    """As much of a tf.data.Dataset as is asked for."""

    def __init__(self, *elements: Any, length: int | None = None) -> None:
        self.elements, self.length = elements, len(elements) if length is None else length

    def cardinality(self) -> int:
        return self.length

    def as_numpy_iterator(self) -> Iterator[Any]:
        return iter(self.elements)


def returned(value: object, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is made of a function's value."""
    forget()
    monkeypatch.setattr(functions, "import_function", lambda source, base: lambda: value)
    return call_function("mine:data", Path())


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (X, ["x_train"]),
        ((X,), ["x_train"]),
        ((X, Y), ["x_train", "y_train"]),
        ((X, Y, X, Y), ["x_train", "y_train", "x_test", "y_test"]),
        (((X, Y), (X, Y)), ["x_train", "y_train", "x_test", "y_test"]),
        ((X, Y, X, Y, X, Y), ["x_train", "y_train", "x_val", "y_val", "x_test", "y_test"]),
        (((X, Y), (X, Y), (X, Y)), ["x_train", "y_train", "x_val", "y_val", "x_test", "y_test"]),
        ({"images": X, "labels": Y}, ["images", "labels"]),
        ({"x": {"left": X, "right": Y}}, ["x/left", "x/right"]),
        ({"x": (X, Y)}, ["x/0", "x/1"]),
        (({"left": X, "right": Y}, Y), ["x_train/left", "x_train/right", "y_train"]),
        ((Stream((X[0], 1)),), ["x_train", "y_train"]),
        ((Stream(X[0]), Stream(X[0])), ["x_train", "x_test"]),
        ((Stream(X[0]), Stream(X[0]), Stream(X[0])), ["x_train", "x_val", "x_test"]),
        (
            {"Validation": Stream((X[0], 1)), "test": Stream(X[0]), "more": Stream(X[0])},
            ["x_val", "y_val", "x_test", "x_train"],
        ),
        (Stream({"image": X[0], "label": 1}), ["x_train", "y_train"]),
        (Stream({"left": X[0], "right": Y, "label": 1}), ["x_train/left", "x_train/right", "y_train"]),
        (Stream(({"left": X[0], "right": Y}, 1)), ["x_train/left", "x_train/right", "y_train"]),
        (Stream(((X[0], Y), 1)), ["x_train/0", "x_train/1", "y_train"]),
    ],
)
def test_values_have_names(value: object, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(returned(value, monkeypatch)) == names


@pytest.mark.parametrize(
    ("value", "count"), [((X, Y, X), 3), (((X, Y), (X, Y, X)), 5), ((Stream(X),) * 4, 4), ((Stream(X), Y), 2)]
)
def test_other_values_are_refused(value: object, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"gave {count} values; give a dict of arrays or \\(x, y\\), or up to"):
        returned(value, monkeypatch)


def test_a_function_that_gives_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, received in ((None, "None"), ((), "0 values"), ((X, None), "2 values")):
        with pytest.raises(DataError, match=f"^data function mine:data gave {received}; give a dict of arrays"):
            returned(value, monkeypatch)


def test_a_tuple_of_numbers_is_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    made = returned({"x": X, "y": (0, 1, 2, 0, 1, 2)}, monkeypatch)
    assert made["y"].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_stream_is_read_whole_if_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "LONGEST_STREAM", 3)
    assert len(returned(Stream(*X, length=6), monkeypatch)["x_train"]) == 6
    assert len(returned(Stream(*X[:3], length=-2), monkeypatch)["x_train"]) == 3
    with pytest.raises(DataError, match=r"does not say how long it is, and has more than 3 elements; let it end"):
        returned(Stream(*X[:4], length=-2), monkeypatch)
    with pytest.raises(
        DataError, match=r"the train stream of data function mine:data does not end; let it end with \.take"
    ):
        returned(Stream(*X, length=-1), monkeypatch)


def test_words_in_a_stream_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (b"cat", np.array(b"cat", object)):
        with pytest.raises(DataError, match=r"data function mine:data: y_train must hold numbers; received "):
            returned(Stream((X[0], 1), (X[0], word)), monkeypatch)


def test_a_function_is_called_once_until_all_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "called_once.py").write_text("calls = []\ndef data():\n    calls.append(1)\n    return [len(calls)]\n")
    for _ in range(2):
        assert call_function("called_once:data", tmp_path)["x_train"].tolist() == [1]
    forget()
    assert call_function("called_once:data", tmp_path)["x_train"].tolist() == [2]
    assert import_function("called_once:data", tmp_path)() == [3]


def test_a_mistake_in_a_function_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mistaken.py").write_text(
        "def silent():\n    raise KeyError\ndef long():\n    raise ValueError('a\\nb')\n"
    )
    with pytest.raises(DataError, match=r"mistaken:silent raised KeyError: $"):
        call_function("mistaken:silent", tmp_path)
    with pytest.raises(DataError, match=r"mistaken:long raised ValueError: a$"):
        call_function("mistaken:long", tmp_path)


def test_elements_are_stacked_and_batches_joined() -> None:
    single = join_elements({"x_train": Elements(X), "y_train": Elements(Y), "y": X}, {"": (2, 2)})
    np.testing.assert_array_equal(single["x_train"], X)
    np.testing.assert_array_equal(single["y_train"], Y)
    assert single["y"] is X
    batched = join_elements({"x_test": Elements([X[:4], X[4:]]), "y_test": Elements([Y[:4], Y[4:]])}, {"": (2, 2)})
    np.testing.assert_array_equal(batched["x_test"], X)
    np.testing.assert_array_equal(batched["y_test"], Y)


@pytest.mark.parametrize("names", [("left", "right"), ("0", "1")])
def test_whether_elements_are_batches_says_the_input_they_are_of(names: tuple[str, str]) -> None:
    """An element of two axes is one picture of the left input, and a batch of the right one."""
    left, right = names
    parts = {f"x_train/{left}": Elements([X, X]), "y_train": Elements([Y, Y])}
    assert join_elements(parts, INPUTS)["y_train"].shape == (12,)
    parts = {f"x_train/{right}": Elements(X[0]), "y_train": Elements([Y, Y])}
    made = join_elements(parts, INPUTS)
    assert (made[f"x_train/{right}"].shape, made["y_train"].shape) == ((2, 2), (2, 6))


def test_elements_of_several_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"x_train: the stream's elements differ in shape; received \(2, 2\) first"):
        join_elements({"x_train": Elements([X[0], X[0, :1]])}, {"": (2, 2)})


def test_without_a_network_elements_are_batches() -> None:
    assert join_elements({"x_train": Elements([X, X])}, {})["x_train"].shape == (12, 2, 2)
    assert join_elements({"x_train/left": Elements([X, X])}, {})["x_train/left"].shape == (12, 2, 2)
