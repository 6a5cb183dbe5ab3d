from __future__ import annotations

from pathlib import Path

import pytest

from lrfgraph.commands import cache
from lrfgraph.engine import maintenance
from lrfgraph.engine.maintenance import Freed
from lrfgraph.options.recipe import Recipe


@pytest.mark.parametrize("text", ["5GB", "5GiB", "1.5 MiB", "2kb", "4096", "1TiB"])
def test_a_size_is_the_same_in_a_recipe_and_on_the_command_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    (tmp_path / "v2").mkdir()
    monkeypatch.setattr(maintenance, "gc", lambda store, max_size, **_: sizes.append(max_size) or Freed())
    cache.gc(tmp_path, text, None, True)
    assert sizes == [Recipe.from_text(f'[run]\nmax_memory = "{text}"\n').run.max_memory]
    assert sizes == [Recipe().with_option("run.max_memory", text).run.max_memory]
