from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lrfgraph.cli import main
from lrfgraph.engine.memory import forget
from lrfgraph.network import exporting
from pipelines.benchmarks.warm_process import WarmProcess

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Said:
    """What a command said, and with which exit code it ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture(autouse=True, scope="module")
def fresh_memory() -> Iterator[None]:
    """What one file's tests loaded serves no other's."""
    yield
    forget()


@pytest.fixture(scope="session")
def warm_process() -> Iterator[WarmProcess]:
    """Runs programs in processes forked from one that has imported Keras and nothing of ours: it takes no seconds."""
    warm = WarmProcess()
    yield warm
    warm.close()


@pytest.fixture(autouse=True)
def reloads_in_a_warm_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Written files are reloaded in a process that did not start for it, but where a test is about just that."""
    if "a_fresh_process" in request.keywords:
        yield
        return

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_fresh_process", request.getfixturevalue("warm_process").run)
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of its own of the size that is asked for."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            allowed = subprocess.run(command, check=False, capture_output=True).returncode == 0
        except OSError:
            allowed = False
        if not allowed:
            pytest.skip("a small disk cannot be mounted here")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line, within this process."""

    def called(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Said(left.value.code, printed.out, printed.err)

    return called


def with_changes(words: Sequence[str]) -> list[str]:
    """Return options and their values in which a later one replaces an earlier one of the same name."""
    pairs = zip(words[::2], words[1::2], strict=True)
    named = {(flag, value.partition("=")[0] if flag == "--set" else ""): value for flag, value in pairs}
    return [word for (flag, _), value in named.items() for word in (flag, value)]


@dataclass(frozen=True)
class Finished:
    """A finished run of the tiny network: its arguments, and where its cache and results are."""

    arguments: tuple[str, ...]
    cache: Path
    out: Path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run everything once, fine-tuning included; tests copy the cache before they change it."""
    folder = tmp_path_factory.mktemp("finished")
    data = ("--data", str(DATA / "tiny_digits.npz"), "--scale", "1/255")
    options = ("--policy", "threshold", "--min-similarity", "0.9", "--epochs", "1")
    settings = ("explore.ranks=3", "data.calibration=100", "data.validation=60", "repair.enabled=false")
    arguments = (str(DATA / "tiny_cnn.keras"), *data, *options, *(word for s in settings for word in ("--set", s)))
    cache, out = folder / "cache", folder / "out"
    with pytest.raises(SystemExit) as left:
        main(["run", *arguments, "--cache", str(cache), "--out", str(out)])
    assert left.value.code == 0
    return Finished(arguments, cache, out)
