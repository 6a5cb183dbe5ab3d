"""What a model file may bring comes from the recipe, never from the cache that keeps the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import DATA, Call

from lrfgraph.engine.files import checksum, file_checksum


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A model file that brings code."""
    import keras

    x = keras.Input((8, 8, 1))
    y = keras.layers.Lambda(lambda v: v * 2.0, name="double")(x)
    y = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Conv2D(8, 3, name="conv1")(y)))
    path = tmp_path / "code.keras"
    keras.Model(x, y).save(path)
    return path


def craft(entry: Path, model: Path) -> None:
    """Put another model into an entry and have it say that code may run, all checksums right."""
    manifest = json.loads((entry / "entry.json").read_bytes())
    del manifest["digest"]
    (entry / "files" / "model.keras").write_bytes(model.read_bytes())
    manifest["files"]["files/model.keras"] = [model.stat().st_size, file_checksum(str(model))]
    manifest["data"]["trust"] = {"custom": [], "unsafe": True}
    text = json.dumps(manifest, separators=(",", ":")).encode()
    (entry / "entry.json").write_bytes(b'{"digest":"' + checksum(text).encode() + b'",' + text[1:])


def test_an_entry_that_says_it_may_run_code_is_not_believed(call: Call, code: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    arguments = (
        "run",
        DATA / "tiny_cnn.keras",
        "--cache",
        cache,
        "--set",
        "explore.ranks=2",
        "--out",
        tmp_path / "out",
    )
    assert call(*arguments, "--until", "select").code == 0
    (manifest,) = (cache / "v2" / "describe").glob("??/*/entry.json")
    craft(manifest.parent, code)
    ended = call(*arguments)
    assert ended.code == 2
    assert "layer double is a Lambda" in ended.err
    assert "--unsafe" in ended.err
