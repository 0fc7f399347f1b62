from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from potstill.core.errors import PotstillError, UsageError
from potstill.report import numbers, write
from potstill.report.answers import confusion, disagreements, unique_names
from potstill.report.charts import round_steps, score_rows
from potstill.report.figures import draw
from potstill.report.files import read_run
from potstill.report.headline import budget_rows, good_files, key_numbers
from potstill.report.labels import place
from potstill.report.learning import close_up, curve
from potstill.report.numbers import THIN
from potstill.report.pictures import data_uri
from potstill.report.run_facts import again, file_rows
from potstill.report.scores import score_table

Page = Callable[[str], Path]
VOID = {"meta", "link", "img", "br", "hr", "input"}
SECTIONS = {
    "verdict",
    "scores",
    "budget",
    "costs",
    "training",
    "calibration",
    "confusion",
    "disagreements",
    "files",
    "data",
    "reproduce",
}


class Reader(HTMLParser):
    """Collects ids, tags and visible text, and checks that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.parts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.attributes.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if dict(attrs).get("id"):
            self.ids.append(str(dict(attrs)["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data + " "


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("images", set()),
        ("values", {"calibration", "confusion"}),
        ("partial", {"budget"}),
        ("unfinished", {"scores", "budget", "costs", "calibration", "confusion", "disagreements"}),
    ],
)
def test_every_section_is_there_that_the_run_has(page: Page, kind: str, missing: set[str]) -> None:
    reader = read(page(kind))
    assert len(SECTIONS) == 11
    assert SECTIONS & set(reader.ids) == SECTIONS - missing
    links = {str(values["href"])[1:] for tag, values in reader.attributes if tag == "a"}
    assert links - {"scores"} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids)), "an id is used twice"


LABEL_KINDS = ["digits", "unlabelled", "values", "texts", "many", "hostile"]


@pytest.mark.parametrize(
    "kind", ["images", "values", "partial", "unfinished", "hostile", *(f"label-{kind}" for kind in LABEL_KINDS)]
)
def test_the_page_is_one_small_file_without_scripts_or_addresses(page: Page, kind: str) -> None:
    html = page(kind).read_text(encoding="utf-8")
    assert len(html.encode()) < 700_000
    reader = read(page(kind))
    assert len(reader.tags) > 100
    assert not {"script", "iframe", "object", "embed", "base"} & set(reader.tags)
    for _, values in reader.attributes:
        for name, value in values.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("#", "data:"))
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    assert set(re.findall(r"https?://[^\"'\s<)]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_answer_comes_first_with_the_numbers_of_the_evaluation(page: Page) -> None:
    path = page("images")
    reader = read(path)
    found = json.loads((path.parent / "evaluation.json").read_text("utf-8"))
    assert found["verdict"]["headline"] in reader.text
    assert "Distillation helped" in reader.text
    assert "Misses the budget" in reader.text
    assert reader.text.index(found["verdict"]["headline"]) < reader.text.index("Measure")
    spaces = reader.text.replace("\u202f", " ")
    assert len(found["models"]) == 3
    for model in found["models"].values():
        low, high = model["intervals"]["accuracy"]
        assert f"{100 * model['metrics']['accuracy']:.1f} %" in spaces
        assert f"{100 * low:.1f} to {100 * high:.1f}" in spaces
    gain = found["differences"]["distilled-alone"]["accuracy"]
    assert f"+{100 * gain['value']:.1f} points" in spaces
    assert "78.0 k" in spaces
    assert "16\u00d7 fewer than the teacher" in spaces  # 1284906 / 78042 = 16.46
    assert "0.113 MB" in spaces
    assert "46\u00d7 smaller" in spaces  # 5164800 / 112930 = 45.7


def test_the_budget_is_judged_in_words(page: Page) -> None:
    rows = {row.name: row for row in budget_rows(read_run(page("images").parent))}
    assert {name: row.met for name, row in rows.items()} == {
        "Training of one student": True,  # 101 s of 2 min
        "Size of student.onnx": False,
        "Size of student-int8.onnx": False,
        "One sample with student.onnx": True,
        "One sample with student-int8.onnx": True,
    }
    assert "over the limit" in read(page("images")).text
    assert {row.met for row in budget_rows(read_run(page("values").parent))} == {True}
    assert rows["Size of student.onnx"].allowed == "0.1\u202fMB"


def test_a_refused_file_is_said_to_be_refused_and_never_counted(runs: ModuleType, tmp_path: Path) -> None:
    folder = runs.image_run(tmp_path / "refused", seeds=1, n=200, refused=True, recorded=False)
    files = read_run(folder)
    assert [(row.name, row.ok) for row in file_rows(files)] == [("student.onnx", True), ("student-int8.onnx", False)]
    assert file_rows(files)[1].reasons == ("agreement 95.1 % is below the limit of 97.0 %",)
    assert [file["file"] for file in good_files(files)] == ["student.onnx"]
    assert not any("int8" in row.name for row in budget_rows(files))
    assert files.evaluation is not None
    assert not any("int8" in tile.note for tile in key_numbers(files, files.evaluation))


def test_partial_runs_say_what_is_missing(page: Page) -> None:
    text = read(page("partial")).text
    assert "This student is not better" in text
    assert "Distillation did not help" not in text
    assert "No file was exported in this run" in text
    assert "The teacher came with its weights" in text
    assert "nothing to remark on" in text
    assert "<img" not in page("partial").read_text("utf-8")
    unfinished = read(page("unfinished")).text
    assert "Not evaluated yet" in unfinished
    assert "Failed: distilled-0." in unfinished


def test_times_are_compared_in_one_runtime_only(page: Page) -> None:
    files = read_run(page("images").parent)
    assert files.evaluation is not None
    assert key_numbers(files, files.evaluation)[-1].note == (
        "student-int8.onnx in ONNX Runtime · 28\u00d7 faster than the teacher in ONNX Runtime"
    )
    models = dict(files.evaluation.models)
    models["teacher"] = replace(models["teacher"], runtime="scikit-learn", onnx_latency_ms=None)
    other = replace(files.evaluation, models=models)
    assert key_numbers(files, other)[-1].note == (
        f"student-int8.onnx in ONNX Runtime · the teacher takes 11.8{THIN}ms in scikit-learn"
    )
    rows = {
        (row.label, row.meaning): [cell.value for cell in row.cells]
        for row in score_table(files, other).costs
        if row.label == "Time for 1 sample"
    }
    dash, student = numbers.DASH, f"1.31{THIN}ms"
    assert rows == {
        ("Time for 1 sample", "median, in PyTorch"): [student, "", student, dash],
        ("Time for 1 sample", "median, in scikit-learn"): [dash, "", dash, f"11.8{THIN}ms"],
        ("Time for 1 sample", "median, in ONNX Runtime, student-int8.onnx"): [f"0.190{THIN}ms", "", dash, dash],
    }


def test_reproduce_gives_what_does_reproduce(page: Page) -> None:
    files = read_run(page("images").parent)
    assert again(files).lines == (
        "cd '/home/someone/my project'",
        "potstill run recipe.yaml --set training.epochs=40 --out runs/images",
    )
    python = replace(files, run={**files.run, "command": "potstill.distill(...)"})
    assert again(python).lines == (
        "cd '/home/someone/my project'",
        f"cp {files.folder}/recipe.yaml again.yaml",
        f"potstill run again.yaml --out {files.folder}-again",
    )
    objects = again(replace(python, run={**python.run, "given": ["student", "objective"]}))
    assert objects.lines == ("potstill.distill(..., student, ..., objective=objective, ...)",)
    assert "objects that no recipe holds: student, objective" in objects.how
    older = {name: value for name, value in files.run.items() if name not in ("directory", "base", "given")}
    assert again(replace(files, run=older)).lines == (files.run["command"],)


def test_a_limit_that_was_not_measured_does_not_fit_and_equal_looking_numbers_get_digits(page: Page) -> None:
    files = read_run(page("images").parent)
    unmeasured = replace(files, exported=tuple({**file, "latency_ms": None} for file in files.exported))
    row = next(row for row in budget_rows(unmeasured) if row.name.startswith("One sample"))
    assert (row.measured, row.met) == ("not measured", None)
    near = tuple({**file, "latency_ms": {"1": {"p50": 0.5001}}} for file in files.exported)
    row = next(row for row in budget_rows(replace(files, exported=near)) if row.name.startswith("One sample"))
    assert (row.allowed, row.measured, row.met) == (f"0.5{THIN}ms", f"0.5001{THIN}ms", False)
    none = budget_rows(replace(files, exported=()))
    assert [row.met for row in none if "there is none" in row.name] == [None, None]


def test_the_confusion_map_says_what_its_colours_mean(page: Page) -> None:
    text = " ".join(read(page("images")).text.split())
    assert "more often distilled (+) more often alone (\u2212)" in text


def test_which_split_chose_what_is_said(page: Page) -> None:
    text = read(page("images")).text
    assert "Chooses which epoch of each model is kept." in text
    assert "Read once, for every number on this page" in text
    assert "total variation distance 0.13" in text


def test_text_of_users_stays_text(page: Page, runs: ModuleType) -> None:
    html = page("hostile").read_text(encoding="utf-8")
    assert runs.HOSTILE not in html
    assert "<script" not in html.lower()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    read(page("hostile"))


def test_every_chart_has_a_text_alternative_and_uses_the_pages_colours(page: Page) -> None:
    html = page("images").read_text(encoding="utf-8")
    charts = re.findall(r"<svg xmlns.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 18  # nine charts at two widths
    for chart in charts:
        assert 'role="img"' in chart
        label = re.search(r'aria-label="([^"]+)"', chart)
        assert label is not None
        assert len(label[1]) > 20
        assert "var(--" in chart
        assert not re.search(r'(?:fill|stroke)="(?:#|rgb|black|white|blue)', chart)
        assert 'width="' not in chart.split(">")[0]
        used, made = re.findall(r"url\(#([^)]+)\)", chart), re.findall(r'\bid="([^"]+)"', chart)
        assert set(used) <= set(made)
    assert len(re.findall(r"url\(#", html)) > 4


def test_the_pictures_are_those_of_the_run_in_order(page: Page) -> None:
    path = page("images")
    html = path.read_text(encoding="utf-8")
    uris = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    with np.load(path.parent / "disagreements.npz") as archive:
        pixels = archive["images"]
    assert len(uris) == len(pixels) == 24
    for uri, expected in zip(uris, pixels, strict=True):
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
        np.testing.assert_array_equal(drawn, expected)


def test_large_pictures_are_made_small_and_grey_ones_stay_grey() -> None:
    noise = np.random.default_rng(0)
    large = data_uri(noise.integers(0, 256, (300, 200, 3), dtype=np.uint8))
    grey = data_uri(noise.integers(0, 256, (8, 8, 1), dtype=np.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(large.split(",")[1])))
    assert image.size == (53, 80)
    assert len(large) < 12_000
    assert Image.open(io.BytesIO(base64.b64decode(grey.split(",")[1]))).mode == "L"


def test_pictures_of_another_evaluation_are_not_shown(page: Page, tmp_path: Path) -> None:
    shutil.copytree(page("images").parent, tmp_path / "run")
    np.savez(tmp_path / "run" / "disagreements.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    files = read_run(tmp_path / "run")
    assert files.evaluation is not None
    found = disagreements(files, files.evaluation)
    assert found is not None
    assert not found.pictures
    assert len(found.samples) == 24
    assert not any(sample.picture for sample in found.samples)


def test_the_page_says_whether_all_disagreements_are_listed(page: Page) -> None:
    files = read_run(page("images").parent)
    assert files.evaluation is not None
    few = replace(files.evaluation, disagreements=files.evaluation.disagreements[:3])
    for evaluation, said in ((files.evaluation, "24 of the test samples that got"), (few, "3 test samples got")):
        found = disagreements(files, evaluation)
        assert found is not None
        assert found.reading.startswith(f"{said} another class")


def test_dots_lie_where_the_numbers_say() -> None:
    values = {"teacher": 0.96, "alone": 0.88, "distilled": 0.91}
    records = [
        {"model": name, "label": name, "value": value, "low": value - 0.02, "high": value + 0.01, "seeds": []}
        for name, value in values.items()
    ]
    figure = draw("x", "t", "r", "a", lambda: score_rows(records, kind="percent", title="t"), height=200)
    marks = re.search(r'<g class="mark-symbol role-mark[^>]*>(.*?)</g>', figure.svg, flags=re.DOTALL)
    assert marks is not None
    places = [float(x) for x in re.findall(r"translate\(([\d.]+),", marks[1])]
    assert len(places) == 3
    teacher, alone, distilled = places
    assert (distilled - alone) / (teacher - alone) == pytest.approx((0.91 - 0.88) / (0.96 - 0.88), rel=1e-6)


def test_curves_are_thinned_but_keep_the_last_epoch(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(page("partial").parent, folder)
    lines = [json.dumps({"epoch": epoch, "train_loss": 1 / epoch}) for epoch in range(1, 1001)]
    (folder / "seeds" / "0" / "alone" / "history.jsonl").write_text("\n".join(lines), "utf-8")
    points = [p for p in curve(read_run(folder), "train_loss") if p["model"] == "alone"]
    assert 100 <= len(points) <= 160
    assert points[-1]["epoch"] == 1000


def test_not_a_number_is_left_out_of_curves(page: Page) -> None:
    files = read_run(page("images").parent)
    epochs = [p["epoch"] for p in curve(files, "validation_loss") if p["model"] == "teacher"]
    assert len(epochs) == 59
    assert 2 not in epochs


def test_the_close_up_starts_after_the_first_fifth() -> None:
    steep = [{"epoch": e, "value": 0.1 if e < 10 else 0.9 + e / 1000} for e in range(1, 51)]
    bounds = close_up(steep)
    assert bounds is not None
    assert 0.85 < bounds[0] < 0.91
    assert close_up([{"epoch": e, "value": e / 50} for e in range(1, 51)]) is None
    assert close_up([{"epoch": e, "value": e} for e in range(1, 5)]) is None


def test_round_steps_of_a_logarithmic_axis() -> None:
    assert round_steps(0.15, 7) == pytest.approx([0.2, 0.5, 1, 2, 5])
    assert round_steps(0.001, 200) == pytest.approx([0.001, 0.01, 0.1, 1, 10, 100])


def test_labels_of_near_points_keep_apart_and_stand_at_the_outer_point() -> None:
    points = [(20.0, 100.0), (40.0, 102.0), (30.0, 104.0), (30.0, 230.0), (300.0, 5.0)]
    places = place(points, width=330, height=240)
    assert [spot.beside for spot in places] == [1, 1, 1, 1, 4]
    assert [spot.right for spot in places] == [True, True, True, True, False]
    assert [spot.y for spot in places] == pytest.approx([87, 102, 117, 230, 5])
    bottom = place([(10.0, 236.0), (12.0, 238.0)], width=330, height=240)
    assert bottom[1].y - bottom[0].y == pytest.approx(15)
    assert bottom[1].y <= 240


def test_long_and_equal_class_names_stay_different() -> None:
    names = unique_names(["a" * 40 + "1", "a" * 40 + "2", "a" * 20 + "x" + "a" * 20 + "1", "short"])
    assert len(set(names)) == 4
    assert max(map(len, names)) <= 17


def test_many_classes_show_those_that_changed_most(runs: ModuleType, tmp_path: Path) -> None:
    classes = tuple(f"class {number}" for number in range(40))
    folder = runs.image_run(tmp_path / "many", seeds=1, classes=classes, n=300, recorded=False, exported=False)
    files = read_run(folder)
    assert files.evaluation is not None
    found = confusion(files.evaluation)
    assert found is not None
    assert (found.shown, found.total, len(found.mistakes)) == (20, 40, 8)


def test_writing_again_gives_the_same_page(page: Page) -> None:
    before = page("partial").read_bytes()
    write(page("partial").parent)
    assert page("partial").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no run\.json"):
        write(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        write(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", b"{"),
        ("recipe.yaml", b"a: [1"),
        ("disagreements.npz", b"not a zip"),
    ],
)
def test_a_damaged_file_is_named(page: Page, tmp_path: Path, name: str, content: bytes) -> None:
    shutil.copytree(page("partial").parent, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(PotstillError, match=re.escape(name) + " is damaged"):
        write(tmp_path / "run")


def test_without_the_extra_the_error_says_what_to_install(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(PotstillError, match=re.escape('pip install "potstill[report]"')):
        write(page("partial").parent)
