"""Targets: what is made of labels, and which labels are refused."""

from __future__ import annotations

import numpy as np
import pytest

from lrfgraph.errors import DataError
from lrfgraph.images.targets import (
    class_numbers,
    classes_of,
    fits,
    is_one_hot,
    label_sets,
    numbers,
    share_of_largest_class,
)

Y = np.arange(60) % 3


def test_class_numbers() -> None:
    for y in (Y, Y[:, None], np.eye(3)[Y], Y.astype(np.float64)):
        made = class_numbers(y, (3,))
        np.testing.assert_array_equal(made, Y)
        assert made.dtype == np.int64


def test_rows_of_two_classes_are_numbered_too() -> None:
    np.testing.assert_array_equal(class_numbers(np.eye(2)[Y % 2], (2,)), Y % 2)


@pytest.mark.parametrize("y", [np.arange(24).reshape(2, 3, 4) % 5, np.eye(5)[np.arange(24).reshape(2, 3, 4) % 5]])
def test_class_numbers_of_positions_are_small(y: np.ndarray) -> None:
    made = class_numbers(y, (3, None, 5))
    np.testing.assert_array_equal(made, np.arange(24).reshape(2, 3, 4) % 5)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(class_numbers(made[..., None] % 2, (3, 4, 1)), made % 2)


@pytest.mark.parametrize(("classes", "kind"), [(2, np.uint8), (256, np.uint8), (257, np.int32)])
def test_class_numbers_of_positions_hold_all_classes(classes: int, kind: type) -> None:
    y = np.full((2, 3, 4), classes - 1)
    made = class_numbers(y, (3, 4, classes))
    assert made.dtype == kind
    np.testing.assert_array_equal(made, y)


def test_a_last_axis_of_one_position_is_kept() -> None:
    assert class_numbers(np.ones((2, 4, 1)), (4, 1, 5)).shape == (2, 4, 1)
    assert class_numbers(np.ones((2, 4, 1, 1)), (4, 1, 5)).shape == (2, 4, 1)


def test_class_numbers_where_the_model_does_not_say_how_many() -> None:
    np.testing.assert_array_equal(class_numbers(Y + 100, (None,)), Y + 100)
    np.testing.assert_array_equal(class_numbers(Y[:, None], (None,)), Y)


@pytest.mark.parametrize(
    ("y", "outputs", "message"),
    [
        (Y, (2,), r"labels run from 0 to 2, the model has 2 classes \(0 to 1\)"),
        (Y, (1,), r"labels run from 0 to 2, the model has 2 classes"),
        (Y - 1, (3,), r"labels run from -1 to 1"),
        (Y / 2, (3,), r"whole numbers, received fractions; or set data.head=values"),
        (np.zeros((60, 5)), (3,), r"labels have shape \(5,\), the model's output \(3,\)"),
        (np.zeros((60, 4, 4)), (8, 8, 3), r"labels have shape \(4, 4\), the model's output \(8, 8, 3\)"),
    ],
)
def test_labels_that_are_no_class_numbers(y: np.ndarray, outputs: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_numbers(y, outputs)


def test_sets_of_labels() -> None:
    made = label_sets(np.array([[0, 1.0], [1, 1]]), (2,))
    assert made.tolist() == [[0, 1], [1, 1]]
    assert made.dtype == np.uint8
    with pytest.raises(DataError, match=r"must be 0 or 1, received 0 to 2; or set data.head=values"):
        label_sets(np.array([[0, 2]]), (2,))
    with pytest.raises(DataError, match=r"labels have shape \(3,\), the model's output \(2,\); give 0 or 1 for each"):
        label_sets(np.zeros((4, 3)), (2,))


def test_numbers_take_the_outputs_shape_or_are_none() -> None:
    assert numbers(Y, (8, 8, 3)) is None
    made = numbers(np.ones(4), (1,))
    assert made is not None
    assert (made.shape, made.dtype) == ((4, 1), np.float32)


def test_classes_are_whole_numbers_or_rows_with_a_single_one() -> None:
    for y in (Y, Y[:, None], np.eye(3)[Y], Y.astype(np.float32)):
        np.testing.assert_array_equal(classes_of(y), Y)
    for y in (None, Y / 2, np.ones((60, 2)), np.zeros((60, 2, 2))):
        assert classes_of(y) is None


def test_share_of_the_largest_class() -> None:
    assert share_of_largest_class(np.array([0, 0, 0, 1])) == 0.75


def test_a_shape_fits_where_every_known_length_is_met() -> None:
    assert fits((4, 3), (None, 3))
    assert fits((), ())
    assert not fits((4, 3), (None, 2))
    assert not fits((4, 3), (3,))
    assert not fits((3,), (None, 3))


@pytest.mark.parametrize(
    ("y", "one_hot"),
    [
        (np.eye(3), True),
        (np.eye(2)[Y % 2], True),
        (np.ones((3, 1)), False),
        (np.ones((3, 2)), False),
        (np.array([[2, -1], [0, 1]]), False),
        (np.eye(3)[None], False),
        (np.array([1, 0]), False),
    ],
)
def test_rows_with_a_single_one(y: np.ndarray, one_hot: bool) -> None:
    assert is_one_hot(y) == one_hot
