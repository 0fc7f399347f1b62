"""Write teacher.onnx, a network for the bundled digits, as any other program might have: python make_teacher.py"""

import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from potstill.data import load

train = load("digits").train  # the samples that potstill will train on; the others are for the verdict
pixels = train.fetch(np.arange(len(train))).numpy().reshape(len(train), -1) / np.float32(255)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    network = MLPClassifier((128,), max_iter=40, random_state=0).fit(pixels, train.targets)

(first, last), (one, two) = network.coefs_, network.intercepts_
weights = {"first": first, "one": one, "last": last, "two": two}
graph = helper.make_graph(
    [
        helper.make_node("Flatten", ["image"], ["pixels"]),
        helper.make_node("Gemm", ["pixels", "first", "one"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "last", "two"], ["logits"]),
    ],
    "digits",
    [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
    [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
onnx.save(model, str(Path(__file__).with_name("teacher.onnx")))
