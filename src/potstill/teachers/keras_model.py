"""A Keras 3 model or TensorFlow SavedModel as a teacher, in a process of its own.

Shape legend: b samples, c channels, h/w height and width.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from potstill.core.errors import PotstillError, UsageError, did_you_mean
from potstill.teachers.keras_inputs import Array, Layout, Shape, likely_layout, prepared
from potstill.teachers.process import MissingModuleError, Worker

PYTHON_VARIABLE = "POTSTILL_KERAS_PYTHON"
LOADER = Path(__file__).parent / "worker" / "keras_files.py"


@dataclass(frozen=True)
class KerasOptions:
    """What ``args`` of a Keras file may say.

    Args:
        layout: order of an image's axes that the model takes; found by comparing shapes when absent.
        scale: what a pixel of full brightness is for the model; 1 when absent, 255 if it takes uint8.
        output: name of the output that answers, for a model with several.
        signature: of a SavedModel with several.
        code: Python file that defines the model's own layers, registered with
            ``keras.saving.register_keras_serializable``; relative to the model's folder.
        unsafe: run Python functions that are stored in the file (Lambda layers): only for files you trust.
        start_timeout: seconds until loading counts as failed.
        timeout: seconds until an answer counts as failed.

    """

    layout: Layout | None = None
    scale: float | None = None
    output: str | None = None
    signature: str | None = None
    code: str | None = None
    unsafe: bool = False
    start_timeout: float = 300.0
    timeout: float = 600.0


@dataclass(frozen=True)
class KerasFacts:
    """What a model's file says of it.

    Args:
        input_shape: the batch first, None for any size; None where the file does not say it.
        input_dtype: NumPy's name of it.
        outputs: shape of each output by name, the batch first; empty where the file does not say it.
        output: name of the output that answers; None where there are several and none was chosen.
        activation: function that makes that output, such as softmax, where the file tells.
        layout: of images by the input's shape alone; None where that could be either.
        rescaling: factor of a layer that scales pixels, if there is one.
        versions: of what runs the model.

    """

    input_shape: Shape | None
    input_dtype: str
    outputs: Mapping[str, Shape]
    output: str | None
    activation: str | None
    layout: Layout | None
    rescaling: float | None
    versions: Mapping[str, str]

    @property
    def answers(self) -> Literal["probabilities", "logits"] | None:
        """What the last function says that a classifier answers with; None where it says nothing."""
        if self.activation in ("softmax", "sigmoid"):
            return "probabilities"
        return "logits" if self.activation == "linear" else None

    @property
    def classes(self) -> int | None:
        """Numbers in an answer; None where the file does not say it."""
        shape = self.outputs.get(self.output) if self.output is not None else None
        return shape[-1] if shape and len(shape) > 1 else None


@dataclass(frozen=True)
class KerasProcess:
    """A Keras file that answers batches in its own process: plain data, to be copied and pickled freely.

    The process starts when it is first asked and is shared by all equal objects; see `process.Worker`.

    Args:
        worker: how it is run.
        options: what the recipe says of it.
        files: whose bytes its answers depend on.

    """

    worker: Worker
    options: KerasOptions
    files: tuple[Path, ...]

    @property
    def facts(self) -> KerasFacts:
        """What the file says of the model; starts the process.

        Raises:
            PotstillError: the interpreter lacks Keras or its backend; says how to install it.
            TeacherError: the file cannot be loaded.
            UsageError: ``output`` is none of the model's outputs.

        """
        try:
            said = self.worker.facts
        except MissingModuleError as error:
            raise PotstillError(f"{error} {_how_to_install(self.worker.python)}") from error
        outputs: dict[str, Shape] = {name: tuple(shape or ()) for name, shape in said["outputs"].items()}
        output = self.options.output
        if output is not None and outputs and output not in outputs:
            raise UsageError(f"{self.worker.label} has no output {output!r}.{did_you_mean(output, outputs)}")
        output = output or (next(iter(outputs)) if len(outputs) == 1 else None)
        shape: Shape | None = None if said["input_shape"] is None else tuple(said["input_shape"])
        return KerasFacts(
            input_shape=shape,
            input_dtype=said["input_dtype"],
            outputs=outputs,
            output=output,
            activation=said["activations"].get(output),
            layout=likely_layout(shape),
            rescaling=said["rescaling"],
            versions={"python": said["python"], **said["versions"]},
        )

    def ask(self, inputs: Array) -> Array | dict[str, Array]:
        """Return the model's answers: an array (b, ...) from a model with one output, else all by name.

        The first of several is the one that ``output`` names.

        Args:
            inputs: images (b, c, h, w), with pixels from 0 to 1 or uint8, or other samples (b, ...), which are handed
                on as they are.

        Raises:
            UsageError: how the model takes images, or which output answers, has to be said.
            TeacherError: samples that do not fit, or the process failed.
            PotstillError: as for `facts`.

        """
        facts = self.facts
        if len(facts.outputs) > 1 and facts.output is None:
            first = next(iter(facts.outputs))
            raise UsageError(
                f"{self.worker.label} has the outputs {', '.join(facts.outputs)}. Say which is its answer: "
                f"'args: {{output: {first}}}'."
            )
        batch = prepared(
            inputs,
            facts.input_shape,
            np.dtype(facts.input_dtype),
            layout=self.options.layout,
            scale=self.options.scale,
            rescaling=facts.rescaling,
            label=self.worker.label,
        )
        answers = self.worker.ask(batch)
        if len(answers) == 1:
            return next(iter(answers.values()))
        main = facts.output or next(iter(answers))
        if main not in answers:
            raise UsageError(f"{self.worker.label} has no output {main!r}.{did_you_mean(main, answers)}")
        return {main: answers[main], **answers}

    def close(self) -> None:
        """End the process, for all equal objects; the next use starts a new one."""
        self.worker.close()


def keras_ask(path: str | Path, *, python: str | None = None, args: Mapping[str, Any] | None = None) -> KerasProcess:
    """Return a Keras model as something to ask, without loading it yet.

    When to use it: a teacher that was trained with Keras or TensorFlow. Its packages need not fit into this
    environment: it runs in a process of its own, with an interpreter of its own.

    Args:
        path: a .keras or .h5 file, or the folder of a TensorFlow SavedModel.
        python: interpreter that has keras with a backend (tensorflow for a SavedModel). When absent, the one named by
            the environment variable POTSTILL_KERAS_PYTHON, else this one if it has them.
        args: see `KerasOptions`.

    Raises:
        UsageError: no such file, interpreter or option.
        PotstillError: no interpreter with Keras is known; says how to make one.

    """
    path = Path(path).absolute()
    folder = path.is_dir()
    if folder and not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise UsageError(f"{path} is a folder without saved_model.pb: expected a TensorFlow SavedModel.")
    if not path.exists():
        raise UsageError(f"There is no file {path}: expected a .keras or .h5 file, or a SavedModel folder.")
    options = _options(args or {})
    interpreter = _interpreter(python or os.environ.get(PYTHON_VARIABLE, ""), "tensorflow" if folder else "keras")
    code = None if options.code is None else path.parent / options.code
    if code is not None and not code.is_file():
        raise UsageError(f"args.code: there is no file {code}. It is looked for beside the model.")
    files = _files(path) + (() if code is None else (code,))
    told = {
        "path": str(path),
        "code": None if code is None else str(code),
        "unsafe": options.unsafe,
        "signature": options.signature,
        # A file that is written anew is another model: a process that runs already does not answer for it.
        "stamp": [[one.stat().st_size, one.stat().st_mtime_ns] for one in files],
    }
    worker = Worker(
        loader=str(LOADER),
        options=json.dumps(told),
        label=f"The Keras model {path.name}",
        python=interpreter,
        start_timeout=options.start_timeout,
        timeout=options.timeout,
    )
    return KerasProcess(worker, options, files)


def _options(args: Mapping[str, Any]) -> KerasOptions:
    known = {field.name: field.default for field in fields(KerasOptions)}
    for name, value in args.items():
        if name not in known:
            raise UsageError(f"args.{name}: a Keras file has no such option.{did_you_mean(name, known)}")
        positive = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        fits = {
            "layout": value in ("nhwc", "nchw"),
            "scale": positive,
            "unsafe": isinstance(value, bool),
            "start_timeout": positive,
            "timeout": positive,
        }.get(name, isinstance(value, str))
        if not fits and value is not None:
            raise UsageError(f"args.{name}: {value!r} is not what it takes; {_EXPECTED[name]}.")
    return KerasOptions(**{name: value for name, value in args.items() if value is not None})


_EXPECTED = {
    "layout": "expected nhwc (channels last) or nchw",
    "scale": "expected a number above 0, such as 255",
    "output": "expected the name of an output",
    "signature": "expected the name of a signature",
    "code": "expected the path of a Python file",
    "unsafe": "expected true or false",
    "start_timeout": "expected seconds above 0",
    "timeout": "expected seconds above 0",
}


def _interpreter(python: str, needs: str) -> str:
    """Return the path of an interpreter, empty for this one."""
    if python:
        # Not resolved: an environment's interpreter is a link, and what it links to lacks its packages.
        found = shutil.which(os.path.expanduser(python))  # noqa: PTH111
        if found is None:
            raise UsageError(f"There is no interpreter {python} to run a Keras model with. {_how_to_install(python)}")
        return os.path.abspath(found)  # noqa: PTH100
    if find_spec(needs) is None:
        raise PotstillError(f'A Keras model needs the package "{needs}", which is not installed. {_how_to_install("")}')
    return ""


def _how_to_install(python: str) -> str:
    text = (
        "Make an environment for it:\n"
        "    python3 -m venv keras-env\n"
        "    keras-env/bin/pip install keras tensorflow\n"
        "and name it, with 'python: keras-env/bin/python' in the teacher's section of the recipe or "
        f"{PYTHON_VARIABLE}=keras-env/bin/python in the environment."
    )
    return text if python else f'{text} For .keras and .h5 files this also does: pip install "potstill[keras]".'


def _files(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(one for one in path.rglob("*") if one.is_file())) if path.is_dir() else (path,)
