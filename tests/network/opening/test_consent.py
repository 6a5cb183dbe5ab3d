"""The files of a user's code have a digest before anything of it is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lrfgraph.network.opening.consent import code_digest

FILES = {
    "parts/__init__.py": "",
    "parts/layers.py": "from . import tools\nimport numpy\nclass Mine: pass\n",
    "parts/tools.py": "import distant\n",
    "distant.py": "X = 1\n",
    "alone.py": "import missing\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", [name for name in FILES if name != "alone.py"])
def test_every_file_that_the_code_imports_counts(name: str, folder: Path) -> None:
    before = code_digest(["parts.layers:Mine"])
    (folder / name).write_text(FILES[name] + "Y = 2\n")
    assert code_digest(["parts.layers:Mine"]) != before


def test_other_files_do_not(folder: Path) -> None:
    before = code_digest(["parts.layers:Mine"])
    (folder / "alone.py").write_text("Y = 2\n")
    assert code_digest(["parts.layers:Mine"]) == before
    assert code_digest([]) != before


def test_nothing_is_imported(folder: Path) -> None:
    (folder / "parts" / "__init__.py").write_text("raise RuntimeError\n")
    code_digest(["parts.layers:Mine", "nowhere:Mine", "os:path"])
    assert not {"parts", "parts.layers", "distant"} & set(sys.modules)


def test_what_does_not_parse_still_counts(folder: Path) -> None:
    (folder / "parts" / "layers.py").write_text("class Mine(\n")
    before = code_digest(["parts.layers:Mine"])
    (folder / "parts" / "layers.py").write_text("class Mine((\n")
    assert code_digest(["parts.layers:Mine"]) != before


def test_what_a_package_imports_from_itself_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "measures_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import score\n")
    monkeypatch.syspath_prepend(tmp_path)
    digests = set()
    for text in ("def score(): return 1\n", "def score(): return 2\n"):
        (package / "inner.py").write_text(text)
        digests.add(code_digest(["measures_of_mine:score"]))
    assert len(digests) == 2
