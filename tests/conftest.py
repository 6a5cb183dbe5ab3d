from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lrfgraph.cli import main
from lrfgraph.engine.memory import forget

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
