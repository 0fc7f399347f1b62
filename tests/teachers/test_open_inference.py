"""The Open Inference Protocol, against a real server that multiplies a matrix."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from potstill.core.errors import TeacherError
from potstill.teachers import open_inference
from potstill.teachers.http import EndpointError, RefusedError
from potstill.teachers.open_inference import open_inference_ask

from .endpoint_server import Reply, Request, Server, serving

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2) / 7
TYPES = {"FP32": np.float32, "UINT8": np.uint8, "INT64": np.int64, "FP64": np.float64}
LENGTH = "inference-header-content-length"


class Model:
    """What the server does; tests change its attributes."""

    def __init__(self) -> None:
        self.input: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
        self.outputs = [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}]
        self.extensions: list[str] = []
        self.versions = ["9", "10"]
        self.replies: list[Reply] = []
        self.sizes: list[int] = []

    def __call__(self, request: Request) -> Reply:
        if request.path == "/v2":
            return Reply({"name": "toy", "version": "1", "extensions": self.extensions})
        if request.method == "GET":
            described = {"name": "toy", "versions": self.versions, "platform": "numpy"}
            return Reply({**described, "inputs": [self.input], "outputs": self.outputs})
        if self.replies:
            return self.replies.pop(0)
        length = int(request.headers.get(LENGTH, len(request.raw)))
        body = json.loads(request.raw[:length])
        (given,) = body["inputs"]
        values = (
            np.array(given["data"])
            if "data" in given
            else np.frombuffer(request.raw[length:], TYPES[given["datatype"]])
        )
        values = values.reshape(given["shape"]).astype(np.float32)
        assert given["datatype"] == self.input["datatype"]
        self.sizes.append(len(values) if values.ndim > 1 else 1)
        results = {"scores": values @ WEIGHT, "doubled": 2 * values}
        asked = [one["name"] for one in body["outputs"]]
        if length == len(request.raw):
            outputs = [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": list(results[name].shape),
                    "data": results[name].ravel().tolist(),
                }
                for name in reversed(asked)
            ]
            return Reply({"model_name": "toy", "outputs": outputs})
        raws = [results[name].astype("<f4").tobytes() for name in asked]
        outputs = [
            {
                "name": name,
                "datatype": "FP32",
                "shape": list(results[name].shape),
                "parameters": {"binary_data_size": len(raw)},
            }
            for name, raw in zip(asked, raws, strict=True)
        ]
        head = json.dumps({"model_name": "toy", "outputs": outputs}).encode()
        return Reply(
            head + b"".join(raws), headers={LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        )


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def server(model: Model) -> Iterator[Server]:
    with serving(model) as found:
        yield found
    open_inference._connection.cache_clear()


INPUTS = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)


@pytest.mark.parametrize("extensions", [[], ["binary_tensor_data", "classification"]])
def test_answers_are_those_of_the_model(server: Server, model: Model, extensions: list[str]) -> None:
    model.extensions = extensions
    asked = open_inference_ask(server.url, "toy", batch_size=4)
    assert server.requests == []
    np.testing.assert_allclose(asked.ask(INPUTS), INPUTS @ WEIGHT, rtol=1e-6)
    assert sorted(model.sizes) == [2, 4, 4]
    assert sum(request.headers.get(LENGTH) is not None for request in server.requests) == (3 if extensions else 0)
    assert asked.ask(INPUTS[:1]).shape == (1, 2)  # type: ignore[union-attr]


def test_several_outputs_come_by_name_in_the_order_described(server: Server, model: Model) -> None:
    model.outputs = [*model.outputs, {"name": "doubled", "datatype": "FP32", "shape": [-1, 3]}]
    for extensions in ([], ["binary_tensor_data"]):
        model.extensions = extensions
        open_inference._connection.cache_clear()
        found = open_inference_ask(server.url, "toy").ask(INPUTS)
        assert isinstance(found, dict)
        assert list(found) == ["scores", "doubled"]
        np.testing.assert_array_equal(found["doubled"], 2 * INPUTS)
        one = open_inference_ask(server.url, "toy", output="doubled").ask(INPUTS)
        np.testing.assert_array_equal(one, 2 * INPUTS)
    with pytest.raises(TeacherError, match=r"no output 'score'\. Did you mean 'scores'\?"):
        open_inference_ask(server.url, "toy", output="score").ask(INPUTS)


def test_a_fixed_number_of_samples_is_filled_up(server: Server, model: Model) -> None:
    model.input["shape"] = [4, 3]
    found = open_inference_ask(server.url, "toy").ask(INPUTS)
    assert model.sizes == [4, 4, 4]
    np.testing.assert_allclose(found, INPUTS @ WEIGHT, rtol=1e-6)


def test_a_model_of_single_samples_is_asked_one_by_one(server: Server, model: Model) -> None:
    model.input["shape"] = [3]
    found = open_inference_ask(server.url, "toy").ask(INPUTS)
    assert model.sizes == [1] * 10
    np.testing.assert_allclose(found, INPUTS @ WEIGHT, rtol=1e-6)


def test_inputs_must_fit(server: Server, model: Model) -> None:
    with pytest.raises(TeacherError, match=r"takes 'x' of shape \(-1, 3\).*samples have shape \(4,\)"):
        open_inference_ask(server.url, "toy").ask(np.zeros((2, 4), np.float32))
    model.input["datatype"] = "UINT8"
    open_inference._connection.cache_clear()
    asked = open_inference_ask(server.url, "toy")
    pixels = np.array([[0, 1, 255]], np.float32)
    np.testing.assert_allclose(asked.ask(pixels), pixels @ WEIGHT, rtol=1e-6)
    for wrong in (pixels + 0.5, pixels - 1, pixels + 1):
        with pytest.raises(TeacherError, match="takes UINT8 for 'x', and the inputs are float32 numbers"):
            asked.ask(wrong)
    model.input["datatype"] = "BYTES"
    open_inference._connection.cache_clear()
    with pytest.raises(TeacherError, match="'x' of type BYTES; numbers are needed"):
        asked.ask(pixels)


def test_the_description_is_asked_once_and_shared_by_copies(server: Server, model: Model) -> None:
    asked = open_inference_ask(server.url, "toy", headers={"X-A": "1"})
    copies = [asked, copy.deepcopy(asked), pickle.loads(pickle.dumps(asked))]
    assert len({one.digest for one in copies}) == 1
    for one in copies:
        one.ask(INPUTS)
    assert [request.method for request in server.requests].count("GET") == 2
    assert server.requests[0].headers["x-a"] == "1"
    facts = asked.facts
    assert (facts.version, facts.platform, facts.outputs[0].shape) == ("10", "numpy", (-1, 2))


def test_the_digest_follows_what_is_known_of_the_model(server: Server, model: Model) -> None:
    def digest(**options: Any) -> str:
        open_inference._connection.cache_clear()
        return open_inference_ask(server.url, "toy", **options).digest

    before = digest()
    assert digest(batch_size=3, timeout=7.0) == before
    assert digest(output="scores") != before
    model.versions = ["11"]
    assert digest() != before
    asked = open_inference_ask(server.url, "toy/7")
    assert asked.facts.version == "7"
    assert server.requests[-2].path == "/v2/models/toy/versions/7"


def test_failures_that_pass_are_tried_again(server: Server, model: Model) -> None:
    model.replies = [Reply({"error": "loading"}, 503, {"Retry-After": "0"})]
    np.testing.assert_allclose(open_inference_ask(server.url, "toy").ask(INPUTS), INPUTS @ WEIGHT, rtol=1e-6)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply({"error": "unexpected shape"}, 400), "answered 400: unexpected shape"),
        (Reply({"outputs": []}), "did not answer as the protocol says"),
        (Reply({"outputs": [{"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [1]}]}), "as the protocol"),
    ],
)
def test_wrong_answers_are_errors(server: Server, model: Model, reply: Reply, words: str) -> None:
    model.replies = [reply]
    with pytest.raises(RefusedError, match=words):
        open_inference_ask(server.url, "toy").ask(INPUTS)
    row = {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    model.replies = [Reply({"outputs": [row]})]
    with pytest.raises(TeacherError, match=r"answered 10 samples with 'scores' of shape \(1, 2\)"):
        open_inference_ask(server.url, "toy").ask(INPUTS)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply({"message": "hello"}), "does not describe its model as the Open Inference Protocol says"),
        (Reply({"error": "unknown model"}, 404), "answered 404: unknown model"),
    ],
)
def test_servers_of_another_kind_are_told(reply: Reply, words: str) -> None:
    with serving(lambda request: reply) as server, pytest.raises(EndpointError, match=words):
        open_inference_ask(server.url, "toy").ask(INPUTS)
