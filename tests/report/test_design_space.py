"""The design space as files: every candidate and every measured configuration, drawn again only for news."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lrfgraph.api import Compression, compress
from lrfgraph.errors import OutputError
from lrfgraph.options.recipe import Recipe
from lrfgraph.report.design_space import CANDIDATE_COLUMNS, CONFIGURATION_COLUMNS, layers_figure, write_design_space
from lrfgraph.report.pictures import draw_layers, write_picture
from lrfgraph.selection.front import Point
from lrfgraph.selection.problem import CandidateId, Decision
from tests.network.models import residual


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Compression:
    """A data-free run of a small net up to its configuration."""
    folder = tmp_path_factory.mktemp("run")
    residual().save(folder / "model.keras")
    recipe = Recipe().with_option("run.cache", str(folder / "cache")).with_option("run.until", "select")
    return compress(folder / "model.keras", recipe.with_option("select.policy", "threshold"))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_candidate_is_a_row(outcome: Compression, tmp_path: Path) -> None:
    write_design_space(outcome, tmp_path)
    rows = read(tmp_path / "design_space.csv")
    assert tuple(rows[0]) == CANDIDATE_COLUMNS
    assert {(row["layer"], row["method"], row["rank"]) for row in rows} == set(outcome.exploration.scores)
    assert len(rows) == len(outcome.exploration.scores)
    assert Counter(row["layer"] for row in rows)["inner"] > 10
    for row in rows:
        said = outcome.driver.data(outcome.exploration.scores[CandidateId(row["layer"], row["method"], row["rank"])])
        assert int(row["parameters"]) == said["parameters"]
        assert float(row["cosine"]) == pytest.approx(said["similarity"]["cosine"], rel=1e-5)
        assert float(row["distortion"]) == pytest.approx(said["distortion"], rel=1e-5, abs=1e-9)
        assert 0 < float(row["parameters_share"]) <= 2


def test_measured_configurations_are_rows_and_news_are_drawn(outcome: Compression, tmp_path: Path) -> None:
    parameters, macs = outcome.network.parameters, outcome.network.macs
    points = (Point(3, 0.8, parameters // 2, macs // 4, 1.5, 0.3, 0.9, 0.01, 0.02, Decision("", (), 1, 1)),)
    measured = {"baseline": {"validation": {"accuracy": 0.95}, "test": {"accuracy": 0.94}}}
    found = replace(outcome, measured=measured, points=points)
    write_design_space(found, tmp_path)
    rows = read(tmp_path / "configurations.csv")
    assert tuple(rows[0]) == CONFIGURATION_COLUMNS
    assert [(row["name"], row["accuracy_validation"]) for row in rows] == [("baseline", "0.95"), ("point 0", "0.9")]
    assert float(rows[1]["parameters_share"]) == pytest.approx(0.5, abs=0.01)
    assert rows[1]["accuracy_test"] == ""
    picture = tmp_path / "design_space.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    kept = b"kept" + picture.read_bytes()
    picture.write_bytes(kept)
    write_design_space(found, tmp_path)
    assert picture.read_bytes() == kept
    picture.write_bytes(b"of another measure")
    write_design_space(found, tmp_path)
    assert b'["cosine", "accuracy"]' in picture.read_bytes()
    picture.write_bytes(b"kept" + picture.read_bytes())
    write_design_space(replace(found, points=(), stopped=False), tmp_path)
    assert not picture.read_bytes().startswith(b"kept")


def test_layers_are_drawn_before_and_after(tmp_path: Path) -> None:
    layers = [
        {"name": "conv", "parameters": [1000, 100], "method": "cp", "rank": [3]},
        {"name": "head", "parameters": [50, 50], "method": None, "rank": []},
    ]
    write_picture(draw_layers(layers), tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["layers.png"]


def test_bars_are_those_of_the_network_that_was_factorized(outcome: Compression) -> None:
    labels = []
    for compression in (outcome, replace(outcome, source=outcome.network)):
        figure = layers_figure(compression)
        assert figure is not None
        labels.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()])
    assert labels == [["original", "compressed"], ["pruned", "compressed"]]


def test_a_folder_that_cannot_be_written_is_one_line(outcome: Compression, tmp_path: Path) -> None:
    (tmp_path / "design_space.csv").mkdir()
    with pytest.raises(OutputError, match="choose another with --out"):
        write_design_space(outcome, tmp_path)
