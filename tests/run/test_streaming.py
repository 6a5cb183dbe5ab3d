"""A run reads of its images what it needs, once, and says how far it is; no more than a few are in memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import DATA, Call
from PIL import Image

from lrfgraph import Recipe, api
from lrfgraph.engine import arrays as stored
from lrfgraph.engine import entry as entries
from lrfgraph.engine.events import Event
from lrfgraph.engine.memory import BoundedCache, forget
from lrfgraph.images import archives, pictures, reading
from lrfgraph.images.functions import Elements
from lrfgraph.network.batches import Batches, Split
from lrfgraph.options.recipe import FinetuneOptions
from lrfgraph.run import stages
from lrfgraph.run.steps import sources as step
from lrfgraph.run.steps.sources import images_of

MODEL = DATA / "tiny_cnn.keras"
COUNT = 200


class Watch:
    """Counts what is decoded and digested, and the most images that were asked for at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded, self.digested, self.most = Counter[str](), Counter[str](), 0
        decode, digest, take = pictures.decode_image, reading._digest, pictures.Pictures.take

        def decoding(file: Path, *look: Any) -> Any:
            self.decoded[file.name] += 1
            return decode(file, *look)

        def digesting(path: Path, *how: Any, **look: Any) -> Any:
            self.digested[path.name] += 1
            return digest(path, *how, **look)

        def taking(images: Any, places: Any) -> Any:
            self.most = max(self.most, len(places))
            return take(images, places)

        monkeypatch.setattr(pictures, "decode_image", decoding)
        monkeypatch.setattr(reading, "_digest", digesting)
        monkeypatch.setattr(pictures.Pictures, "take", taking)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits as images in class folders, written long ago; large is what takes more than a few kilobytes."""
    forget()
    monkeypatch.setattr(reading, "SETTLED", -(10**9))
    monkeypatch.setattr(stored, "LARGE", 1000)
    monkeypatch.setattr(stored, "CHUNK_BYTES", 10 * 196)
    monkeypatch.setattr(stored, "CHUNKS_OF_A_SHARD", 2)
    monkeypatch.setattr(entries, "WHOLE", 5000)
    monkeypatch.setattr(pictures, "DECODED", BoundedCache(0))
    monkeypatch.setattr(step, "IMAGES", BoundedCache(0))
    monkeypatch.setattr(stages, "MOST_CALIBRATION", 50)
    with np.load(DATA / "tiny_digits.npz", allow_pickle=False) as digits:
        x, y = digits["x_train"][:COUNT], digits["y_train"][:COUNT]
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        path = tmp_path / "digits" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(14, 14)).save(path)
    return tmp_path


def recipe_of(folder: Path, source: str, **options: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "data": {"source": str(folder / source), "scale": 1 / 255, "calibration": 50, "validation": 40},
            "explore": {"ranks": 2, "methods": ["svd"], "weighting": "input"},
            "select": {"policy": "budget", "params": 0.7, "probes": 0},
            "repair": {"rounds": 0, "steps": 2, "images": 60},
            "finetune": {"epochs": 1, "batch": 32},
            "run": {"cache": str(folder / "cache"), "threads": 1, **options},
        }
    )


def test_only_what_is_calibrated_and_measured_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, events = Watch(monkeypatch), list[Event]()
    monkeypatch.setattr(reading, "EVERY", -1.0)
    api.compress(MODEL, recipe_of(folder, "digits", until="record"), on_event=events.append)
    assert set(watch.digested.values()) == {1}
    assert len(watch.digested) == COUNT
    assert 100 <= len(watch.decoded) <= 101  # 60 of repair, among them those of calibration, and 40 of validation
    assert watch.decoded.total() <= 104  # the first of each split tells its shape
    assert watch.most <= 20  # a shard
    said = [(event.done, event.total) for event in events if event.kind == "progress" and event.node == "images/data"]
    assert said[0] == (0, COUNT)  # files
    assert said[-1] == (100, 100)  # images
    watch.decoded.clear()
    for _ in range(2):
        forget()
        api.compress(MODEL, recipe_of(folder, "digits", until="data").with_option("data.seed", 1))
        assert watch.decoded.total() <= 104
    assert set(watch.digested.values()) == {1}  # another division reads no file for its digest


def divided(folder: Path, source: str, part: str) -> Any:
    """A split's images and targets, as training gets them."""
    outcome = api.compress(MODEL, recipe_of(folder, source, until="data"))
    assert outcome.network.data is not None
    return images_of(outcome.driver.store.open(outcome.network.data), outcome.network.locators, part)


def test_training_decodes_batch_by_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    images, targets = divided(folder, "digits", "train")
    watch.decoded.clear()
    watch.most = 0
    for number in (1, 2):
        batches = Batches(Split(images, targets), "finetune", FinetuneOptions(batch=32), labels=True)
        seen = sum(len(labels) for _, _, labels in batches.epoch(number))
        assert watch.most == 32
        assert watch.decoded.total() - 1 <= number * seen <= watch.decoded.total()  # one tells the shape
    assert set(watch.digested.values()) == {1}


def test_a_folder_gives_what_its_arrays_give(folder: Path) -> None:
    """The same images in the same order, whether they are decoded, read from a file, unpacked, or in memory."""
    files = sorted((folder / "digits").rglob("*.png"), key=lambda file: file.parts)
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])[..., None]
    labels = np.array([int(file.parent.name) for file in files])
    np.savez(folder / "plain.npz", x=arrays, y=labels)
    np.savez_compressed(folder / "packed.npz", x=arrays, y=labels)
    for part in ("calibration", "repair", "validation", "train"):
        found = []
        for source, limit in (("digits", 1), ("plain.npz", 1), ("packed.npz", 1), ("plain.npz", 1 << 24)):
            forget()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(archives, "IN_MEMORY", limit)
                images, targets = divided(folder, source, part)
                found.append((images[:], images[np.array([7, 3])], targets))
        for each in found[1:]:
            for one, other in zip(found[0], each, strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_damaged_image_is_one_line(folder: Path, call: Call) -> None:
    (folder / "digits" / "3" / "torn.png").write_bytes(b"\x89PNG and no more")
    arguments = "--data", folder / "digits", "--scale", "1/255", "--cache", folder / "cache"
    said = call("run", MODEL, *arguments, "--out", folder / "out")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert f"image {folder}/digits/3/torn.png cannot be read: cannot identify image file" in said.err
    assert not (folder / "out").exists()


def test_a_stream_is_written_down_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lrfgraph

    forget()
    monkeypatch.setattr(archives, "IN_MEMORY", 1000)
    monkeypatch.setattr(reading, "EVERY", -1.0)
    ahead, add = list[int](), Elements.add
    drawn = 0

    def images() -> Any:
        nonlocal drawn
        for number in range(COUNT):
            drawn += 1
            yield np.full((14, 14, 1), number, np.uint8), np.int64(number % 10)

    def adding(elements: Elements, element: Any) -> None:
        ahead.append(drawn - len(elements))
        add(elements, element)
        if len(elements) > 150:
            assert elements.file._rolled  # into a file

    monkeypatch.setattr(Elements, "add", adding)
    # as much of a tf.data.Dataset as is asked for; a real one draws ahead as it likes
    stream = SimpleNamespace(cardinality=lambda: COUNT, as_numpy_iterator=images)
    options = {"scale": "1/255", "data": {"calibration": 50, "validation": 40}, "until": "data", "epochs": 1}
    watch = Watch(monkeypatch)
    options["cache"] = str(tmp_path / "cache")
    first = lrfgraph.compress(MODEL, stream, progress=False, **options)
    assert set(ahead) == {1}  # nobody waits for the end
    assert not watch.digested  # the file is called after what was digested
    (path,) = (tmp_path / "cache" / "given").iterdir()
    with np.load(path) as written:
        np.testing.assert_array_equal(written["x_train"][:, 0, 0, 0], np.arange(COUNT))
        np.testing.assert_array_equal(written["y_train"], np.arange(COUNT) % 10)
    assert first.summary["nodes"]["run"]["data"] == 1


def test_progress_of_a_stream_that_does_not_say_its_length() -> None:
    from lrfgraph.report.status import Status

    status = Status()
    status.note(Event("progress", "images/data", "data", done=1200, message="elements of the train stream"), 0.0)
    assert "data 1,200, elements of the train stream" in status.line(1.0)
