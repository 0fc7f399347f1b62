"""ONNX files as teachers: outputs, inputs, layouts and types, against NumPy."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from potstill.core.errors import TeacherError, UsageError
from potstill.data.columns import Column
from potstill.teachers.files import open_file
from potstill.teachers.foreign import ArrayModel, Reading, Wanted

WANTED = Wanted("classification", (4,), ("0", "1", "2"), 3)
rng = np.random.default_rng(1)
WEIGHT = rng.normal(size=(4, 3)).astype(np.float32)
BIAS = rng.normal(size=3).astype(np.float32)
X = rng.normal(size=(10, 4)).astype(np.float32)
LOGITS = X @ WEIGHT + BIAS
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


def save_onnx(path: Path, nodes, inputs, outputs, initializers=None, metadata=None, ml=False) -> Path:
    graph = helper.make_graph(
        nodes,
        "toy",
        inputs,
        outputs,
        [numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid("ai.onnx.ml", 3)] if ml else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def tensor(name: str, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def linear_onnx(path: Path, *, batch="n", softmax=False, metadata=None) -> Path:
    """Logits, or probabilities, of WEIGHT and BIAS."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z" if softmax else "y"])]
    nodes += [helper.make_node("Softmax", ["z"], ["y"], axis=1)] if softmax else []
    return save_onnx(
        path,
        nodes,
        [tensor("x", [batch, 4])],
        [tensor("y", [batch, 3])],
        {"w": WEIGHT, "b": BIAS},
        metadata,
    )


IMAGES = Wanted("classification", (2, 3, 5), ("a", "b"), 2)


def opened(path, wanted=WANTED, **args):
    return open_file(path, wanted, args=args)


def answer(found, inputs):
    values = found.ask(inputs)
    return next(iter(values.values()))


def test_logits_are_those_of_the_formula(tmp_path):
    found = opened(linear_onnx(tmp_path / "m.onnx"))
    np.testing.assert_allclose(answer(found, X), LOGITS, rtol=1e-5)
    assert found.answers is None
    assert found.size_bytes == (tmp_path / "m.onnx").stat().st_size


def test_a_softmax_at_the_end_says_probabilities(tmp_path):
    found = opened(linear_onnx(tmp_path / "m.onnx", softmax=True))
    assert found.answers == "probabilities"
    assert "Softmax" in found.says
    np.testing.assert_allclose(answer(found, X), SOFTMAX, rtol=1e-5)


def test_the_model_gives_logits_and_hides_its_weights(tmp_path, asked):
    found = opened(linear_onnx(tmp_path / "m.onnx", softmax=True))
    model = ArrayModel(found, Reading("probabilities", 3, WANTED.classes, (2, 0, 1)))
    expected = np.log(SOFTMAX[:, [2, 0, 1]])
    for one in (model, pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(asked(one, X)["logits"], expected, rtol=1e-4, atol=1e-5)
    assert model.facts.parameters is None
    assert model.facts.size_bytes == found.size_bytes
    assert model.module is model.whole() is None


def test_everything_the_answers_depend_on_is_in_the_fingerprint(tmp_path):
    path = linear_onnx(tmp_path / "m.onnx")
    found = opened(path)
    prints = {
        name: ArrayModel(one, reading).teaching().fingerprint
        for name, one, reading in [
            ("first", found, Reading("logits", 3, ("a", "b", "c"))),
            ("same", opened(path), Reading("logits", 3, ("a", "b", "c"))),
            ("order", found, Reading("logits", 3, ("a", "b", "c"), (1, 0, 2))),
            ("kind", found, Reading("probabilities", 3, ("a", "b", "c"))),
            ("file", opened(linear_onnx(tmp_path / "n.onnx", softmax=True)), Reading("logits", 3, ("a", "b", "c"))),
        ]
    }
    assert prints["first"] == prints["same"]
    assert len(set(prints.values())) == 4


@pytest.mark.parametrize("count", [1, 3, 4, 7, 10])
def test_a_file_with_a_fixed_number_of_samples_answers_any_number(tmp_path, count):
    found = opened(linear_onnx(tmp_path / "m.onnx", batch=4))
    np.testing.assert_allclose(answer(found, X[:count]), LOGITS[:count], rtol=1e-5)


def test_metadata_names_the_classes(tmp_path):
    found = opened(linear_onnx(tmp_path / "m.onnx", metadata={"labels": json.dumps(["c", "a", "b"])}))
    assert found.classes == ("c", "a", "b")


def weights_beside(path):
    model = onnx.load(str(linear_onnx(path)))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_weights_in_a_file_beside_it_count_and_are_hashed(tmp_path):
    found = opened(weights_beside(tmp_path / "m.onnx"))
    beside = tmp_path / "weights.bin"
    assert found.size_bytes == beside.stat().st_size + (tmp_path / "m.onnx").stat().st_size
    changed = bytearray(beside.read_bytes())
    changed[0] ^= 1
    beside.write_bytes(changed)
    assert opened(tmp_path / "m.onnx").digest != found.digest


@pytest.mark.parametrize("place", ["../elsewhere.bin", "link.bin"])
def test_weights_outside_the_folder_of_the_file_are_refused(tmp_path, place):
    (tmp_path / "model").mkdir()
    path = weights_beside(tmp_path / "model" / "m.onnx")
    (path.parent / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (path.parent / "link.bin").symlink_to(tmp_path / "elsewhere.bin")
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = place
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=f"'{place}', which is outside the file's folder"):
        opened(path)


def test_pixels_are_given_in_the_type_the_file_takes(tmp_path):
    path = save_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Flatten", ["f"], ["y"])],
        [tensor("x", ["n", 2, 3, 5], TensorProto.UINT8)],
        [tensor("y", ["n", 30])],
    )
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 5), dtype=np.uint8)
    found = opened(path, IMAGES)
    np.testing.assert_array_equal(answer(found, pixels.astype(np.float32) / 255), pixels.reshape(6, -1))
    with pytest.raises(TeacherError, match=r"takes uint8 pixels, but its inputs are from -1"):
        found.ask(np.full((1, 2, 3, 5), -1, np.float32))


def channels_last(path, shape):
    return save_onnx(
        path, [helper.make_node("Flatten", ["x"], ["y"])], [tensor("x", ["n", *shape])], [tensor("y", ["n", 30])]
    )


def test_channels_last_is_asked_for_and_then_done(tmp_path):
    path = channels_last(tmp_path / "m.onnx", [3, 5, 2])
    with pytest.raises(TeacherError, match=r"it wants the channels last. If so, add 'args: {layout: nhwc}'"):
        opened(path, IMAGES)
    images = np.arange(60, dtype=np.float32).reshape(2, 2, 3, 5)
    np.testing.assert_array_equal(
        answer(opened(path, IMAGES, layout="nhwc"), images), np.moveaxis(images, 1, -1).reshape(2, 30)
    )


def test_rows_of_a_colour_image_need_an_order(tmp_path):
    path = channels_last(tmp_path / "m.onnx", [30])
    with pytest.raises(TeacherError, match=r"flat rows of numbers and the data has images of 2 channels"):
        opened(path, IMAGES)
    images = np.arange(60, dtype=np.float32).reshape(2, 2, 3, 5)
    np.testing.assert_array_equal(answer(opened(path, IMAGES, layout="nchw"), images), images.reshape(2, 30))


def test_samples_of_another_shape_are_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"takes samples of shape 4, but the data has 7"):
        opened(linear_onnx(tmp_path / "m.onnx"), Wanted("classification", (7,), ("0", "1", "2"), 3))


def two_outputs(path, names):
    return save_onnx(
        path,
        [
            helper.make_node("Gemm", ["x", "w", "b"], [names[0]]),
            helper.make_node("MatMul", ["x", "w"], [names[1]]),
        ],
        [tensor("x", ["n", 4])],
        [tensor(names[0], ["n", 3]), tensor(names[1], ["n", 3])],
        {"w": WEIGHT, "b": BIAS},
    )


def test_further_outputs_are_signals(tmp_path, asked):
    found = opened(two_outputs(tmp_path / "m.onnx", ("hidden", "logits")))
    assert found.outputs == ("hidden",)
    signals = asked(ArrayModel(found, Reading("logits", 3, WANTED.classes)), X, ["hidden"])
    np.testing.assert_allclose(signals["logits"].numpy(), X @ WEIGHT, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(signals["hidden"].numpy(), LOGITS, rtol=1e-5, atol=1e-6)


def test_one_of_several_outputs_has_to_be_named(tmp_path):
    path = two_outputs(tmp_path / "m.onnx", ("one", "two"))
    with pytest.raises(TeacherError, match=r"has the outputs one, two. Say which"):
        opened(path)
    np.testing.assert_allclose(answer(opened(path, output="two"), X), X @ WEIGHT, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=r"no output 'tow'. Did you mean 'two'"):
        opened(path, output="tow")


@pytest.mark.parametrize("zipmap", [True, False])
def test_files_of_scikit_learns_converter(tmp_path, zipmap):
    names = ["cat", "dog", "fox"]
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "p" if zipmap else "probabilities"],
            domain="ai.onnx.ml",
            classlabels_strings=names,
            coefficients=WEIGHT.T.ravel().tolist(),
            intercepts=BIAS.tolist(),
            multi_class=1,
            post_transform="SOFTMAX",
        )
    ]
    outputs = [tensor("label", ["n"], TensorProto.STRING)]
    if zipmap:
        nodes.append(
            helper.make_node("ZipMap", ["p"], ["output_probability"], domain="ai.onnx.ml", classlabels_strings=names)
        )
        row = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        outputs.append(helper.make_value_info("output_probability", helper.make_sequence_type_proto(row)))
    else:
        outputs.append(tensor("probabilities", ["n", 3]))
    path = save_onnx(tmp_path / "m.onnx", nodes, [tensor("x", ["n", 4])], outputs, ml=True)
    found = opened(path)
    np.testing.assert_allclose(answer(found, X), SOFTMAX, rtol=1e-4, atol=1e-6)
    assert found.outputs == ()
    if zipmap:
        assert found.answers == "probabilities"
        assert found.classes == tuple(names)
    labels = opened(path, output="label")
    assert labels.answers == "labels"
    assert answer(labels, X).tolist() == [names[row] for row in LOGITS.argmax(1)]


def test_columns_of_a_table_are_given_by_name(tmp_path):
    path = save_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("Sub", ["weight", "age"], ["y"])],
        [tensor("weight", ["n", 1]), tensor("age", ["n", 1])],
        [tensor("y", ["n", 1])],
    )
    wanted = Wanted("regression", (2,), (), 1, (Column("age"), Column("weight")))
    table = np.array([[1, 10], [2, 30]], np.float32)
    assert answer(opened(path, wanted), table).tolist() == [[9], [28]]
    with pytest.raises(TeacherError, match=r"has the inputs weight, age"):
        opened(path, WANTED)


def test_files_that_are_nothing_are_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(UsageError, match=r"not a readable ONNX model"):
        opened(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"there is no file"):
        opened(tmp_path / "absent.onnx")
    (tmp_path / "m.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holds weights only. Give teacher.model and teacher.weights"):
        opened(tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"no such option. Did you mean 'layout'"):
        opened(linear_onnx(tmp_path / "m.onnx"), layuot="nhwc")
