"""Trees as an ONNX graph: the operator that runtimes have for them, between preprocessing and outputs.

Thresholds are 32-bit numbers already (`potstill.models.zoo.trees`), so that every sample ends in the same leaves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.core.optional import require
from potstill.export.student import Student
from potstill.models.preprocess import Preprocessor
from potstill.models.zoo.trees import Trees
from potstill.tasks import task_of

OPERATOR = "TreeEnsembleRegressor"
_DOMAIN, _VERSION = "ai.onnx.ml", 3


def trees_model(student: Student, trees: Trees, preprocess: Preprocessor, example: Tensor, opset: int) -> Any:
    """Return a student of trees as an ONNX model, with the inputs and outputs that every exported file has.

    Args:
        student: what comes after the trees: units or probabilities.
        trees: the model itself.
        preprocess: before it.
        example: (b, f) raw inputs.
        opset: of the standard operators.

    Raises:
        UsageError: inputs that are no rows of numbers.

    """
    onnx = require("onnx", feature="exporting to ONNX", extra="export")
    if example.dim() != 2 or not example.is_floating_point():
        raise UsageError(
            f"Trees read rows of numbers, and the inputs are {example.dtype} of shape {tuple(example.shape)}."
        )
    make, types = onnx.helper, onnx.TensorProto
    graph = _Graph(make, onnx.numpy_helper)
    name = "input"
    if preprocess.mean is not None and preprocess.std is not None:
        name = graph.add("Sub", "preprocess/centred", name, preprocess.mean.cpu())
        name = graph.add("Div", "preprocess/scaled", name, preprocess.std.cpu())
    raw = "logits" if student.calibrate is not None else "values" if student.restore is None else "standard"
    graph.nodes.append(make.make_node(OPERATOR, [name], [raw], name=raw, domain=_DOMAIN, **_attributes(trees)))
    outputs = [(raw, types.FLOAT)]
    if student.calibrate is not None:
        scaled = graph.add("Div", "calibrate/scaled", raw, torch.tensor(student.calibrate.temperature))
        if task_of(student.task).exclusive:
            chances = graph.add("Softmax", "probabilities", scaled, axis=1)
        else:
            chances = graph.add("Sigmoid", "probabilities", scaled)
        outputs.append((chances, types.FLOAT))
    if student.restore is not None:
        mean, std = student.restore.mean.cpu(), student.restore.std.cpu()
        kind = types.DOUBLE if std.dtype == torch.float64 else types.FLOAT
        wide = graph.add("Cast", "restore/cast", raw, to=kind)
        outputs = [(graph.add("Add", "values", graph.add("Mul", "restore/scaled", wide, std), mean), kind)]
    inputs = [make.make_tensor_value_info("input", types.FLOAT, ["batch", trees.in_features])]
    shown = [make.make_tensor_value_info(output, kind, ["batch", trees.num_classes]) for output, kind in outputs]
    versions = [make.make_opsetid("", opset), make.make_opsetid(_DOMAIN, _VERSION)]
    body = make.make_graph(graph.nodes, "trees", inputs, shown, graph.constants)
    return make.make_model(body, opset_imports=versions, ir_version=10)


class _Graph:
    """Nodes and constants, as they are added one after the other."""

    def __init__(self, make: Any, arrays: Any) -> None:
        self._make, self._arrays = make, arrays
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, output: str, source: str, constant: Tensor | None = None, **attributes: Any) -> str:
        """Add an operator on an earlier output and maybe a constant; return the name of its output."""
        sources = [source]
        if constant is not None:
            sources.append(f"{output}/constant")
            self.constants.append(self._arrays.from_array(constant.numpy(), sources[-1]))
        self.nodes.append(self._make.make_node(operator, sources, [output], name=output, **attributes))
        return output


def _attributes(trees: Trees) -> dict[str, Any]:
    """Return the operator's attributes. Splits keep their numbers; leaf i is number (largest count of splits) + i."""
    splits = trees.features.shape[1]
    nodes: dict[str, list[Any]] = {
        name: [] for name in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    target: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    features, thresholds, leaves = trees.features.tolist(), trees.thresholds.tolist(), trees.leaves.tolist()
    left, right = (side.tolist() for side in trees.sides)

    def add(tree: int, place: int) -> None:
        is_leaf = place < 0
        number = splits - 1 - place if is_leaf else place
        below = (0, 0) if is_leaf else (left[tree][place], right[tree][place])
        ends = [splits - 1 - child if child < 0 else child for child in below] if not is_leaf else [0, 0]
        split = (0, 0.0, "LEAF") if is_leaf else (features[tree][place], thresholds[tree][place], "BRANCH_LEQ")
        for name, value in zip(nodes, (tree, number, *split, *ends), strict=True):
            nodes[name].append(value)
        if is_leaf:
            for name, value in zip(
                target, (tree, number, tree % trees.num_classes, leaves[tree][-1 - place]), strict=True
            ):
                target[name].append(value)
        else:
            for child in below:
                add(tree, child)

    for tree in range(len(features)):
        empty = left[tree][0] == right[tree][0] == -1
        add(tree, -1 if empty else 0)
    count = len(nodes["nodeids"])
    return {
        **{f"nodes_{name}": values for name, values in nodes.items()},
        **{f"target_{name}": values for name, values in target.items()},
        "nodes_missing_value_tracks_true": [0] * count,
        "n_targets": trees.num_classes,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
    }
