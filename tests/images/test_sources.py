"""Sources of images: what is read, what it is known by, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrfgraph.engine.memory import forget
from lrfgraph.errors import DataError
from lrfgraph.images.sources import load, source_digest
from lrfgraph.options.recipe import DataOptions

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
Y = np.arange(60) % 3


def save(folder: Path, name: str = "d.npz", **arrays: object) -> DataOptions:
    np.savez(folder / name, **arrays)
    return DataOptions(source=name)


def picture(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255)).save(path)


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
    loaded = load(DataOptions(source="pics"), tmp_path, {"": (8, 8, 3)})
    assert loaded.x("train").shape == (4, 8, 8, 3)
    assert loaded.x("train")[:][:, 0, 0, 0].tolist() == [200, 200, 10, 10]
    assert loaded.y("train").tolist() == [0, 0, 1, 1]


def test_folder_with_parts_in_grey_and_another_size(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("validation", 2), ("Test", 1)):
        for index in range(count):
            picture(tmp_path / part / "a" / f"{index}.png", 5)
    loaded = load(DataOptions(source=".", image_size=(4, 6)), tmp_path, {"": (None, None, 1)})
    assert [loaded.x(part).shape for part in ("train", "val", "test")] == [(n, 4, 6, 1) for n in (3, 2, 1)]


def test_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png", 1)
    assert load(DataOptions(source="pics"), tmp_path, {"": (8, 8, 3)}).y("train") is None


def test_folder_channels_first(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png", 7, size=(12, 8))
    assert load(DataOptions(source="pics"), tmp_path, {"": (3, 8, 12)}).x("train").shape == (1, 3, 8, 12)


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
def words(): return x, np.array(["cat"] * 6)
"""


@pytest.mark.parametrize(
    ("name", "parts"),
    [("pair", 2), ("four", 4), ("nested", 4), ("table", 3), ("alone", 1)],
)
def test_functions(tmp_path: Path, name: str, parts: int, request: pytest.FixtureRequest) -> None:
    module = f"functions_{name}"
    (tmp_path / f"{module}.py").write_text(FUNCTIONS)
    options = DataOptions(source=f"{module}:{name}")
    loaded = load(options, tmp_path, {"": (4, 4)})
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
    loaded = load(DataOptions(source=f"{module}:{name}"), tmp_path, {"": (4, 4, 1)})
    assert len(loaded.arrays) == parts
    np.testing.assert_array_equal(loaded.x("train").ravel(), np.arange(96))
    assert loaded.y("train").tolist() == list(range(6))


ENDS = """
import tensorflow as tf, numpy as np
def endless(): return tf.data.Dataset.from_tensor_slices(np.zeros((3, 2))).repeat()
def unknown(): return tf.data.Dataset.from_generator(lambda: (np.zeros(2) for _ in range(7)), output_signature=SPEC)
def said(): return unknown().apply(tf.data.experimental.assert_cardinality(7))
SPEC = tf.TensorSpec((2,), "float64")
"""


def test_a_stream_is_read_to_its_end_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends_of_streams.py").write_text(ENDS)

    def loaded(name: str) -> int:
        return len(load(DataOptions(source=f"ends_of_streams:{name}"), tmp_path, {"": (2,)}).x("train"))

    assert loaded("unknown") == 7
    forget()
    monkeypatch.setattr("lrfgraph.images.functions.LONGEST_STREAM", 6)
    assert loaded("said") == 7
    with pytest.raises(DataError, match=r"does not say how long it is, and has more than 6 elements; let it end with"):
        loaded("unknown")
    with pytest.raises(
        DataError, match=r"the train stream of data function ends_of_streams:endless does not end; let it end with"
    ):
        loaded("endless")


# ---- several inputs

LEFT, RIGHT = RANDOM.random((10, 4, 4, 1)), RANDOM.random((10, 5))
INPUTS = {"left": (4, 4, 1), "right": (5,)}


@pytest.mark.parametrize(
    "names", [("x_train.left", "x_train.right"), ("x/left", "X/1"), ("train_images_left", "right")]
)
def test_arrays_of_several_inputs_are_recognised(tmp_path: Path, names: tuple[str, str]) -> None:
    options = save(tmp_path, **dict(zip(names, (LEFT, RIGHT), strict=True)), y_train=Y[:10], other=Y)
    loaded = load(options, tmp_path, INPUTS)
    assert loaded.notes == ("ignored arrays: other",)
    for array, expected in zip(loaded.inputs("train"), (LEFT, RIGHT), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert loaded.has("train")
    assert not loaded.has("test")


SEVERAL = """
import numpy as np
left, right, y = np.zeros((10, 4, 4, 1)), np.ones((10, 5)), np.arange(10)
def dictionary(): return {"left": left, "right": right, "y": y}
def named(): return {"x_train": {"right": right, "left": left}, "y_train": y}
def pair(): return (left, right), y
def parts(): return {"left": left, "right": right}, y, {"left": left[:2], "right": right[:2]}, y[:2]
def listed(): return {"x": np.stack([left, left]), "y": y}
def stream():
    import tensorflow as tf
    return tf.data.Dataset.from_tensor_slices(({"left": left, "right": right}, y))
def batches():
    import tensorflow as tf
    return tf.data.Dataset.from_tensor_slices(((left, right), y)).batch(4)
"""


@pytest.mark.parametrize("name", ["dictionary", "named", "pair", "parts", "stream", "batches"])
def test_functions_give_several_inputs(tmp_path: Path, name: str) -> None:
    module = f"several_{name}"
    (tmp_path / f"{module}.py").write_text(SEVERAL)
    loaded = load(DataOptions(source=f"{module}:{name}"), tmp_path, INPUTS)
    left, right = loaded.inputs("train")
    assert (left.shape, right.shape, right.min()) == ((10, 4, 4, 1), (10, 5), 1)
    np.testing.assert_array_equal(loaded.y("train"), np.arange(10))
    if name == "parts":
        assert [array.shape for array in loaded.inputs("test")] == [(2, 4, 4, 1), (2, 5)]


def test_equal_inputs_may_be_stacked(tmp_path: Path) -> None:
    (tmp_path / "several_listed.py").write_text(SEVERAL)
    loaded = load(DataOptions(source="several_listed:listed"), tmp_path, {"a": (4, 4, 1), "b": (4, 4, 1)})
    assert [array.shape for array in loaded.inputs("train")] == [(10, 4, 4, 1)] * 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": LEFT},
            r"has no x_train/left; the model takes the inputs left, right, give an array of each, as x_train/",
        ),
        ({"x_train.left": LEFT}, r"has no x_train/right"),
        ({"x_train.left": LEFT, "x_train.right": RIGHT[:3]}, r"x_train/left has 10 images, x_train/right 3 images"),
        ({"x_train.left": LEFT, "left": LEFT, "right": RIGHT}, r"names x_train/left twice"),
    ],
)
def test_several_inputs_that_are_not_all_there(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(save(tmp_path, **arrays), tmp_path, INPUTS)


def test_a_folder_has_no_several_inputs(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png", 1)
    with pytest.raises(DataError, match="has images for one input, the model takes left, right; give a"):
        load(DataOptions(source="pics"), tmp_path, INPUTS)


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
        "too few": ("bad_functions:wrong", r"bad_functions:wrong gave 3 values"),
        "words": ("bad_functions:words", r"y_train must hold numbers; received <U3"),
        "no function": ("bad_functions:absent", r"raised AttributeError"),
        "no module": ("no_such_module_here:f", r"raised ModuleNotFoundError"),
    }


def test_bad_sources_are_one_line_each(tmp_path: Path) -> None:
    for source, message in bad_sources(tmp_path).values():
        with pytest.raises(DataError, match=message) as caught:
            load(DataOptions(source=source), tmp_path, {"": (8, 8, 3)})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 1024, 1025, 2049])
def test_a_single_value_that_is_no_number_is_found_wherever_it_is(tmp_path: Path, count: int) -> None:
    for place in {0, count // 2, count - 1}:
        x = np.zeros((count, 2), np.float32)
        x[place, 1] = np.inf
        with pytest.raises(DataError, match="x_train holds values that are not finite"):
            load(save(tmp_path, x=x), tmp_path)
    assert load(save(tmp_path, x=np.zeros((count, 2))), tmp_path).x("train").shape == (count, 2)


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ((8, 8, 3), (8, 8, 3)),
        ((8, 8, 1), (8, 8, 1)),
        ((8, 8, 4), (8, 8, 4)),
        ((8, 8, 5), (8, 8, 3)),
        ((1, 8, 8), (1, 8, 8)),
        ((8, 8, None), (8, 8, 3)),
        ((8, 6, 3), (8, 6, 3)),
        ((4, 8, 6), (4, 8, 6)),
        ((3, 8, 3), (3, 8, 3)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_pictures_take_the_colours_and_the_size_of_the_model(
    tmp_path: Path, shape: tuple[int | None, ...], made: tuple[int, ...]
) -> None:
    picture(tmp_path / "pics" / "a.png", 7, size=(9, 11))
    assert load(DataOptions(source="pics"), tmp_path, {"": shape}).x("train").shape == (1, *made)


def test_height_comes_before_width_and_a_picture_of_the_right_size_is_left_alone(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    (tmp_path / "pics").mkdir()
    Image.fromarray(values).save(tmp_path / "pics" / "a.png")
    np.testing.assert_array_equal(load(DataOptions(source="pics"), tmp_path, {"": (6, 4, 3)}).x("train")[0], values)
    small = load(DataOptions(source="pics", image_size=(3, 2)), tmp_path, {"": (None, None, 3)}).x("train")[0]
    assert small.shape == (3, 2, 3)
    assert np.abs(small.astype(float) - values.reshape(3, 2, 2, 2, 3).mean((1, 3))).max() < 64


def test_no_source() -> None:
    with pytest.raises(DataError, match="no data given"):
        load(DataOptions())


def test_folder_for_a_model_of_any_size(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png", 1)
    with pytest.raises(DataError, match="--image-size"):
        load(DataOptions(source="pics"), tmp_path, {"": (None, None, 3)})


# Validation images of their own -------------------------------------------------------------------------------------


def test_validation_images_that_are_given_apart_take_the_place_of_a_part(tmp_path: Path) -> None:
    save(tmp_path, "train.npz", x_train=X[:40], y_train=Y[:40], x_val=X[:5], y_val=Y[:5], x_test=X[40:], y_test=Y[40:])
    for name in ("x_val", "x_test", "x"):
        save(tmp_path, "fresh.npz", **{name: X[50:], name.replace("x", "y", 1): Y[50:]})
        loaded = load(DataOptions(source="train.npz", val="fresh.npz"), tmp_path)
        np.testing.assert_array_equal(loaded.x("val"), X[50:])
        np.testing.assert_array_equal(loaded.y("val"), Y[50:])
        np.testing.assert_array_equal(loaded.x("train"), X[:40])
        np.testing.assert_array_equal(loaded.x("test"), X[40:])
        assert any("--val" in note for note in loaded.notes)


def test_validation_images_are_part_of_the_digest(tmp_path: Path) -> None:
    save(tmp_path, "train.npz", x_train=X)
    options = DataOptions(source="train.npz", val="fresh.npz")
    digests = set()
    for images in (X[:10], X[10:20]):
        save(tmp_path, "fresh.npz", x=images)
        digests.add(source_digest(options, tmp_path))
    assert len(digests | {source_digest(DataOptions(source="train.npz"), tmp_path)}) == 3


def test_classes_of_a_validation_folder_have_the_numbers_of_the_training_folder(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        picture(tmp_path / "train" / name / "1.png", 100)
    picture(tmp_path / "fresh" / "cat" / "1.png", 50)
    options, inputs = DataOptions(source="train", val="fresh"), {"": (8, 8, 3)}
    assert list(load(options, tmp_path, inputs).arrays["y_val"]) == [2]
    picture(tmp_path / "fresh" / "dog" / "1.png", 50)
    with pytest.raises(DataError, match="has the class dog, which the training images do not have"):
        load(options, tmp_path, inputs)


def test_validation_images_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    save(tmp_path, "train.npz", x_train=X)
    with pytest.raises(DataError, match=r"fresh\.npz does not exist"):
        load(DataOptions(source="train.npz", val="fresh.npz"), tmp_path)


def test_a_validation_folder_beside_numbered_labels_is_called_by_numbers(tmp_path: Path) -> None:
    save(tmp_path, "train.npz", x_train=X, y_train=Y)
    for name in ("2", "0"):
        picture(tmp_path / "fresh" / name / "1.png", 50)
    options, inputs = DataOptions(source="train.npz", val="fresh"), {"": (8, 8, 3)}
    assert sorted(load(options, tmp_path, inputs).arrays["y_val"]) == [0, 2]
    picture(tmp_path / "fresh" / "dog" / "1.png", 50)
    with pytest.raises(DataError, match="names the class dog, the training images have numbers"):
        load(options, tmp_path, inputs)


def test_an_empty_folder_is_no_class(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        picture(tmp_path / "train" / name / "1.png", 100)
    (tmp_path / "train" / "aaa").mkdir()
    assert list(load(DataOptions(source="train"), tmp_path, {"": (8, 8, 3)}).arrays["y_train"]) == [0, 1]


def test_two_files_are_not_one_with_both_contents(tmp_path: Path) -> None:
    save(tmp_path, "one.npz", x=X[:4])
    save(tmp_path, "two.npz", x=X[4:8])
    joined = (tmp_path / "one.npz").read_bytes() + b"val" + (tmp_path / "two.npz").read_bytes()
    (tmp_path / "joined.npz").write_bytes(joined)
    both = source_digest(DataOptions(source="one.npz", val="two.npz"), tmp_path)
    assert both != source_digest(DataOptions(source="joined.npz"), tmp_path)


def test_what_is_not_used_of_validation_images_is_said(tmp_path: Path) -> None:
    save(tmp_path, "train.npz", x_train=X, y_train=Y)
    save(tmp_path, "fresh.npz", x_train=X[:5], x_test=X[5:9])
    notes = load(DataOptions(source="train.npz", val="fresh.npz"), tmp_path).notes
    assert any("only the test part is used" in note for note in notes)
    assert any("has no labels" in note for note in notes)
