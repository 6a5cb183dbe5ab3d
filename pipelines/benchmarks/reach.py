"""Which tests reach which function, measured once; tests run in processes that are forked and so start at once."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "lrfgraph"
QUICK_SECONDS = 0.25
GRACE = 20.0
"""Seconds that a test may take beyond ten times what it took before."""

MODULE = "<module>"
MEMORY_BYTES = 24 << 30


def functions_of(tree: ast.AST, prefix: str = "") -> list[tuple[int, int, str]]:
    """Return first line, last line and name of all functions that stand in no other; decorators belong to them."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((node.lineno, node.end_lineno or 0, prefix + node.name))
        elif isinstance(node, ast.ClassDef):
            found += functions_of(node, f"{prefix}{node.name}.")
    return found


def function_at(functions: Sequence[tuple[int, int, str]], line: int) -> str:
    return next((name for first, last, name in functions if first <= line <= last), MODULE)


class Reach:
    """Which tests reach which function, and the seconds each takes; measured file by file and kept."""

    def __init__(self, copy: Path, work: Path, tests: Sequence[str]) -> None:
        self.seconds: dict[str, float] = {}
        self.tests: dict[tuple[str, str], set[str]] = defaultdict(set)
        folder = work / "reach"
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(found for place in tests for found in test_files(copy / place)):
            name = str(file.relative_to(copy))
            digest = hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
            kept = folder / f"{name.replace('/', '.')}.{digest}.json"
            if not kept.exists():
                began = time.monotonic()
                code = forked(lambda name=name, kept=kept: measure(copy, name, kept), copy, work, 1800.0)
                print(f"measured {name} in {time.monotonic() - began:.0f} s (status {code})", flush=True)
            if kept.exists():
                measured = json.loads(kept.read_text())
                self.seconds.update(measured["seconds"])
                for source, function, ids in measured["reached"]:
                    self.tests[source, function].update(i for i in ids if i in measured["seconds"])

    def of(self, source: str, function: str, budget: float) -> list[str]:
        """Return the tests to run for a change of a function, in order, as many as fit the budget."""
        stem = Path(source).stem
        mirror = f"{Path(source).parent.name}/test_{stem}.py"
        room = f"tests/{Path(source).parts[1]}/"
        near = {i for i in self.seconds if i.startswith(room)}  # some tests start processes of their own
        reaching = self.tests[source, function]
        ids = reaching | near
        if function == MODULE:  # read at import, whichever test comes first: any may notice
            reaching, ids = near, set(self.seconds)
        cost = {i: self.seconds[i] for i in ids}
        spent, chosen = 0.0, []
        for i in sorted(ids, key=lambda i: (i not in reaching, cost[i] * (0.1 if f"{mirror}::" in i else 1.0), i)):
            if spent + cost[i] <= budget:
                spent += cost[i]
                chosen.append(i)
        # fixtures of a module are set up once where its tests stay together
        files: dict[tuple[bool, str], float] = defaultdict(float)
        for i in chosen:
            files[cost[i] > QUICK_SECONDS, i.partition("::")[0]] += cost[i] * (0.1 if f"{mirror}::" in i else 1.0)

        def place(i: str) -> tuple[object, ...]:
            file, slow = i.partition("::")[0], cost[i] > QUICK_SECONDS
            return i not in reaching, slow, files[slow, file], file, cost[i]

        return sorted(chosen, key=place)


def test_files(place: Path) -> Iterable[Path]:
    return [place] if place.is_file() else place.rglob("test_*.py")


def measure(copy: Path, name: str, kept: Path) -> int:
    """Run one test file and write which functions each of its tests reaches; in a process of its own."""
    import coverage

    cover = coverage.Coverage(data_file=None, source=[str(copy / PACKAGE)], messages=False)
    cover.start()
    watch = Watch(switch=cover.switch_context)
    code = run_pytest(copy, [name], watch, stop=False)
    cover.stop()
    data, reached = cover.get_data(), []
    for path in data.measured_files():
        by_function: dict[str, set[str]] = defaultdict(set)
        functions = functions_of(ast.parse(Path(path).read_text(encoding="utf-8")))
        headers = {first for first, _, _ in functions}
        for line, contexts in data.contexts_by_lineno(path).items():
            if line not in headers:
                by_function[function_at(functions, line)].update(contexts)
        source = str(Path(path).relative_to(copy))
        reached += [(source, function, sorted(ids - {""})) for function, ids in by_function.items()]
    kept.write_text(json.dumps({"seconds": watch.seconds, "reached": reached}))
    return code


def forked(work: Callable[[], int], copy: Path, folder: Path, seconds: float = 3600.0) -> int:
    """Do some work in a process of its own; return its exit status, that of a signal negative."""
    place = folder / "scratch" / "of" / "one" / "mutant"  # deep: a mutant may remove what lies above
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    child = os.fork()
    if not child:
        code = 3
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
            log = os.open(folder / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(copy)
            sys.path[:] = [str(copy), *(p for p in sys.path if p not in (str(ROOT), str(Path(__file__).parent)))]
            paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(ROOT)]
            os.environ["PYTHONPATH"] = os.pathsep.join([str(copy), *paths])
            os.environ["TMPDIR"] = str(place)
            os.environ["PYTEST_DEBUG_TEMPROOT"] = str(place)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    shutil.rmtree(place, ignore_errors=True)
    return os.waitstatus_to_exitcode(status)


def run_pytest(copy: Path, files: Sequence[str], watch: Watch, stop: bool = True) -> int:
    imported = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # some of `WARM` are plugins of pytest
    place = ("--rootdir", str(copy), "-c", str(copy / "pyproject.toml"))
    words = ["-q", "-p", "no:cacheprovider", "--tb=line", *imported, *place]
    return int(pytest.main([*words, *(["-x"] if stop else []), *files], plugins=[watch]))


class Watch:
    """A plugin of pytest: the tests to run in their order, a time limit for each, and what they took.

    A test that runs into its limit ends the process by SIGALRM.
    """

    def __init__(
        self,
        ids: Sequence[str] = (),
        before: dict[str, float] | None = None,
        failed: Path | None = None,
        switch: Callable[[str], None] | None = None,
    ) -> None:
        self.place = {i: n for n, i in enumerate(ids)}
        self.before, self.failed, self.switch = before or {}, failed, switch
        self.seconds: dict[str, float] = {}

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)  # a counterexample is enough, the smallest not needed
        settings.register_profile("mutants", deadline=None, derandomize=True, database=None, phases=phases)
        settings.load_profile("mutants")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.place:
            items[:] = sorted((i for i in items if i.nodeid in self.place), key=lambda i: self.place[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.switch is not None:
            self.switch(nodeid)
        if self.place:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, GRACE + 10.0 * self.before.get(nodeid, 1.0))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.passed and report.when != "teardown":
            self.seconds[report.nodeid] = round(self.seconds.get(report.nodeid, 0.0) + report.duration, 4)
        elif report.failed and self.failed is not None:
            self.failed.write_text(report.nodeid)
