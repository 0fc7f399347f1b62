"""Teachers that are files, end to end on the bundled digits: recorded, taught, measured, reported."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import skops.io
import torch
from onnx import TensorProto, helper, numpy_helper
from pyarrow import parquet
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.files import read_json, write_json
from potstill.core.signals import Batch
from potstill.data import Stream, load
from potstill.pipeline import distill, label, plan, run
from potstill.pipeline.build import IN_MEMORY, Given, build_job
from potstill.pipeline.proof import size_of as measured_size
from potstill.pipeline.stages import live_teacher
from potstill.recipe.yaml import loads
from potstill.teachers.files import SUFFIXES

RECIPE = """
data: {train: digits}
teacher: TEACHER
student: {model: cnn, args: {width: 4}}
training: {epochs: 1, batch_size: 64, optimizer: sgd, learning_rate: 0.1}
evaluation: {latency: false}
export: {formats: []}
"""


def recipe(teacher: str, **changes: str):
    text = RECIPE.replace("TEACHER", teacher)
    for old, new in changes.items():
        text = text.replace(old, new)
    return loads(text)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One logistic regression on the digits as an ONNX file, a skops file and recorded answers."""
    folder = tmp_path_factory.mktemp("files")
    data = load("digits")
    inputs, targets = {}, {}
    for name, split in data.splits.items():
        inputs[name] = split.fetch(np.arange(len(split))).numpy().reshape(len(split), -1).astype(np.float32) / 255
        targets[name] = split.targets
    estimator = LogisticRegression(max_iter=300).fit(inputs["train"], targets["train"])
    write_json(folder / "accuracy.json", float((estimator.predict(inputs["test"]) == targets["test"]).mean()))
    skops.io.dump(estimator, folder / "m.skops")
    save_onnx(folder / "m.onnx", estimator)
    save_onnx(folder / "softmax.onnx", estimator, softmax=True)
    save_onnx(folder / "noisy.onnx", estimator, noise=3.0)
    save_onnx(folder / "shuffled.onnx", estimator, order=[3, 4, 5, 6, 7, 8, 9, 0, 1, 2])
    probabilities = estimator.predict_proba(inputs["train"]).astype(np.float32)
    everything = estimator.predict_proba(np.concatenate(list(inputs.values()))).astype(np.float32)
    ids = np.concatenate([split.ids for split in data.splits.values()])
    save_parquet(folder / "train.parquet", data.train.ids, probabilities)
    save_parquet(folder / "all.parquet", ids, everything)
    save_parquet(folder / "some.parquet", data.train.ids[5:], probabilities[5:])
    names = [f"{digit}" for digit in reversed(range(10))]
    columns = {name: probabilities[:, int(name)] for name in names}
    parquet.write_table(pa.table({"id": data.train.ids, **columns}), folder / "columns.parquet")
    return folder


def save_onnx(path, estimator, *, softmax=False, order=tuple(range(10)), noise=0.0):
    weight, bias = estimator.coef_[list(order)], estimator.intercept_[list(order)]
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["z" if softmax or noise else "y"], transB=1),
    ]
    nodes += [
        helper.make_node("RandomNormalLike", ["z"], ["random"], scale=noise),
        helper.make_node("Add", ["z", "random"], ["y"]),
    ] if noise else []  # fmt: skip
    nodes += [helper.make_node("Softmax", ["z"], ["y"], axis=1)] if softmax else []
    shapes = [("x", ["n", 1, 8, 8]), ("y", ["n", 10])]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in shapes)
    weights = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in (("w", weight), ("b", bias))]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))


def save_parquet(path, ids, probabilities):
    parquet.write_table(pa.table({"id": ids, "answer": probabilities.tolist()}), path)


KINDS = {
    "onnx": "{file: m.onnx, answers: logits}",
    "estimator": "{file: m.skops}",
    "recorded": "{file: all.parquet, answers: probabilities}",
    "merged": "{members: [{file: m.onnx, answers: logits}, {file: m.skops}, {file: all.parquet, "
    "answers: probabilities}]}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_teaches_from_end_to_end(files, tmp_path, kind):
    timed = {"latency: false": "latency: true"} if kind == "onnx" else {}
    chosen = recipe(KINDS[kind], **timed)
    finished = run(chosen, out=tmp_path / "runs" / kind, base=files)
    scores = finished.evaluation.models["teacher"]
    # All four are the same logistic regression.
    assert scores.metrics["accuracy"] == pytest.approx(read_json(files / "accuracy.json"), abs=0.003)
    assert (scores.parameters, scores.flops) == (None, None)
    assert (scores.latency_ms is not None) == (kind == "onnx")
    sizes = {"onnx": ("m.onnx",), "estimator": ("m.skops",), "recorded": ("all.parquet",)}
    held = sum((files / name).stat().st_size for name in sizes.get(kind, ("m.onnx", "m.skops", "all.parquet")))
    assert held <= scores.bytes < held + 100
    assert "of its parameters" not in " ".join(finished.evaluation.verdict.sentences)
    assert "None" not in finished.report.read_text().split("<body")[1][:20000]
    card = (finished.folder / "export" / "README.md").read_text() if (finished.folder / "export").exists() else ""
    assert "None" not in card
    if kind == "merged":
        run(chosen, out=tmp_path / "runs" / kind, base=files)
        again = read_json(finished.folder / "run.json")["stages"]
        assert {entry["status"] for entry in again.values()} == {"skipped"}
        assert [name for name in finished.evaluation.models if name.startswith("teacher ")] == [
            "teacher 1",
            "teacher 2",
        ]


def test_an_answer_that_is_looked_up_takes_no_time_that_says_anything(files):
    job = build_job(recipe(KINDS["recorded"], **{"latency: false": "latency: true"}), base=files)
    size = measured_size(job, job.teacher_at(0))
    assert (size.bytes, size.latency_ms) == ((files / "all.parquet").stat().st_size, None)


def test_another_file_or_another_reading_records_again(files, tmp_path):
    first = plan(recipe("{file: m.onnx, answers: logits}"), out=tmp_path / "a", base=files)
    other = plan(recipe("{file: softmax.onnx}"), out=tmp_path / "a", base=files)
    same = plan(recipe("{file: m.onnx, answers: logits}"), out=tmp_path / "a", base=files)
    assert first.store["path"] == same.store["path"] != other.store["path"]


def test_answers_for_the_training_samples_alone_teach_but_are_not_measured(files, tmp_path):
    chosen = recipe("{file: train.parquet, answers: probabilities}")
    assert plan(chosen, out=tmp_path / "run", base=files).warnings == ()
    assert not build_job(chosen, base=files).comparable
    assert build_job(recipe(KINDS["recorded"]), base=files).comparable


def test_missing_samples_are_counted_before_anything_runs(files, tmp_path):
    with pytest.raises(TeacherError, match=r"no answer for 5 of 1,\d+ training samples; their ids are \d+, \d+"):
        plan(recipe("{file: some.parquet, answers: probabilities}"), out=tmp_path / "run", base=files)


def test_recorded_answers_are_of_unchanged_samples(files, tmp_path):
    chosen = recipe(
        "{file: all.parquet, answers: probabilities}", **{"train: digits": "train: digits, augment: {crop: 1}"}
    )
    with pytest.raises(TeacherError, match=r"data.augment shows the student changed samples"):
        plan(chosen, out=tmp_path / "run", base=files)


def test_columns_in_another_order_are_mapped_and_said_so(files, tmp_path):
    planned = plan(recipe("{file: columns.parquet, answers: probabilities}"), out=tmp_path / "run", base=files)
    assert any("in the order 9, 8, 7" in note and "mapped by name" in note for note in planned.warnings)
    assert not any("right on" in note for note in planned.warnings)


def test_outputs_in_another_order_are_found_by_their_accuracy(files, tmp_path):
    shuffled = recipe("{file: shuffled.onnx, answers: logits}")
    line = r"""write .* 'data.classes: \["3", "4", "5", "6", "7", "8", "9", "0", "1", "2"\]'"""
    for work in (plan, label, run):
        with pytest.raises(TeacherError, match=rf"(?i){line}"):
            work(shuffled, out=tmp_path / "run", base=files)
    assert not (tmp_path / "store").exists()
    fixed = recipe(
        "{file: shuffled.onnx, answers: logits}",
        digits='digits, classes: ["3", "4", "5", "6", "7", "8", "9", "0", "1", "2"]',
    )
    planned = plan(fixed, out=tmp_path / "run", base=files)
    assert planned.warnings == ()
    assert planned.teacher["value"] > 0.9
    meant = recipe(
        "{file: shuffled.onnx, answers: logits}",
        digits='digits, classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]',
    )
    told = plan(meant, out=tmp_path / "run", base=files).warnings
    assert any("order 3, 4, 5, 6, 7, 8, 9, 0, 1, 2" in text and "says that the present order" in text for text in told)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("{file: m.onnx}", r"m.onnx does not say what it answers with.*look like logits.*add 'answers: logits'"),
        ("{file: train.parquet}", r"does not say what it answers with.*look like probabilities"),
        ("{file: m.onnx, answers: probabilities}", r"teacher.answers says probabilities, but .* do not fit"),
        ("{file: softmax.onnx, answers: logits}", r"teacher.answers says logits, but the answers .*sums to 1"),
        ("{file: m.skops, answers: values}", r"values are for regression"),
        ("{members: [{file: m.skops}, {file: m.onnx}]}", r"teacher.members\[1\]: m.onnx does not say"),
        ("{endpoint: {url: 'http://localhost:1', model: m}}", r"for 'potstill label' of a text recipe"),
        ("{file: absent.onnx}", r"teacher.file: there is no file"),
        ("{file: noisy.onnx, answers: logits}", r"noisy.onnx answers at random: the same 64 samples .* training mode"),
        ("{file: m.skops, precision: bfloat16}", r"teacher.precision: m.skops is no torch model"),
        ("{file: all.parquet, answers: probabilities, preprocess: {size: 8}}", r"teacher.preprocess: recorded answers"),
        (
            "{members: [{file: m.skops}, {file: all.parquet, answers: probabilities}], merge: {weighting: attention}}",
            r"one of them is a file of recorded answers",
        ),
    ],
)
def test_teachers_that_do_not_fit_are_refused_in_the_plan(files, tmp_path, teacher, message):
    with pytest.raises(PotstillError, match=message):
        plan(recipe(teacher), out=tmp_path / "run", base=files)


def test_a_softmax_at_the_end_of_a_file_needs_no_answers(files, tmp_path):
    planned = plan(recipe("{file: softmax.onnx}"), out=tmp_path / "run", base=files)
    assert planned.models["teacher"]["bytes"] == (files / "softmax.onnx").stat().st_size
    assert planned.warnings == ()


def test_layers_of_a_file_cannot_be_read(files, tmp_path):
    with pytest.raises(PotstillError, match=r"'at' reads hidden layers, and m.onnx is no torch model"):
        plan(recipe("{file: m.onnx, answers: logits}\nobjective: at"), out=tmp_path / "run", base=files)
    terms = "{file: m.onnx, answers: logits}\nobjective: [{loss: logit_mse, teacher: hidden}]"
    with pytest.raises(TeacherError, match=r"reads the teacher's hidden, but m.onnx is no torch model with layers"):
        plan(recipe(terms), out=tmp_path / "run", base=files)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("{model: cnn, file: m.onnx}", r"model and file are each a teacher"),
        ("{file: m.onnx, train: {epochs: 1}}", r"train is for a torch model"),
        ("{file: m.onnx, weights: w.safetensors}", r"weights is for a torch model"),
        ("{model: cnn, python: python3}", r"python is the interpreter of a Keras file"),
        ("{model: cnn, train: {epochs: 1}, answers: probabilities}", r"a model that is trained here answers with"),
        ("{}", r"give one teacher \(model, file or endpoint\)"),
        ("{members: [{answers: logits}]}", r"a member needs a model, a file or an endpoint"),
        ("{file: m.onnx, answers: probs}", r"answers: expected 'logits'"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(teacher, message):
    with pytest.raises(UsageError, match=message):
        recipe(teacher)


class Softmaxed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(64, 10)

    def forward(self, inputs):
        return self.last(inputs.flatten(1)).softmax(1)


def test_a_torch_model_that_answers_with_probabilities_has_to_be_declared(tmp_path):
    terms = "\nobjective: [{loss: cross_entropy}, {loss: forward_kl}, {loss: logit_mse, teacher: last}]"
    given = Given(teacher=Softmaxed())
    with pytest.raises(TeacherError, match=r"Softmaxed .*not look like logits.*Write 'answers: probabilities'"):
        plan(recipe(f"{{model: {IN_MEMORY}}}"), out=tmp_path / "run", given=given)
    with pytest.raises(TeacherError, match=r"teacher.answers says labels, but"):
        plan(recipe(f"{{model: {IN_MEMORY}, answers: labels}}"), out=tmp_path / "run", given=given)
    # Read as probabilities, its layers keep the names that recipes use.
    job = build_job(recipe(f"{{model: {IN_MEMORY}, answers: probabilities}}{terms}"), base=tmp_path, given=given)
    batch = next(Stream(job.data.train).recording(5))
    with live_teacher(job, job.teacher_at(0)) as live:
        answers = live(batch)
    expected = given.teacher.last(batch.inputs.flatten(1).float() / 255)
    torch.testing.assert_close(answers["last"], expected.detach())
    torch.testing.assert_close(answers["logits"], expected.log_softmax(1).detach())


def test_python_users_name_a_file(files, tmp_path):
    settings = {
        "training": {"epochs": 1, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1},
        "evaluation": {"latency": False},
    }
    settings["export"] = {"formats": []}
    with pytest.raises(TeacherError, match=r"does not say what it answers with"):
        distill(files / "m.onnx", "cnn", "digits", out=tmp_path / "run", **settings)
    found = distill(str(files / "m.onnx"), "cnn", "digits", out=tmp_path / "run", answers="logits", **settings)
    assert found.evaluation.models["teacher"].metrics["accuracy"] > 0.9
    assert json.dumps(found.summary())


def test_a_class_map_names_the_classes_in_the_order_of_the_outputs(files, tmp_path):
    names = ", ".join(f'"{digit}": "{digit}"' for digit in (3, 4, 5, 6, 7, 8, 9, 0, 1, 2))
    teacher = "{file: shuffled.onnx, answers: logits, class_map: {" + names + "}}"
    assert plan(recipe(teacher), out=tmp_path / "run", base=files).warnings == ()
    # Recorded answers are regrouped as well.
    names = ", ".join(f'"{digit}": "{digit}"' for digit in range(10))
    teacher = "{file: all.parquet, answers: probabilities, class_map: {" + names + "}}"
    assert plan(recipe(teacher), out=tmp_path / "run", base=files).warnings == ()


def test_values_of_a_regression(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    targets = inputs @ np.array([1.0, -2.0, 0.5], np.float32)
    np.savez(tmp_path / "data.npz", x=inputs, label=targets)
    skops.io.dump(LinearRegression().fit(inputs, targets), tmp_path / "m.skops")
    text = "task: regression\ndata: {train: data.npz}\nteacher: TEACHER\nstudent: {model: mlp, args: {hidden: [4]}}\n"
    job = build_job(loads(text.replace("TEACHER", "{file: m.skops}")), base=tmp_path)
    assert job.comparable
    answers = asked(job.teacher_at(0), torch.from_numpy(inputs))
    np.testing.assert_allclose(answers.numpy(), targets[:, None], rtol=1e-3, atol=1e-4)
    with pytest.raises(TeacherError, match=r"teacher.answers: logits are for classes, and the task is regression"):
        build_job(loads(text.replace("TEACHER", "{file: m.skops, answers: logits}")), base=tmp_path)


def asked(model, inputs):
    ids = torch.arange(len(inputs))
    with model.teaching() as teacher:
        return teacher(Batch(ids, torch.zeros_like(ids), inputs))["logits"]


class Server(BaseHTTPRequestHandler):
    """A linear model of 64 pixels behind the Open Inference Protocol."""

    weight = np.random.default_rng(0).normal(size=(64, 10))

    def reply(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        tensors = {"inputs": ("x", [-1, 1, 8, 8]), "outputs": ("y", [-1, 10])}
        model = {key: [{"name": name, "datatype": "FP32", "shape": shape}] for key, (name, shape) in tensors.items()}
        self.reply({"name": "m", "platform": "numpy", **model} if "models" in self.path else {"extensions": []})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"][0]
        answer = np.asarray(asked["data"], float).reshape(-1, 64) @ self.weight
        output = {"name": "y", "datatype": "FP32", "shape": list(answer.shape), "data": answer.ravel().tolist()}
        self.reply({"model_name": "m", "outputs": [output]})

    def log_message(self, *args):
        pass


def test_a_server_is_a_teacher(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"{{url: 'http://127.0.0.1:{server.server_port}', model: m, protocol: open-inference}}"
        with pytest.raises(TeacherError, match=r"m at http.* does not say what it answers with.*look like logits"):
            build_job(recipe(f"{{endpoint: {endpoint}}}"), base=tmp_path)
        planned = plan(recipe(f"{{endpoint: {endpoint}, answers: logits}}"), out=tmp_path / "run", base=tmp_path)
        assert planned.models["teacher"] == {"parameters": None, "flops": None, "bytes": None}
        assert planned.teacher["value"] is None  # nobody asked a server for a score, which may cost
        assert "180 questions in 6 requests" in planned.teacher["sentence"]
        job = build_job(recipe(f"{{endpoint: {endpoint}, answers: logits}}"), base=tmp_path)
        pixels = torch.rand(5, 1, 8, 8)
        expected = pixels.reshape(5, 64).double().numpy() @ Server.weight
        np.testing.assert_allclose(asked(job.teacher_at(0), pixels).numpy(), expected, rtol=1e-4, atol=1e-4)
    finally:
        server.shutdown()
        server.server_close()


def test_the_recipes_in_the_guide_are_recipes():
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "your-own-teacher.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        loads(block if "data:" in block else blocks[0].split("teacher:")[0] + "student: {model: cnn}\n" + block)
    for suffix in SUFFIXES:
        assert f"`{suffix}`" in guide
