"""How long a fine-tuning is, and a trial of it."""

from __future__ import annotations

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from lrfgraph.options.finetuning import LEAST_EPOCHS, MOST_PASSES, MOST_TRIED, FinetuneOptions

IMAGES, BATCH = st.integers(1, 200_000), st.integers(1, 512)


def steps_of(options: FinetuneOptions, images: int) -> int:
    """Steps of whole batches, as `Batches` makes them."""
    epochs, each = options.length(images)
    return epochs * (each // min(options.batch, each))


@given(images=IMAGES, batch=BATCH, steps=st.integers(1, 5000))
def test_epochs_come_to_the_steps_that_are_asked_for(images: int, batch: int, steps: int) -> None:
    options = FinetuneOptions(batch=batch, steps=steps)
    epochs, each = options.length(images)
    most = min(steps, MOST_PASSES * max(images // batch, 1))
    assert 1 <= each <= images
    assert epochs >= min(LEAST_EPOCHS, most)
    assert most - epochs < steps_of(options, images) <= most
    assert epochs <= max(ceil(most / max(images // batch, 1)), LEAST_EPOCHS)


def test_a_number_of_epochs_is_as_many_passes() -> None:
    assert FinetuneOptions(epochs=7).length(1000) == (7, 1000)
    assert FinetuneOptions(epochs=0).length(1000)[0] == 0


@given(images=IMAGES, batch=BATCH, epochs=st.none() | st.integers(1, 50))
def test_a_trial_is_a_sixth_of_the_training_and_no_more_than_a_few_hundred_steps(
    images: int, batch: int, epochs: int | None
) -> None:
    options = FinetuneOptions(epochs=epochs, batch=batch)
    trial, whole = options.trial(images), steps_of(options, images)
    assert trial.steps == min(max(round(whole / 6), 1), MOST_TRIED)
    assert steps_of(trial, images) <= max(trial.steps, 1)


def test_a_trial_has_a_sixth_of_the_minutes() -> None:
    assert FinetuneOptions(minutes=12.0).trial(1000).minutes == 2.0
    assert FinetuneOptions().trial(1000).minutes is None
