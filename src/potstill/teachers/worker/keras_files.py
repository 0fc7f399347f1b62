"""Loads a Keras file (.keras, .h5) or a TensorFlow SavedModel folder, for `serve`.

Needs Keras 3 with any of its backends; a SavedModel needs TensorFlow. Nothing of potstill is imported.
"""

from __future__ import annotations

import json
import os
import platform
import re
import runpy
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# A GPU is shared with the process that asks, and threads are bounded as they are there.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", os.environ["OMP_NUM_THREADS"])
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np

_BACKENDS = ("tensorflow", "jax", "torch")
_GRAPH_ACTIVATIONS = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    **dict.fromkeys(("BiasAdd", "MatMul", "BatchMatMulV2", "Add", "AddV2"), "linear"),
}

Array = np.ndarray[Any, Any]
Ask = Callable[[Array], dict[str, Array]]


def load(options: dict[str, Any]) -> tuple[dict[str, Any], Ask]:
    """Return the facts of the model at ``options["path"]`` and a function that answers a batch.

    ``code`` is a Python file to run first, which registers layers of one's own; ``unsafe`` allows pickled Python
    functions in the file (Lambda layers); ``signature`` chooses one of a SavedModel's.
    """
    path = Path(options["path"])
    if path.is_dir():
        facts, ask = _saved_model(path, options.get("signature"))
    else:
        facts, ask = _keras_file(path, options.get("code"), bool(options.get("unsafe")))
    size = facts["input_shape"][0] if facts["input_shape"] else None
    return {**facts, "python": platform.python_version()}, _in_batches(ask, size) if size else ask


def _keras_file(path: Path, code: str | None, unsafe: bool) -> tuple[dict[str, Any], Ask]:
    _choose_backend()
    keras: Any = import_module("keras")
    if code:
        runpy.run_path(code)
    try:
        if path.suffix == ".h5" and not unsafe and re.search(rb'"class_name":\s*"Lambda"', path.read_bytes()):
            # Keras before 3.11.3 does not heed safe_mode in files of this kind.
            raise ValueError("safe_mode")
        model = keras.models.load_model(path, compile=False, safe_mode=not unsafe)
    except (TypeError, ValueError) as error:
        raise _explained(error) from error
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    if len(inputs) > 1:
        raise ValueError(f"the model takes {len(inputs)} inputs ({_names(inputs)}), and a sample here is one array")
    names = _output_names(model, outputs)
    facts = {
        "input_name": inputs[0].name if inputs else None,
        "input_shape": list(inputs[0].shape) if inputs else None,
        "input_dtype": str(inputs[0].dtype) if inputs else "float32",
        "outputs": {name: list(one.shape) for name, one in zip(names, outputs, strict=True)},
        "activations": {name: _activation(one) for name, one in zip(names, outputs, strict=True)},
        "rescaling": _rescaling(model),
        "versions": {"keras": keras.__version__, **_backend_version(keras.backend.backend())},
    }

    def ask(batch: Array) -> dict[str, Array]:
        return _named(model.predict_on_batch(batch), names)

    return facts, ask


def _choose_backend() -> None:
    """Keep to the backend that Keras is set to; where it is not installed, as Keras sets one unasked, take another."""
    if "KERAS_BACKEND" in os.environ:
        return
    settings = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
    wanted = json.loads(settings.read_text()).get("backend") if settings.is_file() else None
    found = [name for name in _BACKENDS if find_spec(name)]
    if not found:
        raise ModuleNotFoundError("Keras needs a backend: tensorflow, jax or torch", name="tensorflow")
    os.environ["KERAS_BACKEND"] = wanted if wanted in found else found[0]


def _explained(error: Exception) -> Exception:
    """Return the error, in words of the recipe where an option of it helps."""
    text = str(error)
    if "safe_mode" in text:
        return ValueError(
            "the file contains a Python function (a Lambda layer), which could do anything when it is run. If you "
            "trust where it comes from, add 'args: {unsafe: true}'"
        )
    start = text.find("Could not locate")
    if start < 0:
        return error
    return ValueError(
        f"{text[start:].split('.')[0]}. If it is a layer of your own, register it with "
        "@keras.saving.register_keras_serializable() in a Python file beside the model, and name that with "
        "'args: {code: layers.py}'"
    )


def _saved_model(path: Path, wanted: str | None) -> tuple[dict[str, Any], Ask]:
    tf: Any = import_module("tensorflow")
    loaded = tf.saved_model.load(str(path))
    known = list(loaded.signatures)
    name = wanted or ("serving_default" if "serving_default" in known else known[0] if len(known) == 1 else None)
    if name not in known:
        raise ValueError(f"the SavedModel has the signatures {known}: name one of them with args: {{signature: ...}}")
    function = loaded.signatures[name]
    inputs = function.structured_input_signature[1]
    if len(inputs) != 1:
        raise ValueError(f"signature {name!r} takes {len(inputs)} inputs ({list(inputs)}), and a sample is one array")
    (key, spec), names = next(iter(inputs.items())), sorted(function.structured_outputs)
    facts = {
        "input_name": key,
        "input_shape": None if spec.shape.rank is None else spec.shape.as_list(),
        "input_dtype": spec.dtype.name,
        "outputs": {one: _shape(function.structured_outputs[one].shape) for one in names},
        "activations": {
            one: _graph_activation(function.graph, tensor.name)
            for one, tensor in zip(names, function.outputs, strict=True)
        },
        "rescaling": None,
        "versions": {"tensorflow": tf.__version__},
    }

    def ask(batch: Array) -> dict[str, Array]:
        # Through the loaded model, not the function alone: weights are gone when their owner is.
        answers = loaded.signatures[name](**{key: tf.convert_to_tensor(batch)})
        return {one: answers[one].numpy() for one in names}

    return facts, ask


def _in_batches(ask: Ask, size: int) -> Ask:
    """Return a function for any number of samples from one for exactly ``size``; the last one is repeated."""

    def any_number(batch: Array) -> dict[str, Array]:
        short = -len(batch) % size
        padded = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)]) if short else batch
        parts = [ask(padded[low : low + size]) for low in range(0, len(padded), size)]
        return {name: np.concatenate([part[name] for part in parts])[: len(batch)] for name in parts[0]}

    return any_number


def _named(answers: Any, names: Sequence[str]) -> dict[str, Array]:
    if isinstance(answers, dict):
        return {name: np.asarray(values) for name, values in answers.items()}
    listed = list(answers) if isinstance(answers, list | tuple) else [answers]
    known = names if len(names) == len(listed) else [f"output_{number}" for number in range(len(listed))]
    return {name: np.asarray(values) for name, values in zip(known, listed, strict=True)}


def _output_names(model: Any, outputs: Sequence[Any]) -> list[str]:
    """Return the names that answers come under: a dictionary's keys, or those of the last layers, if they differ."""
    structure = getattr(model, "output", None) if outputs else None
    if isinstance(structure, dict):
        return [next(key for key, tensor in structure.items() if tensor is one) for one in outputs]
    names = [one._keras_history.operation.name for one in outputs]
    return names if len(set(names)) == len(names) else [f"output_{number}" for number in range(len(names))]


def _activation(output: Any) -> str | None:
    """Return the name of the function that makes this output, such as softmax or linear."""
    operation = output._keras_history.operation
    inner = getattr(operation, "outputs", None)
    if inner and getattr(operation, "layers", None):
        return _activation(inner[output._keras_history.tensor_index])
    function = getattr(operation, "activation", None)
    if function is None:
        return type(operation).__name__.lower() if type(operation).__name__ in ("Softmax", "Sigmoid") else None
    return str(getattr(function, "__name__", type(function).__name__))


def _graph_activation(graph: Any, tensor: str) -> str | None:
    """Return the same for a tensor of a graph, following it into the functions that the graph calls."""
    definition = graph.as_graph_def()
    functions = {one.signature.name: one for one in definition.library.function}
    nodes = {node.name: node for node in definition.node}
    while True:
        name, _, index = tensor.partition(":")
        if name not in nodes:
            return None
        node = nodes[name]
        if node.op == "Identity":
            tensor = node.input[0]
        elif node.op.endswith("PartitionedCall"):
            inner = functions[node.attr["f"].func.name]
            place = int(index.rpartition(":")[2] or 0)
            tensor = inner.ret[inner.signature.output_arg[place].name]
            nodes = {one.name: one for one in inner.node_def}
        else:
            return _GRAPH_ACTIVATIONS.get(node.op)


def _rescaling(model: Any) -> float | None:
    """Return the factor of a layer that scales pixels, if the model has one."""
    layers = model._flatten_layers() if hasattr(model, "_flatten_layers") else []
    factors = [float(np.max(layer.scale)) for layer in layers if type(layer).__name__ == "Rescaling"]
    return factors[0] if factors else None


def _backend_version(backend: str) -> dict[str, str]:
    return {backend: str(import_module(backend).__version__)}


def _shape(shape: Any) -> list[int | None] | None:
    return None if shape.rank is None else list(shape.as_list())


def _names(tensors: Sequence[Any]) -> str:
    return ", ".join(str(one.name) for one in tensors)
