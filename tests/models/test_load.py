"""Building models, and reading and writing weights; hostile and wrong files are refused."""

from __future__ import annotations

import os
import pickle
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from potstill.core.errors import PotstillError, UsageError
from potstill.models import zoo
from potstill.models.find import find_model
from potstill.models.load import build, load_weights, output_tensor, reinitialise, save_weights

SMALL = {"num_classes": 3, "in_channels": 1, "width": 4}


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# building


def test_weights_depend_on_the_seed_only_and_the_global_state_is_kept():
    state = torch.random.get_rng_state()
    first = build("cnn", SMALL, seed=3)
    torch.rand(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(first, build("cnn", SMALL, seed=3))
    assert not torch.equal(first.linear.weight, build("cnn", SMALL, seed=4).linear.weight)


def test_functions_classes_and_finished_models():
    assert isinstance(build(nn.Linear, {"in_features": 2, "out_features": 3}), nn.Linear)
    assert isinstance(build(lambda: nn.ReLU()), nn.ReLU)
    model = nn.Linear(2, 2)
    assert build(model) is model
    with pytest.raises(UsageError, match="already a model"):
        build(model, {"width": 3})


def test_zoo_names_are_corrected():
    with pytest.raises(UsageError, match=r"no model 'resnet_20' in the zoo\. Did you mean 'resnet20'"):
        build("resnet_20")
    with pytest.raises(UsageError, match=r"Known: cnn, lightgbm, mlp.*'file.py:name'"):
        build("zzzzz")
    with pytest.raises(UsageError, match="in the zoo"):
        build("initialise")


def test_wrong_arguments_list_the_accepted_ones():
    with pytest.raises(UsageError) as caught:
        build("cnn", {"widht": 3})
    assert "'widht'" in str(caught.value)
    assert "Did you mean 'width'?" in str(caught.value)
    assert "It accepts: num_classes=10, in_channels=3, width=32." in str(caught.value)
    with pytest.raises(UsageError, match=r"missing a required argument: 'in_features'.*in_features, hidden=\(64, 64\)"):
        build("mlp")


def test_a_function_of_a_file_beside_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "helper_of_my_models.py").write_text("WIDTH = 7\n")
    (tmp_path / "my_models.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import helper_of_my_models\n"
        "from torch import nn\n"
        "@dataclass\n"
        "class Settings:\n"
        "    width: int = helper_of_my_models.WIDTH\n"
        "class Student(nn.Linear):\n"
        "    pass\n"
        "def student(outputs=2):\n"
        "    return Student(Settings().width, outputs)\n"
        "class Group:\n"
        "    @staticmethod\n"
        "    def inner():\n"
        "        return nn.ReLU()\n"
    )
    path = list(sys.path)
    model = build("my_models.py:student", {"outputs": 4}, seed=5, base=tmp_path)
    assert model.weight.shape == (4, 7)
    assert sys.path == path
    assert same(model, build(f"{tmp_path}/my_models.py:student", {"outputs": 4}, seed=5))
    assert type(pickle.loads(pickle.dumps(model))) is type(model)
    assert isinstance(build("my_models.py:Group.inner", base=tmp_path), nn.ReLU)
    assert isinstance(find_model("my_models:Student", base=tmp_path), type)
    with pytest.raises(UsageError, match=r"no 'studnet'.*Did you mean 'student'"):
        build("my_models.py:studnet", base=tmp_path)
    with pytest.raises(UsageError, match=r"'my_models.py:__name__' is str"):
        build("my_models.py:__name__", base=tmp_path)


def test_an_edited_file_is_read_again(tmp_path):
    file = tmp_path / "edited_model.py"
    file.write_text("from torch import nn\ndef make():\n    return nn.ReLU()\n")
    assert isinstance(build("edited_model.py:make", base=tmp_path), nn.ReLU)
    file.write_text("from torch import nn\ndef make():\n    return nn.Identity()\n")
    assert isinstance(build("edited_model.py:make", base=tmp_path), nn.Identity)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\nimport package_that_is_missing\n", r"ModuleNotFoundError: .*package_that_is_missing.*\[line 2\]"),
        ("x = (\n", "SyntaxError"),
        ("\n\n1 / 0\n", r"ZeroDivisionError: division by zero \[line 3\]"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_file_that_fails_to_import_gives_the_cause(tmp_path, text, words):
    (tmp_path / "broken.py").write_text(text)
    before = set(sys.modules)
    with pytest.raises(UsageError, match=f"broken.py failed: {words}") as caught:
        build("broken.py:make", base=tmp_path)
    assert caught.value.__cause__ is not None
    assert not [name for name in set(sys.modules) - before if "broken" in name]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("absent.py:make", r"absent\.py, which does not exist"),
        ("package_that_is_missing.models:make", "No module named 'package_that_is_missing'"),
        (":make", "expected 'file.py:name'"),
        ("torch.nn:", "expected 'file.py:name'"),
        ("torch.nn:Linaer", "no 'Linaer'.*Did you mean 'Linear'"),
    ],
)
def test_models_that_cannot_be_found(tmp_path, model, words):
    with pytest.raises(UsageError, match=words):
        build(model, base=tmp_path)


def test_failures_inside_the_function_are_explained():
    def fails(width=3):
        raise KeyError("inner")

    with pytest.raises(UsageError, match=r"Building fails with {'width': 4} failed: KeyError: 'inner'"):
        build(fails, {"width": 4})
    with pytest.raises(UsageError, match=r"returned int, expected an nn.Module"):
        build(lambda: 3)


# weights


def test_weights_survive_a_round_trip_with_their_metadata(tmp_path):
    path = tmp_path / "deep" / "weights.safetensors"
    model = build("cnn", SMALL, seed=0)
    model(torch.rand(4, 1, 8, 8))
    save_weights(model, path, {"recipe_hash": "abc"})
    other = build("cnn", SMALL, seed=1)
    assert not same(model, other)
    load_weights(other, path)
    assert same(model, other)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"recipe_hash": "abc"}
    assert [item.name for item in path.parent.iterdir()] == ["weights.safetensors"]


def test_shared_and_strided_weights_are_written_whole(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias = nn.Parameter(torch.arange(6.0)[::2])
    save_weights(model, tmp_path / "w.safetensors")
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_weights(plain, tmp_path / "w.safetensors")
    assert same(model, plain)
    assert plain[0].bias.tolist() == [0, 2, 4]


def test_channels_last_weights_come_back_equal(tmp_path):
    model = build("cnn", SMALL).to(memory_format=torch.channels_last)
    save_weights(model, tmp_path / "w.safetensors")
    other = build("cnn", SMALL, seed=9)
    load_weights(other, tmp_path / "w.safetensors")
    assert same(model, other)


class WithText(nn.Linear):
    def get_extra_state(self):
        return "text"

    def set_extra_state(self, state):
        pass


def test_states_and_metadata_that_cannot_be_saved(tmp_path):
    with pytest.raises(UsageError, match="'_extra_state', a str"):
        save_weights(WithText(2, 2), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="must be text, got 'epoch': int"):
        save_weights(nn.Linear(2, 2), tmp_path / "w.safetensors", {"epoch": 3})
    (tmp_path / "file").write_text("")
    with pytest.raises((PotstillError, OSError)):
        save_weights(nn.Linear(2, 2), tmp_path / "file" / "w.safetensors")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def wrapped(state):
    prefixed = {f"module.{name}": value for name, value in state.items()}
    twice = {f"module._orig_mod.{name}": value for name, value in state.items()}
    return [
        state,
        {"state_dict": state, "epoch": 3, "best": 0.5},
        {"model": state, "optimizer": {"lr": 1}},
        {"model": {"state_dict": prefixed}},
        {"net": twice},
        prefixed,
    ]


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_unwrapped(tmp_path, index, legacy):
    model = build("cnn", SMALL, seed=0)
    contents = wrapped(model.state_dict())
    assert len(contents) == 6
    path = tmp_path / "weights.pt"
    torch.save(contents[index], path, _use_new_zipfile_serialization=not legacy)
    other = build("cnn", SMALL, seed=1)
    with pytest.raises(UsageError, match=r"not a safetensors file.*allow_pickle"):
        load_weights(other, path)
    load_weights(other, path, allow_pickle=True)
    assert same(model, other)


def test_a_models_own_module_prefix_is_kept(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    save_weights(model, tmp_path / "w.safetensors")
    other = nn.ModuleDict({"module": nn.Linear(2, 2)})
    load_weights(other, tmp_path / "w.safetensors")
    assert same(model, other)


class CreatesFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["raw", "zip", "legacy", "disguised"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, kind):
    trap = tmp_path / "trap"
    path = tmp_path / ("weights.safetensors" if kind == "disguised" else "weights.pt")
    content = {"state_dict": {"weight": torch.zeros(1), "x": CreatesFile(trap)}}
    if kind in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        path.write_bytes(pickle.dumps(CreatesFile(trap)))
    with pytest.raises(UsageError, match=r"not a .*safetensors file"):
        load_weights(nn.Linear(1, 1), path)
    words = "not a readable safetensors" if kind == "disguised" else "was refused.*nothing in it was run"
    with pytest.raises(UsageError, match=words):
        load_weights(nn.Linear(1, 1), path, allow_pickle=True)
    assert not trap.exists()
    # The trap is real: without the guard it springs.
    if kind == "raw":
        pickle.loads(path.read_bytes())
        assert trap.exists()


def test_whole_models_and_other_contents_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UsageError, match=r"was refused.*model.state_dict\(\)"):
        load_weights(nn.Linear(2, 2), path, allow_pickle=True)
    torch.save([1, 2], path)
    with pytest.raises(UsageError, match="holds list, expected a state dict"):
        load_weights(nn.Linear(2, 2), path, allow_pickle=True)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UsageError, match=r"keys \['epoch'\]"):
        load_weights(nn.Linear(2, 2), path, allow_pickle=True)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"model\.pt"):
        load_weights(nn.Linear(2, 2), path, allow_pickle=True)
    with pytest.raises(UsageError, match="no weights file"):
        load_weights(nn.Linear(2, 2), tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\x00\x00")
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        load_weights(nn.Linear(2, 2), broken)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "w.safetensors"
    model = nn.ModuleDict({"first": nn.Linear(2, 3), "linear": nn.Linear(3, 4)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {"first.weight": torch.zeros(3, 2), "frist.bias": torch.zeros(3), "linear.weight": torch.zeros(9, 3)}
    save_file({**state, "linear.bias": torch.zeros(4)}, path)
    with pytest.raises(UsageError) as caught:
        load_weights(model, path)
    text = str(caught.value)
    assert "1 missing in the file: first.bias (the file has frist.bias)" in text
    assert "1 unknown to the model: frist.bias" in text
    assert "linear.weight is (9, 3) in the file and (4, 3) in the model" in text
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match=r"15 missing .* and 10 more"):
        load_weights(build("cnn", SMALL), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("bias"), "1 missing in the file: bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unknown to the model: extra"),
        (lambda state: state.update(bias=torch.zeros(1)), r"bias is \(1,\) in the file and \(2,\) in the model"),
    ],
)
def test_each_kind_of_misfit_is_refused_alone(tmp_path, change, words):
    model = nn.Linear(3, 2)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=words):
        load_weights(model, tmp_path / "w.safetensors")
    assert model.weight.detach().abs().sum() > 0


def test_files_without_batch_counters_load(tmp_path):
    model = build("cnn", SMALL, seed=0)
    state = {name: it for name, it in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(state) < len(model.state_dict())
    save_file(state, tmp_path / "w.safetensors")
    other = build("cnn", SMALL, seed=1)
    load_weights(other, tmp_path / "w.safetensors")
    assert same(model, other)


# fresh weights


@pytest.mark.parametrize("name", ["cnn", "resnet8", "vgg8", "shufflenet_v2"])
def test_reinitialise_forgets_everything(name):
    state = torch.random.get_rng_state()
    model = getattr(zoo, name)(3)
    model(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.random.set_rng_state(state)
    reinitialise(model, 7)
    assert torch.equal(torch.random.get_rng_state(), state)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    reinitialise(model, 7)
    assert all(torch.equal(first[key], value) for key, value in model.state_dict().items())
    reinitialise(model, 8)
    after = model.state_dict()
    convolutions = [key for key, value in after.items() if value.dim() == 4]
    assert len(convolutions) >= 3
    assert not any(torch.equal(first[key], after[key]) or torch.equal(before[key], after[key]) for key in convolutions)
    averages = [key for key in after if key.endswith("running_mean")]
    assert len(averages) >= 3
    assert all(before[key].abs().sum() > 0 and after[key].abs().sum() == 0 for key in averages)


def test_a_models_own_initialisation_has_the_last_word():
    model = zoo.vgg8(10)
    reinitialise(model, 0)
    # std 0.01 from the model itself, not the uniform(-1/sqrt(512), 1/sqrt(512)) of nn.Linear (std 0.0255)
    assert 0.009 < float(model.linear.weight.detach().std()) < 0.011
    assert float(model.linear.bias.detach().abs().sum()) == 0


def test_layers_that_cannot_be_reset_are_named_before_anything_changes():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.token = nn.Parameter(torch.ones(2))
    before = model[0].weight.clone()
    with pytest.raises(UsageError, match=r"the model itself \(Sequential\).*reset_parameters"):
        reinitialise(model, 0)
    assert torch.equal(model[0].weight, before)


def test_attention_is_reset():
    model = nn.MultiheadAttention(4, 2)
    before = model.in_proj_weight.clone()
    reinitialise(model, 1)
    assert not torch.equal(model.in_proj_weight, before)


# outputs


class Output:
    def __init__(self, logits):
        self.logits = logits


class Pair(tuple):
    __slots__ = ()


LOGITS = torch.rand(2, 3)


@pytest.mark.parametrize(
    "output", [LOGITS, (LOGITS, None), [LOGITS], {"loss": 1, "logits": LOGITS}, Output(LOGITS), Pair((LOGITS, 1))]
)
def test_logits_are_found(output):
    assert output_tensor(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"hidden": LOGITS}, r"a mapping with the keys \['hidden'\]"),
        ((), "tuple of 0"),
        ((3, LOGITS), "tuple of 2"),
        (None, "NoneType"),
        (Output("text"), r"Output with \.logits"),
    ],
)
def test_other_outputs_are_refused(output, words):
    with pytest.raises(UsageError, match=words):
        output_tensor(output)
