"""ONNX files: they answer like the model, from raw inputs, for any batch size, and say what they are."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from potstill.core.errors import DataError, PotstillError, UsageError
from potstill.core.functions import find_function
from potstill.export import OnnxModel, export_onnx, quantize
from potstill.export import onnx as room
from potstill.models.preprocess import Preprocessor


def test_the_trained_models_know_something(digits: Any, curve: Any) -> None:
    assert (digits.outputs.argmax(1) == digits.targets).mean() > 0.95
    assert (
        1 - np.square(curve.outputs[:, 0] - curve.targets).sum() / np.square(curve.targets - curve.targets.mean()).sum()
        > 0.9
    )


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_uint8_images_with_resizing_inside(digits: Any, batch: int) -> None:
    model = OnnxModel(digits.exact)
    found = model(digits.test[:batch].numpy())
    assert found.shape == (batch, 10)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, digits.outputs[:batch], atol=2e-4)
    np.testing.assert_array_equal(model(digits.test[:batch]), found)


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_float_vectors(curve: Any, batch: int) -> None:
    found = OnnxModel(curve.exact, threads=1)(curve.test[:batch].numpy())
    assert found.shape == (batch, 1)
    np.testing.assert_allclose(found, curve.outputs[:batch], rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 16), (33, 20, 24), (10, 12, 31), (50, 50, 7)])
def test_resizing_matrices_are_torchs_antialiased_resize(height: int, width: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8, generator=generator)
    preprocess = Preprocessor(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25]), size)
    prepare = room._Prepare(preprocess, (3, height, width))
    assert prepare.resizes
    torch.testing.assert_close(prepare(pixels), preprocess(pixels), atol=5e-6, rtol=0)
    torch.testing.assert_close(prepare(pixels / 255), preprocess(pixels / 255), atol=5e-6, rtol=0)


def test_one_file_with_metadata_and_nothing_private(digits: Any, curve: Any) -> None:
    assert sorted(path.name for path in digits.exact.parent.iterdir()) == ["student-int8.onnx", "student.onnx"]
    for path in (digits.exact, digits.int8):
        metadata = OnnxModel(path).metadata
        assert json.loads(metadata["labels"]) == [f"digit {number}" for number in range(10)]
        assert metadata["recipe_hash"] == "abc123"
        assert metadata["task"] == "classification"
        assert metadata["potstill_version"]
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert proto.graph.input[0].name == "input"
        assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        assert [output.name for output in proto.graph.output] == ["logits", "probabilities"]
        assert b"conftest" not in path.read_bytes()
        assert b".py" not in path.read_bytes()
    assert [output.name for output in onnx.load(curve.exact).graph.output] == ["values"]
    with pytest.raises(UsageError, match="has no 'probabilities'"):
        OnnxModel(curve.exact).probabilities(curve.test[:1])
    assert "int8" in OnnxModel(digits.int8).metadata["quantization"]
    assert "quantization" not in OnnxModel(digits.exact).metadata


def test_export_leaves_the_model_alone_and_is_quiet(
    digits: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    assert digits.model.training
    levels = [logging.getLogger(name).level for name in ("root", "torch.onnx")]
    before = {name: value.clone() for name, value in digits.model.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = export_onnx(
            digits.model, digits.preprocess, digits.train[:1], tmp_path / "a.onnx", task="classification"
        )
        quantize(path, tmp_path / "b.onnx", [digits.train[:8].numpy()])
    assert caught == []
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    # torch traces itself at DEBUG whatever happens; nobody sees that.
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert [logging.getLogger(name).level for name in ("root", "torch.onnx")] == levels
    assert all(torch.equal(value, before[name]) for name, value in digits.model.state_dict().items())
    assert digits.model.training
    assert digits.preprocess.size == 12


def test_int8_is_small_integer_arithmetic_and_still_right(digits: Any, curve: Any) -> None:
    proto = onnx.load(digits.int8)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("QuantizeLinear") >= 3
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    kernels = [tensor for tensor in weights.values() if len(tensor.dims) == 4]
    int8 = [tensor for tensor in kernels if tensor.data_type == onnx.TensorProto.INT8]
    assert len(int8) == 2
    scales = [
        node.input[1]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and weights.get(node.input[0]) in int8
    ]
    assert sorted(weights[name].dims[0] for name in scales) == [16, 32], "one scale per output channel"
    largest = max(int(np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max()) for tensor in int8)
    assert largest <= 64, "seven bits, so that no CPU overflows"
    assert digits.int8.stat().st_size < 0.7 * digits.exact.stat().st_size
    found = OnnxModel(digits.int8)(digits.test.numpy())
    assert (found.argmax(1) == digits.outputs.argmax(1)).mean() > 0.98
    values = OnnxModel(curve.int8)(curve.test.numpy())
    assert len(np.unique(values)) > 256, "outputs are not steps of eight bits"
    assert np.sqrt(np.square(values - curve.outputs).mean()) < 0.1 * curve.outputs.std()


def test_preprocessing_stays_in_float32(digits: Any) -> None:
    nodes = onnx.load(digits.int8).graph.node
    ours = [node for node in nodes if node.name.startswith(room.EXACT)]
    assert [node.op_type for node in ours].count("MatMul") == 2, "the two resizing matrices"
    quantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    assert not quantised & {name for node in ours for name in node.input}


def test_wrong_inputs_and_files_are_refused(digits: Any, tmp_path: Path) -> None:
    model = OnnxModel(digits.exact)
    with pytest.raises(DataError, match=r"takes uint8 inputs of shape \(batch, 1, 8, 8\); got float32"):
        model(digits.test.float().numpy())
    with pytest.raises(DataError, match=r"got uint8 of shape \(2, 1, 9, 9\)"):
        model(np.zeros((2, 1, 9, 9), np.uint8))
    with pytest.raises(UsageError, match="no file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(digits.exact.read_bytes()[:500])
    with pytest.raises(UsageError, match="not a readable ONNX model"):
        OnnxModel(tmp_path / "broken.onnx")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_code_and_files_may_lie_in_folders_whose_names_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])  # as outside of tests
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "net.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n        return super().forward(x)\n"
    )
    model = find_function("net.py:Net", base=folder)(3, 2).eval()  # its forward is written in that folder
    file = export_onnx(model, Preprocessor(), torch.zeros(1, 3), folder / "student.onnx", task="regression")
    np.testing.assert_allclose(OnnxModel(file)(np.zeros((1, 3), np.float32))[0], model.bias.detach(), atol=1e-6)


def test_a_model_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs if float(inputs.sum()) > 0 else -inputs

    with pytest.raises(PotstillError, match=r"Branching could not be exported to ONNX: .*Usual causes"):
        export_onnx(Branching(), Preprocessor(), torch.zeros(2, 3), tmp_path / "a.onnx", task="regression")
    with pytest.raises(UsageError, match="at least one example"):
        export_onnx(Branching(), Preprocessor(), torch.zeros(0, 3), tmp_path / "a.onnx", task="regression")
    assert list(tmp_path.iterdir()) == []


def test_calibration_that_does_not_fit_leaves_nothing(digits: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs calibration inputs"):
        quantize(digits.exact, tmp_path / "a.onnx", [])
    with pytest.raises(PotstillError, match="could not make an int8 version"):
        quantize(digits.exact, tmp_path / "a.onnx", [np.zeros((2, 3, 8, 8), np.uint8)])
    assert list(tmp_path.iterdir()) == []


def test_dict_outputs_and_flat_values(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": inputs.sum(dim=1)}

    path = export_onnx(Flat(), Preprocessor(), torch.zeros(2, 3), tmp_path / "a.onnx", task="regression")
    np.testing.assert_allclose(OnnxModel(path)(np.ones((5, 3), np.float32)), np.full((5, 1), 3.0))
