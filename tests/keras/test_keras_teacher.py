"""Models of Keras and TensorFlow answer here what they answer there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.pipeline import run
from potstill.recipe.yaml import loads
from potstill.teachers.keras_model import PYTHON_VARIABLE, KerasProcess, keras_ask

EXAMPLE = Path(__file__).parents[2] / "examples" / "keras_teacher"


@pytest.fixture(scope="module")
def ask(models: Path, keras_python: str) -> Iterator[Callable[..., KerasProcess]]:
    """Processes start slowly: tests of one file share one, until the last test is done."""
    made: dict[str, KerasProcess] = {}

    def of(name: str, **args: Any) -> KerasProcess:
        made[name] = keras_ask(models / name, python=keras_python, args=args)
        return made[name]

    yield of
    for one in made.values():
        one.close()


@pytest.fixture(params=["digits.keras", "digits.h5", "digits_saved"])
def model(ask: Callable[..., KerasProcess], request: pytest.FixtureRequest) -> KerasProcess:
    return ask(request.param)


@pytest.fixture(scope="module")
def found(models: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((models / "found.json").read_text())
    assert len(told) == 14
    return told


def test_each_format_answers_like_the_model_itself(model: KerasProcess, models: Path) -> None:
    pixels = np.load(models / "test.npz")["image"]
    expected = np.load(models / "predicted.npy")
    assert pixels.shape == (360, 1, 8, 8)
    images = pixels.astype(np.float32) / 255
    for low, high in ((0, 256), (256, 300), (300, 360)):
        np.testing.assert_allclose(model.ask(images[low:high]), expected[low:high], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(model.ask(pixels[low:high]), expected[low:high], rtol=1e-4, atol=1e-6)


def test_each_format_says_what_it_is(model: KerasProcess) -> None:
    facts = model.facts
    assert facts.input_shape == (None, 8, 8, 1)
    assert facts.input_dtype == "float32"
    assert facts.layout == "nhwc"
    assert list(facts.outputs.values()) == [(None, 10)]
    assert (facts.output, facts.classes) == (next(iter(facts.outputs)), 10)
    assert (facts.activation, facts.answers) == ("softmax", "probabilities")
    assert "tensorflow" in facts.versions
    assert facts.versions["python"]
    assert all(path.is_file() for path in model.files)


def test_samples_of_another_shape_are_refused_before_they_are_sent(model: KerasProcess) -> None:
    with pytest.raises(TeacherError, match="takes samples of shape 8 x 8 x 1, but they have 1 x 9 x 9"):
        model.ask(np.zeros((2, 1, 9, 9), np.float32))
    with pytest.raises(TeacherError, match="takes samples of shape 8 x 8 x 1, but they have 64"):
        model.ask(np.zeros((2, 64), np.float32))


@pytest.mark.parametrize(
    ("name", "outputs", "activations"),
    [
        ("named_outputs", {"zebra": 3, "antelope": 4}, {"zebra": "softmax", "antelope": "linear"}),
        ("listed_outputs", {"features": 4, "answer": 3}, {"features": "linear", "answer": "softmax"}),
    ],
)
def test_several_outputs_keep_their_names(
    found: dict[str, Any], name: str, outputs: dict[str, int], activations: dict[str, str]
) -> None:
    one = found[name]
    assert one["facts"]["outputs"] == {key: [None, size] for key, size in outputs.items()}
    assert one["facts"]["activations"] == activations
    assert {key: np.shape(values)[1] for key, values in one["answers"].items()} == outputs
    softmax = next(key for key, kind in activations.items() if kind == "softmax")
    np.testing.assert_allclose(np.sum(one["answers"][softmax], axis=1), 1, atol=1e-6)


def test_what_is_inside_a_model_is_found(found: dict[str, Any]) -> None:
    assert found["nested"]["facts"]["rescaling"] == pytest.approx(1 / 255)
    assert list(found["nested"]["facts"]["activations"].values()) == ["linear"]
    assert found["tokens"]["facts"]["input_dtype"] == "int32"
    assert list(found["tokens"]["facts"]["activations"].values()) == ["sigmoid"]
    # The layer halves, the softmax follows: the exponents are 1/2 of log 1, log 4 and log 25.
    np.testing.assert_allclose(next(iter(found["own_layer"]["answers"].values())), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-5)
    assert found["lambda_allowed"]["answers"]["lambda"] == [[2, 2, 2]]


def test_a_fixed_batch_takes_any_number_of_samples(found: dict[str, Any]) -> None:
    sums = np.arange(12).reshape(6, 2).sum(axis=1) / 10
    np.testing.assert_allclose(found["fixed_batch"]["answers"]["sums"], 1 / (1 + np.exp(-sums)), rtol=1e-5)
    assert found["fixed_batch"]["facts"]["activations"] == {"sums": "sigmoid"}
    assert found["mean"]["answers"]["means"] == [0.5, 2.5, 4.5, 6.5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two_inputs", "takes 2 inputs (pixels, other)"),
        ("own_layer_unknown", "Could not locate class 'Halve'. If it is a layer of your own"),
        ("lambda", "add 'args: {unsafe: true}'"),
        ("lambda_h5", "add 'args: {unsafe: true}'"),
        ("signature_unsaid", "has the signatures ['sums', 'means']: name one"),
        ("broken", "broken.keras"),
    ],
)
def test_what_cannot_be_used_is_refused(found: dict[str, Any], name: str, message: str) -> None:
    assert message in found[name]["error"]


@pytest.mark.parametrize("main", ["zebra", "antelope"])
def test_the_output_that_was_chosen_comes_first(ask: Callable[..., KerasProcess], main: str) -> None:
    file, images = "named_outputs.keras", np.ones((2, 1, 8, 8), np.float32)
    chosen = ask(file, output=main, scale=255)
    answers = chosen.ask(images)
    assert isinstance(answers, dict)
    assert next(iter(answers)) == chosen.facts.output == main
    assert set(answers) == {"zebra", "antelope"}
    # One process whatever is chosen: that is the same model.
    assert ask(file).worker == chosen.worker
    with pytest.raises(UsageError, match=r"has the outputs .*'args: \{output: "):
        ask(file).ask(images)
    with pytest.raises(UsageError, match=r"has no output 'zebre'\. Did you mean 'zebra'"):
        ask(file, output="zebre").ask(images)


def test_a_model_that_scales_pixels_itself_asks_for_their_range(ask: Callable[..., KerasProcess]) -> None:
    def answers(images: np.ndarray, **args: Any) -> np.ndarray:
        return dict(ask("named_outputs.keras", output="antelope", **args).ask(images))["antelope"]

    images = np.full((2, 1, 8, 8), 1.0, np.float32)
    with pytest.raises(UsageError, match=r"0\.003922.*'args: \{scale: 255\}'"):
        answers(images)
    bright = answers(images, scale=255)
    np.testing.assert_array_equal(bright, answers(np.full((2, 1, 8, 8), 255, np.uint8), scale=255))
    np.testing.assert_allclose(answers(images / 255, scale=255), answers(images, scale=1), rtol=1e-4, atol=1e-6)
    assert np.abs(bright - answers(images, scale=1)).max() > 1e-2


def test_the_example_runs(
    ask: Callable[..., KerasProcess], models: Path, keras_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The teacher was trained by the example's own script, see make_models.py.
    monkeypatch.setenv(PYTHON_VARIABLE, keras_python)
    monkeypatch.chdir(models)
    recipe = (EXAMPLE / "recipe.yaml").read_text().replace("epochs: 30", "epochs: 6")
    done = run(loads(f"{recipe}\nevaluation: {{latency: false}}\nexport: {{formats: []}}"), out=tmp_path / "run")
    scores = {name: score.metrics["accuracy"] for name, score in done.evaluation.models.items()}
    with np.load(done.folder / "predictions.npz") as saved:
        order = np.argsort(saved["ids"])
        probabilities, targets = np.exp(saved["teacher"][order]), saved["targets"][order]
    tested = np.load(models / "test.npz")
    np.testing.assert_array_equal(targets, tested["digit"])
    np.testing.assert_allclose(probabilities, np.load(models / "predicted.npy"), rtol=1e-3, atol=1e-5)
    assert scores["teacher"] == (probabilities.argmax(axis=1) == tested["digit"]).mean() > 0.9
    assert scores["distilled"] > 0.5


def test_an_interpreter_without_keras_says_how_to_make_one(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    bare = keras_ask(models / "digits_saved", python=sys.executable)
    with pytest.raises(PotstillError, match=r'(?s)needs the package "tensorflow".*keras-env/bin/pip install keras'):
        bare.ask(np.zeros((1, 1, 8, 8), np.float32))
