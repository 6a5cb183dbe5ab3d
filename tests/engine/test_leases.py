"""Leases: one owner at a time, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from lrfgraph.engine import leases
from lrfgraph.engine.leases import Waiting, live, owner, sweep


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
