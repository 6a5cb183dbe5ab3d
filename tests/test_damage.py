"""A damaged cache through the command line: the same numbers, and every damage said once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conftest import Call, Finished


def test_damaged_entries_are_computed_again_and_named_once(finished: Finished, call: Call, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(finished.cache, cache)
    manifests = sorted((cache / "v1" / "score").glob("??/*/entry.json"))
    assert len(manifests) > 8
    for path in manifests[:8]:
        path.write_bytes(path.read_bytes().replace(b'"parameters":', b'"parameters":1', 1))
    said = call("run", *finished.arguments, "--cache", cache, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    damage = [line for line in summary["warnings"] if "damaged" in line]
    assert len(set(damage)) == len(damage) == 6
    assert damage[-1] == "3 more were damaged in the cache and computed again"
    assert said.out.count("computed again") == 6
    before = json.loads((finished.out / "summary.json").read_text())
    assert all(summary[name] == before[name] for name in ("layers", "final", "factorized"))
