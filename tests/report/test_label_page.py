"""What the label page says, and that it says only what ``label.json`` holds."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from potstill.core.errors import PotstillError, UsageError
from potstill.core.files import read_json, write_json
from potstill.evaluation.labelling import LabelFacts
from potstill.report import numbers
from potstill.report.label_figures import codec_figure, histogram_figure
from potstill.report.label_page import key_numbers, storage_facts, write_label_page
from potstill.report.label_tables import (
    angle,
    class_scores,
    class_table,
    fidelity_table,
    judged_split,
    pairs_table,
    share,
    size,
    text_table,
)

Page = Callable[[str], Path]
SECTIONS = {
    "warnings",
    "hope",
    "stored",
    "teacher",
    "classes",
    "mistakes",
    "labels",
    "residuals",
    "views",
    "texts",
}


def text_of(path: Path) -> str:
    """Return the visible text with plain spaces."""
    html = path.read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", html, flags=re.DOTALL)
    plain = unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u202f", " ").replace("\u2212", "-")
    return re.sub(r"\s+", " ", plain)


def facts_of(path: Path) -> LabelFacts:
    return LabelFacts.from_json(read_json(path.with_name("label.json")))


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("digits", SECTIONS - {"warnings", "residuals", "texts"}),
        ("unlabelled", {"hope", "stored", "teacher"}),
        ("values", {"hope", "stored", "teacher", "residuals"}),
        ("texts", {"warnings", "hope", "stored", "texts"}),
        ("many", {"warnings", "stored", "teacher", "classes", "mistakes"}),
    ],
)
def test_every_section_is_there_that_the_recording_has(page: Page, kind: str, sections: set[str]) -> None:
    html = page(f"label-{kind}").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', html)
    links = set(re.findall(r'<a href="#([^"]+)"', html))
    assert len(SECTIONS) == 10
    assert SECTIONS & set(ids) == sections
    assert links == sections | {"stored"}
    assert len(ids) == len(set(ids)), "an id is used twice"


def test_the_page_says_the_numbers_of_its_file(page: Page) -> None:
    path = page("label-digits")
    found, text = facts_of(path), text_of(path)
    train, held = found.splits["train"], found.splits["validation"]
    assert found.headline in text
    for hope in found.hopes:
        assert hope in text
    for scores in (train, held):
        low, high = scores["accuracy_interval"]
        assert f"{100 * scores['accuracy']:.1f} % {100 * low:.1f} to {100 * high:.1f}" in text
        for key in ("ece", "majority", "confidence", "off_top"):
            assert f"{100 * scores[key]:.1f} %" in text
        assert f"{scores['entropy_bits']:#.3g}" in text
    assert "9.5 B" in text  # 17 kB, 898 samples, 2 views
    assert f"4.2{numbers.TIMES} smaller than float32" in text  # 71.84 kB
    assert "no inputs and no labels" in text
    assert "Nothing to warn about" in text
    assert found.label_errors is not None
    assert f"{found.label_errors['num']} labels are suspect" in text
    assert "learned part of their errors by heart" in text
    assert "only the validation column says how it does on new data" in text
    for sample in (*found.mistakes, *found.label_errors["worst"]):
        assert sample["name"] in text


def test_warnings_come_before_everything_else(page: Page) -> None:
    path = page("label-many")
    text = text_of(path)
    assert "Look at this before you train" in text
    assert "3 warnings" in text
    assert "The order of the classes looks permuted: with 120 classes moved" in text
    assert text.index("As it stands, nothing") < text.index("looks permuted") < text.rindex("What is stored")
    assert "It is not known whether the teacher was trained on these training samples" in text
    assert "Likely label errors" not in text
    assert "The 30 classes it finds least often" in text


def test_fidelity_is_told_by_form_with_the_chosen_one_marked(page: Page) -> None:
    table = fidelity_table(facts_of(page("label-digits")))
    assert table is not None
    assert len(table.heads) == 6
    rows = {row.label: (row.meaning, [cell.value.replace("\u202f", " ") for cell in row.cells]) for row in table.rows}
    assert rows["top_k 3"] == ("chosen", ["9 B", "0.021", "11.2°", "1.04", "1.3 %"])
    assert rows["random 12"] == ("", ["7.5 B", numbers.DASH, "21.0°", "1.01", "6.0 %"])
    assert rows["float16"][1][2] == "0.020°"
    assert codec_figure([{"codec": "one", "bytes": 3, "angle": 1.0, "chosen": True}]) is None


def test_the_mistakes_are_those_of_validation_where_the_teacher_has_seen_the_rest(page: Page) -> None:
    found = facts_of(page("label-digits"))
    assert judged_split(found) == "validation"
    table, classes = pairs_table(found), class_table(found)
    assert table is not None
    assert classes is not None
    best = found.splits["validation"]["pairs"][0]
    assert table.rows[0].label == f"{best['label']} → {best['teacher']}"
    assert table.rows[0].cells[0].value == str(best["count"])
    recalls = [row["recall"] for row in found.splits["validation"]["per_class"]]
    assert classes.rows[0].label == str(int(np.argmin(recalls)))
    assert judged_split(facts_of(page("label-many"))) == "train"
    assert judged_split(facts_of(page("label-unlabelled"))) == ""
    heads = class_scores(found).heads
    assert heads == ("Measure", "Training, 898", "Validation, 899")


def test_texts_say_what_they_cost(page: Page) -> None:
    path = page("label-texts")
    found, text = facts_of(path), text_of(path)
    assert found.text is not None
    rows = {row.label: row.cells[0].value for row in text_table(found.text).rows}
    assert rows["Tokens sent"] == "123,456"
    assert rows["Cost"] == "1.375"
    assert "14.0 % of the answers were cut off" in text
    assert "stop 430 86.0 %" in text
    tiles = key_numbers(found)
    assert [tile.label for tile in tiles] == ["Asked", "Each token takes", "Cost", "On disk"]


@pytest.mark.parametrize("kind", ["digits", "unlabelled", "values", "texts", "many", "hostile"])
def test_four_tiles_fill_the_strip(page: Page, kind: str) -> None:
    tiles = key_numbers(facts_of(page(f"label-{kind}")))
    assert len(tiles) == 4
    assert len({tile.label for tile in tiles}) == 4
    assert all(tile.value for tile in tiles)


def test_values_show_residuals_and_no_classes(page: Page) -> None:
    path = page("label-values")
    found, text = facts_of(path), text_of(path)
    assert f"R² = {found.splits['validation']['r2']:.3f}" in text
    assert "Answer minus label: training" in text
    assert "1e+2" not in path.read_text("utf-8")
    worst = found.residuals[0]
    assert f"id {worst['id']}" in text
    assert "Mean error answer minus label 0 " in text  # a ridge fit leaves rounding noise there


def test_text_of_users_stays_text(page: Page, runs: ModuleType) -> None:
    html = page("label-hostile").read_text(encoding="utf-8")
    assert runs.HOSTILE not in html
    assert "<script" not in html.lower()
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10


def test_every_chart_has_a_text_alternative_and_uses_the_pages_colours(page: Page) -> None:
    html = page("label-digits").read_text(encoding="utf-8")
    charts = re.findall(r"<svg xmlns.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 16  # eight charts at two widths
    for chart in charts:
        label = re.search(r'role="img" aria-label="([^"]+)"', chart)
        assert label is not None
        assert len(label[1]) > 20
        assert "var(--" in chart
        assert not re.search(r'(?:fill|stroke)="(?:#|rgb|black|white|blue)', chart)
        used, made = re.findall(r"url\(#([^)]+)\)", chart), re.findall(r'\bid="([^"]+)"', chart)
        assert set(used) <= set(made)


def test_bars_are_as_high_as_their_share() -> None:
    figure = histogram_figure("x", "t", "r", {"edges": [0, 1, 2, 3], "counts": [10, 0, 30]}, axis="Bits")
    assert figure is not None
    group = re.search(r'<g class="mark-rect role-mark[^>]*>(.*?)</g>', figure.svg, flags=re.DOTALL)
    assert group is not None
    sides = [re.findall(r"[hv]([\d.]+)", path)[:2] for path in re.findall(r' d="([^"]+)"', group[1])]
    (wide, low), (_, none), (as_wide, high) = [[float(side) for side in pair] for pair in sides]
    assert none == 0
    assert high / low == pytest.approx(3, rel=1e-3)
    assert wide == pytest.approx(as_wide)
    assert histogram_figure("x", "t", "r", {"edges": [0, 1], "counts": [0]}, axis="Bits") is None


def test_pictures_are_shown_beside_the_samples_they_are_of(page: Page, recordings: ModuleType) -> None:
    path = page("label-digits")
    html = path.read_text(encoding="utf-8")
    found = facts_of(path)
    assert found.label_errors is not None
    shown = [*found.mistakes, *found.label_errors["worst"]]
    uris = re.findall(r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="Sample ([^,]+),', html)
    assert len(uris) == len(shown) > 24
    images = recordings.digits()["images"]
    for (uri, name), sample in zip(uris, shown, strict=True):
        assert name == sample["name"]
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
        np.testing.assert_array_equal(drawn, images[sample["id"]][:, :, 0])


def test_without_pictures_the_samples_are_a_table(page: Page, tmp_path: Path) -> None:
    html = page("label-hostile").read_text("utf-8")
    assert "<img" not in html
    assert 'aria-label="Table of likely label errors"' in html
    shutil.copy(page("label-unlabelled").with_name("label.json"), tmp_path)
    (tmp_path / "label-samples.npz").write_bytes(b"not a zip")
    with pytest.raises(PotstillError, match=r"label-samples\.npz is damaged"):
        write_label_page(tmp_path)


def test_writing_again_gives_the_same_page(page: Page) -> None:
    path = page("label-unlabelled")
    before = path.read_bytes()
    assert write_label_page(path.parent) == path
    assert path.read_bytes() == before


def test_a_folder_without_facts_is_refused_and_a_damaged_one_named(page: Page, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no label\.json"):
        write_label_page(tmp_path)
    (tmp_path / "label.json").write_text("{", "utf-8")
    with pytest.raises(PotstillError, match=r"label\.json is damaged"):
        write_label_page(tmp_path)
    content = json.loads(page("label-values").with_name("label.json").read_text("utf-8"))
    write_json(tmp_path / "label.json", content | {"unknown": 1})
    with pytest.raises(PotstillError, match=r"label\.json is damaged"):
        write_label_page(tmp_path)


def test_without_the_extra_the_error_says_what_to_install(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = page("label-unlabelled").parent
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(PotstillError, match=re.escape('pip install "potstill[report]"')):
        write_label_page(folder)


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.5, "7.5 B"), (20.0, "20 B"), (999, "999 B"), (13_400, "13.4 kB"), (2.9e5, "0.290 MB"), (5.1e9, "5.10 GB")],
)
def test_sizes_have_the_unit_that_suits_them(value: float, text: str) -> None:
    assert size(value).replace("\u202f", " ") == text


def test_small_shares_and_angles_keep_digits() -> None:
    assert share(0.00012).replace("\u202f", " ") == "0.012 %"
    assert share(0.0) == "0.0\u202f%"
    assert (angle(0.0004), angle(12.34), angle(None)) == ("0.00040°", "12.3°", numbers.DASH)


def test_storage_says_tokens_where_there_are_some(page: Page) -> None:
    rows = dict(storage_facts(facts_of(page("label-many"))))
    assert rows["Tokens"] == "40,000"
    assert rows["A token"].replace("\u202f", " ") == "1.2 B"
