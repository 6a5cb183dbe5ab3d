"""The contract of the store: whole entries or none, read back as written, every damage found."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.engine import store as store_module
from lrfgraph.engine.arrays import LARGE
from lrfgraph.engine.memory import ARRAYS
from lrfgraph.engine.nodes import Ref, Result, digest
from lrfgraph.engine.store import CorruptEntry, Store
from lrfgraph.errors import StoreError

KEY = f"toy/{digest('toy')}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def result(tmp_path: Path) -> Result:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights" * 100)
    arrays = {
        "a": np.arange(12.0).reshape(3, 4),
        "layers/3/kernel": np.ones(5, "float32"),
        "layers/3/bias": np.zeros(2),
        "rows": np.arange(LARGE / 8),
    }
    return Result({"score": 0.5, "n": np.int64(3)}, arrays, {"model.bin": path})


def commit(store: Store, tmp_path: Path, key: str = KEY, **options: Any) -> int:
    return store.commit(key, result(tmp_path), name="toy node", inputs={"x": "other/1"}, **options)


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_looking_creates_nothing(store: Store) -> None:
    assert not store.has(KEY)
    assert store.bytes_used() == 0
    store.clean()
    with pytest.raises(CorruptEntry, match="the manifest is missing"):
        store.manifest(KEY)
    assert not store.root.exists()


def test_an_entry_reads_back(store: Store, tmp_path: Path) -> None:
    size = commit(store, tmp_path, seconds=1.25, components={"step": "toy"})
    entry = store.open(KEY)
    assert entry.identity == KEY
    assert entry.data == {"score": 0.5, "n": 3}
    assert entry.names() == ["a", "layers/3/bias", "layers/3/kernel", "rows"]
    np.testing.assert_array_equal(entry.array("a"), np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(entry.array("rows"), np.arange(LARGE / 8))
    assert entry.file("model.bin").read_bytes() == b"weights" * 100
    assert not (tmp_path / "model.bin").exists(), "files are moved, not copied"
    manifest = entry.manifest
    assert manifest["name"] == "toy node"
    assert manifest["seconds"] == 1.25
    assert manifest["inputs"] == {"x": "other/1"}
    assert {"lrfgraph", "numpy", "python", "platform"} <= set(manifest["versions"])
    assert size == sum(path.stat().st_size for path in everything(store.folder(KEY)))
    assert list((store.base / "tmp").iterdir()) == []


def test_a_part_sees_its_own_arrays(store: Store, tmp_path: Path) -> None:
    commit(store, tmp_path)
    entry = store.open(Ref("identity", KEY, "layers/3"))
    assert entry.identity == "identity"
    assert entry.names() == ["bias", "kernel"]
    np.testing.assert_array_equal(entry.array("kernel"), np.ones(5))
    with pytest.raises(KeyError, match="has no array"):
        entry.array("a")


def test_arrays_are_read_only_and_remembered(store: Store, tmp_path: Path) -> None:
    commit(store, tmp_path)
    array = store.open(KEY).array("a")
    assert store.open(KEY).array("a") is array
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_a_decision_keeps_what_it_says(store: Store) -> None:
    store.commit(KEY, Result({"x": 1}, identity="said"))
    assert store.open(KEY).identity == "said"


def test_the_loser_of_a_race_discards_its_copy(store: Store) -> None:
    store.commit(KEY, Result({"by": "first"}))
    store.commit(KEY, Result({"by": "second"}))
    assert store.open(KEY).data == {"by": "first"}
    assert list((store.base / "tmp").iterdir()) == []


def test_a_folder_without_manifest_is_no_entry_and_is_replaced(store: Store, tmp_path: Path) -> None:
    commit(store, tmp_path)
    (store.folder(KEY) / "entry.json").unlink()
    assert not store.has(KEY)
    commit(store, tmp_path)
    assert store.open(KEY).data["score"] == 0.5


def test_discard_removes_and_allows_again(store: Store, tmp_path: Path) -> None:
    commit(store, tmp_path)
    store.open(KEY).array("a")
    store.discard(KEY)
    store.discard(KEY)
    assert not store.has(KEY)
    store.commit(KEY, Result(arrays={"a": np.zeros(1)}))
    np.testing.assert_array_equal(store.open(KEY).array("a"), np.zeros(1))


def read_all(store: Store) -> None:
    entry = store.open(KEY)
    for name in entry.names():
        entry.array(name)
    entry.file("model.bin")


def test_every_single_damage_is_found_or_harmless(store: Store, tmp_path: Path) -> None:
    """Flip, cut and remove each file in turn: read_all raises, or what it read is what was written."""
    commit(store, tmp_path)
    harmless = 0
    for path in everything(store.folder(KEY)):
        whole = path.read_bytes()
        cuts = [whole[:-1], b"", *(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in (0, len(whole) // 2))]
        for damaged in [*cuts, None]:
            ARRAYS.clear()
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            if path == store.folder(KEY) / "arrays.zarr" / "zarr.json":  # of the group: for other programs and `verify`
                read_all(store)
                harmless += 1
            else:
                with pytest.raises(CorruptEntry):
                    read_all(store)
            path.write_bytes(whole)
    ARRAYS.clear()
    read_all(store)
    assert harmless == 5


def test_an_entry_in_the_wrong_place_is_found(store: Store) -> None:
    store.commit(KEY, Result({"x": 1}))
    other = f"toy/{digest('other')}"
    store.folder(other).parent.mkdir(parents=True)
    store.folder(KEY).rename(store.folder(other))
    with pytest.raises(CorruptEntry, match="belongs to"):
        store.manifest(other)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (Result({"x": float("nan")}), ValueError),
        (Result({"x": object()}), TypeError),
        (Result(arrays={"x": np.array([None])}), TypeError),
        (Result(arrays={"../x": np.zeros(1)}), ValueError),
        (Result(files={"a/b": Path("nowhere")}), ValueError),
    ],
)
def test_what_cannot_be_stored_leaves_nothing(store: Store, given: Result, error: type[Exception]) -> None:
    with pytest.raises(error):
        store.commit(KEY, given)
    assert not store.has(KEY)
    assert everything(store.root) == []


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "needs 8,000 bytes"),
        (errno.EDQUOT, "is full"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "use --cache DIR"),
    ],
)
def test_a_full_or_closed_disk_is_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def refuse(*args: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store_module, "write", refuse)
    with pytest.raises(StoreError, match=says) as caught:
        store.commit(KEY, Result(arrays={"x": np.zeros(1000)}))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert not store.has(KEY)
    assert everything(store.root) == []


def test_leftovers_of_dead_and_old_processes_go_others_stay(store: Store) -> None:
    from lrfgraph.engine.leases import owner

    host, pid, started = owner()
    names = {
        f"{host}.{pid}.{started}.7": True,
        f"{host}.{pid}.{started + 1}.7": False,  # the number was used again
        f"{host}.999999999.5.7": False,
        "another-machine.1.5.7": True,
        "another-machine.1.5.8": False,
    }
    for name in names:
        (store.base / "tmp" / name / "entry").mkdir(parents=True)
    os.utime(store.base / "tmp" / "another-machine.1.5.8", (1, 1))
    store.clean()
    assert {name: (store.base / "tmp" / name).exists() for name in names} == names


def test_use_is_noted_once_an_hour(store: Store) -> None:
    store.commit(KEY, Result({"x": 1}))
    recent = store.last_use(KEY)
    assert recent is not None
    store.touch(KEY, recent)
    assert store.last_use(KEY) == recent
    os.utime(store.folder(KEY) / "entry.json", (1000, 1000))
    store.touch(KEY, 1000)
    assert (store.last_use(KEY) or 0) >= recent
    assert store.manifest(KEY)["data"] == {"x": 1}


def test_manifests_are_plain_json(store: Store, tmp_path: Path) -> None:
    commit(store, tmp_path)
    manifest = json.loads((store.folder(KEY) / "entry.json").read_bytes())
    assert manifest["arrays"]["layers/3/kernel"] == {"dtype": "float32", "shape": [5]}


def test_what_was_read_is_remembered_by_its_state(store: Store) -> None:
    reads: list[str] = []

    def read() -> str:
        reads.append("read")
        return f"value{len(reads)}"

    assert store.remembered(None, read) == "value1"
    assert store.remembered("a", read, keep=False) == "value2"
    assert not store.root.exists()
    assert [store.remembered("a", read) for _ in range(2)] == ["value3", "value3"]
    assert store.remembered("b", read) == "value4"
    for note in (store.base / "known").iterdir():
        content = bytearray(note.read_bytes())
        content[0] ^= 1
        note.write_bytes(content)
    assert [store.remembered(state, read) for state in ("a", "b")] == ["value5", "value6"]


def test_leftovers_that_another_process_removes_meanwhile_are_no_trouble(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is cleaned may be gone a moment later."""
    store.commit(KEY, Result({"x": 1}))
    home, gone = store.scratch(KEY).home, store.base / "tmp" / "host.999999999.1.1"
    home.mkdir(parents=True)
    real = store_module.members
    monkeypatch.setattr(store_module, "ownerless", lambda folder: [folder / "gone"])
    monkeypatch.setattr(store_module, "members", lambda folder: [*real(folder), gone, folder / "gone"])
    os.utime(store.base, (1, 1))
    monkeypatch.setattr(store_module, "age", lambda path: 1e9)
    store.clean()
    assert not home.exists()
    assert store.has(KEY)


def test_an_entry_is_touched_after_an_hour_and_not_before(store: Store) -> None:
    store.commit(KEY, Result({"x": 1}))
    manifest = store.folder(KEY) / "entry.json"
    for seconds, touched in ((3500, False), (3700, True)):
        then = time.time() - seconds
        os.utime(manifest, (then, then))
        store.touch(KEY, then)
        assert (time.time() - (store.last_use(KEY) or 0) < 60) == touched


def test_leftovers_of_other_machines_go_after_a_day(store: Store) -> None:
    paths = [store.base / "tmp" / f"another-machine.1.5.{hours}" for hours in (23, 25)]
    for path, hours in zip(paths, (23, 25), strict=True):
        path.mkdir(parents=True)
        then = time.time() - 3600 * hours
        os.utime(path, (then, then))
    store.clean()
    assert [path.exists() for path in paths] == [True, False]


def test_a_manifest_says_what_it_was_asked_to(store: Store) -> None:
    before = time.time()
    size = store.commit(KEY, Result({"x": 1}, {"a": np.zeros(3)}), seconds=1.23456789)
    manifest = store.manifest(KEY)
    assert (manifest["key"], manifest["name"], manifest["components"], manifest["inputs"]) == (KEY, "", {}, {})
    assert manifest["seconds"] == 1.234568
    assert before - 0.001 <= manifest["created"] <= time.time() + 0.001
    assert manifest["bytes"] == sum(size for size, _ in manifest["files"].values())
    assert size == manifest["bytes"] + (store.folder(KEY) / "entry.json").stat().st_size
    assert store.bytes_used() == size


@pytest.mark.parametrize(("seconds", "flushed"), [(0.4, False), (0.5, False), (0.6, True)])
def test_what_was_costly_is_flushed_before_it_is_published(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, flushed: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr(store_module, "flush_tree", lambda folder: said.append("tree"))
    monkeypatch.setattr(store_module, "flush_one", said.append)
    commit(store, tmp_path, seconds=seconds)
    assert said == (["tree", str(store.folder(KEY).parent)] if flushed else [])


def test_entries_of_an_earlier_format_are_not_read_and_said(store: Store) -> None:
    assert store.older() == ""
    store.commit(KEY, Result({"x": 1}))
    assert store.older() == ""
    kind, name = KEY.split("/")
    old = store.root / "v1" / kind / name[:2]
    old.mkdir(parents=True)
    store.folder(KEY).rename(old / name)
    assert not store.has(KEY)
    assert store.older().endswith(f"which are not read; remove {store.root / 'v1'} to free the space")
