"""The whole loop: it learns, stops for the right reason, keeps the best, and refuses what cannot work."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import TeacherError, TrainingError, UsageError
from potstill.core.signals import Batch
from potstill.losses import cross_entropy, forward_kl
from potstill.models.preprocess import Preprocessor
from potstill.objective import Objective, Term, preset
from potstill.recipe.schema import Augment, Training
from potstill.tasks import task_of
from potstill.training import Metric, learning_rate_at, loop, still_rises, train
from potstill.training.setup import smoothed
from potstill.training.validate import Validation


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def run(toys: ModuleType, folder: Path, student: nn.Module | None = None, **changes):
    known = {"data", "objective", "teacher", "taps", "seed", "augment", "augment_seed", "views", "preprocess"}
    given = {name: changes.pop(name) for name in list(changes) if name in known}
    settings = {"epochs": 4, "batch_size": 8, "learning_rate": 0.1, "precision": "float32", **changes}
    arguments = {
        "data": toys.image_data(),
        "objective": preset("alone", "classification"),
        "preprocess": Preprocessor(),
        "seed": 0,
        **given,
    }
    student = student or toys.net()
    data = arguments.pop("data")
    result = train(student, toys.spec(data=data, settings=Training(**settings), **arguments), folder, device="cpu")
    return student, result


def accuracy(student: nn.Module, samples) -> float:
    with torch.no_grad():
        predicted = student(samples.fetch(np.arange(len(samples)))).argmax(1).numpy()
    return float((predicted == samples.targets).mean())


def test_it_learns_and_leaves_the_best_weights_everywhere(toys: ModuleType, tmp_path: Path) -> None:
    data = toys.image_data(train=60, validation=30)
    state = torch.random.get_rng_state()
    student, result = run(toys, tmp_path, data=data, epochs=12)
    assert torch.equal(torch.random.get_rng_state(), state)
    history = rows(tmp_path)
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert result.stopped == "finished"
    assert (result.steps, result.epochs) == (96, 12.0)
    ranked = sorted(history, key=lambda row: (-row["validation_metric"], row["validation_loss"]))
    assert result.best_epoch == ranked[0]["epoch"]
    assert result.best_validation == ranked[0]["validation_metric"] > 0.8
    saved = load_file(result.weights)
    assert set(saved) == set(student.state_dict())
    assert all(torch.equal(saved[name], value) for name, value in student.state_dict().items())
    assert not student.training
    assert student.conv.weight.is_contiguous()
    assert accuracy(student, data.validation) == pytest.approx(result.best_validation)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["weights"] == "weights.safetensors"
    assert stored["best_validation"] == result.best_validation


def test_history_numbers_are_means_over_the_epoch(toys: ModuleType, tmp_path: Path) -> None:
    """At a learning rate of almost 0 the first epoch's loss is that of the first weights."""
    data, student = toys.image_data(), toys.net(norm="group")
    inputs = data.train.fetch(np.arange(26))
    signals, targets = toys.FormulaTeacher()(Batch(*[torch.zeros(26)] * 2, inputs)), torch.tensor(data.train.targets)
    with torch.no_grad():
        logits = student(inputs)
        hard = 0.3 * F.cross_entropy(logits, targets)
        ours, theirs = (F.log_softmax(values / 2, 1) for values in (logits, signals["logits"]))
        soft = 0.7 * 4 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    teacher = toys.FormulaTeacher()
    run(
        toys, tmp_path, student, objective=toys.objective(), teacher=teacher, taps={"hidden": "hidden"},
        learning_rate=1e-9, epochs=1, warmup=0.0,
    )  # fmt: skip
    row = rows(tmp_path)[0]
    assert row["parts"]["cross_entropy"] == pytest.approx(float(hard), rel=1e-5)
    assert row["parts"]["forward_kl"] == pytest.approx(float(soft), rel=1e-5)
    assert row["train_loss"] == pytest.approx(sum(row["parts"].values()), rel=1e-6)
    assert len(row["parts"]) == 3
    assert row["validation_metric"] == pytest.approx(accuracy(student, data.validation))
    outputs = student(data.validation.fetch(np.arange(12))).detach()
    expected = F.cross_entropy(outputs, torch.tensor(data.validation.targets))
    assert row["validation_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_regression_reports_r2(toys: ModuleType, tmp_path: Path) -> None:
    data = toys.vector_data(columns=2)
    student = nn.Linear(4, 2)
    student, result = run(
        toys, tmp_path, student, data=data, objective=preset("alone", "regression"), epochs=15, optimizer="adamw"
    )
    values = student(data.validation.fetch(np.arange(20))).detach().double().numpy()
    targets = data.validation.targets.astype(np.float64)
    scores = [
        1 - ((targets[:, k] - values[:, k]) ** 2).sum() / ((targets[:, k] - targets[:, k].mean()) ** 2).sum()
        for k in range(2)
    ]
    assert result.best_validation == pytest.approx(np.mean(scores), rel=1e-5)
    assert result.best_validation > 0.9


def test_single_column_regression_trains(toys: ModuleType, tmp_path: Path) -> None:
    _, result = run(
        toys, tmp_path, nn.Linear(4, 1), data=toys.vector_data(), objective=preset("alone", "regression"), epochs=10
    )
    assert result.best_validation > 0.9


def test_r2_of_a_constant_column() -> None:
    validation = task_of("regression").scores.validation
    assert validation(np.zeros(1), np.ones(5))[1] == 1.0
    assert validation(np.ones(1), np.ones(5))[1] == 0.0


def test_patience_stops(toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(0.9, 0.5), (0.8, 0.7), (0.9, 0.7), (0.8, 0.6)] + [(1.0, 0.1)] * 10)
    monkeypatch.setattr(loop, "validate", lambda *_a, **_k: Validation(*next(scores)))
    _, result = run(toys, tmp_path, epochs=20, patience=2)
    assert (result.stopped, result.best_epoch, len(rows(tmp_path))) == ("patience", 2, 4)
    assert result.epochs == 4.0


def test_equal_metrics_are_told_apart_by_loss(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.9, 0.5), (0.8, 0.5), (0.7, 0.5), (0.75, 0.5)])
    monkeypatch.setattr(loop, "validate", lambda *_a, **_k: Validation(*next(scores)))
    _, result = run(toys, tmp_path)
    assert result.best_epoch == 3


def test_time_limit_stops_in_the_middle_and_anneals(toys: ModuleType, tmp_path: Path) -> None:
    class Slow(toys.FormulaTeacher):
        def __call__(self, batch: Batch) -> dict[str, Tensor]:
            time.sleep(0.01)
            return super().__call__(batch)

    _, result = run(
        toys, tmp_path, epochs=10_000, minutes=0.15 / 60, objective=preset("label_free", "classification"),
        teacher=Slow(),
    )  # fmt: skip
    history = rows(tmp_path)
    assert result.stopped == "minutes"
    assert result.seconds < 3
    assert 0 < result.steps < 20
    assert result.epochs == pytest.approx(result.steps / 4)
    assert history[-1]["step"] == result.steps
    assert history[-1]["learning_rate"] < 0.05


def test_moving_average_is_what_is_validated_and_kept(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An average kept in NumPy, of the weights that the loop shows after each step."""
    expected = [p.detach().double().numpy().copy() for p in toys.net(norm="group").parameters()]
    last: list[np.ndarray] = []
    original = loop.update_average

    def watch(average: list[Tensor], weights: list[Tensor], decay: float, step: int) -> None:
        last[:] = [w.detach().double().numpy().copy() for w in weights]
        kept = min(0.5, (1 + step) / (10 + step))
        for index, weight in enumerate(last):
            expected[index] = kept * expected[index] + (1 - kept) * weight
        original(average, weights, decay, step)

    monkeypatch.setattr(loop, "update_average", watch)
    student, result = run(toys, tmp_path, toys.net(norm="group"), epochs=1, ema=0.5)
    assert len(expected) == 8
    for found, wanted, raw in zip(student.parameters(), expected, last, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-4, atol=1e-6)
        assert not np.allclose(found.detach().numpy(), raw, rtol=1e-4, atol=1e-6)
    assert accuracy(student, toys.image_data().validation) == pytest.approx(result.best_validation)


def test_a_finished_training_returns_at_once(toys: ModuleType, tmp_path: Path) -> None:
    first, result = run(toys, tmp_path)
    before = (tmp_path / "history.jsonl").read_text()
    again, other = run(toys, tmp_path)
    assert other == result
    assert (tmp_path / "history.jsonl").read_text() == before
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_another_training_in_the_same_folder_is_refused(toys: ModuleType, tmp_path: Path) -> None:
    run(toys, tmp_path)
    with pytest.raises(UsageError, match=r"training.learning_rate: 0.1 there, 0.2 now"):
        run(toys, tmp_path, learning_rate=0.2)
    run(toys, tmp_path, checkpoint_every=7, workers=0)


def test_not_a_number_names_step_epoch_term_and_checkpoint(toys: ModuleType, tmp_path: Path) -> None:
    calls = 0

    def fragile(student_logits: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        # One call is the check before training.
        return student_logits.square().sum(1) * (float("nan") if calls == 1 + 7 else 1.0)

    student = toys.net()
    objective = Objective([Term(cross_entropy), Term(fragile)])
    with pytest.raises(TrainingError, match=r"step 7, epoch 2: the term 'fragile'.*checkpoint \(step 6\)") as error:
        run(toys, tmp_path, student, objective=objective, checkpoint_every=3)
    assert "learning_rate" in str(error.value)
    assert all(p.isfinite().all() for p in student.parameters())
    assert len(rows(tmp_path)) == 1


def test_a_class_that_the_student_rules_out_and_the_teacher_does_not_is_named(toys: ModuleType, tmp_path: Path) -> None:
    student = toys.net()
    with torch.no_grad():
        student.head.bias[2] = -torch.inf
    objective = Objective([Term(forward_kl)])
    with pytest.raises(TrainingError, match=r"step 1.*'forward_kl'.*logit of class 2 \(counted from 0\) is -inf"):
        run(toys, tmp_path, student, objective=objective, teacher=toys.FormulaTeacher())


def test_a_hidden_term_has_an_adapter_that_is_dropped(toys: ModuleType, tmp_path: Path) -> None:
    student, result = run(
        toys, tmp_path, objective=toys.objective(), teacher=toys.FormulaTeacher(), taps={"hidden": "hidden"},
        checkpoint_every=3, epochs=3,
    )  # fmt: skip
    assert set(load_file(result.weights)) == set(toys.net().state_dict())
    assert not student.hidden._forward_hooks
    assert "forward" not in vars(student.norm)
    assert rows(tmp_path)[-1]["parts"]["hint_mse:hidden"] < rows(tmp_path)[0]["parts"]["hint_mse:hidden"]


def test_order_follows_the_seed_and_views_follow_the_augmentation(toys: ModuleType, tmp_path: Path) -> None:
    def seen(folder: str, seed: int, augment_seed: int | None = None):
        log: list[tuple[list[int], list[int], Tensor]] = []

        class Watching(toys.FormulaTeacher):
            def __call__(self, batch: Batch) -> dict[str, Tensor]:
                log.append((batch.ids.tolist(), batch.views.tolist(), batch.inputs))
                return super().__call__(batch)

        run(
            toys, tmp_path / folder, seed=seed, augment_seed=augment_seed, augment=Augment(crop=1, flip=True), views=2,
            objective=preset("kd", "classification"), teacher=Watching(), epochs=3,
        )  # fmt: skip
        steps = log[1:]
        assert len(steps) == 12
        return steps

    def pixels(steps) -> dict[tuple[int, int], Tensor]:
        return {(i, v): x for ids, views, inputs in steps for i, v, x in zip(ids, views, inputs, strict=True)}

    one, same, other = seen("a", 1), seen("b", 2, 1), seen("c", 2)
    assert [views[0] for _, views, _ in one] == [0] * 4 + [1] * 4 + [0] * 4
    assert [views[0] for _, views, _ in same] == [0] * 4 + [1] * 4 + [0] * 4
    assert one[0][0] != same[0][0]
    assert one[0][0] != one[8][0]
    known, found, different = pixels(one), pixels(same), pixels(other)
    assert len(known) == 52
    assert set(known) == set(found)
    assert all(torch.equal(known[k], found[k]) for k in known)
    assert not all(torch.equal(known[k], different[k]) for k in known)


def test_label_smoothing_reaches_cross_entropy_terms_only(toys: ModuleType) -> None:
    objective = smoothed(toys.objective(), 0.2, "classification")
    assert [term.options for term in objective.terms] == [{"label_smoothing": 0.2}, {"temperature": 2.0}, {}]
    assert [term.weight for term in objective.terms] == [0.3, 0.7, 0.5]
    own = smoothed(Objective([Term(cross_entropy, label_smoothing=0.1)]), 0.2, "classification")
    assert own.terms[0].options == {"label_smoothing": 0.1}
    with pytest.raises(UsageError, match="regression"):
        smoothed(preset("alone", "regression"), 0.1, "regression")


def test_requests_that_cannot_work_are_refused_before_training(toys: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="teacher is None"):
        run(toys, tmp_path, objective=preset("kd", "classification"))
    with pytest.raises(UsageError, match="no layer 'hiden'"):
        run(toys, tmp_path, taps={"hidden": "hiden"})
    with pytest.raises(UsageError, match="no trainable weights"):
        run(toys, tmp_path, toys.net().requires_grad_(False))
    with pytest.raises(UsageError, match="num_classes=3"):
        run(toys, tmp_path, toys.net(classes=4))
    with pytest.raises(UsageError, match="expected 'auto'"):
        train(
            toys.net(),
            toys.spec(objective=preset("alone", "classification"), settings=Training()),
            tmp_path,
            device="xpu",
        )
    assert not list(tmp_path.iterdir())


def test_the_preprocessor_is_used_and_left_alone(toys: ModuleType, tmp_path: Path) -> None:
    preprocess = Preprocessor(torch.tensor([0.4, 0.6]), torch.tensor([0.2, 0.3]))
    before = copy.deepcopy(preprocess.state_dict())
    data, student = toys.image_data(), toys.net(norm="none")
    seen: list[Tensor] = []
    student.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].detach().clone()))
    run(toys, tmp_path, student, preprocess=preprocess, epochs=1)
    assert all(torch.equal(before[k], v) for k, v in preprocess.state_dict().items())
    raw = data.train.fetch(np.arange(2))
    expected = (raw.numpy() - np.array([0.4, 0.6]).reshape(1, 2, 1, 1)) / np.array([0.2, 0.3]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(seen[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_trains_in_float32_weights(toys: ModuleType, tmp_path: Path) -> None:
    student, result = run(toys, tmp_path, data=toys.image_data(60, 30), precision="bfloat16", epochs=10, augment=None)
    assert result.best_validation > 0.8
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_the_metric_that_is_asked_for_chooses_the_weights_whichever_way_is_good(
    toys: ModuleType, tmp_path: Path
) -> None:
    seen: list[int] = []
    made_up = [3.0, 1.0, 2.0, 1.0]

    def score(outputs: np.ndarray, targets: np.ndarray) -> float:
        assert outputs.shape == (12, 3)
        assert sorted(targets.tolist()) == sorted(toys.image_data().validation.targets.tolist())
        seen.append(1)
        return made_up[len(seen) - 1]

    for higher, epoch in ((True, 1), (False, 2)):
        seen.clear()
        result = train(
            toys.net(),
            toys.spec(
                objective=preset("alone", "classification"),
                settings=Training(epochs=4, batch_size=8, learning_rate=1e-6),
                metric=Metric("made up", score, higher_is_better=higher),
            ),
            tmp_path / str(higher),
            device="cpu",
        )
        losses = [row["validation_loss"] for row in rows(result.history.parent)]
        tied = 2 if losses[1] <= losses[3] else 4
        assert result.best_epoch == (epoch if higher else tied)
        assert result.best_validation == made_up[result.best_epoch - 1]


def test_a_training_of_so_many_steps_ends_there_with_its_schedule_complete(toys: ModuleType, tmp_path: Path) -> None:
    result = train(
        toys.net(),
        toys.spec(
            objective=preset("alone", "classification"),
            settings=Training(epochs=30, batch_size=8, learning_rate=0.1),
            steps=6,
        ),
        tmp_path,
        device="cpu",
    )
    assert (result.steps, result.stopped, result.epochs) == (6, "finished", 1.5)  # four steps an epoch
    settings = Training(optimizer="sgd", learning_rate=0.1)
    assert rows(result.history.parent)[-1]["learning_rate"] == pytest.approx(learning_rate_at(5.5 / 6, settings))


@pytest.mark.parametrize(
    ("scores", "how", "rising"),
    [
        ([0.5, 0.6, 0.7, 0.8], {}, True),
        ([0.5, 0.6, 0.8, 0.7], {}, False),
        ([0.9, 0.95, 0.96, 0.961], {}, False),
        ([0.5, 0.8, 0.9, 0.91], {"samples": 100}, False),
        ([0.5, 0.8, 0.9, 0.95], {"samples": 1000}, True),
        ([3.0, 2.0, 1.5, 1.2], {"higher_is_better": False, "perfect": 0.0}, True),
        ([3.0, 2.0, 1.2, 1.5], {"higher_is_better": False, "perfect": 0.0}, False),
        ([0.1, 0.9], {}, True),
        ([0.1], {}, False),
        ([0.5, None, 0.7, 0.8], {}, False),
        ([0.1] * 4 + [0.5] * 4 + [0.6, 0.6, 0.6, 0.9], {}, True),
    ],
)
def test_a_curve_that_rises_to_its_end_is_told_from_one_that_is_flat_or_chance(scores, how, rising: bool) -> None:
    assert still_rises(scores, **how) is rising
