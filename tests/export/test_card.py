"""The model card, read back by the Hub's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from potstill.export import write_card


def scores(offset: float, metrics: tuple[str, ...]) -> dict[str, Any]:
    return {
        "metrics": dict.fromkeys(metrics, 0.5 + offset),
        "intervals": {name: [0.4 + offset, 0.6 + offset] for name in metrics},
        "per_seed": {name: [0.4 + offset, 0.6 + offset] for name in metrics},
        "parameters": 1_234_567,
        "flops": 40_000_000,
        "bytes": 4_938_268,
        "latency_ms": None,
    }


def evaluation(task: str) -> dict[str, Any]:
    metrics = ("accuracy", "macro_f1", "ece") if task == "classification" else ("r2", "rmse")
    return {
        "task": task,
        "split": "test",
        "chosen_on": "validation",
        "num_examples": 10_000,
        "seeds": [4, 7],
        "verdict": {"headline": "It helped: by a lot.", "sentences": ["First.", "Second."], "helped": "yes"},
        "models": {name: scores(at, metrics) for name, at in (("teacher", 0.3), ("alone", 0.0), ("distilled", 0.1))},
    }


FILE = {
    "file": "student.onnx",
    "format": "onnx",
    "bytes": 1_200_000,
    "max_abs_difference": 1e-5,
    "agreement": 1.0,
    "ok": True,
    "latency_ms": {"1": {"p50": 0.81}, "32": {"p50": 28.6}},
}


def prepared(folder: Path, shape: list[int]) -> None:
    given = {"dtype": "uint8", "shape": shape}
    student = {"model": "cnn", "classes": ["a: b", "|"], "input": given, "recipe_hash": "abc"}
    (folder / "student.json").write_text(json.dumps(student))
    refused = {**FILE, "file": "student-int8.onnx", "ok": False}
    (folder / "parity.json").write_text(json.dumps({"seed": 7, "files": [FILE, refused]}))


@pytest.mark.parametrize(
    ("temperature", "said"),
    [
        (1.0, "`probabilities`: softmax(logits), as no temperature lowered log loss on the validation split."),
        (2.44, "calibrated `probabilities`: softmax(logits / temperature), with the temperature 2.44, fitted on"),
    ],
)
def test_the_card_calls_the_file_calibrated_only_where_a_temperature_was_fitted(
    temperature: float, said: str, tmp_path: Path
) -> None:
    prepared(tmp_path, [12])
    student = json.loads((tmp_path / "student.json").read_text()) | {"temperature": temperature}
    (tmp_path / "student.json").write_text(json.dumps(student))
    text = write_card(tmp_path, evaluation=evaluation("classification")).read_text()
    assert said in text
    assert ("calibrated" in text) == (temperature != 1)


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    prepared(tmp_path, [3, 32, 32])
    recipe = "task: classification\ndata:\n  train: /home/someone/secret/flowers\n"
    path = write_card(tmp_path, evaluation=evaluation("classification"), recipe=recipe)
    assert path == tmp_path / "README.md"
    card = ModelCard.load(path)
    data = card.data
    assert data.library_name == "potstill"
    assert data.license is None
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["potstill", "knowledge-distillation", "onnx"]
    assert data.metrics == ["accuracy", "f1", "ece"]
    results = {result.metric_type: result for result in data.eval_results}
    assert len(results) == 3
    assert results["accuracy"].metric_value == pytest.approx(0.7), "the exported seed's score, not the average"
    assert results["f1"].metric_name == "Macro F1"
    assert results["accuracy"].dataset_name == "flowers"
    assert results["accuracy"].dataset_split == "test"
    assert results["accuracy"].task_type == "image-classification"
    assert "secret" not in path.read_text().split("---")[1]
    for text in (
        "It helped: by a lot.",
        "- Second.",
        "0.6 (0.5 to 0.7)",
        "seed 7",
        "student.onnx",
        "0.81 ms",
        "28.6 ms",
        "(batch, 3, 32, 32)",
        '{"input": inputs}',
        'load_student(".")',
        "train: /home",
    ):
        assert text in card.text, text
    assert "student-int8" not in card.text


@pytest.mark.parametrize(("shape", "tag"), [([8], "tabular-regression"), ([3, 8, 8], None)])
def test_regression(tmp_path: Path, shape: list[int], tag: str | None) -> None:
    prepared(tmp_path, shape)
    card = ModelCard.load(write_card(tmp_path, evaluation=evaluation("regression"), name="houses"))
    assert card.data.pipeline_tag == tag
    assert card.data.model_name == "houses"
    assert [result.metric_type for result in card.data.eval_results] == ["r_squared", "rmse"]


def test_a_folder_without_files(tmp_path: Path) -> None:
    card = ModelCard.load(write_card(tmp_path, evaluation=evaluation("classification")))
    assert "onnx" not in card.data.tags
    assert "onnxruntime" not in card.text
    assert "model=MyModel()" in card.text


def test_errors_of_several_columns_stand_in_the_card_one_by_one(tmp_path: Path) -> None:
    prepared(tmp_path, [12])
    found = evaluation("regression")
    found["models"] = {
        name: {
            **scores(0.0, ("r2", "rmse_1", "rmse_2")),
            "intervals": {"r2": [0.4, 0.6], "rmse_1": [70_123.4, 81_000.0], "rmse_2": [4e-4, 6e-4]},
        }
        for name in ("alone", "distilled")
    }
    text = write_card(tmp_path, evaluation=found).read_text()
    assert "| RMSE, column 1 | 0.5 (70,123 to 81,000) |" in text
    assert "| RMSE, column 2 | 0.5 (0.0004 to 0.0006) |" in text
    assert ModelCard(text).data.metrics == ["r_squared", "rmse"]
