"""Open mutated copies of a model file and count what happens: opened, refused in one line, or worse.

    python pipelines/benchmarks/fuzz_models.py --model model.h5 --count 2000 --out fuzz.json

Worse is: an exception that is no LrfError, a message of several lines, more than ``--timeout`` seconds, a worker that
dies, more than ``--memory`` MiB, or code that the file brought (seen by an audit hook).  Exit status 1 then.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import queue
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ALARMS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "code.__new__",
}
LARGE = [0, -1, 1, 2, 3, 7, 2**31 - 1, 10**9, 10**12, -(10**9), 1e308, 0.5]
WORDS = [
    "Lambda",
    "Dense",
    "Conv2D",
    "TFSMLayer",
    "Sequential",
    "function",
    "__lambda__",
    "os",
    "eval",
    "",
    "same",
    "relu",
]
CODE = {"class_name": "__lambda__", "config": {"value": ["4wEAAAAAAAAA", None, None], "code": "4wEAAAAAAAAA"}}


# mutations of bytes -----------------------------------------------------------------------------------------------


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] = rng.randrange(256)


def flip_head(data: bytearray, rng: random.Random) -> None:
    """Structure sits at the beginning, and at the end of a zip file."""
    for _ in range(rng.choice([1, 2, 4])):
        offset = rng.randrange(min(4096, len(data)))
        data[offset if rng.random() < 0.7 else -1 - offset] = rng.randrange(256)


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def overwrite(data: bytearray, rng: random.Random) -> None:
    start, size = rng.randrange(len(data)), rng.choice([4, 8, 64, 1024])
    data[start : start + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * min(size, len(data) - start)


def move(data: bytearray, rng: random.Random) -> None:
    size = rng.choice([8, 64, 512])
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    block = data[source : source + size]
    data[target : target + len(block)] = block


BYTES: list[Callable[[bytearray, random.Random], None]] = [flip, flip, flip_head, flip_head, truncate, overwrite, move]


# mutations of the configuration -------------------------------------------------------------------------------------


def change_config(config: Any, rng: random.Random) -> Any:
    """Change a few random places of a configuration."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        places: list[tuple[Any, Any]] = []
        waiting = [config]
        while waiting:
            value = waiting.pop()
            keys = list(value) if isinstance(value, dict) else range(len(value))
            places += [(value, key) for key in keys]
            waiting += [value[key] for key in keys if isinstance(value[key], dict | list)]
        if not places:  # the change before this one removed everything
            break
        holder, key = rng.choice(places)
        choice = rng.random()
        if choice < 0.15:
            del holder[key]
        elif choice < 0.25:
            holder[key] = CODE
        elif isinstance(holder[key], str):
            holder[key] = rng.choice(WORDS)
        elif isinstance(holder[key], list) and choice < 0.5:
            holder[key] = holder[key] * rng.choice([0, 2, 3])
        else:
            holder[key] = rng.choice([*LARGE, None, True, "x", [], {}, [10**9] * 3])
    return config


def with_config(path: Path, rng: random.Random) -> None:
    """Write a changed configuration into an otherwise sound file."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        entries["config.json"] = json.dumps(change_config(json.loads(entries["config.json"]), rng)).encode()
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        path.write_bytes(held.getvalue())
        return
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(change_config(json.loads(file.attrs["model_config"]), rng))


def mutate(source: Path, target: Path, seed: int) -> str:
    """Write mutation number `seed` of `source`; the same number gives the same bytes."""
    rng = random.Random(seed)
    if rng.random() < 0.4:
        shutil.copy(source, target)
        os.chmod(target, 0o600)
        with_config(target, rng)
        return "config"
    data = bytearray(source.read_bytes())
    how = rng.choice(BYTES)
    how(data, rng)
    target.write_bytes(data)
    return how.__name__


# workers ----------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Open the files named on standard input, one answer a line."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from lrfgraph.errors import LrfError
    from lrfgraph.network.opening.loading import load_model, model_digest

    answers, heard = sys.stdout, []
    sys.stdout = sys.stderr
    warm = sys.stdin.readline().strip()
    load_model(warm)  # imports happen here, before anything is listened to
    sys.addaudithook(lambda event, _: heard.append(event) if event in ALARMS else None)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        heard.clear()
        outcome, text = "opened", ""
        for step in (model_digest, load_model):
            try:
                step(line.strip())
            except LrfError as error:
                outcome, text = "refused", str(error)
            except BaseException as error:
                outcome, text = "raised", f"{step.__name__}: {type(error).__name__}: {error}"[:300]
                break
        if outcome == "refused" and ("\n" in text or not text):
            outcome = "unclear"
        if heard:
            outcome, text = "ran code", ", ".join(sorted(set(heard)))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"outcome": outcome, "text": text, "memory": memory}), file=answers, flush=True)


class Worker:
    """A process that opens files; restarted when it dies or is slow."""

    def __init__(self, warm: Path, timeout: float) -> None:
        self.warm, self.timeout = warm, timeout
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, "--serve"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.listen, args=(self.process, self.lines), daemon=True).start()
        self.send(self.warm)
        self.lines.get(timeout=120)

    @staticmethod
    def listen(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def send(self, path: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()

    def open(self, path: Path) -> dict[str, Any]:
        started = time.monotonic()
        self.send(path)
        try:
            line = self.lines.get(timeout=self.timeout)
            answer = json.loads(line) if line else {"outcome": "crashed", "text": "", "memory": 0}
        except queue.Empty:
            answer = {"outcome": "hung", "text": "", "memory": 0}
        if answer["outcome"] in {"crashed", "hung"}:
            self.process.kill()
            answer["text"] = f"exit status {self.process.wait()}"
            self.start()
        return answer | {"seconds": round(time.monotonic() - started, 3)}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def fuzz(model: Path, count: int, workers: int, timeout: float, memory: int, seed: int) -> dict[str, Any]:
    """Open `count` mutations of `model` and return the counts and everything that went wrong."""
    numbers: queue.Queue[int] = queue.Queue()
    for number in range(seed, seed + count):
        numbers.put(number)
    results: list[dict[str, Any]] = []
    began = time.monotonic()

    def work() -> None:
        worker = Worker(model, timeout)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"mutated{model.suffix}"
            while True:
                try:
                    number = numbers.get_nowait()
                except queue.Empty:
                    break
                how = mutate(model, path, number)
                results.append({"seed": number, "how": how, **worker.open(path)})
        worker.stop()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bad = [r for r in results if r["outcome"] not in {"opened", "refused"} or r["memory"] > memory]
    return {
        "model": model.name,
        "mutations": len(results),
        "outcomes": dict(Counter(r["outcome"] for r in results)),
        "kinds": dict(Counter(r["how"] for r in results)),
        "slowest_seconds": max(r["seconds"] for r in results),
        "peak_memory_mib": max(r["memory"] for r in results),
        "seconds": round(time.monotonic() - began, 1),
        "bad": sorted(bad, key=lambda r: r["seed"])[:50],
        "messages": Counter(r["text"].split(": ", 1)[-1][:90] for r in results if r["text"]).most_common(12),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds a file may take")
    parser.add_argument("--memory", type=int, default=4096, help="MiB a worker may use")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if options.model is None:
        parser.error("--model is needed")
    result = fuzz(
        options.model.resolve(), options.count, options.workers, options.timeout, options.memory, options.seed
    )
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if result["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
