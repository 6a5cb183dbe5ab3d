"""Leases: one owner at a time, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lrfgraph.engine import leases
from lrfgraph.engine.leases import STALE_AFTER, Waiting, live, owner, owner_is_dead, signature, signed_by_dead, sweep


def write(path: Path, host: str, pid: int, started: int, token: str = "t") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": host, "pid": pid, "started": started, "token": token}))


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    lease = Waiting(path).acquire()
    assert lease is not None
    assert live(path)
    assert Waiting(path).acquire() is None
    lease.release()
    assert not path.exists()
    again = Waiting(path).acquire()
    assert again is not None
    again.release()


def test_the_dead_are_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    script = "import sys; from pathlib import Path; from lrfgraph.engine.leases import Waiting; import os\n"
    script += "assert Waiting(Path(sys.argv[1])).acquire(); os._exit(9)"
    root = str(Path(leases.__file__).parents[2])
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, env={**os.environ, "PYTHONPATH": root})
    assert path.exists()
    assert not live(path)
    lease = Waiting(path).acquire()  # at once: nobody has to wait until the lease is stale
    assert lease is not None
    lease.release()
    assert list(path.parent.iterdir()) == []


def test_a_process_number_used_again_is_not_the_owner(tmp_path: Path) -> None:
    host, pid, started = owner()
    path = tmp_path / "leases" / "x.lease"
    write(path, host, os.getppid(), 1)
    lease = Waiting(path).acquire()
    assert lease is not None
    lease.release()
    write(path, host, pid, started, "forgotten")  # ours, but nobody here holds it
    assert Waiting(path).acquire() is not None


def test_another_machine_is_given_time(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    write(path, "elsewhere", 1, 1)
    os.utime(path, (1000, 1000))  # its clock may be wrong: only standing still counts
    waiting = Waiting(path, stale_after=0.1)
    assert waiting.acquire() is None
    time.sleep(0.06)
    os.utime(path, (1001, 1001))
    assert waiting.acquire() is None
    time.sleep(0.06)
    assert waiting.acquire() is None, "it moved meanwhile"
    time.sleep(0.11)
    assert waiting.acquire() is not None


def test_a_torn_lease_ages(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    path.parent.mkdir()
    path.write_text('{"host": "he')
    waiting = Waiting(path, stale_after=0.05)
    assert waiting.acquire() is None
    time.sleep(0.06)
    assert waiting.acquire() is not None


def test_only_one_of_many_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    for _ in range(40):
        write(path, owner()[0], 999999999, 1)
        got = []
        barrier = threading.Barrier(8)

        def take(barrier: threading.Barrier = barrier, got: list[leases.Lease] = got) -> None:
            waiting = Waiting(path)
            barrier.wait()
            lease = waiting.acquire()
            if lease is not None:
                got.append(lease)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()
    assert list(path.parent.iterdir()) == []


def test_who_lost_a_lease_does_not_release_the_next_ones(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    lease = Waiting(path).acquire()
    assert lease is not None
    write(path, "elsewhere", 1, 1, "theirs")
    lease.release()
    assert json.loads(path.read_text())["token"] == "theirs"


def test_the_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    lease = Waiting(path).acquire()
    assert lease is not None
    os.utime(path, (1000, 1000))
    until = time.monotonic() + 2 * leases.BEAT
    while path.stat().st_mtime == 1000 and time.monotonic() < until:
        time.sleep(0.05)
    assert time.time() - path.stat().st_mtime < 2 * leases.BEAT
    lease.release()


def test_sweeping_takes_only_what_nobody_holds(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    lease = Waiting(path).acquire()
    assert lease is not None
    sweep(path, older_than=0.0)
    assert path.exists()
    lease.release()
    write(path, owner()[0], 999999999, 1)
    sweep(path)
    assert path.exists(), "a moment ago it may have been somebody's"
    os.utime(path, (1000, 1000))
    sweep(path)
    assert not path.exists()
    sweep(path)


def aged(path: Path, host: str, seconds: float) -> Path:
    """A lease that a living process (the one that started this) last touched so long ago."""
    pid = os.getppid()
    started = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[19])
    write(path, host, pid, started)
    os.utime(path, (time.time() - seconds,) * 2)
    return path


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not list its processes")


@needs_proc
@pytest.mark.parametrize(("late", "held"), [(-2.0, True), (2.0, False)])
def test_a_lease_is_live_as_long_as_it_is_young_of_another_machine_a_minute_longer(
    tmp_path: Path, late: float, held: bool
) -> None:
    assert live(aged(tmp_path / "ours", owner()[0], STALE_AFTER + late)) == held
    assert live(aged(tmp_path / "theirs", "elsewhere", STALE_AFTER + 60 + late)) == held
    assert live(aged(tmp_path / "short", owner()[0], 5.0 + late), 5.0) == held
    assert not live(tmp_path / "nowhere")


@needs_proc
@pytest.mark.parametrize(("late", "held"), [(-2.0, True), (2.0, False)])
def test_a_lease_of_this_machine_that_stands_still_is_taken_over_at_once(
    tmp_path: Path, late: float, held: bool
) -> None:
    path = aged(tmp_path / "leases" / "x.lease", owner()[0], STALE_AFTER + late)
    lease = Waiting(path).acquire()
    assert (lease is None) == held
    if lease is not None:
        lease.release()


@needs_proc
def test_sweeping_leaves_what_may_be_alive_on_another_machine(tmp_path: Path) -> None:
    young = aged(tmp_path / "leases" / "young", "elsewhere", 110.0)
    old = aged(tmp_path / "leases" / "old", "elsewhere", 130.0)
    dead = tmp_path / "leases" / "dead"
    for path in (young, old):
        sweep(path)
    for seconds, there in ((58, True), (62, False)):
        write(dead, owner()[0], 999999999, 1)
        os.utime(dead, (time.time() - seconds,) * 2)
        sweep(dead)
        assert dead.exists() == there
    assert (young.exists(), old.exists()) == (True, False)


def test_a_lease_that_is_gone_can_be_released(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "x.lease"
    lease = Waiting(path).acquire()
    assert lease is not None
    path.unlink()
    lease.release()
    lease.release()


def test_who_is_dead_for_certain() -> None:
    host, pid, started = owner()
    assert not owner_is_dead(host, pid, started)
    assert owner_is_dead(host, pid, started + 1)
    assert owner_is_dead(host, 999999999, started)
    assert not owner_is_dead("elsewhere", 999999999, 1)
    assert not signed_by_dead(f"{signature()}.4")
    assert signed_by_dead(f"{host}.999999999.1.4")
    assert signed_by_dead(f"{host}.999999999.1")
    for name in ("", "x", f"{host}.999999999", f"{host}.x.1.4", f"{host}.999999999.x.4", f"{host}..1.4"):
        assert not signed_by_dead(name)


@pytest.mark.parametrize("content", ["[1, 2]", "3", '{"host": 3, "pid": 1, "started": 1}', '{"host": "x", "pid": "1"}'])
def test_what_is_no_lease_is_one_until_it_is_old(tmp_path: Path, content: str) -> None:
    path = tmp_path / "leases" / "x.lease"
    path.parent.mkdir()
    path.write_text(content)
    assert live(path)
    assert Waiting(path).acquire() is None
    os.utime(path, (1000, 1000))
    assert not live(path)


@pytest.mark.parametrize("answer", [None, PermissionError, ProcessLookupError])
def test_a_system_that_does_not_say_when_a_process_started_says_whether_it_is_there(
    monkeypatch: pytest.MonkeyPatch, answer: type[OSError] | None
) -> None:
    def kill(pid: int, signal: int) -> None:
        if answer is not None:
            raise answer

    def unreadable(path: Path) -> bytes:
        raise FileNotFoundError(str(path))

    monkeypatch.setattr(leases.Path, "read_bytes", unreadable)
    assert leases._started(os.getpid()) is None, "the system lists processes, and this one is not among them"
    monkeypatch.setattr(leases.Path, "exists", lambda path: False)
    monkeypatch.setattr(os, "kill", kill)
    assert leases._started(os.getpid()) == (None if answer is ProcessLookupError else 0)
    monkeypatch.setattr(os, "name", "another")
    assert leases._started(os.getpid()) == 0
