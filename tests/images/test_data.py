from __future__ import annotations

import os
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lrfgraph.errors import DataError
from lrfgraph.images.splits import (
    Dataset,
    chance_level,
    guesses,
    load,
    prepare,
    preprocessing,
    source_digest,
    source_state,
    split,
    targets_of,
    task_of,
)
from lrfgraph.options.recipe import DataOptions

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
Y = np.arange(60) % 3


def save(folder: Path, name: str = "d.npz", **arrays: object) -> DataOptions:
    np.savez(folder / name, **arrays)
    return DataOptions(source=name)


def dataset(**arrays: np.ndarray) -> Dataset:
    return Dataset(dict(arrays), "")


def picture(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255)).save(path)


# ---- sources


@pytest.mark.parametrize(
    ("images", "labels"), [("x_train", "y_train"), ("X", "Y"), ("images", "labels"), ("Train_Images", "train_labels")]
)
def test_npz_names_are_recognised(tmp_path: Path, images: str, labels: str) -> None:
    loaded = load(save(tmp_path, **{images: X, labels: Y}), tmp_path)
    np.testing.assert_array_equal(loaded.x("train"), X)
    np.testing.assert_array_equal(loaded.y("train"), Y)


def test_npz_digest_is_of_content_not_of_name(tmp_path: Path) -> None:
    first = source_digest(save(tmp_path, "a.npz", x=X), tmp_path)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert source_digest(DataOptions(source="b.npz"), tmp_path) == first
    changed = X.copy()
    changed[0, 0, 0, 0] ^= 1
    assert source_digest(save(tmp_path, "c.npz", x=changed), tmp_path) != first


def test_statistics_enter_the_digest(tmp_path: Path) -> None:
    options = save(tmp_path, x=X)
    np.savez(tmp_path / "s.npz", mean=1.0, std=2.0)
    assert source_digest(DataOptions(source=options.source, stats="s.npz"), tmp_path) != source_digest(
        options, tmp_path
    )


def test_loading_twice_gives_the_same_object(tmp_path: Path) -> None:
    options = save(tmp_path, x=X)
    assert load(options, tmp_path) is load(options, tmp_path)


def test_unused_arrays_are_mentioned(tmp_path: Path) -> None:
    assert load(save(tmp_path, x=X, extra=Y), tmp_path).notes == ("ignored arrays: extra",)


def test_folder_of_class_folders(tmp_path: Path) -> None:
    for label, value in (("cat", 10), ("ant", 200)):
        picture(tmp_path / "pics" / label / "1.png", value)
        picture(tmp_path / "pics" / label / "2.PNG", value, size=(16, 16))
    loaded = load(DataOptions(source="pics"), tmp_path, (8, 8, 3))
    assert loaded.x("train").shape == (4, 8, 8, 3)
    assert loaded.x("train")[:, 0, 0, 0].tolist() == [200, 200, 10, 10]
    assert loaded.y("train").tolist() == [0, 0, 1, 1]


def test_folder_with_parts_in_grey_and_another_size(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("validation", 2), ("Test", 1)):
        for index in range(count):
            picture(tmp_path / part / "a" / f"{index}.png", 5)
    loaded = load(DataOptions(source=".", image_size=(4, 6)), tmp_path, (None, None, 1))
    assert [loaded.x(part).shape for part in ("train", "val", "test")] == [(n, 4, 6, 1) for n in (3, 2, 1)]


def test_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png", 1)
    assert load(DataOptions(source="pics"), tmp_path, (8, 8, 3)).y("train") is None


def test_folder_channels_first(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png", 7, size=(12, 8))
    assert load(DataOptions(source="pics"), tmp_path, (3, 8, 12)).x("train").shape == (1, 3, 8, 12)


def test_folder_digest_follows_names_and_bytes(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a" / "1.png", 5)
    picture(tmp_path / "two" / "a" / "1.png", 5)
    digests = [source_digest(DataOptions(source=name), tmp_path) for name in ("one", "two")]
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "b")
    assert digests[0] == digests[1] != source_digest(DataOptions(source="two"), tmp_path)


FUNCTIONS = """
import numpy as np
x = np.arange(96.0).reshape(6, 4, 4)
y = np.arange(6)
def pair(): return x, y
def four(): return x, y, x[:2], y[:2]
def nested(): return (x, y), (x[:2], y[:2])
def table(): return {"x_train": x, "y_train": y, "x_test": x[:2]}
def alone(): return x
def broken(): raise RuntimeError("no disk\\nsecond line")
def wrong(): return 1, 2, 3
"""


@pytest.mark.parametrize(
    ("name", "parts"),
    [("pair", 2), ("four", 4), ("nested", 4), ("table", 3), ("alone", 1)],
)
def test_functions(tmp_path: Path, name: str, parts: int, request: pytest.FixtureRequest) -> None:
    module = f"functions_{name}"
    (tmp_path / f"{module}.py").write_text(FUNCTIONS)
    options = DataOptions(source=f"{module}:{name}")
    loaded = load(options, tmp_path, (4, 4))
    assert len(loaded.arrays) == parts
    assert loaded.x("train").shape == (6, 4, 4)
    assert loaded.digest == source_digest(options, tmp_path)


STREAMS = """
import numpy as np, tensorflow as tf
x = np.arange(96, dtype="float32").reshape(6, 4, 4, 1)
def plain(): return tf.data.Dataset.from_tensor_slices((x, np.arange(6)))
def batched(): return plain().batch(4)
def named(): return {"train": plain().batch(4), "test": tf.data.Dataset.from_tensor_slices({"image": x[:2]})}
"""


@pytest.mark.parametrize(("name", "parts"), [("plain", 2), ("batched", 2), ("named", 3)])
def test_streams(tmp_path: Path, name: str, parts: int) -> None:
    module = f"streams_{name}"
    (tmp_path / f"{module}.py").write_text(STREAMS)
    loaded = load(DataOptions(source=f"{module}:{name}"), tmp_path, (4, 4, 1))
    assert len(loaded.arrays) == parts
    np.testing.assert_array_equal(loaded.x("train").ravel(), np.arange(96))
    assert loaded.y("train").tolist() == list(range(6))


def bad_sources(folder: Path) -> dict[str, tuple[str, str]]:
    """Name of the fault: source, message."""
    (folder / "text.npz").write_text("no archive")
    whole = folder / "whole.npz"
    np.savez(whole, x=X)
    (folder / "cut.npz").write_bytes(whole.read_bytes()[:1000])
    np.savez(folder / "objects.npz", x=np.array([{}, 1], dtype=object))
    np.savez(folder / "strange.npz", a=X, b=Y)
    np.savez(folder / "twice.npz", x=X, x_train=X)
    np.savez(folder / "empty.npz", x=X[:0])
    np.savez(folder / "texts.npz", x=X, y=np.array(["cat"] * 60))
    np.savez(folder / "nan.npz", x=np.full((4, 2, 2), np.nan))
    np.savez(folder / "length.npz", x=X, y=Y[:50])
    np.savez(folder / "labels.npz", x_train=X, y_test=Y)
    (folder / "nothing").mkdir()
    picture(folder / "loose" / "a" / "1.png", 1)
    picture(folder / "loose" / "2.png", 1)
    (folder / "torn" / "a").mkdir(parents=True)
    (folder / "torn" / "a" / "1.png").write_bytes(b"\x89PNG and no more")
    (folder / "bad_functions.py").write_text(FUNCTIONS)
    return {
        "missing": ("none.npz", r"none\.npz does not exist"),
        "text": ("text.npz", r"no whole \.npz file"),
        "truncated": ("cut.npz", r"cut\.npz cannot be read, it is no whole"),
        "objects": ("objects.npz", r"holds Python objects"),
        "unknown": ("strange.npz", r"has no images; received a, b"),
        "twice": ("twice.npz", r"names x_train twice"),
        "empty": ("empty.npz", r"x_train is empty; received shape \(0, 8, 8, 3\)"),
        "text labels": ("texts.npz", r"y_train must hold numbers; received <U3"),
        "nan": ("nan.npz", r"x_train holds values that are not finite"),
        "length": ("length.npz", r"x_train has 60 images, y_train 50 labels"),
        "no images": ("labels.npz", r"y_test is given without x_test"),
        "empty folder": ("nothing", r"nothing holds no images"),
        "loose": ("loose", r"2\.png lies beside the class folders"),
        "torn image": ("torn", r"1\.png cannot be read"),
        "raises": ("bad_functions:broken", r"bad_functions:broken raised RuntimeError: no disk$"),
        "too few": ("bad_functions:wrong", r"returned 3 values"),
        "no function": ("bad_functions:absent", r"raised AttributeError"),
        "no module": ("no_such_module_here:f", r"raised ModuleNotFoundError"),
    }


def test_bad_sources_are_one_line_each(tmp_path: Path) -> None:
    for source, message in bad_sources(tmp_path).values():
        with pytest.raises(DataError, match=message) as caught:
            load(DataOptions(source=source), tmp_path, (8, 8, 3))
        assert "\n" not in str(caught.value)


def test_no_source() -> None:
    with pytest.raises(DataError, match="no data given"):
        load(DataOptions())


def test_folder_for_a_model_of_any_size(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png", 1)
    with pytest.raises(DataError, match="--image-size"):
        load(DataOptions(source="pics"), tmp_path, (None, None, 3))


# ---- division


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


@pytest.mark.parametrize(("count", "validation"), [(10, 10), (1, 0.1)])
def test_too_few_images(count: int, validation: float) -> None:
    with pytest.raises(DataError, match="leave none"):
        split(dataset(x_train=np.zeros((count, 1))), DataOptions(validation=validation))


# ---- preprocessing


def test_prepare_formula_and_channels() -> None:
    options = DataOptions(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), channels="bgr")
    expected = (X[..., ::-1] / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    prepared = prepare(X, options, (8, 8, 3))
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, rtol=1e-5, atol=1e-5)


def test_prepare_channels_first() -> None:
    x = np.moveaxis(X, -1, 1)
    prepared = prepare(x, DataOptions(mean=(1.0, 2.0, 3.0)), (3, 8, 8))
    np.testing.assert_allclose(prepared, np.moveaxis(X - [1.0, 2.0, 3.0], -1, 1))


def test_prepare_adds_the_channel_axis_and_leaves_the_input_alone() -> None:
    before = X.copy()
    assert prepare(X[..., 0], DataOptions(scale=2), (8, 8, 1)).shape == (60, 8, 8, 1)
    np.testing.assert_array_equal(before, X)
    x = np.ones((2, 3, 1), np.float32)
    prepare(x, DataOptions(scale=2), (3, 1))
    assert x.max() == 1


def test_statistics_per_pixel(tmp_path: Path) -> None:
    mean, std = RANDOM.random((8, 8, 3)), RANDOM.random((8, 8, 3)) + 1
    np.savez(tmp_path / "s.npz", mean=mean, std=std)
    np.testing.assert_allclose(
        prepare(X, DataOptions(stats="s.npz"), (8, 8, 3), tmp_path), (X - mean) / std, rtol=1e-4, atol=1e-4
    )


def test_statistics_that_do_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mean=np.zeros((4, 4, 3)), std=np.ones(3))
    with pytest.raises(DataError, match=r"mean has shape \(4, 4, 3\), the model takes images \(8, 8, 3\)"):
        preprocessing(DataOptions(stats="s.npz"), (8, 8, 3), tmp_path)
    np.savez(tmp_path / "s.npz", mean=0)
    with pytest.raises(DataError, match="must hold arrays mean and std; received mean"):
        preprocessing(DataOptions(stats="s.npz"), (8, 8, 3), tmp_path)
    with pytest.raises(DataError, match=r"mean has shape \(1, 1, 2\)"):
        preprocessing(DataOptions(mean=(0, 1)), (8, 8, 3))


def test_images_of_another_shape() -> None:
    with pytest.raises(DataError, match=r"images have shape \(28, 28, 1\), the model takes \(32, 32, 3\)"):
        prepare(np.zeros((2, 28, 28, 1)), DataOptions(), (32, 32, 3))


def test_images_are_made_when_asked_for() -> None:
    part = split(dataset(x_train=X, y_train=Y), DataOptions()).calibration
    images = part.images(dataset(x_train=X), preprocessing(DataOptions(scale=1 / 255), (8, 8, 3)))
    assert images.shape == (len(part), 8, 8, 3)
    np.testing.assert_allclose(images[2:5], X[part.indices[2:5]] / 255, rtol=1e-6)
    np.testing.assert_allclose(images[np.array([3, 1])], X[part.indices[[3, 1]]] / 255, rtol=1e-6)


@pytest.mark.parametrize("images", [X, (X / 255).astype(np.float32), X[..., 0]])
def test_guesses_bring_either_range_to_the_same_values(images: np.ndarray) -> None:
    shape = images.shape[1:] if images.ndim == 4 else (*images.shape[1:], 1)
    tried = {name: prepare(images, options, shape) for name, options in guesses(images, DataOptions()).items()}
    assert tried["pixels 0..255"].max() > 200
    assert 0.9 < tried["--scale 1/255"].max() <= 1 + 1e-6
    assert tried["--scale 1/127.5 --mean 1"].min() < -0.9
    assert abs(tried["mean 0, deviation 1"].std() - 1) < 1e-2
    assert ("ImageNet mean and std" in tried) == (shape[-1] == 3)


# ---- task and targets


@pytest.mark.parametrize(
    ("y", "inputs", "outputs", "task"),
    [
        (Y, (8, 8, 3), (3,), "classification"),
        (np.eye(3)[Y], (8, 8, 3), (3,), "classification"),
        (Y % 2, (8, 8, 3), (1,), "classification"),
        (RANDOM.random(60), (8, 8, 3), (1,), "regression"),
        (RANDOM.random((60, 3)), (8, 8, 3), (3,), "regression"),
        (Y, (8, 8, 3), (8, 8, 3), "regression"),
        (None, (8, 8, 3), (3,), "classification"),
        (None, (5,), (5,), "regression"),
    ],
)
def test_task(y: np.ndarray | None, inputs: tuple[int, ...], outputs: tuple[int, ...], task: str) -> None:
    assert task_of(DataOptions(), y, inputs, outputs) == task
    assert task_of(DataOptions(task="regression"), y, inputs, outputs) == "regression"


def test_targets() -> None:
    for y in (Y, Y[:, None], np.eye(3)[Y], Y.astype(np.float64)):
        np.testing.assert_array_equal(targets_of(y, "classification", (3,)), Y)
    assert targets_of(Y, "regression", (8, 8, 3)) is None
    assert targets_of(np.ones(4), "regression", (1,)).shape == (4, 1)
    assert targets_of(None, "classification", (3,)) is None


@pytest.mark.parametrize(
    ("y", "outputs", "message"),
    [
        (Y, (2,), r"labels run from 0 to 2, the model has 2 classes \(0 to 1\)"),
        (Y - 1, (3,), r"labels run from -1 to 1"),
        (Y / 2, (3,), r"whole numbers, received fractions"),
        (np.zeros((60, 5)), (3,), r"labels have shape \(5,\), the model's output \(3,\)"),
    ],
)
def test_labels_that_do_not_fit(y: np.ndarray, outputs: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        targets_of(y, "classification", outputs)


def test_chance_level() -> None:
    assert chance_level(np.array([0, 0, 0, 1])) == 0.75


def test_the_state_of_a_source_changes_with_its_files(tmp_path: Path) -> None:
    options = save(tmp_path, "a.npz", x=X)
    assert source_state(options, tmp_path) is None  # written a moment ago: another write could look the same

    def state() -> str | None:
        with patch("lrfgraph.images.sources.SETTLED", -(10**9)):
            return source_state(options, tmp_path)

    first = state()
    assert first is not None
    assert state() == first
    content, times = (tmp_path / "a.npz").read_bytes(), (tmp_path / "a.npz").stat()
    time.sleep(0.05)  # more than a tick of the file system's clock
    (tmp_path / "a.npz").write_bytes(content[:-1] + b"x")
    os.utime(tmp_path / "a.npz", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert state() != first  # the same size and time of change, but not the same moment of writing
    with patch("lrfgraph.images.sources.SETTLED", -(10**9)):
        for other in (DataOptions(source="none.npz"), DataOptions(source="module:function"), DataOptions()):
            assert source_state(other, tmp_path) is None
