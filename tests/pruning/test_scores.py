"""Scores of channels: what each measures, and that the feature score is the least-squares error it says it is."""

from __future__ import annotations

import numpy as np
import pytest

from lrfgraph.pruning import SCORES
from lrfgraph.pruning.base import Filters, Reader, Writer
from lrfgraph.pruning.features import FEATURES, refit

CHANNELS = 6


def example(seed: int = 0, positions: int = 4, outputs: int = 5, rows: int = 400, constant: bool = True) -> Filters:
    """One layer that writes six channels and one that reads them at several positions."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(1, 3, 3, 2, CHANNELS))
    x = rng.normal(size=(rows, positions * CHANNELS)) @ rng.normal(size=(positions * CHANNELS, positions * CHANNELS))
    x = np.concatenate([x + 1, np.ones((rows, 1))], axis=1) if constant else x
    numbers = np.tile(np.arange(CHANNELS), positions)
    reader = Reader(
        rng.normal(size=(1, x.shape[1], outputs)),
        np.append(numbers, -1)[None] if constant else numbers[None],
        (x.T @ x / rows)[None],
        rng.normal(size=(1, outputs, outputs)),
        constant,
    )
    return Filters(tuple(range(CHANNELS)), (Writer(kernel, np.arange(CHANNELS)[None]),), (reader,))


def least_squares(reader: Reader, gone: list[int]) -> float:
    """The weighted error of the best fit from the rows that are left, solved anew."""
    refitted = refit(reader, np.array(gone))
    error = (refitted - reader.matrix)[0] @ reader.scale[0]
    return float(np.trace(error.T @ reader.moments[0] @ error))


@pytest.mark.parametrize("name", SCORES)
def test_a_ranking_is_a_permutation_and_its_losses_rise(name: str) -> None:
    ranking = SCORES[name].rank(example())
    assert sorted(ranking.order) == list(range(CHANNELS))
    assert len(ranking.losses) == CHANNELS
    assert (np.diff(ranking.losses) >= -1e-9).all()
    assert ranking.losses[0] >= 0


@pytest.mark.parametrize("name", SCORES)
def test_a_channel_that_does_nothing_goes_first(name: str) -> None:
    filters = example()
    writer, reader = filters.writers[0], filters.readers[0]
    # its filter is zero, or (for the geometric median) lies in the middle of the others, and nothing reads it
    kernel = writer.kernel.copy()
    kernel[..., 4] = 0
    matrix = reader.matrix.copy()
    matrix[:, reader.numbers[0] == 4] = 0
    dead = Reader(matrix, reader.numbers, reader.moments, reader.scale, reader.constant)
    assert SCORES[name].rank(Filters(filters.channels, (Writer(kernel, writer.numbers),), (dead,))).order[0] == 4


def test_l1_is_the_sum_of_absolute_values() -> None:
    filters = example()
    norms = np.abs(filters.writers[0].kernel).sum(axis=(0, 1, 2, 3))
    assert SCORES["l1"].rank(filters).order == tuple(np.argsort(norms))


def test_fpgm_is_the_sum_of_distances() -> None:
    filters = example()
    flat = filters.writers[0].filters()
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1).sum(axis=1)
    assert SCORES["fpgm"].rank(filters).order == tuple(np.argsort(distances))


@pytest.mark.parametrize("constant", [True, False])
def test_feature_losses_are_least_squares_errors(constant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrfgraph.pruning.features.RIDGE", 1e-9)
    filters = example(constant=constant)
    ranking = FEATURES.rank(filters)
    for count in range(1, CHANNELS):
        expected = least_squares(filters.readers[0], list(ranking.order[:count]))
        assert ranking.losses[count - 1] == pytest.approx(expected, rel=1e-5)


def test_the_first_channel_to_go_costs_least_of_all() -> None:
    filters = example()
    alone = [least_squares(filters.readers[0], [channel]) for channel in range(CHANNELS)]
    assert FEATURES.rank(filters).order[0] == int(np.argmin(alone))


def test_of_two_channels_that_replace_each_other_one_stays() -> None:
    """Each alone costs nothing, both together much: one after the other sees it, scoring each alone does not."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, CHANNELS))
    x[:, 1] = x[:, 0]
    reader = Reader(np.ones((1, CHANNELS, 3)), np.arange(CHANNELS)[None], (x.T @ x / 500)[None], np.eye(3)[None], False)
    ranking = FEATURES.rank(Filters(tuple(range(CHANNELS)), (), (reader,)))
    assert ranking.order[0] in (0, 1)
    assert not {0, 1} <= set(ranking.order[:2])


def test_several_readers_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrfgraph.pruning.features.RIDGE", 1e-9)
    one, other = example(0), example(1)
    both = FEATURES.rank(Filters(one.channels, (), (*one.readers, *other.readers)))
    first = both.order[:1]
    total = sum(least_squares(reader, list(first)) for reader in (*one.readers, *other.readers))
    assert both.losses[0] == pytest.approx(total, rel=1e-5)


def test_wide_groups_lose_several_channels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrfgraph.pruning.features.STEPS", 3)
    monkeypatch.setattr("lrfgraph.pruning.features.RIDGE", 1e-9)
    ranking = FEATURES.rank(example())
    assert sorted(ranking.order) == list(range(CHANNELS))
    expected = least_squares(example().readers[0], list(ranking.order[:2]))
    assert ranking.losses[1] == pytest.approx(expected, rel=1e-5)


def test_refit_leaves_what_reads_nothing_removed() -> None:
    reader = example().readers[0]
    assert np.array_equal(refit(reader, np.array([17])), reader.matrix)
    refitted = refit(reader, np.array([2]))
    assert not refitted[0][reader.numbers[0] == 2].any()
    zeroed = np.where((reader.numbers[0] == 2)[:, None], 0, reader.matrix[0])
    left, cut = ((each - reader.matrix[0]) for each in (refitted[0], zeroed))
    power = reader.moments[0]
    assert np.trace(left.T @ power @ left) < 0.9 * np.trace(cut.T @ power @ cut)


GOLDEN: dict[str, tuple[int, tuple[int, ...], tuple[float, ...]]] = {
    "features": (1, (2, 5, 0, 4, 3, 1), (164.931, 667.832, 1967.99, 3594.04, 6685.98, 10996.1)),
    "l1": (1, (4, 2, 5, 1, 0, 3), (0.123425, 0.275783, 0.435952, 0.601969, 0.79005, 1.0)),
    "fpgm": (1, (4, 5, 2, 1, 0, 3), (0.153025, 0.309719, 0.471062, 0.635491, 0.804877, 1.0)),
}


@pytest.mark.parametrize("name", SCORES)
def test_numbers_change_with_a_version_only(name: str) -> None:
    version, order, losses = GOLDEN[name]
    ranking = SCORES[name].rank(example())
    assert SCORES[name].version == version
    assert ranking.order == order
    assert ranking.losses == pytest.approx(losses, rel=1e-4)
