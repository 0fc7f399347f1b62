"""Presets: published methods as terms, with the papers' settings, for any two models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from potstill import losses
from potstill.core.errors import UsageError
from potstill.losses.transforms import standardize_logits
from potstill.objective import Objective, Schedule, Term, as_section, check, preset, term_from
from potstill.objective.presets import LAYERS, PRESETS, layers_read, preset_options
from potstill.objective.presets.settings import MADE_FOR, at_hand

PAGE = (Path(__file__).parents[2] / "docs/methods/presets.md").read_text(encoding="utf-8")
PAIRS = {
    "layers": {"layer1": "block1", "layer2": "block2", "layer3": "block3"},
    "embedding": {"pool": "features"},
    "projections": {"q": "query", "k": "key", "v": "value"},
}
MAPS = {"layer1": (4, 8, 8), "layer2": (8, 4, 4), "layer3": (16, 2, 2), "pool": (16,)}
WIDE = {"block1": (6, 8, 8), "block2": (12, 4, 4), "block3": (24, 2, 2), "features": (24,)}
TOKENS = {"layer1": (5, 24), "layer2": (5, 24), "layer3": (5, 24), "q": (5, 24), "k": (5, 24), "v": (5, 24)}
BLOCKS = {"block1": (5, 24), "block2": (5, 24), "block3": (5, 24), "query": (5, 36), "key": (5, 36), "value": (5, 36)}
ON_TOKENS = ("tinybert", "distilbert", "pkd", "minilm")


def made(name: str, task: str = "classification", **options) -> Objective:
    return preset(name, task, **{kind: PAIRS[kind] for kind in layers_read(name)}, **options)


def shapes(name: str) -> tuple[dict, dict]:
    student, teacher = (TOKENS, BLOCKS) if name in ON_TOKENS else (MAPS, WIDE)
    if name in ("fsp", "simkd"):  # these ask for equal channels
        teacher = {f"block{number}": MAPS[f"layer{number}"] for number in (1, 2, 3)}
    both = {"logits": (10,), "hidden": (3, 4, 4), "input_gradient": (3, 8, 8)}
    return {**student, **both}, {**teacher, **both}


def test_there_are_many() -> None:
    assert len(PRESETS) >= 37


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_works_on_signals_of_its_kind(name: str) -> None:
    objective = made(name)
    check(objective, *shapes(name), 10, "classification")
    assert len(objective.describe()) == len(set(objective.describe()))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_regression_or_says_why_not(name: str) -> None:
    student, teacher = shapes(name)
    try:
        objective = made(name, "regression")
    except UsageError as error:
        assert re.search(rf"preset '{name}' works on the scores of classes.*Use 'kd'", str(error))  # noqa: PT017
    else:
        check(objective, {**student, "logits": (2,)}, {**teacher, "logits": (2,)}, 2, "regression")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_written_as_terms_is_the_same(name: str) -> None:
    objective = made(name)
    text = yaml.safe_dump([as_section(term) for term in objective.terms])
    back = Objective([term_from(section) for section in yaml.safe_load(text)])
    assert back.describe() == objective.describe()
    assert [(term.name, term.weight, term.options) for term in back.terms] == [
        (term.name, term.weight, term.options) for term in objective.terms
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_option_of_a_preset_arrives(name: str) -> None:
    for option, default in preset_options(name).items():
        if isinstance(default, float):
            assert made(name, **{option: 0.9 * default}).describe() != made(name).describe(), option


def shown(term: Term) -> tuple:
    return (term.loss, term.weight, dict(term.options))


def test_settings_are_the_papers() -> None:
    """Written out from the papers' texts and their authors' code, weights in our units."""
    first = {"start": 0.0, "until": 1 / 12}
    wanted = {
        "kd": [(losses.cross_entropy, 0.1, {}), (losses.forward_kl, 0.9, {"temperature": 4.0})],
        "kd_standardised": [(losses.cross_entropy, 0.1, {}), (losses.forward_kl, 9.0, {"temperature": 2.0})],
        "dkd": [
            (losses.cross_entropy, 1.0, {}),
            (
                losses.decoupled_kd,
                Schedule("linear", end=1.0, **first),
                {"temperature": 4.0, "target_weight": 1.0, "non_target_weight": 2.0},
            ),
        ],
        "nkd": [
            (losses.cross_entropy, 1.0, {}),
            (losses.normalized_kd, 1.0, {"temperature": 1.0, "non_target_weight": 1.5}),
        ],
        "dist": [(losses.cross_entropy, 1.0, {}), (losses.dist, 2.0, {"temperature": 4.0})],
        "wsld": [(losses.cross_entropy, 1.0, {}), (losses.weighted_soft_labels, 2.5, {"temperature": 2.0})],
        "mlkd": [(losses.cross_entropy, 0.1, {}), (losses.multi_level_kd, 0.9, {})],
        "fitnets": [(losses.cross_entropy, 1.0, {}), (losses.hint_mse, 100.0, {})],
        "at": [(losses.cross_entropy, 1.0, {}), *[(losses.attention_transfer, 1000.0, {})] * 3],
        "vid": [(losses.cross_entropy, 1.0, {}), *[(losses.variational_information, 1.0, {})] * 3],
        "reviewkd": [(losses.cross_entropy, 1.0, {}), (losses.review, Schedule("linear", end=1.0, **first), {})],
        "sp": [(losses.cross_entropy, 1.0, {}), (losses.similarity_preserving, 3000.0, {})],
        "rkd": [
            (losses.cross_entropy, 1.0, {}),
            (losses.relational_distance, 25.0, {}),
            (losses.relational_angle, 50.0, {}),
        ],
        "pkt": [(losses.cross_entropy, 1.0, {}), (losses.probabilistic, 30000.0, {})],
        "cc": [(losses.cross_entropy, 1.0, {}), (losses.correlation_congruence, 0.003, {})],
        "crd": [(losses.cross_entropy, 1.0, {}), (losses.contrastive, 0.8, {})],
        "ft": [(losses.cross_entropy, 1.0, {}), (losses.factor_transfer, 500.0, {})],
        "nst": [(losses.cross_entropy, 1.0, {}), (losses.neuron_selectivity, 25.0, {})],
        "simkd": [(losses.reused_classifier, 1.0, {})],
    }
    for name, terms in wanted.items():
        assert [shown(term) for term in made(name).terms] == terms, name
    assert made("kd_standardised").terms[1].transform is standardize_logits


def test_where_presets_read() -> None:
    reads = {name: [(term.student, term.teacher) for term in made(name).terms if term.teacher] for name in PRESETS}
    deepest, pooled = ("layer3", "block3"), ("pool", "features")
    assert reads["fitnets"] == [("layer2", "block2")]
    assert reads["at"] == reads["vid"] == [(f"layer{n}", f"block{n}") for n in (1, 2, 3)]
    assert reads["sp"] == reads["nst"] == reads["ft"] == [deepest]
    assert reads["pkt"] == reads["crd"] == [pooled]
    assert reads["rkd"] == [pooled, pooled]
    three = ("layer1", "layer2", "layer3"), ("block1", "block2", "block3")
    assert reads["fsp"] == [three]
    assert reads["reviewkd"] == [((*three[0], "pool"), (*three[1], "features"))]
    assert reads["minilm"] == [(("q", "k", "v"), ("query", "key", "value"))]
    assert reads["pkd"][1:] == [("layer1", "block1"), ("layer2", "block2")]


def test_presets_in_two_parts_jump() -> None:
    labels, flow = made("fsp").terms
    assert [labels.weight_at(p) for p in (0.0, 0.1, 0.12, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert [flow.weight_at(p) for p in (0.0, 0.1, 0.12, 1.0)] == [50.0, 50.0, 0.0, 0.0]


def test_the_embedding_is_not_reviewed_twice() -> None:
    same = preset("reviewkd", "classification", layers=["a", "b"], embedding="b")
    assert same.terms[1].student == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "reviewkt"}, "Did you mean 'reviewkd'"),
        ({"name": "dkd", "temprature": 2.0}, "'dkd' has no option 'temprature'. Did you mean 'temperature'"),
        ({"name": "alone", "temperature": 2.0}, "It takes none"),
        ({"name": "at"}, r"'at' reads hidden layers: give layers=\{student's layer"),
        ({"name": "rkd", "layers": ["a"]}, "'rkd' reads no layers"),
        ({"name": "rkd", "embedding": ["a", "b"]}, "embedding must be one layer of each side, not 2"),
        ({"name": "at", "layers": {}}, "must name layers"),
        ({"name": "at", "layers": [1]}, "must name layers"),
        ({"name": "pkd", "layers": ["a"]}, "at least two pairs"),
    ],
)
def test_presets_that_cannot_be_are_refused(arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        preset(arguments.pop("name"), "classification", **arguments)


def test_terms_without_names_cannot_be_written() -> None:
    with pytest.raises(UsageError, match="Use a Schedule"):
        as_section(Term(losses.forward_kl, lambda progress: progress))
    with pytest.raises(UsageError, match=r"Put it into a file and name it 'file\.py:name'"):
        as_section(Term(losses.forward_kl, transform=lambda logits: logits))


def test_terms_with_everything_are_written_and_read() -> None:
    term = Term(
        losses.overhaul,
        Schedule("cosine", 0.0, 2.0, since=0.25),
        student="a",
        teacher="student.b",
        name="mine",
    )
    section = as_section(term)
    assert section == {
        "loss": "overhaul", "weight": {"shape": "cosine", "start": 0.0, "end": 2.0, "since": 0.25}, "student": "a",
        "teacher": "student.b", "name": "mine",
    }  # fmt: skip
    assert term_from(section).describe() == term.describe()
    section = {"loss": "jsd", "options": {"temperature": {"start": 4, "end": 1}}, "transform": "standardize_logits",
               "head": "adapter"}  # fmt: skip
    term = term_from(section)
    assert term.options == {"temperature": Schedule("linear", 4, 1)}
    assert term.transform is standardize_logits
    assert as_section(term)["head"] == "adapter"
    for key, match in (("loss", "Unknown loss 'x'"), ("head", "Unknown head 'x'"), ("transform", "Unknown transform")):
        with pytest.raises(UsageError, match=match):
            term_from({**section, key: "x"})


# the page


def page_rows() -> dict[str, list[str]]:
    found = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| (.+) \|$", PAGE.split("## All presets")[1], re.M)
    rows = {}
    for first, second, rest in found:
        for name in filter(None, (first, second)):
            assert name not in rows, f"{name} has two rows"
            rows[name] = [cell.strip() for cell in rest.split(" | ")]
    return rows


def test_every_preset_has_a_row_on_its_page() -> None:
    rows = page_rows()
    assert set(rows) == set(PRESETS)
    for name, cells in rows.items():
        assert len(cells) == 4, name
        named = set(re.findall(r"`(\w+)`", cells[0]))
        used = {term.loss.__name__ for term in made(name).terms}
        assert used <= named, (name, used - named)
        assert set(re.findall(r"\w+", cells[1])) & set(LAYERS) == set(layers_read(name)), name


def test_what_settings_were_made_for_is_said_of_presets_that_there_are() -> None:
    assert len(MADE_FOR) > 25
    assert set(MADE_FOR) <= set(PRESETS)
    for name in set(PRESETS) - set(MADE_FOR):
        assert at_hand(name, 1000) == {}
