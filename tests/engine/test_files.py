"""Files as the store needs them: counted, dated and digested, also while they vanish."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from lrfgraph.engine import files
from lrfgraph.engine.files import (
    age,
    checksum,
    file_checksum,
    flush_tree,
    members,
    newest,
    out_of_space,
    tree_bytes,
    write,
)


def test_what_is_written_is_what_its_checksum_says(tmp_path: Path) -> None:
    path = tmp_path / "x"
    size, digest = write(path, [b"abc", b"", b"de"])
    assert (size, path.read_bytes()) == (5, b"abcde")
    assert (
        digest
        == checksum(b"abcde")
        == file_checksum(str(path))
        == hashlib.blake2b(b"abcde", digest_size=20).hexdigest()
    )
    large = bytes(range(256)) * 8192 + b"end"
    path.write_bytes(large)
    assert file_checksum(str(path)) == checksum(large)


def test_the_bytes_of_a_tree_are_those_of_its_files_without_links(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "x").write_bytes(bytes(100))
    (tmp_path / "tree" / "y").write_bytes(bytes(20))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "z").write_bytes(bytes(1000))
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    link = (tmp_path / "tree" / "link").lstat().st_size
    assert tree_bytes(str(tmp_path / "tree")) == 120 + link
    assert tree_bytes(str(tmp_path / "nowhere")) == 0


def test_a_folder_is_as_new_as_what_is_newest_in_it(tmp_path: Path) -> None:
    inner = tmp_path / "tree" / "a"
    inner.mkdir(parents=True)
    (inner / "x").write_text("")
    for path, seconds in ((inner / "x", 3000), (inner, 2000), (tmp_path / "tree", 1000)):
        os.utime(path, (seconds, seconds))
    assert newest(tmp_path / "tree") == 3000
    os.utime(tmp_path / "tree", (5000, 5000))
    assert newest(tmp_path / "tree") == 5000
    assert newest(tmp_path / "nowhere") == 0


def test_the_age_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("")
    os.utime(path, (time.time() - 500,) * 2)
    assert 499 < age(path) < 530
    assert age(tmp_path / "nowhere") == 0


def test_the_members_of_what_is_no_folder_are_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert members(tmp_path) == [tmp_path / "x"]
    assert members(tmp_path / "x") == members(tmp_path / "nowhere") == []


def test_every_file_and_folder_of_a_tree_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "x").write_text("")
    flushed: list[str] = []
    monkeypatch.setattr(files, "flush_one", lambda path: flushed.append(str(path)))
    flush_tree(tmp_path / "tree")
    assert sorted(flushed) == [str(tmp_path / "tree" / name).rstrip("/") for name in ("", "a", "a/x")]


def test_files_are_closed_after_they_are_flushed(tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    flush_tree(tmp_path)
    assert not open_before or len(os.listdir("/proc/self/fd")) == open_before


def test_a_full_disk_is_recognised_however_it_is_said() -> None:
    full, words = OSError(errno.ENOSPC, "x"), os.strerror(errno.ENOSPC)
    assert out_of_space(full) == words
    assert out_of_space(RuntimeError(f"write failed: {words}")) == words
    caused, beside = ValueError("a"), ValueError("b")
    caused.__cause__, beside.__context__ = full, full
    assert out_of_space(caused) == out_of_space(beside) == words
    assert out_of_space(ValueError("c")) == out_of_space(None) == ""
