"""The model card: a README.md in Hugging Face's format, written from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from potstill.core.files import read_json, write_text
from potstill.core.text import kind_and_column
from potstill.export.weights import CONFIG
from potstill.tasks.kinds import KINDS, about

_LISTED = 30
_MODELS = (
    ("teacher", "Teacher"),
    ("alone", "Student alone"),
    ("pseudo", "Student on teacher's labels"),
    ("distilled", "Student distilled"),
)


def write_card(folder: Path, *, evaluation: Mapping[str, Any], recipe: str = "", name: str = "") -> Path:
    """Write ``README.md`` into an export folder, ready for the Hugging Face Hub.

    The licence is left out: it depends on the data and the teacher, and only their owner knows it.

    Args:
        folder: the export folder; its ``student.json`` and ``parity.json`` are read when they are there.
        evaluation: the content of ``evaluation.json``.
        recipe: the resolved recipe as YAML, shown in the card.
        name: the model's name; the recipe's hash when absent.

    Returns:
        The path of the card.

    """
    folder = Path(folder)
    student = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    parity = read_json(folder / "parity.json") if (folder / "parity.json").is_file() else {}
    files = [entry for entry in parity.get("files", []) if entry["ok"]]
    seed = parity.get("seed", evaluation["seeds"][0])
    name = name or f"potstill-student-{student.get('recipe_hash') or 'model'}"
    sections = [
        f"# {name}",
        evaluation["verdict"]["headline"],
        "\n".join(f"- {sentence}" for sentence in evaluation["verdict"]["sentences"]),
        "\n".join(f"- Warning: {warning}" for warning in evaluation["verdict"].get("warnings", ())),
        "## Results",
        f"Test split, {evaluation['num_examples']:,} examples; checkpoints were chosen on the "
        f"{evaluation['chosen_on']} split. 95 % intervals in brackets. A student's scores are averages over the seeds "
        f"{', '.join(map(str, evaluation['seeds']))}; this folder holds the distilled student of seed {seed}.",
        _results(evaluation["models"]),
        *_files(files),
        "## Use",
        *_features(recipe),
        _use(student, files),
        *_columns(student),
        *(["## Recipe", f"```yaml\n{recipe.strip()}\n```"] if recipe.strip() else []),
    ]
    metadata = _front(name, evaluation, student, recipe, seed, bool(files))
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    path = folder / "README.md"
    write_text(path, f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n")
    return path


def _front(
    name: str, evaluation: Mapping[str, Any], student: Mapping[str, Any], recipe: str, seed: int, onnx: bool
) -> dict[str, Any]:
    """Return the card's metadata as the Hub reads it; the scores are those of the one student in the folder."""
    image = len(student.get("input", {}).get("shape", ())) == 3
    kind = f"{'image' if image else 'tabular'}-{evaluation['task']}"
    index = list(evaluation["seeds"]).index(seed)
    per_seed = evaluation["models"]["distilled"]["per_seed"]
    measured = {metric: values[index] for metric, values in per_seed.items()}
    shown = _listed(measured)
    dataset = _dataset(recipe)
    return {
        "library_name": "potstill",
        # The Hub knows no task of predicting numbers from images.
        **({} if kind == "image-regression" else {"pipeline_tag": kind}),
        "tags": ["potstill", "knowledge-distillation", *(["onnx"] if onnx else [])],
        "metrics": list(dict.fromkeys(map(_hub_type, shown))),
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": kind},
                        "dataset": {"name": dataset, "type": dataset, "split": evaluation["split"]},
                        "metrics": [
                            {"type": _hub_type(metric), "name": _title(metric), "value": measured[metric]}
                            for metric in shown
                        ],
                    }
                ],
            }
        ],
    }


def _listed(metrics: Mapping[str, float]) -> list[str]:
    """Return the metrics that the card shows, in its order; errors of several columns follow each other."""
    own = [kind for kind in KINDS if not KINDS[kind].compares]
    return [metric for kind in own for metric in metrics if kind_and_column(metric)[0] == kind]


def _title(metric: str) -> str:
    column, word = kind_and_column(metric)[1], about(metric).word
    return word[0].upper() + word[1:] + ("" if column is None else f", column {column}")


def _hub_type(metric: str) -> str:
    return about(metric).hub or kind_and_column(metric)[0]


def _dataset(recipe: str) -> str:
    """Return the data's name without the folders it lies in, which are nobody else's business."""
    section = (yaml.safe_load(recipe) or {}).get("data", {}) if recipe.strip() else {}
    source = section.get("train") if isinstance(section, Mapping) else None
    return Path(source).name if isinstance(source, str) and Path(source).name else "custom"


def _features(recipe: str) -> list[str]:
    """Return what has to be said of a head on another model's features."""
    section = (yaml.safe_load(recipe) or {}).get("student", {}) if recipe.strip() else {}
    layer = section.get("on_features") if isinstance(section, Mapping) else None
    if not layer:
        return []
    return [
        f"This is a head alone. Its inputs are not samples but the signal of the teacher's layer `{layer}`: run the "
        "teacher up to that layer in front of it."
    ]


def _results(models: Mapping[str, Any]) -> str:
    metrics = _listed(models["distilled"]["metrics"])
    shown = [(model, title) for model, title in _MODELS if model in models]
    rows = [["", *(title for _, title in shown)]]
    for metric in metrics:
        cells = [_title(metric)]
        for model, _ in shown:
            value = models[model]["metrics"].get(
                metric
            )  # a teacher that is not asked about validation has no temperature
            low, high = models[model]["intervals"].get(metric, (None, None))
            cells.append("-" if value is None else f"{_number(value)} ({_number(low)} to {_number(high)})")
        rows.append(cells)
    for title, key, scale, text in (
        ("Parameters", "parameters", 1, "{:,}"),
        ("Weights", "bytes", 1e6, "{:.3g} MB"),
        ("Operations a sample", "flops", 1e6, "{:.3g} MFLOP"),
    ):
        held = [models[model][key] for model, _ in shown]
        rows.append([title, *("-" if one is None else text.format(one / scale if scale > 1 else one) for one in held)])
    return _table(rows)


def _number(value: float | None) -> str:
    if value is None:  # an end of an interval that is infinite
        return "-"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _files(files: Sequence[Mapping[str, Any]]) -> list[str]:
    if not files:
        return []
    rows = [["File", "Size", "Agreement with torch", "Largest difference", "One sample (p50)", "32 samples (p50)"]]
    for entry in files:
        times = entry.get("latency_ms") or {}
        rows.append(
            [
                f"`{entry['file']}`",
                f"{entry['bytes'] / 1e6:.3g} MB",
                f"{entry['agreement']:.4f}",
                f"{entry['max_abs_difference']:.2g}",
                *(f"{times[size]['p50']:.3g} ms" if size in times else "-" for size in ("1", "32")),
            ]
        )
    return ["## Files", "Each file was run on the whole test split and compared with the model.", _table(rows)]


def _use(student: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> str:
    given = student.get("input", {})
    shape = ", ".join(map(str, given.get("shape", ["..."])))
    kind = given.get("dtype") or "raw"
    lines = [f"The model takes {kind} inputs of shape (batch, {shape}), as the data has them: preprocessing is inside."]
    if student.get("classes"):
        lines.append(f"Its {len(student['classes'])} classes are listed in `{CONFIG}`, in the order of the outputs.")
    if student.get("temperature"):
        temperature = student["temperature"]
        lines.append(
            "Its ONNX files answer `logits` and `probabilities`: softmax(logits), as no temperature lowered log loss "
            "on the validation split."
            if temperature == 1
            else "Its ONNX files answer `logits` and calibrated `probabilities`: softmax(logits / temperature), with "
            f"the temperature {temperature:.4g}, fitted on the validation split."
        )
    code = []
    if files:
        code += [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{files[0]["file"]}")',
            'outputs = session.run(None, {"input": inputs})[0]',
            "",
        ]
    passed = "" if student.get("model") else ", model=MyModel()"
    code += ["import potstill", f'student = potstill.load_student("."{passed})', "outputs = student(inputs)"]
    return "\n\n".join([" ".join(lines), "```python\n" + "\n".join(code) + "\n```"])


def _columns(student: Mapping[str, Any]) -> list[str]:
    """Return what has to be known to make inputs from a table."""
    columns = student.get("columns") or ()
    if not columns:
        return []
    rows, first = [["Column", "Type", "Numbers of a sample", "How"]], 0
    for column in columns:
        last = first + column["width"] - 1
        categories = column["categories"]
        if categories is not None:
            listed = ", ".join(f"`{category}`" for category in categories[:_LISTED])
            how = f"1 for its own, in this order: {listed}" + (" ..." if len(categories) > _LISTED else "")
        elif column["offset"] or column["scale"] != 1:
            how = f"(value - {column['offset']:.17g}) / {column['scale']:g}, in 64 bits"
        else:
            how = "as it is"
        rows.append([column["name"], column["type"], f"{first}" if first == last else f"{first} to {last}", how])
        first = last + 1
    text = (
        f"The model learned on a table. `student(frame)` and `OnnxModel(file)(frame)` take its columns by name, in any "
        f"order; any other runtime takes these numbers. The same stands in `{CONFIG}` and in the metadata of the ONNX "
        "files, under `columns`. Rows with missing values were not learned on, and a category that is not listed is 0 "
        "everywhere."
    )
    return ["## Columns", text, _table([[cell.replace("|", "\\|") for cell in row] for row in rows])]


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
