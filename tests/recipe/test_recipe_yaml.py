"""Reading and writing recipes: positions, plain words, YAML 1.2 values, overrides, round trips."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import PotstillWarning, UsageError
from potstill.recipe.document import DocumentError, parse
from potstill.recipe.problems import schema_keys
from potstill.recipe.schema import Budget, Recipe, Training
from potstill.recipe.yaml import dump, loads, plain, read, scalar

MINIMAL = """\
data: {train: digits}
teacher: {model: cnn, train: {epochs: 3}}
student: {model: cnn, args: {width: 4}}
"""


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        loads(text, "recipe.yaml", overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_minimal_recipe_gets_every_default() -> None:
    recipe = loads(MINIMAL)
    assert recipe == Recipe.model_validate(
        {
            "data": {"train": "digits"},
            "teacher": {"model": "cnn", "train": {"epochs": 3}},
            "student": {"model": "cnn", "args": {"width": 4}},
        }
    )
    assert recipe.training.epochs == 30


# What YAML 1.2's core schema says of each scalar (https://yaml.org/spec/1.2.2/, table in section 10.3.2).
CORE = [
    ("1e-3", 0.001), ("5E4", 50000.0), (".5", 0.5), ("1.", 1.0), ("-2.5e+1", -25.0), ("12", 12), ("-3", -3),
    ("007", 7), ("0o17", 15), ("0x1F", 31), (".inf", math.inf), ("-.INF", -math.inf), ("true", True),
    ("FALSE", False), ("null", None), ("~", None), ("", None),
    ("no", "no"), ("off", "off"), ("yes", "yes"), ("On", "On"), ("y", "y"), ("1_000", "1_000"), ("12:30", "12:30"),
    ("2024-01-02", "2024-01-02"), ("1.2.3", "1.2.3"), ("'1'", "1"), ("file.py:name", "file.py:name"), ("!!str 5", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CORE)
def test_scalars_are_read_as_yaml_1_2(text: str, expected: Any) -> None:
    value = parse(f"key: {text}").value["key"]
    assert value == expected
    assert type(value) is type(expected)


def test_not_a_number_is_read() -> None:
    assert math.isnan(parse("key: .nan").value["key"])


def test_small_numbers_reach_the_recipe_as_numbers() -> None:
    assert loads(MINIMAL + "training: {learning_rate: 1e-3, weight_decay: 5e-4}").training.learning_rate == 0.001


def test_every_problem_is_reported_with_its_line_in_order() -> None:
    text = (
        MINIMAL
        + """\
training:
  epochs: three
  optimizer: adam
  warmup: 1.5
  nesterov_: true
learning_rate: 1e-3
teacher: {model: other}
export:
  formats:
    - onnx
    - onxx
"""
    )
    assert refused(text).splitlines() == [
        "7 problems in recipe.yaml:",
        "  recipe.yaml:5: training.epochs: expected a whole number, got the text 'three'",
        "  recipe.yaml:6: training.optimizer: expected 'auto', 'sgd', 'adamw' or 'dot', got the text 'adam'. "
        "Did you mean 'adamw'?",
        "  recipe.yaml:7: training.warmup: must be less than 1, got 1.5 "
        "(share of the steps over which the learning rate rises)",
        "  recipe.yaml:8: training.nesterov_: unknown key. Known: " + ", ".join(sorted(Training.model_fields)) + ".",
        "  recipe.yaml:9: learning_rate: unknown key. Did you mean 'training.learning_rate'?",
        "  recipe.yaml:10: teacher: this key was already given in line 2; remove one of them",
        "  recipe.yaml:14: export.formats.1: expected 'onnx' or 'onnx-int8', got the text 'onxx'. Did you mean 'onnx'?",
    ]


ONE_PROBLEM = [
    ("objectve: kd", "4: objectve: unknown key. Did you mean 'objective'?"),
    ("training: {epoch: 3}", "4: training.epoch: unknown key. Did you mean 'epochs'?"),
    ("budget: {megabyte: 3}", "4: budget.megabyte: unknown key. Did you mean 'megabytes'?"),
    ("training: {epochs: 0}", "4: training.epochs: must be at least 1, got 0"),
    ("training: {epochs: 3.0}", "4: training.epochs: expected a whole number, got the number 3.0; write 3"),
    ("training: {epochs: '3'}", "4: training.epochs: expected a whole number, got the text '3'; write 3"),
    ("training: {epochs: 1_000}", "4: training.epochs: expected a whole number, got the text '1_000'; write 1000"),
    ("training: {epochs: true}", "4: training.epochs: expected a whole number, got true"),
    ("training: {epochs: }", "4: training.epochs: expected a whole number, got nothing"),
    ("training: {label_smoothing: '0,1'}",
     "4: training.label_smoothing: expected a number, got the text '0,1'; write 0.1"),
    ("training: {learning_rate: fast}", "4: training.learning_rate: expected a number or 'auto', got the text 'fast'"),
    ("training: {learning_rate: '0,1'}",
     "4: training.learning_rate: expected a number or 'auto', got the text '0,1'; write 0.1"),
    ("training: {learning_rate: true}", "4: training.learning_rate: expected a number or 'auto', got true"),
    ("training: {track: wandb}", "4: training.track: expected a list, got the text 'wandb'; write [wandb]"),
    ("student: {model: other}", "4: student: this key was already given in line 3; remove one of them"),
    ("training: fast", "4: training: expected a section of keys and values, got the text 'fast'"),
    ("training: [1]", "4: training: expected a section of keys and values, got a list of 1 item"),
    ("evaluation: {latency: no}", "4: evaluation.latency: expected true or false, got the text 'no'; write false"),
    ("evaluation: {latency: 1}", "4: evaluation.latency: expected true or false, got the number 1"),
    ("device: 5", "4: device: expected text, got the number 5; write '5' in quotes"),
    ("task: x", "4: task: expected 'classification', 'multilabel' or 'regression', got the text 'x'"),
    ("seed: 9999999999", "4: seed: must be less than 2,147,483,648, got 9999999999"),
    ("training: {weight_decay: .inf}", "4: training.weight_decay: expected a finite number, got inf"),
    ("objective: 3",
     "4: objective: expected text or a section of keys and values or a list of sections, got the number 3 (a preset "
     "name, a preset with options, or a list of terms)"),
    ("objective: [3]", "4: objective.0: expected a section of keys and values, got the number 3"),
    ("objective: {preset: at, layer: last}", "4: objective.layer: unknown key. Did you mean 'layers'?"),
    ("objective: {preset: at, layers: [a]}",
     "4: objective.layers: expected text or a section of keys and values, got a list of 1 item ('uniform', 'last' or "
     "'cka', or {student's layer: teacher's layer}, early ones first)"),
    ("objective: {preset: at, layers: {a: 1}}",
     "4: objective.layers.a: expected text, got the number 1; write '1' in quotes"),
    ("objective:\n- loss: kd\n- weight: 1",
     "6: objective.1.loss: this key is missing (a name in potstill.losses, or 'file.py:name')"),
    ("objective:\n- loss: kd\n  weight: -1", "6: objective.0.weight: must be at least 0, got -1 (factor of the term)"),
    ("objective:\n- loss: kd\n  weight: heavy",
     "6: objective.0.weight: expected a number or a section of keys and values, got the text 'heavy' (factor of the "
     "term)"),
    ("objective:\n- loss: kd\n  weight: {start: 0}",
     "6: objective.0.weight.end: this key is missing (its value from 'until' on)"),
    ("objective:\n- loss: kd\n  weight: {start: 0, end: 1, since: 0.5, until: 0.1}",
     "6: objective.0.weight: since=0.5 must not come after until=0.1"),
    ("objective:\n- loss: kd\n  on: 3",
     "6: objective.0.on: expected text or a list, got the number 3 (the signal both sides read; a layer name taps that "
     "layer)"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), ONE_PROBLEM)
def test_one_problem_is_one_line(line: str, message: str) -> None:
    assert refused(MINIMAL + line) == f"recipe.yaml:{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: resnet56\nstudent: {model: a}\ndata: {train: x}",
         "recipe.yaml:1: teacher: expected a section of keys and values, got the text 'resnet56'; "
         "write {model: resnet56}"),
        ("student: {model: a}\nteacher: {model: a}",
         "recipe.yaml:1: data: this key is missing (where the samples come from)"),
        ("student: {model: a}\nteacher: {model: a}\ndata:",
         "recipe.yaml:3: data.train: this key is missing ('digits', a folder of images by class, a "
         "CSV/Parquet/JSONL/NPZ file, or a function 'file.py:name' or 'package.module:name' that returns samples)"),
        ("data: {train: x}\nteacher: {model: a}\nstudent:\n  model: a\n  preprocess:\n    mean: [0.5]",
         "recipe.yaml:5: student.preprocess: give mean and std together, or neither"),
        ("data: {train: x, classes: [a, no, 3]}\nteacher: {model: a}\nstudent: {model: a}",
         "recipe.yaml:1: data.classes.2: expected text, got the number 3; write '3' in quotes"),
    ],
)  # fmt: skip
def test_problems_in_the_required_sections(text: str, message: str) -> None:
    assert refused(text) == message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb:\n\tc: 3\n", 3, "indented with a tab; use spaces"),
        ("a: 1\nb: [1, 2\n", 2, "not closed"),
        ("a: 1\nb: 'x\nc: 3\n", 2, "not closed"),
        ("a: b: c\n", 1, "put text that contains ': ' in quotes"),
        ("a: 1\n b: 2\n", 2, "check the indentation"),
        ("a: @x\n", 1, "special character in quotes"),
        ("a: *.csv\n", 1, "quotes"),
        ("a: 1\n---\nb: 2\n", 2, "a recipe is one document"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2, "tag !!python/object/apply:os.getcwd is not used"),
        ("a: 1\nb: !mine x\n", 2, "tag !mine is not used"),
        ("a: &x [*x]\n", 1, "inside the value it refers to"),
        ("a: 1\n2: x\n", 2, "a key must be text, got '2'"),
        ("a: 1\n? [b]\n: x\n", 2, "a key must be text, got a list or section"),
        ("a: 1\nb: \x00\n", 2, "U+0000"),
        ("a: !!int x\n", 1, "'x' is not a valid !!int"),
        ("a: " + "[" * 5000, 1, "nested too deeply"),
    ],
)
def test_syntax_errors_name_the_line(text: str, line: int, words: str) -> None:
    message = refused(text)
    assert message.startswith(f"recipe.yaml:{line}: ")
    assert words in message


def test_an_alias_bomb_is_refused() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 7):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    assert "more than 100,000 values" in refused(text)


def test_aliases_repeat_values() -> None:
    recipe = loads(MINIMAL.replace("{epochs: 3}", "&how {epochs: 3}") + "training: *how", "r", ["training.epochs=5"])
    assert recipe.teacher.train is not None
    assert (recipe.teacher.train.epochs, recipe.training.epochs) == (3, 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "recipe.yaml: the recipe is empty"),
        ("# only a comment\n", "recipe.yaml: the recipe is empty"),
        ("- data\n", "recipe.yaml:1: expected keys such as 'data:'"),
        ("# x\nhello\n", "recipe.yaml:2: expected keys such as 'data:', 'teacher:' and 'student:', got the text"),
    ],
)
def test_a_recipe_must_be_a_mapping(text: str, words: str) -> None:
    assert refused(text).startswith(words)


def test_an_empty_section_means_its_defaults() -> None:
    recipe = loads(MINIMAL + "training:\n  # epochs: 3\nbudget:\n")
    assert recipe.training == Training()
    assert recipe.budget == Budget()


def test_only_the_objective_has_choices_of_types() -> None:
    # A choice between two sections would need messages of its own; these are between different kinds of values.
    types = {place: str(section.model_fields[str(place[-1])].annotation) for place, section in schema_keys()}
    assert len(types) > 80
    choices = {place for place, kind in types.items() if " | " in kind.removesuffix(" | None") or "Union[" in kind}
    trainings = [("training",), ("teacher", "train"), ("teacher", "members", 0, "train"), ("chain", 0, "training")]
    assert choices == {
        ("data", "target"), ("objective",), ("objective", "layers"), ("objective", 0, "weight"), ("objective", 0, "on"),
        ("objective", 0, "student"), ("objective", 0, "teacher"), ("teacher", "class_map"),
        ("teacher", "merge", "concatenate"),
        *((*place, name) for place in trainings for name in ("learning_rate", "threads")),
    }  # fmt: skip


def test_terms_in_a_section_are_told_to_be_a_list() -> None:
    assert refused(MINIMAL + "objective: {loss: kd}").splitlines() == [
        "2 problems in recipe.yaml:",
        "  recipe.yaml:4: objective.preset: this key is missing (the preset's name)",
        "  recipe.yaml:4: objective.loss: unknown key. It belongs in a list: write '- loss: ...'",
    ]


# ---- files


def test_files_are_read_and_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert read(file) == loads(MINIMAL)
    file.write_text(MINIMAL + "seed: x\n")
    with pytest.raises(UsageError, match=r"mine\.yaml:4: seed: expected a whole number"):
        read(file)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'potstill init' writes one"):
        read(tmp_path / "digits.yaml")
    (tmp_path / "digits.yaml").write_text(MINIMAL)
    (tmp_path / "photos.yml").write_text(MINIMAL)
    with pytest.raises(UsageError, match=r"Did you mean '.*/digits\.yaml'\?"):
        read(tmp_path / "digit.yaml")
    with pytest.raises(UsageError, match=r"Recipes there: digits\.yaml, photos\.yml\."):
        read(tmp_path / "quite-other")
    with pytest.raises(UsageError, match=r"is a folder; a recipe is a YAML file\. Did you mean '.*/digits\.yaml'"):
        read(tmp_path)
    with pytest.raises(UsageError, match="There is no recipe"):
        read(tmp_path / "nowhere" / "digits.yaml")


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(MINIMAL.encode() + b"device: \xe9\n")
    with pytest.raises(UsageError, match=r"latin\.yaml:4: the file is not UTF-8"):
        read(file)


# ---- overrides


def test_overrides_change_values() -> None:
    text = MINIMAL + "objective:\n- {loss: forward_kl}\n- {loss: cross_entropy, weight: 0.5}\n"
    recipe = loads(
        text,
        overrides=[
            "training.epochs=3",
            "training.learning_rate=1e-2",
            "objective.1.weight=0.25",
            "student.args.depth=[1, 2]",
            "teacher.train=null",
            "teacher.weights=a=b.safetensors",
            "data.train=file.py:name",
            "data.augment={flip: true}",
            "data.augment.crop=4",
            "seed=1",
            "seed=2",
        ],
    )
    assert recipe.training.epochs == 3
    assert recipe.training.learning_rate == 0.01
    assert [term.weight for term in recipe.objective if not isinstance(term, str)] == [1.0, 0.25]
    assert recipe.student.args == {"width": 4, "depth": [1, 2]}
    assert recipe.teacher.train is None
    assert recipe.teacher.weights == "a=b.safetensors"
    assert recipe.data.train == "file.py:name"
    assert (recipe.data.augment.flip, recipe.data.augment.crop) == (True, 4)
    assert recipe.seed == 2


def test_an_override_makes_the_section_it_needs() -> None:
    recipe = loads(MINIMAL.replace("{epochs: 3}", "null"), overrides=["teacher.train.epochs=7"])
    assert recipe.teacher.train == Training(epochs=7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["training.epochs=x"],
         "--set training.epochs=x: training.epochs: expected a whole number, got the text 'x'"),
        (["training.epoch=3"], "--set training.epoch=3: training.epoch: unknown key. Did you mean 'epochs'?"),
        (["seed"], "--set seed: expected a dotted path and a value, such as --set training.epochs=3."),
        (["=3"], "--set =3: expected a dotted path and a value, such as --set training.epochs=3."),
        (["a..b=3"], "--set a..b=3: expected a dotted path and a value, such as --set training.epochs=3."),
        (["task.x=3", ], None),
        (["objective=[{loss: a}, {loss: b}]", "objective.2.weight=1"],
         "--set objective.2.weight=1: objective is a list of 2 items; '2' is not one of them (items are 0 to 1)."),
        (["objective=[{loss: a}]", "objective.0.weight=-1"],
         "--set objective.0.weight=-1: objective.0.weight: must be at least 0, got -1 (factor of the term)"),
        (["device=auto", "device.name=3"],
         "--set device.name=3: device is the text 'auto', so it has no 'name'."),
        (["training={epochs: 1, epochs: 2}"], "--set training={epochs: 1, epochs: 2}: epochs is given twice."),
    ],
)  # fmt: skip
def test_override_errors_name_the_option(options: list[str], message: str | None) -> None:
    found = refused(MINIMAL, *options)
    if message is None:
        # 'task' is not in the file, so the option makes a section of it, which the schema refuses.
        assert found.startswith(
            "--set task.x=3: task: expected 'classification', 'multilabel' or 'regression', got a section"
        )
    else:
        assert found == message


def test_a_replaced_section_is_the_options_and_no_longer_the_files() -> None:
    message = "--set training={epochs: 0}: training.epochs: must be at least 1, got 0"
    assert refused(MINIMAL + "training: {epochs: 3}", "training={epochs: 0}") == message


def test_problems_of_options_come_after_those_of_the_file() -> None:
    assert refused(MINIMAL + "seeds: 0", "seed=-1").splitlines()[1:] == [
        "  recipe.yaml:4: seeds: must be at least 1, got 0 (how many students are trained, alone and distilled)",
        "  --set seed=-1: seed: must be at least 0, got -1",
    ]


# ---- writing

TRICKY = ["no", "off", "1e-3", "007", "0o17", "12:30", "1_000", "2024-01-02", "null", "~", "", " a ", "a: b", "# c",
          "*x", "é", "日本", "😀", "a\nb\n", "tab\t", "\x85", "\u2028", "=", "<<", "- x", "'", '"', "{a}", "@x", "%x",
          "true", ".inf", "C:\\temp", "x" * 300, "word " * 60]  # fmt: skip


def with_args(args: dict[str, Any]) -> Recipe:
    return loads(MINIMAL).model_copy(update={"student": loads(MINIMAL).student.model_copy(update={"args": args})})


def test_the_resolved_copy_is_complete_grouped_and_equal() -> None:
    recipe = loads(MINIMAL)
    text = dump(recipe)
    assert loads(text) == recipe
    assert dump(loads(text)) == text
    first = "task: classification\nmetric: null\nseed: 0\nseeds: 1\ndevice: auto\n\ndata:\n  train: digits\n"
    assert text.startswith(first)
    assert "\nobjective: auto\n\ntraining:\n  epochs: 30\n" in text
    assert "\n\n\n" not in text
    assert "!!" not in text
    assert "&" not in text
    written = pyyaml.safe_load(text)
    keys = [
        place
        for place, _ in schema_keys()
        if 0 not in place
        and place[:1] != ("objective",)
        and place[:2] != ("store", "codecs")
        and place[-1] != "concatenate"  # absent unless it is written, so that older recipes keep their hashes
    ]
    assert len(keys) > 70
    for place in keys:
        value = written
        for part in place:
            if value is None:  # a section that is absent by default
                break
            assert part in value, place
            value = value[part]


@pytest.mark.parametrize("value", TRICKY)
def test_tricky_text_survives_both_yaml_versions(value: str) -> None:
    recipe = with_args({"value": value, "list": [value, {"inner": value}]})
    text = dump(recipe)
    assert loads(text) == recipe
    assert pyyaml.safe_load(text)["student"]["args"] == {"value": value, "list": [value, {"inner": value}]}
    assert parse(f"key: {scalar(value)}  # comment").value["key"] == value
    assert "\n" not in scalar(value)


texts = st.text(st.characters(codec="utf-8"), max_size=20)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(texts, plain_values, max_size=3))
def test_any_plain_arguments_round_trip(args: dict[str, Any]) -> None:
    recipe = with_args(args)
    assert loads(dump(recipe)) == recipe


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("abk01:-[]{}#&*!|>'\"%@ \n\t,?.~\x00é")), max_size=40))
def test_no_text_crashes_the_reader(text: str) -> None:
    with contextlib.suppress(DocumentError):
        parse(text)


def test_python_objects_are_refused_by_name() -> None:
    assert plain({"a": (1, Path("x"))}) == {"a": [1, "x"]}
    with pytest.raises(UsageError, match=r"student\.args\.f\.1: a function cannot be written into a recipe file"):
        dump(with_args({"f": [1, test_python_objects_are_refused_by_name]}))


def test_reading_recipes_does_not_import_torch() -> None:
    code = (
        "import sys, potstill.recipe.yaml, potstill.recipe.presets, potstill.recipe.hash; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_limit_of_a_latency_that_is_not_measured_is_refused() -> None:
    text = MINIMAL + "budget: {milliseconds: 2}\nevaluation: {latency: false}\n"
    assert "recipe: budget.milliseconds limits a latency that evaluation.latency: false does not measure" in refused(
        text
    )
    assert loads(MINIMAL + "budget: {milliseconds: 2}\n").budget.milliseconds == 2


def test_recipes_of_before_that_name_resamples_are_still_read_and_told_that_it_does_nothing() -> None:
    with pytest.warns(PotstillWarning, match=r"evaluation\.resamples no longer does anything") as told:
        recipe = loads(MINIMAL + "evaluation: {resamples: 300, threads: 2}\n")
    assert len(told) == 1
    assert recipe.evaluation.threads == 2
    assert "resamples" not in dump(recipe)


BAD_TEXTS = {
    "half a character": ('seed: "\\ud800"', "1: a text holds U.D800"),
    "NUL": ('data: {train: "a\\0b"}', "data.train: a name holds a NUL character"),
    "a number without end": ("seed: 0x" + "f" * 20_000, "a number of 20,002 digits"),
    "a text without end": ("device: " + "m" * 100_000, "a text of 100,000 characters"),
    "a key without end": ("k" * 1000 + ": 1", "a key of 1,000 characters"),
    "lists without end": ("objective: " + "[" * 5_000, "nested too deeply"),
    "unknown keys without end": ("\n".join(f"key{number}: 1" for number in range(5_000)), r"and 4,99[0-9] more$"),
    "wrong items without end": (f"objective: [{', '.join('3' * 5_000)}]", "5,003 problems"),
    "one key without end": ("seed: 1\n" * 5_000, r"and 4,99[0-9] more$"),
    "more than a recipe": ("# " + "x" * 1_100_000, "larger than 1 MB"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_what_a_broken_program_writes_is_refused_in_few_words(tmp_path: Path, name: str) -> None:
    text, words = BAD_TEXTS[name]
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read(tmp_path / "r.yaml")
    assert len(str(caught.value)) < 1_500
