"""Images of a folder are decoded when they are asked for, once as long as there is room; damage has a name."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrfgraph.engine.memory import forget
from lrfgraph.errors import DataError
from lrfgraph.images import pictures as module
from lrfgraph.images.pictures import Folder, Pictures
from lrfgraph.images.sources import load, source_digest
from lrfgraph.options.recipe import DataOptions

OPTIONS = DataOptions(source="pics")
INPUTS = {"": (8, 8, 3)}
VALUES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Six images in two classes; the names of those that are decoded."""
    forget()
    for number, values in enumerate(VALUES):
        path = tmp_path / "pics" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    names: list[str] = []
    decode = module.decode_image

    def counted(file: Path, size: tuple[int, int], mode: str) -> np.ndarray:
        names.append(file.name)
        return decode(file, size, mode)

    monkeypatch.setattr(module, "decode_image", counted)
    return names


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path, decoded: list[str]) -> None:
    images = load(OPTIONS, tmp_path, INPUTS).x("train")
    assert (images.shape, images.dtype, decoded) == ((6, 8, 8, 3), np.uint8, [])
    np.testing.assert_array_equal(images[[4, 1]], VALUES[[3, 2]])  # 0, 2, 4 of one class, then 1, 3, 5
    assert sorted(decoded) == ["2.png", "3.png"]
    np.testing.assert_array_equal(images[:], VALUES[[0, 2, 4, 1, 3, 5]])
    assert len(decoded) == 6


def test_what_there_is_no_room_for_is_decoded_again(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.DECODED, "limit", 100)
    images = load(OPTIONS, tmp_path, INPUTS).x("train")
    np.testing.assert_array_equal(images[:2], images[:2])
    assert sorted(decoded) == ["0.png", "0.png", "2.png", "2.png"]


def test_an_image_that_is_written_after_it_was_listed_is_refused(tmp_path: Path, decoded: list[str]) -> None:
    images = load(OPTIONS, tmp_path, INPUTS).x("train")
    time.sleep(0.05)  # more than a tick of the file system's clock
    Image.fromarray(VALUES[5]).save(tmp_path / "pics" / "a" / "0.png")
    with pytest.raises(DataError, match=r"0\.png changed while it was read; run again when nobody writes it"):
        images[:1]


def test_identities_follow_contents_and_order_not_names(tmp_path: Path, decoded: list[str]) -> None:
    def identities() -> list[str]:
        images = load(OPTIONS, tmp_path, INPUTS).x("train")
        assert isinstance(images, Pictures)
        return [images.identity(np.array(places)) for places in ([0, 1], [1, 0], [2])]

    first = identities()
    assert len(set(first)) == 3
    for file in (tmp_path / "pics").rglob("*.png"):
        file.rename(file.with_name(f"x{file.name}"))
    assert identities() == first
    assert not decoded
    other = load(OPTIONS, tmp_path, {"": (8, 8, 1)}).x("train")
    assert isinstance(other, Pictures)
    assert other.identity(np.array([2])) != first[2]


def damage(path: Path, kind: str) -> None:
    """Spoil an image of 64×64 in one of several ways."""
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    image = Image.fromarray(np.stack([smooth] * 3, -1))
    if kind == "text":
        path.write_text("no image")
        return
    image.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if kind == "cut" else content[:60] + b"\0\0\0\0" + content[64:])


@pytest.mark.parametrize(
    ("name", "kind"), [("z.png", "text"), ("z.png", "cut"), ("z.png", "bits"), ("z.jpg", "cut"), ("z.bmp", "cut"),
                       ("z.webp", "cut"), ("z.jpeg", "text")],
)  # fmt: skip
def test_a_damaged_image_is_named_when_it_is_first_read(
    tmp_path: Path, decoded: list[str], name: str, kind: str
) -> None:
    damage(tmp_path / "pics" / "b" / name, kind)
    with pytest.raises(DataError, match=rf"image .*{name} cannot be read: ") as caught:
        source_digest(OPTIONS, tmp_path)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_only_images_of_parts_are_of_interest(tmp_path: Path) -> None:
    for name in ("train/b/2.png", "train/a/1.png", "Validation/a/1.png", "more/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(VALUES[0]).save(tmp_path / name)
    (tmp_path / "more" / "broken.png").write_text("no image")
    (tmp_path / "train" / "a" / "nowhere.png").symlink_to(tmp_path / "nothing")
    folder = Folder.listed(tmp_path)
    assert folder.files == ["Validation/a/1.png", "train/a/1.png", "train/b/2.png"]
    assert folder.parts == {"val": "Validation/", "train": "train/"}
    assert folder.classes() == ["a", "b"]
    assert load(DataOptions(source="."), tmp_path, INPUTS).y("train").tolist() == [0, 1]  # type: ignore[union-attr]
