"""A model behind the Open Inference Protocol v2, as Triton, KServe, MLServer and OpenVINO Model Server speak it.

Shape legend: b samples asked about, ``...`` the shape of one sample.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import numpy as np

from potstill.core import fingerprint
from potstill.core.errors import TeacherError, did_you_mean
from potstill.teachers.http import MOST_BYTES, EndpointError, HttpClient, Limits, RefusedError, shown

Array = np.ndarray[Any, Any]
_HEADER_LENGTH = "Inference-Header-Content-Length"
_BINARY = "binary_tensor_data"
_UNKNOWN_NUMBERS, _BYTES_PER_NUMBER = 100_000, 40
_TYPES: Mapping[str, str] = {
    "BOOL": "?",
    **{
        f"{kind}{bits}": f"<{code}{bits // 8}"
        for kind, code in (("INT", "i"), ("UINT", "u"))
        for bits in (8, 16, 32, 64)
    },
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output as the server describes it; -1 stands for any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """What a server says of a model.

    Attributes:
        model: its name.
        version: the version that answers; empty where the server tells none.
        platform: what runs it.
        inputs: in the server's order.
        outputs: in the server's order.
        binary: whether tensors may be sent as bytes.

    """

    model: str
    version: str
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    binary: bool


@dataclass(frozen=True)
class OpenInferenceModel:
    """A model on an inference server; plain data, made with `open_inference_ask`.

    Nothing is sent before the first use. Copies, also those that were pickled, share one connection and one look at
    the model's description in each process.
    """

    url: str
    model: str
    input: str | None = None
    output: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    key_env: str | None = None
    batch_size: int = 32
    limits: Limits = field(default_factory=Limits)

    @property
    def facts(self) -> Facts:
        """What the server says of the model; asked once."""
        return _connection(self, os.getpid()).facts

    @property
    def digest(self) -> str:
        """A hash of address, name, version, inputs and outputs: all that can be known of the weights from here."""
        facts = self.facts
        described = [[one.name, one.datatype, one.shape] for one in (*facts.inputs, *facts.outputs)]
        return fingerprint.of_json([self.url.rstrip("/"), facts.model, facts.version, described, self.output])

    def ask(self, inputs: Array) -> Array | dict[str, Array]:
        """Return the model's outputs.

        Args:
            inputs: (b, ...) float32 or uint8; converted to the type that the model takes, if no value changes.

        Returns:
            (b, ...) numbers, or one array for each output where there are several and none was named.

        Raises:
            TeacherError: the model does not take such inputs, or gives other outputs than it says.
            EndpointError: the server cannot be asked.

        """
        return _connection(self, os.getpid()).ask(inputs)


def open_inference_ask(
    url: str,
    model: str,
    *,
    input: str | None = None,  # noqa: A002 - the recipe's word
    output: str | None = None,
    headers: Mapping[str, str] | None = None,
    key_env: str | None = None,
    batch_size: int = 32,
    concurrency: int = 4,
    requests_per_minute: float | None = None,
    retries: int = 6,
    timeout: float = 120.0,
) -> OpenInferenceModel:
    """Return a model behind the Open Inference Protocol v2; nothing is sent yet.

    Args:
        url: base address, without ``/v2``.
        model: name on the server, or ``name/version``.
        input: name of the input tensor; the only one when None.
        output: name of the output tensor to read; all of them when None.
        headers: sent with each request; ``${NAME}`` is read from the environment.
        key_env: environment variable that holds the API key, sent as bearer token.
        batch_size: most samples in one request.
        concurrency: requests under way at once.
        requests_per_minute: rate limit; None for none.
        retries: further tries of a request that failed for a passing reason.
        timeout: seconds for the whole answer, then the try counts as failed.

    """
    limits = Limits(concurrency, requests_per_minute, None, retries, timeout)
    return OpenInferenceModel(
        url, model, input, output, tuple(sorted((headers or {}).items())), key_env, batch_size, limits
    )


class _Connection:
    """The open side of a model: HTTP client, threads and the server's description."""

    def __init__(self, model: OpenInferenceModel) -> None:
        self._model = model
        self._client = HttpClient(model.url, headers=dict(model.headers), key_env=model.key_env, limits=model.limits)
        weakref.finalize(self, self._client.close)
        name, _, version = model.model.partition("/")
        self._path = f"v2/models/{quote(name, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
        self.facts = _facts(self._client.get(self._path), self._client.get("v2"), version)
        self._input = _chosen(self.facts.inputs, model.input, "input")
        self._outputs = (
            self.facts.outputs if model.output is None else (_chosen(self.facts.outputs, model.output, "output"),)
        )
        for tensor in (self._input, *self._outputs):
            if tensor.datatype not in _TYPES:
                raise TeacherError(
                    f"The model {model.model} has '{tensor.name}' of type {tensor.datatype}; numbers are needed "
                    f"({', '.join(_TYPES)})."
                )
        self._threads = ThreadPoolExecutor(model.limits.concurrency, thread_name_prefix="potstill-infer")

    def ask(self, inputs: Array) -> Array | dict[str, Array]:
        values = self._converted(np.asarray(inputs))
        fixed, batched = self._batching(values)
        size = (fixed or self._model.batch_size) if batched else 1
        pieces = [values[start : start + size] for start in range(0, len(values), size)]
        answers = list(self._threads.map(lambda piece: self._infer(piece, fixed, batched), pieces))
        if not answers:
            raise TeacherError(f"The model {self._model.model} was asked about no samples.")
        found = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        return next(iter(found.values())) if len(found) == 1 else found

    def _converted(self, inputs: Array) -> Array:
        dtype = np.dtype(_TYPES[self._input.datatype])
        with np.errstate(invalid="ignore", over="ignore"):
            values = inputs.astype(dtype)
            exact = dtype.kind == "f" or bool((values.astype(inputs.dtype) == inputs).all())
        if not exact:
            raise TeacherError(
                f"The model {self._model.model} takes {self._input.datatype} for '{self._input.name}', and the inputs "
                f"are {inputs.dtype} numbers that do not fit it. Check the teacher's preprocess."
            )
        return values

    def _batching(self, values: Array) -> tuple[int | None, bool]:
        """Return the model's fixed number of samples, if it has one, and whether it takes several at once."""
        shape = self._input.shape
        batched = len(shape) == values.ndim
        of_one = shape[1:] if batched else shape
        fits = len(of_one) == values.ndim - 1 and all(
            want in (-1, have) for want, have in zip(of_one, values.shape[1:], strict=True)
        )
        if not fits:
            raise TeacherError(
                f"The model {self._model.model} takes '{self._input.name}' of shape {shape} (-1: any), and samples "
                f"have shape {tuple(values.shape[1:])}. Check the teacher's preprocess and the order of axes."
            )
        return (shape[0] if batched and shape[0] > 0 else None), batched

    def _infer(self, values: Array, fixed: int | None, batched: bool) -> dict[str, Array]:
        count = len(values)
        if fixed is not None and count < fixed:
            values = np.concatenate([values, np.repeat(values[-1:], fixed - count, axis=0)])
        found = self._send(values if batched else values[0])
        for name, answer in found.items():
            if not batched:
                found[name] = answer[None]
            elif answer.ndim == 0 or len(answer) != len(values):
                raise TeacherError(
                    f"The model {self._model.model} answered {len(values)} samples with '{name}' of shape "
                    f"{answer.shape}; expected one row for each."
                )
        return {name: answer[:count] for name, answer in found.items()}

    def _send(self, values: Array) -> dict[str, Array]:
        described: dict[str, Any] = {
            "name": self._input.name,
            "shape": list(values.shape),
            "datatype": self._input.datatype,
        }
        outputs: list[dict[str, Any]] = [{"name": one.name} for one in self._outputs]
        path = f"{self._path}/infer"
        if not self.facts.binary:
            body = {"inputs": [{**described, "data": values.ravel().tolist()}], "outputs": outputs}
            return self._read(self._client.post(path, body, most_bytes=self._most_bytes(values)), b"")
        raw = values.tobytes()
        head = json.dumps(
            {
                "inputs": [{**described, "parameters": {"binary_data_size": len(raw)}}],
                "outputs": [{**one, "parameters": {"binary_data": True}} for one in outputs],
            }
        ).encode()
        response = self._client.request(
            "POST",
            path,
            content=head + raw,
            headers={_HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"},
            most_bytes=self._most_bytes(values),
        )
        length = response.headers.get(_HEADER_LENGTH.lower())
        content: bytes = response.content
        try:
            end = len(content) if length is None else int(length)
            if not 0 <= end <= len(content):
                raise ValueError(f"its head is said to be {end} bytes long, of {len(content)}")
            return self._read(json.loads(content[:end]), content[end:])
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"The model {self._model.model} answered something unreadable: {error}.") from None

    def _most_bytes(self, values: Array) -> int:
        """Return how long an answer to these samples may be, in numbers that are written out."""
        numbers = 0
        for tensor in self._outputs:
            of_one = [size for size in tensor.shape[1:] if size > 0]
            numbers += len(values) * (math.prod(of_one) if -1 not in tensor.shape[1:] else _UNKNOWN_NUMBERS)
        return MOST_BYTES + numbers * _BYTES_PER_NUMBER

    def _read(self, answer: Any, raw: bytes) -> dict[str, Array]:
        """Return the outputs by name, in the order of the model's description."""
        found: dict[str, Array] = {}
        try:
            for one in answer["outputs"]:
                dtype = np.dtype(_TYPES[one["datatype"]])
                size = (one.get("parameters") or {}).get("binary_data_size")
                if size is None:
                    values = np.asarray(one["data"], dtype=dtype)
                else:
                    values, raw = np.frombuffer(raw[:size], dtype=dtype), raw[size:]
                found[one["name"]] = values.reshape(one["shape"]).copy()
            return {one.name: found[one.name] for one in self._outputs}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RefusedError(
                f"The model {self._model.model} did not answer as the protocol says ({type(error).__name__}: {error}): "
                f"{shown(answer)}"
            ) from None


@lru_cache(maxsize=16)
def _connection(model: OpenInferenceModel, process: int) -> _Connection:  # noqa: ARG001
    """Return the connection of a model in this process; after a fork a child makes its own."""
    return _Connection(model)


def _facts(answer: Any, server: Any, version: str) -> Facts:
    try:
        versions = [str(one) for one in answer.get("versions") or ()]
        # Without a version in the request the server answers with the newest one.
        newest = max(versions, key=lambda one: (len(one), one), default="")
        extensions = server.get("extensions") or () if isinstance(server, dict) else ()
        return Facts(
            str(answer["name"]),
            version or newest,
            str(answer.get("platform", "")),
            _tensors(answer["inputs"]),
            _tensors(answer["outputs"]),
            _BINARY in extensions,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise EndpointError(
            f"The server does not describe its model as the Open Inference Protocol says: {shown(answer)}"
        ) from None


def _tensors(described: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(one["name"], one["datatype"], tuple(int(size) for size in one["shape"])) for one in described)


def _chosen(tensors: Sequence[Tensor], name: str | None, what: str) -> Tensor:
    names = [tensor.name for tensor in tensors]
    if name is not None:
        if name not in names:
            raise TeacherError(f"The model has no {what} '{name}'.{did_you_mean(name, names)}")
        return tensors[names.index(name)]
    if len(tensors) != 1:
        raise TeacherError(f"The model has {len(tensors)} {what}s: name one of {', '.join(names)} as {what}.")
    return tensors[0]
