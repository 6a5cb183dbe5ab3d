"""A file that did not change is read once, whoever asks; one that did is read again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from lrfgraph.engine.store import Store
from lrfgraph.errors import DataError
from lrfgraph.images import reading as module
from lrfgraph.images.reading import Reading
from lrfgraph.images.sources import source_digest
from lrfgraph.options.recipe import DataOptions


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of some files, written long ago; those that are read are counted in `read`."""
    monkeypatch.setattr(module, "SETTLED", -(10**9))
    (tmp_path / "source" / "in").mkdir(parents=True)
    names = ["a", "b", "in/a"]
    for name in names:
        (tmp_path / "source" / name).write_text(name)
    return names


def read(folder: Path, files: list[str], cache: str | None = "cache", keep: bool = True) -> tuple[list[str], list[str]]:
    """The digests of files, and which of them were read for it."""
    looked: list[str] = []
    reading = Reading(folder / cache if cache else None, keep)
    root = folder / "source"
    digests, states = reading.digests(root, files, lambda path, _: looked.append(path.relative_to(root).as_posix()))
    assert states.shape == (len(files), 5)
    return [digest.tobytes().hex() for digest in digests], looked


def test_what_did_not_change_is_read_once(tmp_path: Path, files: list[str]) -> None:
    first, looked = read(tmp_path, files)
    assert (len(set(first)), looked) == (3, files)
    assert read(tmp_path, files) == (first, [])
    assert read(tmp_path, files[::-1]) == (first[::-1], [])
    time.sleep(0.05)  # more than a tick of the file system's clock
    (tmp_path / "source" / "b").write_text("c")
    changed, looked = read(tmp_path, [*files, "b"])
    assert (looked, changed[0], changed[2]) == (["b", "b"], first[0], first[2])
    assert changed[1] == changed[3] != first[1]


def test_the_same_size_and_time_of_change_are_not_the_same_moment_of_writing(tmp_path: Path, files: list[str]) -> None:
    first, _ = read(tmp_path, files)
    path = tmp_path / "source" / "a"
    times = path.stat()
    time.sleep(0.05)
    path.write_text("z")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    second, looked = read(tmp_path, files)
    assert looked == ["a"]
    assert second[0] != first[0]


def test_a_file_that_was_written_a_moment_ago_is_read_again(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED", 2 * 10**9)  # another write could look as if there had been none
    assert [read(tmp_path, files)[1] for _ in range(2)] == [files, files]


def test_nothing_is_remembered_where_nothing_may_be_written(tmp_path: Path, files: list[str]) -> None:
    for cache, keep in ((None, True), ("cache", False)):
        assert [read(tmp_path, files, cache, keep)[1] for _ in range(2)] == [files, files]
    assert not (tmp_path / "cache").exists()


def test_a_damaged_note_counts_as_none(tmp_path: Path, files: list[str]) -> None:
    first, _ = read(tmp_path, files)
    (note,) = (Store(tmp_path / "cache").base / "known").iterdir()
    for content in (b"", note.read_bytes()[:-1], note.read_bytes()[:-1] + b"\0"):
        note.write_bytes(content)
        assert read(tmp_path, files) == (first, files)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, files: list[str]) -> None:
    def write(path: Path, _: bytes) -> None:
        path.write_text("longer than before")

    with pytest.raises(DataError, match=r"a changed while it was read; run again when nobody writes it"):
        Reading().digests(tmp_path / "source", files, write)


def test_a_file_that_is_gone_is_one_line(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(DataError, match=r"data file .*none cannot be read \(No such file or directory\); run again"):
        Reading().digests(tmp_path / "source", [*files, "none"])
    (tmp_path / "source" / "b").unlink()
    (tmp_path / "source" / "b").mkdir()
    with pytest.raises(DataError, match=r"data file .*b cannot be read \(Is a directory\)"):
        Reading().digests(tmp_path / "source", files)


def test_progress_is_told_now_and_then(tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, str]] = []
    reading, look = Reading(progress=lambda *said: told.append(said)), lambda path, content: None
    reading.digests(tmp_path / "source", files, look)
    assert told == [(0, 3, "files read")]
    monkeypatch.setattr(module, "EVERY", -1.0)
    reading.digests(tmp_path / "source", files, look)
    assert told[1:] == [(number, 3, "files read") for number in range(3)]
    monkeypatch.setattr(module, "BLOCK", 4)
    (tmp_path / "source" / "a").write_text("ten letters")
    reading.digests(tmp_path / "source" / "a", [""])
    assert told[4:] == [(4, 11, "bytes read"), (8, 11, "bytes read"), (11, 11, "bytes read")]


def test_a_file_that_a_program_hands_over_is_known_by_what_it_was_called_after(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    path = Store(tmp_path).given / "images.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, x=np.zeros((4, 2)))
    reading.note(path, "ab" * 20)
    os.utime(path, (1, 1))  # it is handed over again
    assert source_digest(DataOptions(source=str(path)), tmp_path, reading) == "ab" * 20
    assert source_digest(DataOptions(source=str(path)), tmp_path) != "ab" * 20
