"""A live teacher: frozen while it teaches, harmless to the model, the same numbers as the bare model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.core.errors import TeacherError, UsageError
from potstill.core.signals import Batch
from potstill.models.preprocess import Preprocessor
from potstill.teachers import LiveTeacher, Model, signal_shapes


class Stubborn(nn.Module):
    """Batch norm and dropout, and a train() that leaves the batch norm alone, as frozen backbones do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.norm(self.conv(x)))
        return self.head(self.drop(hidden.mean((2, 3))))


class Drifting(nn.Module):
    """Writes to a buffer in every forward, in evaluation mode too."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)
        self.register_buffer("seen", torch.zeros(1), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.head(x)


@dataclass
class Output:
    """Like a transformers output."""

    logits: Tensor
    hidden_states: Any = None


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def images(count: int = 5, dtype: torch.dtype = torch.uint8) -> Batch:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8))
    inputs = pixels if dtype == torch.uint8 else pixels.to(dtype) / 255
    return Batch(torch.arange(count), torch.zeros(count, dtype=torch.int64), inputs, torch.arange(count) % 4)


def vectors(count: int = 5) -> Batch:
    inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32))
    return Batch(torch.arange(count), torch.zeros(count, dtype=torch.int64), inputs)


MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.25, 0.5, 0.125])


def bytes_of(model: nn.Module) -> dict[str, str]:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest() for name, value in state.items()
    }


def test_the_same_numbers_as_the_bare_model() -> None:
    model = seeded(Stubborn)
    expected = copy.deepcopy(model).eval()((images().inputs / 255 - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1))
    teacher: Model = LiveTeacher(model, preprocess=Preprocessor(MEAN, STD))
    assert isinstance(teacher, Model)
    assert teacher.facts.signals == {"logits"}
    for batch in (images(), images(dtype=torch.float32)):
        torch.testing.assert_close(teacher(batch)["logits"], expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_model_comes_back_byte_for_byte_with_its_flags() -> None:
    model = seeded(Stubborn).train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    before = bytes_of(model)
    training = {name: module.training for name, module in model.named_modules()}
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert len(before) == 9
    assert set(training.values()) == set(gradients.values()) == {True, False}
    with LiveTeacher(model, preprocess=Preprocessor(), taps={"mid": "conv"}) as teacher:
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        for _ in range(3):
            teacher(images())
        teacher.verify_unchanged()
        assert bytes_of(model) == before
    assert bytes_of(model) == before
    assert {name: module.training for name, module in model.named_modules()} == training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == gradients
    assert all(value.is_contiguous() for value in model.state_dict().values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(TeacherError, match="was closed"):
        teacher(images())


def test_the_model_can_be_trained_afterwards() -> None:
    model = seeded(Stubborn).train()
    with LiveTeacher(model, preprocess=Preprocessor(), taps={"mid": "conv"}) as teacher:
        teacher(images())
    model(images(dtype=torch.float32).inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_model_comes_back_when_the_block_fails() -> None:
    model = seeded(Stubborn).train()
    with pytest.raises(ZeroDivisionError), LiveTeacher(model, preprocess=Preprocessor()):
        raise ZeroDivisionError
    assert model.drop.training
    assert model.head.weight.requires_grad


def test_somebody_calling_train_does_not_wake_it() -> None:
    model = seeded(Stubborn)
    teacher = LiveTeacher(model, preprocess=Preprocessor())
    first = teacher(images())["logits"]
    model.train()
    assert torch.equal(teacher(images())["logits"], first)
    assert not model.norm.training
    teacher.verify_unchanged()


def test_a_train_method_that_spares_modules_is_overruled() -> None:
    class Awake(Stubborn):
        def train(self, mode: bool = True) -> Awake:
            return super().train(True)

    model = seeded(Awake)
    teacher = LiveTeacher(model, preprocess=Preprocessor())
    assert torch.equal(teacher(images())["logits"], teacher(images())["logits"])
    teacher.verify_unchanged()


@pytest.mark.parametrize("persistent", [True, False])
def test_a_forward_that_changes_a_buffer_is_told(persistent: bool) -> None:
    teacher = LiveTeacher(Drifting(persistent), preprocess=Preprocessor())
    teacher.verify_unchanged()
    teacher(vectors())
    with pytest.raises(TeacherError, match="The teacher changed while it taught: seen"):
        teacher.verify_unchanged()


def test_a_changed_weight_is_told() -> None:
    model = seeded(Stubborn)
    teacher = LiveTeacher(model, preprocess=Preprocessor())
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    with pytest.raises(TeacherError, match=r"head\.bias"):
        teacher.verify_unchanged()


def test_training_against_its_answers_works() -> None:
    teacher = LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(), taps={"mid": lambda model: model.norm})
    student = nn.Linear(192, 4)
    adapter = nn.Linear(4, 6)
    for setting in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with setting():
            signals = teacher(images())
        assert set(signals) == {"logits", "mid"}
        for values in signals.values():
            assert values.dtype == torch.float32
            assert not values.is_inference()
            assert not values.requires_grad
            assert values.is_contiguous()
        output = student(images(dtype=torch.float32).inputs.flatten(1))
        hidden = adapter(output)[:, :, None, None] * signals["mid"]
        loss = (output * signals["logits"]).sum() + (hidden - signals["mid"]).square().sum()
        loss.backward()
        assert student.weight.grad is not None
        assert adapter.weight.grad is not None
        student.zero_grad()
        adapter.zero_grad()


def test_taps_are_read_in_the_one_forward() -> None:
    model = seeded(Stubborn)
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    teacher = LiveTeacher(model, preprocess=Preprocessor(), taps={"mid": "norm", "pooled": lambda m: m.drop})
    signals = teacher(images())
    assert len(runs) == 1
    assert teacher.facts.signals == {"logits", "mid", "pooled"}
    assert teacher.sources == {"logits": "output", "mid": "norm", "pooled": "drop"}
    bare = copy.deepcopy(model).eval()
    mid = bare.norm(bare.conv(images(dtype=torch.float32).inputs)).detach()
    # The activation after it works in place: the tap must hold what the layer returned.
    torch.testing.assert_close(signals["mid"], mid, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bare.head(signals["pooled"]).detach(), signals["logits"], rtol=1e-5, atol=1e-5)
    assert signal_shapes(teacher, images()) == {"logits": (4,), "mid": (6, 8, 8), "pooled": (6,)}


@pytest.mark.parametrize(
    "wrap",
    [lambda x: (x, x * 0), lambda x: [x], lambda x: {"loss": None, "logits": x}, Output, lambda x: x],
    ids=["tuple", "list", "dict", "object", "tensor"],
)
def test_outputs_of_every_form(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Any:
            return wrap(self.head(x))

    model = seeded(Wrapped)
    expected = vectors().inputs.numpy() @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    signals = LiveTeacher(model, preprocess=Preprocessor())(vectors())
    np.testing.assert_allclose(signals["logits"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_runs_in_bfloat16_and_answers_in_float32() -> None:
    model = seeded(Stubborn)
    seen: list[torch.dtype] = []
    model.conv.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    exact = LiveTeacher(model, preprocess=Preprocessor(MEAN, STD))(images())["logits"]
    teacher = LiveTeacher(model, preprocess=Preprocessor(MEAN, STD), precision="bfloat16", taps={"mid": "conv"})
    signals = teacher(images())
    assert seen == [torch.float32, torch.bfloat16]
    assert {values.dtype for values in signals.values()} == {torch.float32}
    assert 0 < float((signals["logits"] - exact).abs().max()) < 0.05
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_autocast_around_it_does_not_reach_it() -> None:
    teacher = LiveTeacher(seeded(Stubborn), preprocess=Preprocessor())
    exact = teacher(images())["logits"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(images())["logits"], exact)


def test_auto_is_float32_on_a_cpu_and_float16_is_refused() -> None:
    assert LiveTeacher(Drifting(True), preprocess=Preprocessor(), precision="auto").parts["precision"] == "float32"
    with pytest.raises(UsageError, match="precision='float16'"):
        LiveTeacher(Drifting(True), preprocess=Preprocessor(), precision="float16")  # type: ignore[arg-type]


def test_convolutions_run_channels_last() -> None:
    model = seeded(Stubborn)
    seen: list[bool] = []
    model.norm.register_forward_hook(
        lambda _m, _i, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    LiveTeacher(model, preprocess=Preprocessor())(images())
    assert seen == [True]


FINGERPRINTS: dict[str, Callable[[], LiveTeacher]] = {
    "base": lambda: LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(MEAN, STD)),
    "weights": lambda: LiveTeacher(nudged("head.weight"), preprocess=Preprocessor(MEAN, STD)),
    "buffer": lambda: LiveTeacher(nudged("norm.running_var"), preprocess=Preprocessor(MEAN, STD)),
    "mean": lambda: LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(STD, STD)),
    "size": lambda: LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(MEAN, STD, 16)),
    "no preprocessing": lambda: LiveTeacher(seeded(Stubborn), preprocess=Preprocessor()),
    "precision": lambda: LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(MEAN, STD), precision="bfloat16"),
    "tap": lambda: LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(MEAN, STD), taps={"mid": "conv"}),
    "other tap": lambda: LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(MEAN, STD), taps={"mid": "norm"}),
    "class": lambda: LiveTeacher(seeded(type("Other", (Stubborn,), {})), preprocess=Preprocessor(MEAN, STD)),
}


def nudged(name: str) -> nn.Module:
    model = seeded(Stubborn)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[0] += 1e-6
    return model


def test_the_fingerprint_knows_every_part() -> None:
    prints = {name: make().fingerprint for name, make in FINGERPRINTS.items()}
    assert len(prints) == 10
    assert len(set(prints.values())) == 10
    assert FINGERPRINTS["base"]().fingerprint == prints["base"]
    by_function = LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(MEAN, STD), taps={"mid": lambda m: m.conv})
    assert by_function.fingerprint == prints["tap"]


def test_the_fingerprint_does_not_depend_on_mode_or_memory_format() -> None:
    model = seeded(Stubborn).train().to(memory_format=torch.channels_last)
    assert LiveTeacher(model, preprocess=Preprocessor(MEAN, STD)).fingerprint == FINGERPRINTS["base"]().fingerprint


def test_the_parts_are_readable() -> None:
    parts = FINGERPRINTS["base"]().parts
    assert parts["model"] == "Stubborn"
    assert parts["preprocessing"] == {"mean": [0.4914, 0.4822, 0.4465], "std": [0.25, 0.5, 0.125], "size": None}
    many = LiveTeacher(Drifting(True), preprocess=Preprocessor(torch.zeros(100), torch.ones(100))).parts
    assert len(many["preprocessing"]["mean"]) == 64


def test_the_preprocessor_is_its_own() -> None:
    preprocess = Preprocessor(MEAN, STD)
    teacher = LiveTeacher(seeded(Stubborn), preprocess=preprocess)
    first = teacher(images())["logits"]
    preprocess.mean.zero_()
    assert torch.equal(teacher(images())["logits"], first)


def test_what_cannot_teach() -> None:
    with pytest.raises(UsageError, match="cannot be called 'logits'"):
        LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(), taps={"logits": "conv"})
    with pytest.raises(UsageError, match="Did you mean 'norm'"):
        LiveTeacher(seeded(Stubborn), preprocess=Preprocessor(), taps={"mid": "norn"})
    with pytest.raises(TeacherError, match="never initialised"):
        LiveTeacher(nn.LazyLinear(3), preprocess=Preprocessor())
    with pytest.raises(TeacherError, match=r"failed on inputs of shape \(5, 5\)"):
        LiveTeacher(nn.Linear(4, 2), preprocess=Preprocessor())(vectors())
    with pytest.raises(TeacherError, match="must be the batch"):
        LiveTeacher(nn.Sequential(nn.Linear(5, 2), nn.Flatten(0)), preprocess=Preprocessor())(vectors())


def test_an_answer_without_logits() -> None:
    class Boxes(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"boxes": x}

    with pytest.raises(UsageError, match=r"keys \['boxes'\]"):
        LiveTeacher(Boxes(), preprocess=Preprocessor())(vectors())


def test_tied_weights_and_a_module_used_twice() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(5, 5)
            self.two = nn.Linear(5, 5)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(self.one(x)))

    model = seeded(Tied)
    with LiveTeacher(model, preprocess=Preprocessor(), taps={"first": "one#0"}) as teacher:
        assert teacher.sources["first"] == "one#0"
        expected = model.one(vectors().inputs).detach()
        torch.testing.assert_close(teacher(vectors())["first"], expected)
        teacher.verify_unchanged()
    assert model.two.weight is model.one.weight
