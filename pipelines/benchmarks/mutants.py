"""Change the code at random, one small change at a time, and count which changes the tests notice.

    pip install cosmic-ray coverage
    python pipelines/benchmarks/mutants.py --work FOLDER --out mutants.json [--count 300] [--seed 0] [--budget 30]
    python pipelines/benchmarks/mutants.py --work FOLDER --out mutants.json --again mutants.json --budget 600

A mutant is one change by an operator of Cosmic Ray (another comparison, an operator, a number one higher or lower, a
condition negated, a loop left out). Places are drawn first, then one of the changes that are possible there;
annotations are no code and left out. Every mutant runs, in a copy of the tree, the tests that reach its function, the
quickest first and those of its own test file before the others, until one fails. A test that takes ten times as long
as before and twenty seconds more has noticed it too. Which tests reach which function is measured once and kept in
``--work``. ``--again`` reruns the survivors of an earlier result on the code as it is now, but for those beside which
somebody has written ``why`` nothing can tell them apart. Exit status 1 if less than 85 % are killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from networks import write
from reach import PACKAGE, ROOT, Reach, Watch, forked, function_at, functions_of, run_pytest

ROOMS = ("engine", "selection", "layers", "methods", "images")
WARM = (
    *("numpy", "scipy.optimize", "scipy.linalg", "zarr", "dask", "distributed", "tensorly", "PIL.Image"),
    *("tensorflow", "keras"),
)
"""Imported once, before processes are forked; the project itself never is."""

MUST = 0.85
NO_TESTS = 5
"""What pytest ends with where nothing was to be run."""

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
    explained: list[dict[str, Any]] = []
    if options.again:
        earlier = json.loads(options.again.read_text(encoding="utf-8"))
        explained = [survivor for survivor in earlier["survivors"] if survivor["why"]]
        drawn, before, gone = again(copy, [survivor for survivor in earlier["survivors"] if not survivor["why"]])
    else:
        drawn, earlier, before, gone = draw(copy, options.rooms, options.seed, options.count), {}, [], []
    began, outcomes, result = time.monotonic(), [], dict[str, Any]()
    for number in range(len(drawn) + 1):
        result = summary(options, earlier, outcomes, [*before[number:], *explained], gone)
        result["seconds"] = round(time.monotonic() - began)
        write(options.out, result)
        if number < len(drawn):
            outcomes.append(outcome(drawn[number], copy, reach, options) | {"why": ""})
            print(f"{number + 1}/{len(drawn)}", json.dumps(outcomes[-1]), flush=True)
    print(f"{result['killed']} of {result['mutants']} killed ({result['score']:.1%})")
    return int(result["score"] < MUST)


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


def again(copy: Path, survivors: Sequence[dict[str, Any]]) -> tuple[list[Mutant], list[Any], list[Any]]:
    """Find an earlier result's survivors in the code as it is now; return them, and those whose line is no more."""
    found, still, gone = [], [], []
    for survivor in survivors:
        path, before = copy / survivor["file"], survivor["before"]
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        tried = [(at, n) for at, name, n in (changes(path) if lines else ()) if name == survivor["operator"]]
        near = [n for ((line, _), _), n in tried if lines[line - 1].strip() in before]
        possible = (mutant_of(path, copy, survivor["operator"], n) for n in near)
        same = [m for m in possible if m and (m.before, m.after) == (survivor["before"], survivor["after"])]
        if same:
            found.append(min(same, key=lambda m: abs(m.line - survivor["line"])))
            still.append(survivor)
        else:
            gone.append(survivor)
    return found, still, gone


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


# One mutant ---------------------------------------------------------------------------------------------------------


def outcome(mutant: Mutant, copy: Path, reach: Reach, options: argparse.Namespace) -> dict[str, Any]:
    """Apply one mutant, run its tests and take it back."""
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    ids = reach.of(mutant.file, mutant.function, options.budget)
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
    fate = "survived" if code in (0, NO_TESTS) else "hung" if code in (-signal.SIGALRM, -signal.SIGXCPU) else "killed"
    by = failed.read_text() if failed.exists() else ""
    seconds = round(time.monotonic() - began, 1)
    return {**asdict(mutant), "fate": fate, "code": code, "by": by, "tests": len(ids), "seconds": seconds}


# Results ------------------------------------------------------------------------------------------------------------


def summary(
    options: argparse.Namespace,
    earlier: dict[str, Any],
    outcomes: Sequence[dict[str, Any]],
    waiting: Sequence[dict[str, Any]],
    gone: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Add up what is known so far; of an earlier result's survivors some are `waiting` to be run again.

    gone : those whose line is no more; they count no longer.
    """
    names = ("file", "line", "operator", "before", "after", "tests", "why")
    survivors = [{name: o[name] for name in names} for o in outcomes if o["fate"] == "survived"] + [*waiting]
    drawn = earlier.get("rooms") or Counter(room_of(o) for o in outcomes)
    rooms = {room: drawn[room] - sum(room_of(one) == room for one in gone) for room in sorted(drawn)}
    mutants = sum(rooms.values())
    return {
        "seed": earlier.get("seed", options.seed),
        "mutants": mutants,
        "killed": mutants - len(survivors),
        "score": round(1 - len(survivors) / max(mutants, 1), 4),
        "hung": earlier.get("hung", 0) + sum(o["fate"] == "hung" for o in outcomes),
        "rooms": rooms,
        "survived": dict(Counter(room_of(one) for one in survivors)),
        "first": earlier.get("first") or {name: earlier[name] for name in ("commit", "mutants", "killed") if earlier},
        "removed": [*earlier.get("removed", []), *gone],
        "survivors": survivors,
    }


def room_of(mutant: dict[str, Any]) -> str:
    return str(Path(mutant["file"]).parts[1])


if __name__ == "__main__":
    sys.exit(main())
