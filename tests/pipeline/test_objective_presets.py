"""Presets in recipes: layers are found in the user's models, written down, shown, and trained on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from typer.testing import CliRunner

from potstill.cli import app
from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.models import save_weights, zoo
from potstill.objective import Objective, term_from
from potstill.objective.presets import PRESETS
from potstill.pipeline import plan, stages
from potstill.pipeline.build import Job, build_job
from potstill.pipeline.making import Making
from potstill.pipeline.objectives import build_objective, made_for, terms_of
from potstill.pipeline.orders import main_job
from potstill.recipe.schema import PresetSection
from potstill.recipe.yaml import dump, loads

RECIPE = """
data: {train: digits, split: {validation: 0.1, test: 0.8}}
teacher: {model: cnn, args: {width: 8}, train: {epochs: 1}}
student: {model: cnn, args: {width: 4}}
training: {epochs: 1, batch_size: 32, optimizer: sgd, learning_rate: 0.1}
export: {formats: []}
"""
THREE = {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3"}
TRANSFORMER = '''
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, tokens):
        weights = torch.softmax(self.query(tokens) @ self.key(tokens).transpose(1, 2), dim=-1)
        return tokens + weights @ self.value(tokens)

class Rows(nn.Module):
    """A transformer that reads an image row by row."""

    def __init__(self, blocks, width, num_classes=10):
        super().__init__()
        self.embed, self.linear = nn.Linear(8, width), nn.Linear(width, num_classes)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, images):
        tokens = self.embed(images.flatten(1, 2))
        for block in self.blocks:
            tokens = block(tokens)
        return self.linear(self.norm(tokens.mean(1)))
'''
TRANSFORMERS = """
data: {train: digits, split: {validation: 0.1, test: 0.8}}
teacher: {model: "nets.py:Rows", args: {blocks: 4, width: 36}, train: {epochs: 1}}
student: {model: "nets.py:Rows", args: {blocks: 2, width: 24}}
training: {epochs: 1, batch_size: 32, optimizer: adamw, learning_rate: 0.002}
export: {formats: []}
"""
ON_TOKENS = ("tinybert", "distilbert", "pkd", "minilm")


def job_of(objective: Any, base: Path = Path(), text: str = RECIPE) -> Job:
    return build_job(loads(text + yaml.safe_dump({"objective": objective})), base=base)


@pytest.mark.parametrize(
    ("objective", "layers", "embedding"),
    [
        ("at", THREE, None),
        ("rkd", "uniform", {"pool": "pool"}),
        ("reviewkd", THREE, {"pool": "pool"}),
        ({"preset": "at", "layers": {"layer2": "layer3"}}, {"layer2": "layer3"}, None),
        ({"preset": "reviewkd", "layers": "last", "embedding": {"layer3": "pool"}}, THREE, {"layer3": "pool"}),
    ],
)
def test_layers_are_found_and_written_down(objective: Any, layers: Any, embedding: Any) -> None:
    job = job_of(objective)
    resolved = job.recipe.objective
    assert isinstance(resolved, PresetSection)
    assert (resolved.layers, resolved.embedding, resolved.projections) == (layers, embedding, None)
    again = build_job(loads(dump(job.recipe)), base=Path())
    assert again.recipe.objective == resolved
    assert again.objective.describe() == job.objective.describe()


def test_presets_without_layers_stay_a_name() -> None:
    assert job_of("dkd").recipe.objective == "dkd"
    assert job_of({"preset": "dkd", "options": {"temperature": 2.0}}).objective.terms[1].options["temperature"] == 2.0


def test_layers_are_part_of_a_students_key() -> None:
    found = [
        {stage.name: stage.key().key for stage in main_job(Making(job_of({"preset": "at", "layers": layers}), Path()))}
        for layers in ("uniform", THREE, {"layer3": "layer3"})
    ]
    first, same, other = (keys["student distilled, seed 0"] for keys in found)
    assert first == same != other


def test_layers_that_say_the_most_alike(tmp_path: Path) -> None:
    """The student starts as a copy of its teacher: every layer is most like itself."""
    weights = tmp_path / "net.safetensors"
    save_weights(zoo.cnn(10, in_channels=1, width=8), weights)
    text = f"""
data: {{train: digits}}
teacher: {{model: cnn, args: {{width: 8}}, weights: {weights}}}
student: {{model: cnn, args: {{width: 8}}, weights: {weights}}}
export: {{formats: []}}
"""
    job = job_of({"preset": "at", "layers": "cka"}, text=text)
    assert job.recipe.objective.layers == THREE
    with pytest.raises(UsageError, match="cka compares what the layers say, and the teacher is still to be trained"):
        job_of({"preset": "at", "layers": "cka"})


@pytest.mark.parametrize(
    ("objective", "error", "match"),
    [
        ({"preset": "at", "layers": "unifrom"}, UsageError, "objective.layers: 'unifrom'.*Did you mean 'uniform'"),
        ({"preset": "kd", "embedding": {"a": "b"}}, UsageError, "'kd' reads no embedding"),
        ({"preset": "rkd", "layers": {"a": "b"}}, UsageError, "'rkd' reads no layers"),
        ({"preset": "at", "layers": {"layer1": "layer9"}}, PotstillError, "teacher: .*no layer 'layer9'"),
        ({"preset": "at", "layers": {"layer9": "layer1"}}, PotstillError, "student: .*no layer 'layer9'"),
        ("minilm", UsageError, "no layers for queries, keys and values of the student stand out"),
        ({"preset": "dkd", "options": {"beta": 8}}, UsageError, "'dkd' has no option 'beta'"),
        ([{"loss": "hint_mse", "on": "layer9"}], PotstillError, "no layer 'layer9'"),
        ([{"loss": "forward_lk"}], UsageError, "Did you mean 'forward_kl'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(objective: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        job_of(objective)


def test_several_teachers_want_named_layers() -> None:
    members = RECIPE.replace(
        "teacher: {model: cnn, args: {width: 8}, train: {epochs: 1}}",
        "teacher: {members: [{model: cnn, train: {epochs: 1}}, {model: cnn, train: {epochs: 1}}]}",
    )
    with pytest.raises(UsageError, match=r"there are several teachers\. Name the layers"):
        job_of("at", text=members)


def test_the_plan_shows_layers_and_terms(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE + "objective: reviewkd\n")
    shown = CliRunner().invoke(app, ["plan", str(file), "--out", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    assert (
        "layers: layer1 from layer1, layer2 from layer2, layer3 from layer3\nembedding: pool from pool\n"
        in shown.output
    )
    written = CliRunner().invoke(app, ["plan", str(file), "--out", str(tmp_path / "run"), "--terms"])
    pasted = yaml.safe_load(written.stdout)
    assert list(pasted) == ["objective"]
    assert job_of(pasted["objective"]).objective.describe() == job_of("reviewkd").objective.describe()


def test_a_store_without_the_layers_fails_in_the_plan(tmp_path: Path) -> None:
    store = tmp_path / "store"
    recipe = loads(RECIPE + f"store: {{path: {store}}}\n")
    job = build_job(recipe, base=tmp_path)
    stages.record_teacher(job, stages.live_teacher(job, job.teacher_at(0)), store)
    assert plan(recipe, out=tmp_path / "run", base=tmp_path).store["recorded"]
    wanted = recipe.model_copy(update={"objective": "at"})
    with pytest.raises(TeacherError, match=r"holds the teacher's logits; the objective also reads layer1, layer2"):
        plan(wanted, out=tmp_path / "run", base=tmp_path)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "auto"])
def test_every_preset_trains_on_digits(name: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(TRANSFORMER)
    text = TRANSFORMERS if name in ON_TOKENS else RECIPE
    if name in ("fsp", "simkd"):  # equal channels
        text = text.replace("width: 8", "width: 4")
    objective = {"preset": name, "options": {"relation_heads": 4}} if name == "minilm" else name
    if name == "hidden":
        text = text.replace("width: 8}", "width: 8}, taps: {hidden: layer3}").replace(
            "width: 4}", "width: 4}, taps: {hidden: layer3}"
        )
    job = job_of(objective, base=tmp_path, text=text)
    teacher = stages.live_teacher(job, job.teacher_at(0)) if job.objective.needs_teacher else None
    result = stages.train_student(
        job, (0, "distilled"), tmp_path / "run", accelerator=Accelerator(cpu=True), teacher=teacher,
        settings=job.recipe.training,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert lines
    assert 0 <= result.best_validation <= 1
    weights = torch.cat([parameter.flatten() for parameter in job.student.build(0, "alone").parameters()])
    assert weights.isfinite().all()


def test_a_thousand_classes_get_the_settings_for_imagenet_unless_options_say_otherwise() -> None:
    def options(objective: str, classes: int) -> dict:
        recipe = loads(f"data: {{train: x}}\nteacher: {{file: t.pt}}\nstudent: {{model: m}}\nobjective: {objective}")
        found, section = build_objective(
            recipe, base=Path(), student=None, teacher=None, inputs=None, num_outputs=classes
        )
        resolved = recipe.model_copy(update={"objective": section})
        assert found.describe() == Objective([term_from(term, Path()) for term in terms_of(resolved)]).describe()
        assert "CIFAR-100" in made_for(resolved)
        return dict(found.terms[1].options)

    assert options("dkd", 10)["non_target_weight"] == 2.0
    assert options("dkd", 1000) == {"temperature": 1.0, "target_weight": 1.0, "non_target_weight": 0.5}
    assert options("{preset: dkd, options: {non_target_weight: 2}}", 1000)["non_target_weight"] == 2.0
    assert options("dist", 1000) == {"temperature": 1.0}
    assert made_for(loads("data: {train: x}\nteacher: null\nstudent: {model: cnn}\nobjective: jsd\n")) == ""
