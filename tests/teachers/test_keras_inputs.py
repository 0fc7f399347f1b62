"""What is known of a Keras teacher without Keras: its inputs, its options, its interpreter."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.teachers.keras_inputs import likely_layout, prepared
from potstill.teachers.keras_model import PYTHON_VARIABLE, keras_ask

FLOAT = np.dtype("float32")
IMAGES = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)


def pixel(array: np.ndarray, channel: int, row: int, column: int) -> float:
    return float(array[1, row, column, channel])


@pytest.mark.parametrize("takes", [(None, 4, 5, 3), (None, None, None, 3), (7, 4, None, None)])
def test_channels_go_last_where_the_model_wants_them_there(takes: Any) -> None:
    found = prepared(IMAGES, takes, FLOAT)
    assert found.shape == (2, 4, 5, 3)
    assert pixel(found, 2, 3, 1) == IMAGES[1, 2, 3, 1]


@pytest.mark.parametrize("takes", [(None, 3, 4, 5), (None, 3, None, None), (2, None, 4, None)])
def test_channels_stay_first_where_the_model_wants_them_there(takes: Any) -> None:
    np.testing.assert_array_equal(prepared(IMAGES, takes, FLOAT), IMAGES)


@pytest.mark.parametrize("takes", [(None, None, None, None), None])
def test_a_layout_that_could_be_either_has_to_be_said(takes: Any) -> None:
    with pytest.raises(UsageError, match=r"'args: \{layout: nhwc\}'"):
        prepared(IMAGES, takes, FLOAT)
    np.testing.assert_array_equal(prepared(IMAGES, takes, FLOAT, layout="nchw"), IMAGES)
    np.testing.assert_array_equal(prepared(IMAGES, takes, FLOAT, layout="nhwc"), np.moveaxis(IMAGES, 1, 3))


def test_a_cube_fits_in_two_ways() -> None:
    cubes = np.random.default_rng(0).random((2, 3, 3, 3), dtype=np.float32)
    with pytest.raises(UsageError, match=r"takes 3 x 3 x 3, and images of shape 3 x 3 x 3 .* fit in two ways"):
        prepared(cubes, (None, 3, 3, 3), FLOAT)
    assert pixel(prepared(cubes, (None, 3, 3, 3), FLOAT, layout="nhwc"), 0, 1, 2) == cubes[1, 0, 1, 2]


@pytest.mark.parametrize("takes", [(None, 28, 28, 3), (None, 4, 5), (None, 61), (None, 4, 5, 3, 1)])
def test_images_of_another_shape_are_refused(takes: Any) -> None:
    with pytest.raises(TeacherError, match=r"but they have 3 x 4 x 5 behind the teacher's preprocessing"):
        prepared(IMAGES, takes, FLOAT)


def test_a_layout_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"args\.layout: nchw does not fit: The model takes 4 x 5 x 3"):
        prepared(IMAGES, (None, 4, 5, 3), FLOAT, layout="nchw")


def test_grey_images_lose_their_channel_or_are_flattened() -> None:
    grey = IMAGES[:, :1]
    np.testing.assert_array_equal(prepared(grey, (None, 4, 5), FLOAT), grey[:, 0])
    np.testing.assert_array_equal(prepared(grey, (None, 20), FLOAT), grey.reshape(2, 20))


def test_flat_colours_need_an_order() -> None:
    with pytest.raises(UsageError, match="fit in two ways"):
        prepared(IMAGES, (None, 60), FLOAT)
    np.testing.assert_array_equal(prepared(IMAGES, (None, 60), FLOAT, layout="nchw"), IMAGES.reshape(2, 60))
    last = prepared(IMAGES, (None, 60), FLOAT, layout="nhwc")
    np.testing.assert_array_equal(last, np.moveaxis(IMAGES, 1, 3).reshape(2, 60))


@pytest.mark.parametrize("scale", [None, 1.0, 255.0, 2.0])
def test_bytes_and_fractions_are_the_same_pixels(scale: float | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    takes = (None, 3, 4, 5)
    from_bytes = prepared(pixels, takes, FLOAT, scale=scale)
    from_fractions = prepared((pixels / 255).astype(np.float32), takes, FLOAT, scale=scale)
    assert from_bytes.dtype == from_fractions.dtype == FLOAT
    np.testing.assert_allclose(from_bytes, pixels / 255 * (scale or 1), rtol=1e-6)
    np.testing.assert_allclose(from_fractions, from_bytes, rtol=1e-6)


def test_a_model_of_bytes_gets_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    for images in (pixels, (pixels / 255).astype(np.float32)):
        found = prepared(images, (None, 3, 4, 5), np.dtype("uint8"))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels)
    with pytest.raises(TeacherError, match=r"takes uint8 pixels, but its inputs are from -1 to 0"):
        prepared(IMAGES * 0 - [[[[1, 0, 0, 0, 0]]]], (None, 3, 4, 5), np.dtype("uint8"))


def test_a_model_that_scales_pixels_itself_has_to_say_their_range() -> None:
    takes = (None, 3, 4, 5)
    with pytest.raises(UsageError, match=r"multiplies its inputs by 0\.007843.*'args: \{scale: 255\}'"):
        prepared(IMAGES, takes, FLOAT, rescaling=1 / 127.5)
    np.testing.assert_array_equal(prepared(IMAGES, takes, FLOAT, rescaling=1 / 127.5, scale=1), IMAGES)
    np.testing.assert_array_equal(prepared(IMAGES, takes, FLOAT, rescaling=2.0), IMAGES)


def test_other_samples_pass_as_they_are() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.5]], np.float32)
    np.testing.assert_array_equal(prepared(rows, (None, 2), FLOAT, scale=255), rows)
    np.testing.assert_array_equal(prepared(rows, None, np.dtype("float64")), rows)
    with pytest.raises(TeacherError, match="takes samples of shape 3, but they have 2"):
        prepared(rows, (None, 3), FLOAT)
    tokens = prepared(rows[:1], (None, None), np.dtype("int32"))
    assert tokens.dtype == np.int32
    with pytest.raises(TeacherError, match="takes whole numbers"):
        prepared(rows, (None, None), np.dtype("int32"))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((None, 32, 32, 3), "nhwc"),
        ((None, 1, 28, 28), "nchw"),
        ((None, 3, 32, 3), None),
        ((None, None, None, None), None),
        ((None, 10), None),
        (None, None),
    ],
)
def test_the_layout_by_the_models_shape_alone(shape: Any, layout: str | None) -> None:
    assert likely_layout(shape) == layout


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.keras").write_bytes(b"")
    return tmp_path / "model.keras"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"layuot": "nhwc"}, r"args\.layuot: a Keras file has no such option\. Did you mean 'layout'"),
        ({"layout": "hwc"}, r"args\.layout: 'hwc' is not what it takes; expected nhwc"),
        ({"scale": 0}, r"args\.scale: 0 is not what it takes; expected a number above 0"),
        ({"scale": True}, r"args\.scale: True"),
        ({"unsafe": "yes"}, r"args\.unsafe: 'yes' is not what it takes; expected true or false"),
        ({"output": 1}, r"args\.output: 1 .*expected the name of an output"),
        ({"timeout": -1}, r"args\.timeout: -1 .*expected seconds above 0"),
        ({"code": "layers.py"}, r"args\.code: there is no file .*layers\.py\. It is looked for beside the model"),
    ],
)
def test_options_that_do_not_exist_or_fit_are_refused(file: Path, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        keras_ask(file, python=sys.executable, args=args)


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file .*absent\.keras: expected a \.keras or \.h5 file"):
        keras_ask(tmp_path / "absent.keras", python=sys.executable)
    with pytest.raises(UsageError, match=r"is a folder without saved_model\.pb"):
        keras_ask(tmp_path, python=sys.executable)


def test_the_interpreter_is_the_one_named_then_that_of_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/no/such/python")
    with pytest.raises(UsageError, match=r"(?s)no interpreter /no/such/python.*python3 -m venv keras-env"):
        keras_ask(file)
    # The link itself: what it leads to does not have the environment's packages.
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert keras_ask(file, python=str(link)).worker.python == str(link)
    monkeypatch.setenv(PYTHON_VARIABLE, str(link))
    assert keras_ask(file).worker.python == str(link)
    monkeypatch.chdir(tmp_path)
    assert keras_ask(file, python="./python").worker.python == str(link)


def test_without_keras_the_error_says_what_to_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr("potstill.teachers.keras_model.find_spec", lambda _: None)
    with pytest.raises(PotstillError, match=r'(?s)needs the package "keras".*keras-env/bin/pip install keras tensorfl'):
        keras_ask(file)
    monkeypatch.setattr("potstill.teachers.keras_model.find_spec", lambda name: name == "keras" or None)
    assert keras_ask(file).worker.python == ""


def test_a_file_that_was_written_anew_is_another_model(file: Path) -> None:
    first = keras_ask(file, python=sys.executable)
    assert keras_ask(str(file), python=sys.executable) == first
    os.utime(file, ns=(1, 1))
    assert keras_ask(file, python=sys.executable) != first
    assert keras_ask(file, python=sys.executable, args={"timeout": 5}).worker.timeout == 5
