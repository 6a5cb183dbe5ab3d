from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfgraph.errors import DataError
from lrfgraph.network import training
from lrfgraph.network.batches import blended, moved, moved_split
from lrfgraph.network.evaluating import measure, predict
from lrfgraph.network.heads import HEADS, head_of
from lrfgraph.network.training import CHECKPOINT, Split, finetune
from lrfgraph.options.recipe import FinetuneOptions

RANDOM = np.random.default_rng(0)
OPTIONS = FinetuneOptions(epochs=3, batch=16, learning_rate=3e-2, batchnorm="batch")
"""Of networks with fresh weights, whose statistics are of nothing yet."""


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of three kinds: bright left, bright right, bright below."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, count)
    x = random.normal(0, 0.5, (count, 6, 6, 1)).astype(np.float32)
    x[y == 0, :, :2] += 1
    x[y == 1, :, 4:] += 1
    x[y == 2, 4:] += 1
    return x, y


X, Y = blobs(160, 0)
X_VAL, Y_VAL = blobs(96, 1)
TRAINING, VALIDATION = Split(X, Y), Split(X_VAL, Y_VAL)
SOFTMAX = HEADS["softmax"]


def network(seed: int, *, units: int = 3, end: str | None = "softmax", dropout: float = 0.0) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            layers.Input((6, 6, 1)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(momentum=0.7),
            layers.ReLU(),
            layers.Dropout(dropout),
            layers.Flatten(),
            layers.Dense(units, end, name="head"),
        ]
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A network trained on labels alone."""
    model = network(0)
    options = replace(OPTIONS, alpha=0.0, epochs=4)
    return finetune(model, network(9), TRAINING, VALIDATION, options, SOFTMAX, tmp_path_factory.mktemp("t"))[0]


def weights(model: Any) -> list[np.ndarray]:
    return [np.array(w) for w in model.get_weights()]


def accuracy(model: Any) -> float:
    return float(measure(predict(model, X_VAL), Y_VAL, SOFTMAX)["accuracy"])


# ---- prediction and measures


def test_predict_equals_the_model_and_compiles_once() -> None:
    model = network(1)
    expected = model(X[:50], training=False).numpy()
    np.testing.assert_allclose(predict(model, X[:50], batch=16), expected, atol=1e-6)
    predict(model, X[:70], batch=16)
    assert model.__dict__["_lrfgraph_forward"].experimental_get_tracing_count() == 1
    assert predict(model, X[:0]).shape == (0, 3)


def test_predict_takes_a_fixed_batch() -> None:
    import keras

    inputs = keras.Input(batch_shape=(4, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    x = RANDOM.random((10, 3)).astype(np.float32)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(predict(model, x), x @ kernel + bias, atol=1e-6)


def test_predict_takes_several_inputs_as_a_list_but_not_one_array() -> None:
    import keras

    first, second = keras.Input((2,)), keras.Input((3,))
    model = keras.Model([first, second], keras.layers.Concatenate()([first, second]))
    a, b = np.ones((5, 2), np.float32), np.zeros((5, 3), np.float32)
    np.testing.assert_array_equal(predict(model, [a, b], batch=2), np.concatenate([a, b], 1))
    with pytest.raises(DataError, match="the model has 2 inputs, received 1"):
        predict(model, a)
    two = keras.Model(first, [first, first])
    with pytest.raises(DataError, match="2 outputs"):
        predict(two, a)


# ---- shifts and mirrors


def test_moved_shifts_with_reflection_and_mirrors() -> None:
    images = np.arange(6.0).reshape(1, 2, 3, 1).repeat(2, 0)
    result = moved(images, np.array([[1, 0], [0, -1]]), np.array([False, True]))
    assert result[0, ..., 0].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert result[1, ..., 0].tolist() == [[1, 2, 1], [4, 5, 4]]
    np.testing.assert_array_equal(moved(images, np.zeros((2, 2), int), np.zeros(2, bool)), images)


def test_moved_leaves_channels_first_channels_alone() -> None:
    images = RANDOM.random((2, 3, 8, 8))
    shifts, mirrored = np.array([[1, 2], [-1, 0]]), np.array([True, False])
    last = moved(np.moveaxis(images, 1, -1), shifts, mirrored)
    np.testing.assert_array_equal(moved(images, shifts, mirrored), np.moveaxis(last, -1, 1))


# ---- fine-tuning


def test_training_on_labels_learns(teacher: Any) -> None:
    assert accuracy(teacher) > 0.85


@pytest.mark.parametrize("labels", [Y, None])
@pytest.mark.parametrize("end", ["softmax", None])
def test_a_student_learns_from_its_teacher(teacher: Any, end: str | None, labels: Any, tmp_path: Path) -> None:
    student, original = network(1, end=end), network(0, end=end)
    original.set_weights(teacher.get_weights())
    before = accuracy(student)
    validation = Split(X_VAL, None if labels is None else Y_VAL)
    head = HEADS["logits" if end is None else end]
    tuned, history = finetune(student, original, Split(X, labels), validation, OPTIONS, head, tmp_path)
    assert tuned is student
    assert accuracy(tuned) > max(before, 0.8)
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert history[-1]["learning_rate"] == pytest.approx(0)
    assert history[-1]["validation_loss"] < 0.4
    assert ("accuracy" in history[0]) == (labels is not None)
    assert sum(entry["kept"] for entry in history) == 1


def test_probabilities_and_logits_train_alike(teacher: Any, tmp_path: Path) -> None:
    trained = []
    for end in ("softmax", None):
        student, original = network(1, end=end), network(0, end=end)
        original.set_weights(teacher.get_weights())
        scratch = tmp_path / str(end)
        scratch.mkdir()
        head = HEADS["logits" if end is None else end]
        trained.append(finetune(student, original, TRAINING, VALIDATION, OPTIONS, head, scratch)[1])
    np.testing.assert_allclose([e["loss"] for e in trained[0]], [e["loss"] for e in trained[1]], rtol=1e-3)


@pytest.mark.parametrize("end", ["sigmoid", None])
def test_one_output_says_yes_or_no(end: str | None, tmp_path: Path) -> None:
    training, validation = Split(X, (Y == 0).astype(np.int64)), Split(X_VAL, (Y_VAL == 0).astype(np.int64))
    student, original = (network(seed, units=1, end=end) for seed in (1, 2))
    options = replace(OPTIONS, alpha=0.2, epochs=4)
    head = head_of("binary", end or "linear")
    _, history = finetune(student, original, training, validation, options, head, tmp_path)
    assert max(entry["accuracy"] for entry in history) > 0.85


def test_regression_follows_the_teacher_and_own_input(tmp_path: Path) -> None:
    import keras
    from keras import layers

    def autoencoder(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [layers.Input((6, 6, 1)), layers.Conv2D(4, 3, padding="same"), layers.Conv2D(1, 3, padding="same")]
        )

    student = autoencoder(1)
    options = replace(OPTIONS, crop=1, alpha=0.1)
    before = predict(student, X_VAL)
    values = HEADS["values"]
    tuned, history = finetune(student, autoencoder(0), Split(X), Split(X_VAL), options, values, tmp_path)
    assert measure(predict(tuned, X_VAL), X_VAL, values)["mse"] < 0.5 * np.square(before - X_VAL).mean()
    assert history[-1]["mse"] < history[0]["mse"]


class StoppedError(Exception):
    pass


def stop_at(epoch: int, steps: int) -> Any:
    def progress(done: int, total: int, message: str) -> None:
        if done >= epoch * steps:
            raise StoppedError

    return progress


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, crop=1, flip=True, weight_decay=0.1)])
def test_an_interrupted_training_goes_on_to_the_same_result(
    teacher: Any, options: FinetuneOptions, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "torn").mkdir()

    def arguments(scratch: str) -> tuple[Any, ...]:
        student = network(1, dropout=0.2)
        return student, teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path / scratch

    whole, history = finetune(*arguments("whole"))
    with pytest.raises(StoppedError):
        finetune(*arguments("torn"), progress=stop_at(2, len(X) // options.batch))
    told: list[tuple[int, int, str]] = []
    resumed, resumed_history = finetune(*arguments("torn"), progress=lambda *said: told.append(said))
    assert told[0][:2] == (20, 30)
    assert told[0][2].startswith("epoch 3 of 3, validation ")
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert [e["loss"] for e in history] == pytest.approx([e["loss"] for e in resumed_history], rel=1e-4)


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_checkpoint_starts_anew(teacher: Any, damage: bytes | None, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=1)
    arguments = (teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path)
    finetune(network(1), *arguments)
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"\xff\x00\xff" + content[middle + 3 :] if damage is None else damage)
    told: list[int] = []
    _, history = finetune(network(1), *arguments, progress=lambda done, total, message: told.append(done))
    assert told[0] == 0
    assert len(history) == 1


def test_training_that_only_harms_changes_nothing(teacher: Any, tmp_path: Path) -> None:
    student = network(0)
    student.set_weights(teacher.get_weights())
    options = replace(OPTIONS, epochs=1, learning_rate=1e3)
    _, history = finetune(student, teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path)
    for a, b in zip(weights(student), weights(teacher), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not history[0]["kept"]


def test_no_epochs_leave_the_student_untouched(teacher: Any, tmp_path: Path) -> None:
    student = network(1)
    before = weights(student)
    options = replace(OPTIONS, epochs=0)
    assert finetune(student, teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path)[1] == []
    assert all(np.array_equal(a, b) for a, b in zip(before, weights(student), strict=True))
    assert not list(tmp_path.iterdir())


def test_frozen_layers_learn_and_stay_marked_as_frozen(teacher: Any, tmp_path: Path) -> None:
    student = network(1)
    student.get_layer("conv").trainable = False
    before = student.get_layer("conv").get_weights()[0]
    finetune(student, teacher, TRAINING, VALIDATION, OPTIONS, SOFTMAX, tmp_path)
    assert not np.allclose(before, student.get_layer("conv").get_weights()[0])
    assert [layer.trainable for layer in student.layers[:2]] == [False, True]


def test_weight_decay_acts_on_original_kernels_alone(tmp_path: Path) -> None:
    import keras

    norms = []
    for decay in (0.0, 4.0):
        student = keras.models.clone_model(network(1), clone_function=renamed_head)
        student.set_weights(network(1).get_weights())
        scratch = tmp_path / str(decay)
        scratch.mkdir()
        options = replace(OPTIONS, weight_decay=decay, learning_rate=1e-2, alpha=0.0)
        finetune(student, network(1), TRAINING, VALIDATION, options, SOFTMAX, scratch)
        norms.append([float(np.linalg.norm(student.layers[index].get_weights()[0])) for index in (0, -1)])
    assert norms[1][0] < 0.9 * norms[0][0]
    assert norms[1][1] > 0.9 * norms[0][1]


def renamed_head(layer: Any) -> Any:
    name = "head_1" if layer.name == "head" else layer.name
    return layer.__class__.from_config(layer.get_config() | {"name": name})


def test_a_crop_as_large_as_the_image_is_refused(teacher: Any, tmp_path: Path) -> None:
    options = replace(OPTIONS, crop=6)
    with pytest.raises(DataError, match=r"crop 6 is too large for images of shape \(6, 6, 1\)"):
        finetune(network(1), teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path)


# ---- statistics, judging, length, rate


def test_fixed_statistics_stay_and_their_scale_learns(teacher: Any, tmp_path: Path) -> None:
    student = network(1)
    norm = student.layers[1]
    before = weights(norm)
    options = replace(OPTIONS, batchnorm="fixed", learning_rate=1e-3)
    tuned, _ = finetune(student, teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path)
    gamma, beta, mean, variance = weights(tuned.layers[1])
    np.testing.assert_array_equal(mean, before[2])
    np.testing.assert_array_equal(variance, before[3])
    assert not np.array_equal(gamma, before[0])
    assert not np.array_equal(beta, before[1])
    assert tuned.layers[1].trainable


def test_epochs_are_judged_by_the_distance_to_the_teacher_not_by_labels_known_by_heart(
    teacher: Any, tmp_path: Path
) -> None:
    """Labels that the network has right before training say that every epoch is worse; the teacher's answers do not."""
    student = network(1)
    known = predict(student, X_VAL).argmax(1)
    options = replace(OPTIONS, labels=False)
    _, history = finetune(student, teacher, Split(X), Split(X_VAL, known), options, SOFTMAX, tmp_path)
    assert max(entry["accuracy"] for entry in history) < 1.0
    best = min(history, key=lambda entry: entry["validation_loss"])
    assert best["kept"]


def test_validation_images_are_moved_as_training_images_are_and_always_alike() -> None:
    options = replace(OPTIONS, crop=2, flip=True)
    first, second = (moved_split(VALIDATION, options) for _ in range(2))
    assert first.x.shape == X_VAL.shape
    np.testing.assert_array_equal(first.x[10:20], second.x[:96][10:20])
    assert not np.array_equal(first.x[:96], X_VAL)
    assert first.y is Y_VAL
    assert moved_split(VALIDATION, OPTIONS) is VALIDATION
    dense = Split(X_VAL, X_VAL[..., 0] > 0.5)
    both = moved_split(dense, options)
    np.testing.assert_array_equal(both.x[:96][..., 0] > 0.5, both.y[:96])


def test_a_training_ends_with_its_minutes(teacher: Any, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=100_000, minutes=0.02)
    _, history = finetune(network(1), teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path)
    assert 1 <= len(history) < 1000
    assert history[-1]["learning_rate"] < OPTIONS.learning_rate / 100


def test_blends_are_of_two_images_and_keep_the_order_of_the_others() -> None:
    images = np.eye(8, dtype=np.float32)[:, :, None, None]
    mixture, order = blended(images, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(mixture[5:], images[order][5:])
    np.testing.assert_allclose(mixture[:5].sum((1, 2, 3)), 1, rtol=1e-6)
    assert ((mixture[:5] > 0).sum((1, 2, 3)) <= 2).all()
    assert not np.array_equal(mixture[:5], images[order][:5])


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_blended_images_have_no_label(blend: float, teacher: Any, tmp_path: Path) -> None:
    """With labels that are all wrong, only images that have one draw the network away from its teacher."""
    student, wrong = network(1), Split(X, (Y + 1) % 3)
    options = replace(OPTIONS, alpha=0.3, blend=blend, epochs=4)
    finetune(student, teacher, wrong, Split(X_VAL), options, SOFTMAX, tmp_path)
    agreement = (predict(student, X_VAL).argmax(1) == predict(teacher, X_VAL).argmax(1)).mean()
    assert (agreement > 0.7) == (blend == 1.0)


@pytest.mark.parametrize("best", [0, 2, 4])
def test_the_rate_is_the_largest_that_does_little_harm(
    best: int, teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that is its own student can only be harmed: by 1e2 it is, by 1e-6 it is not."""
    rates = [1e-6] * (best + 1) + [1e2] * (4 - best)
    rates = [rate * (1 + index / 10) for index, rate in enumerate(rates)]
    monkeypatch.setattr(training, "RATES", tuple(rates))
    monkeypatch.setattr(training, "FIRST_RATE", rates[2])
    student = network(0)
    student.set_weights(teacher.get_weights())
    options = replace(OPTIONS, learning_rate=None, batchnorm="fixed")
    _, history = finetune(student, teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path)
    assert {entry["peak"] for entry in history} == {rates[best]}


def test_minutes_too_few_for_an_epoch_still_make_a_step(teacher: Any, tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=None, minutes=1e-9)
    _, history = finetune(network(1), teacher, TRAINING, VALIDATION, options, SOFTMAX, tmp_path)
    assert [entry["steps"] for entry in history] == [1]


def test_a_training_that_diverges_ends_and_can_be_written_down(tmp_path: Path) -> None:
    import json

    import keras

    inputs = keras.Input((4,))
    student = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(3)(inputs)))
    x = RANDOM.random((64, 4)).astype(np.float32)
    split, before = Split(x, x[:, :2] * 2), weights(student)
    options = replace(OPTIONS, learning_rate=1e30, epochs=5)
    _, history = finetune(student, student, split, split, options, HEADS["values"], tmp_path)
    assert len(history) < 5
    assert history[-1]["loss"] is None
    assert not any(entry["kept"] for entry in history)
    json.dumps(history, allow_nan=False)
    for a, b in zip(before, weights(student), strict=True):
        np.testing.assert_array_equal(a, b)
    same = finetune(student, student, split, split, options, HEADS["values"], tmp_path)[1]
    assert len(same) == len(history)
