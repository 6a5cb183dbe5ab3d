"""The division: what is measured is disjoint, and more of one part keeps what is known about the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfgraph.errors import DataError
from lrfgraph.images.preprocessing import preprocessing
from lrfgraph.images.sources import Dataset
from lrfgraph.images.splits import split
from lrfgraph.options.recipe import DataOptions


def dataset(**arrays: np.ndarray) -> Dataset:
    return Dataset(dict(arrays), "")


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(12, 200),
    classes=st.integers(1, 5),
    labelled=st.booleans(),
    test=st.booleans(),
    how=st.sampled_from(["stratified", "blocks"]),
    share=st.sampled_from([0.1, 0.3, 5.0]),
    calibration=st.integers(1, 300),
)
def test_measured_parts_are_disjoint(*, count, classes, labelled, test, how, share, calibration) -> None:
    arrays = {"x_train": np.zeros((count, 2))} | ({"y_train": np.arange(count) % classes} if labelled else {})
    arrays |= {"x_test": np.zeros((7, 2))} if test else {}
    splits = split(dataset(**arrays), DataOptions(validation=share, calibration=calibration, split=how))
    assert splits.train is not None
    train, held, calibrates = (set(p.indices.tolist()) for p in (splits.train, splits.validation, splits.calibration))
    assert len(held) == len(splits.validation) > 0
    assert not held & train
    assert calibrates <= train
    assert len(calibrates) == min(calibration, len(train))
    assert train | held == set(range(count)) or how == "blocks"
    assert (splits.test is not None) == test


def test_all_beginnings_of_the_calibration_are_stratified_and_nested() -> None:
    labels = np.repeat([0, 1, 2], [100, 200, 300])
    source = dataset(x_train=np.zeros((600, 1)), y_train=labels)
    small, large = (split(source, DataOptions(calibration=n)).calibration.indices for n in (60, 240))
    np.testing.assert_array_equal(small, large[:60])
    np.testing.assert_allclose(np.bincount(labels[small]), [10, 20, 30], atol=1)


def test_validation_does_not_depend_on_calibration_but_on_the_seed() -> None:
    source = dataset(x_train=np.zeros((200, 1)), y_train=np.arange(200) % 4)
    first, second, third = (
        split(source, DataOptions(calibration=n, seed=s)).validation.indices for n, s in ((10, 0), (99, 0), (10, 1))
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)
    np.testing.assert_array_equal(np.bincount(np.arange(200)[first] % 4), [5, 5, 5, 5])


def test_blocks_share_no_track_with_training() -> None:
    # Each class is 30 tracks of 6 frames; the gap of a third of a run is longer than a track.
    labels = np.repeat(np.arange(4), 180)
    track = np.arange(720) // 6
    splits = split(dataset(x_train=np.zeros((720, 1)), y_train=labels), DataOptions(split="blocks", validation=0.15))
    assert splits.train is not None
    assert not set(track[splits.validation.indices]) & set(track[splits.train.indices])
    assert np.bincount(labels[splits.validation.indices]).tolist() == [27] * 4
    assert "left out" in splits.notes[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("validation", "held", "gap"), [(0.15, 27, 9), (0.1, 18, 6), (0.02, 4, 2), (600.0, 150, 10)])
def test_the_gap_is_a_third_of_the_run_on_either_side(validation: float, held: int, gap: int, seed: int) -> None:
    """Never more than a third of what the run leaves of its class; less where the class ends."""
    labels = np.repeat(np.arange(4), 180)
    options = DataOptions(split="blocks", validation=validation, seed=seed)
    splits = split(dataset(x_train=np.zeros((720, 1)), y_train=labels), options)
    assert splits.train is not None
    for number in range(4):
        first, last = 180 * number, 180 * number + 179
        run = splits.validation.indices[labels[splits.validation.indices] == number]
        start, end = int(run[0]), int(run[-1])
        assert end - start + 1 == len(run) == held
        rest = set(range(max(first, start - gap), min(last, end + gap) + 1))
        assert set(range(first, last + 1)) - set(splits.train.indices.tolist()) == rest


def test_without_labels_ten_runs_are_held_out() -> None:
    held = split(dataset(x_train=np.zeros((1000, 1))), DataOptions(split="blocks", validation=0.1)).validation.indices
    assert len(held) == 100
    assert np.count_nonzero(np.diff(held) > 1) == 9
    assert np.bincount(held // 100).tolist() == [10] * 10


def test_a_class_of_one_image_is_trained_on() -> None:
    labels = np.r_[np.zeros(50, int), 1]
    splits = split(dataset(x_train=np.zeros((51, 1)), y_train=labels), DataOptions(split="blocks", validation=0.2))
    assert splits.train is not None
    assert 50 in splits.train.indices
    assert len(splits.validation) == 10


def test_validation_share_is_capped() -> None:
    assert len(split(dataset(x_train=np.zeros((60_000, 1))), DataOptions()).validation) == 5000


def test_given_validation_is_used_whole() -> None:
    splits = split(dataset(x_train=np.zeros((50, 1)), x_val=np.zeros((8, 1))), DataOptions())
    assert (splits.validation.source, len(splits.validation), len(splits.train or [])) == ("val", 8, 50)


def test_test_part_alone_serves_all_three() -> None:
    splits = split(dataset(x_test=np.zeros((100, 1)), y_test=np.arange(100) % 2), DataOptions())
    parts = [p.indices for p in (splits.calibration, splits.validation, splits.test) if p is not None]
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert [len(p) for p in parts] == [22, 10, 68]
    assert splits.train is None
    assert "taken out of the test part" in " ".join(splits.notes)


@pytest.mark.parametrize("test", [True, False])
def test_a_validation_part_without_a_training_part_keeps_test_images_out_of_it(*, test: bool) -> None:
    arrays = {"x_val": np.zeros((100, 1)), "y_val": np.arange(100) % 2} | ({"x_test": np.zeros((9, 1))} if test else {})
    splits = split(dataset(**arrays), DataOptions())
    assert (splits.calibration.source, splits.validation.source, splits.train) == ("val", "val", None)
    parts = [splits.calibration.indices, splits.validation.indices]
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert [len(part) for part in parts] == [22, 78]
    assert (splits.test is not None and len(splits.test) == 9) == test
    assert "taken out of the val part; no fine-tuning" in " ".join(splits.notes)
    assert splits.notes[0] == "validation: 78 images of the val part that are not calibrated on"


@pytest.mark.parametrize(("count", "validation"), [(10, 10), (1, 0.1)])
def test_too_few_images(count: int, validation: float) -> None:
    with pytest.raises(DataError, match="leave none"):
        split(dataset(x_train=np.zeros((count, 1))), DataOptions(validation=validation))


def test_images_are_made_when_asked_for() -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    part = split(dataset(x_train=x, y_train=np.arange(60) % 3), DataOptions()).calibration
    images = part.images(dataset(x_train=x), [preprocessing(DataOptions(scale=1 / 255), (8, 8, 3))])
    assert images.shape == (len(part), 8, 8, 3)
    np.testing.assert_allclose(images[2:5], x[part.indices[2:5]] / 255, rtol=1e-6)
    np.testing.assert_allclose(images[np.array([3, 1])], x[part.indices[[3, 1]]] / 255, rtol=1e-6)
