"""Change the code at random, one small change at a time, and count which changes the tests notice.

    pip install cosmic-ray coverage
    python pipelines/benchmarks/mutants.py --work FOLDER --out mutants.json [--count 300] [--seed 0] [--budget 30]
    python pipelines/benchmarks/mutants.py --work FOLDER --out mutants.json --again mutants.json --budget 600

A mutant is one change by an operator of Cosmic Ray (another comparison, an operator, a number one higher or lower, a
condition negated, a loop left out). Places are drawn first, then one of the changes that are possible there;
annotations are no code and left out. Every mutant runs, in a copy of the tree, the tests that reach its function, the
quickest first and those of its own test file before the others, until one fails. A test that takes ten times as long
as before and half a minute more has noticed it too. Which tests reach which function is measured once and kept in
``--work``. ``--again`` reruns the survivors of an earlier result on the code as it is now, and keeps the ``why`` that
somebody has written beside them. Exit status 1 if less than 85 % are killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("engine", "selection", "layers", "methods", "images")
PACKAGE = "lrfgraph"
WARM = (
    *("numpy", "scipy.optimize", "scipy.linalg", "zarr", "dask", "distributed", "tensorly", "PIL.Image"),
    *("tensorflow", "keras"),
)
"""Imported once, before processes are forked; the project itself never is."""

MUST = 0.85
QUICK_SECONDS = 0.25
MODULE = "<module>"
MEMORY_BYTES = 24 << 30
OTHER = {"VariableReplacer", "VariableInserter"}
"""Operators that have to be told which variables."""


Span = tuple[tuple[int, int], tuple[int, int]]
"""First and last line and column."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file: where, by which operator, and the lines before and after it."""

    file: str
    line: int
    operator: str
    occurrence: int
    function: str
    before: str
    after: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the copy, the coverage and a log")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--count", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), help=f"folders of {PACKAGE}/ to change")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="test files or folders that may notice")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of tests a mutant, at the speed measured")
    parser.add_argument("--again", type=Path, help="a result whose survivors are to be run again")
    options = parser.parse_args()
    options.work = options.work.resolve()
    copy = copied_tree(options.work / "tree")
    for module in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    reach = Reach(copy, options.work, options.tests)
    if options.again:
        result = json.loads(options.again.read_text(encoding="utf-8"))
        drawn, gone = again(copy, result["survivors"])
    else:
        result, gone = {}, []
        drawn = draw(copy, options.rooms, options.seed, options.count)
    began, outcomes = time.monotonic(), []
    for number, mutant in enumerate(drawn):
        outcomes.append(outcome(mutant, copy, reach, options))
        print(f"{number + 1}/{len(drawn)}", json.dumps(outcomes[-1]), flush=True)
        result_now = summary(result, outcomes, gone, options) | {"seconds": round(time.monotonic() - began)}
        options.out.write_text(json.dumps(result_now, indent=1) + "\n", encoding="utf-8")
    score = result_now["killed"] / max(result_now["mutants"], 1)
    print(f"{result_now['killed']} of {result_now['mutants']} killed ({score:.1%})")
    return int(score < MUST)


def copied_tree(copy: Path) -> Path:
    """Copy what git would take along, changed or not yet known to it."""
    shutil.rmtree(copy, ignore_errors=True)
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", str(copy / PACKAGE)]
    subprocess.run(command, check=True)  # by content: a mutant may have the size and the second of the original
    return copy


# Mutants ------------------------------------------------------------------------------------------------------------


def draw(copy: Path, rooms: Sequence[str], seed: int, count: int) -> list[Mutant]:
    """Draw places of the rooms' files, and for each one of its changes."""
    places: dict[tuple[Path, Span], list[tuple[str, int]]] = defaultdict(list)
    for room in rooms:
        for path in sorted((copy / PACKAGE / room).rglob("*.py")):
            for at, operator, occurrence in changes(path):
                places[path, at].append((operator, occurrence))
    rng = random.Random(seed)
    order = sorted(places)
    rng.shuffle(order)
    drawn: list[Mutant] = []
    for path, at in order:
        if len(drawn) == count:
            break
        rng.shuffle(places[path, at])
        possible = (mutant_of(path, copy, *change) for change in places[path, at])
        drawn += [mutant for mutant in possible if mutant is not None][:1]
    print(f"{len(drawn)} of {len(order)} places drawn", flush=True)
    return drawn


def again(copy: Path, survivors: Sequence[dict[str, Any]]) -> tuple[list[Mutant], list[dict[str, Any]]]:
    """Find an earlier result's survivors in the code as it is now; those whose line is no more come second."""
    present, gone = [], []
    for survivor in survivors:
        path = copy / survivor["file"]
        tried = changes(path) if path.exists() else ()
        possible = (mutant_of(path, copy, name, n) for _, name, n in tried if name == survivor["operator"])
        same = [m for m in possible if m and (m.before, m.after) == (survivor["before"], survivor["after"])]
        if same:
            present.append(min(same, key=lambda m: abs(m.line - survivor["line"])))
        else:
            gone.append(survivor)
    return present, gone


def changes(path: Path) -> Iterator[tuple[Span, str, int]]:
    """Yield what can be changed in a file: the place, the operator and its how-manieth place there."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    source = path.read_text(encoding="utf-8")
    passed_over = list(annotations(ast.parse(source)))
    nodes = list(ast_nodes(get_ast(source)))
    for name in provider:
        if name not in OTHER:
            operator = provider[name]()
            places = [at for node in nodes for at in operator.mutation_positions(node)]
            for occurrence, at in enumerate(places):
                if not any(begin <= at[0] < end for begin, end in passed_over):
                    yield at, name, occurrence


def mutant_of(path: Path, copy: Path, operator: str, occurrence: int) -> Mutant | None:
    """Return the mutant, or None if the change cannot be made, changes nothing or does not compile."""
    source = path.read_text(encoding="utf-8")
    try:
        changed = mutated(source, operator, occurrence)
        compile(changed, "mutant", "exec")
    except (AttributeError, AssertionError, SyntaxError, ValueError):  # the first two are Cosmic Ray's
        return None
    lines = difference(source, changed)
    if lines is None:
        return None
    function = function_at(functions_of(ast.parse(source)), lines[0])
    return Mutant(str(path.relative_to(copy)), lines[0], operator, occurrence, function, *lines[1:])


def mutated(source: str, operator: str, occurrence: int) -> str:
    from cosmic_ray.mutating import MutationVisitor
    from cosmic_ray.operators.provider import OperatorProvider

    return str(MutationVisitor.mutate_code(source, OperatorProvider()[operator](), occurrence))


def difference(source: str, changed: str) -> tuple[int, str, str] | None:
    """Return the number of the first line that differs, and the differing lines before and after."""
    old, new = source.splitlines(), changed.splitlines()
    if old == new:
        return None
    first = next(i for i in range(len(old) + 1) if old[i : i + 1] != new[i : i + 1])
    tail = 0
    while tail < min(len(old), len(new)) - first and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    before, after = ("\n".join(lines[first : len(lines) - tail]).strip() for lines in (old, new))
    return first + 1, before, after


def annotations(tree: ast.AST) -> Iterator[Span]:
    """Yield where types are written, and what is there for type checkers alone."""
    for node in ast.walk(tree):
        notes: list[Any] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            notes.append(node)
        for note in notes:
            if note is not None:
                yield (note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset)


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


# Which tests reach what ---------------------------------------------------------------------------------------------


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

    def of(self, mutant: Mutant, budget: float) -> list[str]:
        """Return the tests to run for a mutant, in order, as many as fit the budget."""
        stem = Path(mutant.file).stem
        mirror = f"{Path(mutant.file).parent.name}/test_{stem}.py"
        room = f"tests/{Path(mutant.file).parts[1]}/"
        reaching = self.tests[mutant.file, mutant.function]
        # tables and classes are read at import, by no test; and some tests start processes of their own
        ids = reaching | {i for i in self.seconds if i.startswith(room)}
        cost = {i: self.seconds[i] for i in ids}
        spent, chosen = 0.0, []
        for i in sorted(ids, key=lambda i: (i not in reaching, cost[i] * (0.1 if f"{mirror}::" in i else 1.0), i)):
            spent += cost[i]
            if spent <= budget:
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


# One mutant ---------------------------------------------------------------------------------------------------------


def outcome(mutant: Mutant, copy: Path, reach: Reach, options: argparse.Namespace) -> dict[str, Any]:
    """Apply one mutant, run its tests and take it back."""
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    ids = reach.of(mutant, options.budget)
    failed = options.work / "failed"
    failed.unlink(missing_ok=True)
    began = time.monotonic()
    path.write_text(mutated(source, mutant.operator, mutant.occurrence), encoding="utf-8")
    try:
        watch = Watch(ids, reach.seconds, failed)
        files = list(dict.fromkeys(i.partition("::")[0] for i in ids))
        code = forked(lambda: run_pytest(copy, files, watch), copy, options.work) if ids else 0
    finally:
        path.write_text(source, encoding="utf-8")
    fate = "survived" if code == 0 else "hung" if code in (-signal.SIGALRM, -signal.SIGXCPU) else "killed"
    by = failed.read_text() if failed.exists() else ""
    seconds = round(time.monotonic() - began, 1)
    return {**asdict(mutant), "fate": fate, "code": code, "by": by, "tests": len(ids), "seconds": seconds}


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
            signal.setitimer(signal.ITIMER_REAL, 30.0 + 10.0 * self.before.get(nodeid, 1.0))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.passed and report.when != "teardown":
            self.seconds[report.nodeid] = round(self.seconds.get(report.nodeid, 0.0) + report.duration, 4)
        elif report.failed and self.failed is not None:
            self.failed.write_text(report.nodeid)


# Results ------------------------------------------------------------------------------------------------------------


def summary(
    earlier: dict[str, Any], outcomes: Sequence[dict[str, Any]], gone: Sequence[dict[str, Any]], options: Any
) -> dict[str, Any]:
    """Add up what is known so far; with an earlier result, what became of its survivors."""
    why = {(s["file"], s["before"], s["after"]): s.get("why", "") for s in earlier.get("survivors", ())}
    names = ("file", "line", "operator", "before", "after", "tests")
    survivors = [
        {name: o[name] for name in names} | {"why": why.get((o["file"], o["before"], o["after"]), "")}
        for o in outcomes
        if o["fate"] == "survived"
    ]
    mutants = earlier.get("mutants", len(outcomes)) - len(gone)
    counts = Counter(o["fate"] for o in outcomes)
    rooms = Counter(Path(o["file"]).parent.name for o in outcomes)
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return {
        "commit": subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip(),
        "command": " ".join(["python", "pipelines/benchmarks/mutants.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": earlier.get("seed", options.seed),
        "mutants": mutants,
        "killed": mutants
        - len(survivors)
        - (len(earlier.get("survivors", ())) - len(gone) - len(outcomes) if earlier else 0),
        "hung": earlier.get("hung", 0) + counts["hung"],
        "rooms": earlier.get("rooms") or dict(sorted(rooms.items())),
        "first": earlier.get("first") or {k: earlier[k] for k in ("commit", "mutants", "killed") if k in earlier},
        "removed_with_their_line": [*earlier.get("removed_with_their_line", []), *gone],
        "survivors": survivors,
    }


if __name__ == "__main__":
    sys.exit(main())
