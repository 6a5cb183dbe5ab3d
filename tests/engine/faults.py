"""Ways to hurt a run and its cache, for tests and for measuring with larger numbers.

python faults.py run CACHE [SLEEP [FACTORS]]    runs the toy graph, prints the counts of its events
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}"}


def start(cache: Path, sleep: float = 0.0, factors: int = 5) -> subprocess.Popen[str]:
    """Start a run of the toy graph in a process of its own."""
    command = [sys.executable, str(HERE / "faults.py"), "run", str(cache), str(sleep), str(factors)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def counts_of(process: subprocess.Popen[str]) -> Counter[str]:
    """Wait for a run and return the counts of its events."""
    out, error = process.communicate(timeout=60)
    if process.returncode != 0:
        raise AssertionError(error)
    return Counter(json.loads(out.splitlines()[-1]))


def kill_at_random(cache: Path, kills: int, seed: int = 0, factors: int = 5) -> int:
    """Start a run `kills` times and SIGKILL it at a random moment of its work; returns how often it was at work."""
    rng, at_work = random.Random(seed), 0
    for _ in range(kills):
        process = start(cache, 0.02, factors)
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        time.sleep(rng.uniform(0.0, 0.15))
        at_work += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return at_work


def corrupt_at_random(cache: Path, number: int, seed: int = 0) -> list[str]:
    """Flip a bit, cut, lengthen, empty, swap or remove files of a cache, `number` of them; returns what was done."""
    rng, done = random.Random(seed), []
    files = sorted(path for path in (cache / "v2").rglob("*") if path.is_file())
    for path in rng.sample(files, min(number, len(files))):
        content = bytearray(path.read_bytes())
        how = rng.choice(["flip", "flip", "cut", "grow", "empty", "remove", "zeros", "swap"])
        if how == "flip" and content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del content[rng.randrange(len(content) or 1) :]
        elif how == "grow":
            content += bytes(rng.randrange(1, 9))
        elif how == "zeros":
            content = bytearray(len(content))
        elif how == "swap":
            content = bytearray(rng.choice(files[:50]).read_bytes() if files[0].exists() else b"")
        elif how == "empty":
            content.clear()
        path.unlink()
        if how != "remove":
            path.write_bytes(content)
        done.append(f"{how} {path.relative_to(cache)}")
    return done


def _run(cache: str, sleep: str = "0", factors: str = "5") -> None:
    import dask.task_spec  # noqa: F401 - so that "begin" is where the work begins
    from toys import STEPS, grid

    from lrfgraph.engine.execute import execute
    from lrfgraph.engine.store import Store

    counts: Counter[str] = Counter()

    def count(event: Any) -> None:
        counts[event.kind] += 1

    print("begin", flush=True)
    execute(grid(4, int(factors), float(sleep)), STEPS, Store(cache), on_event=count)
    print(json.dumps(counts))


if __name__ == "__main__":
    {"run": _run}[sys.argv[1]](*sys.argv[2:])
