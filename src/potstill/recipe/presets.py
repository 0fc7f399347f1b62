"""Recipes to start from, one for each kind of data; ``potstill init`` fills them in."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from potstill.core.errors import UsageError, did_you_mean
from potstill.recipe.yaml import scalar


@dataclass(frozen=True)
class Preset:
    """A commented recipe with places for the user's own data and models.

    Attributes:
        name: what ``potstill init --task`` calls it.
        summary: one line for a list of presets.
        data: where the samples are, when the user says nothing else.
        teacher: the teacher's model.
        student: the student's model.
        template: the recipe, with ``$data``, ``$teacher``, ``$teacher_source`` and ``$student`` to be filled in.
        teacher_training: the value of ``teacher.train`` when the teacher comes without weights.

    """

    name: str
    summary: str
    data: str
    teacher: str
    student: str
    template: str
    teacher_training: str


_DIGITS = Preset(
    name="digits",
    summary="a demonstration on 1,797 handwritten digits; nothing to download",
    data="digits",
    teacher="cnn",
    student="cnn",
    teacher_training="{epochs: 40, batch_size: 64}",
    template="""\
# A demonstration: a large network for 8x8 pictures of handwritten digits is trained,
# then small ones learn, alone and from it. Runs on a laptop's processor in a few minutes.
task: classification
seeds: 3\t# students trained each way; 3 or more for a claim
data:
  train: $data\t# comes with scikit-learn; validation and test are split off
  augment: {crop: 1}\t# random views of the training images
teacher:
  model: $teacher
  args: {width: 64}
$teacher_source
student:
  model: $student
  args: {width: 6}
training: {epochs: 40, batch_size: 64}
budget: {megabytes: 0.1}\t# largest exported file; the report says whether it is met
""",
)

_IMAGES = Preset(
    name="images",
    summary="image classification: a folder with one sub-folder of images per class",
    data="images",
    teacher="resnet56",
    student="resnet20",
    teacher_training="{epochs: 60}",
    template="""\
# Distils an image classifier. Paths are relative to this file.
task: classification
data:
  train: $data\t# one sub-folder per class; 'test:' and 'validation:' may be given too
  image_size: 32\t# side in pixels that all images are resized to
  augment: {crop: 4, flip: true}\t# random views of the training images
teacher:
  model: $teacher\t# a name from potstill.models.zoo, or 'my_models.py:build'
$teacher_source
  # preprocess: {mean: [0.49, 0.48, 0.45], std: [0.25, 0.24, 0.26]}   # what the given weights were trained with
student:
  model: $student
training:
  epochs: 60
budget:
  megabytes: 2\t# largest exported file; the report says whether it is met
""",
)

_TABLE = Preset(
    name="table",
    summary="classification of table rows: a CSV, Parquet or JSONL file",
    data="table.csv",
    teacher="mlp",
    student="mlp",
    teacher_training="{epochs: 60}",
    template="""\
# Distils a classifier for table rows. Paths are relative to this file.
task: classification
data:
  train: $data\t# columns of numbers or texts; validation and test are split off when not given
  target: label\t# the column with the class
teacher:
  model: $teacher\t# a name from potstill.models.zoo, or 'my_models.py:build'
  args: {hidden: [256, 256]}\t# keyword arguments of the model
$teacher_source
student:
  model: $student
  args: {hidden: [32]}
training: {epochs: 60, patience: 10}\t# stops after 10 epochs without a better validation
""",
)

_REGRESSION = Preset(
    name="regression",
    summary="regression on table rows: the target column holds numbers",
    data="table.csv",
    teacher="mlp",
    student="mlp",
    teacher_training="{epochs: 60}",
    template="""\
# Distils a regression model for table rows. Paths are relative to this file.
task: regression
data:
  train: $data\t# columns of numbers or texts; validation and test are split off when not given
  target: value\t# the column to predict
teacher:
  model: $teacher\t# a name from potstill.models.zoo, or 'my_models.py:build'
  args: {hidden: [256, 256]}\t# keyword arguments of the model
$teacher_source
student:
  model: $student
  args: {hidden: [32]}
training: {epochs: 60, patience: 10}\t# stops after 10 epochs without a better validation
""",
)

PRESETS = (_DIGITS, _IMAGES, _TABLE, _REGRESSION)


def find_preset(name: str) -> Preset:
    """Return the preset called ``name``.

    Raises:
        UsageError: there is none; names the closest one.

    """
    for preset in PRESETS:
        if preset.name == name:
            return preset
    raise UsageError(f"There is no starting recipe '{name}'.{did_you_mean(name, [p.name for p in PRESETS])}")


def starting_recipe(
    preset: Preset,
    *,
    data: str | None = None,
    teacher: str | None = None,
    weights: str | None = None,
    student: str | None = None,
) -> str:
    """Return the text of a commented recipe.

    Args:
        preset: the recipe to start from.
        data: where the samples are, as ``data.train``; the preset's own when None.
        teacher: the teacher's model, a zoo name or a function; the preset's own when None.
        weights: the teacher's weights; without them the teacher is trained on the same data first.
        student: the student's model; the preset's own when None.

    Returns:
        YAML text with at most 15 lines that are not comments. Arguments of the preset's own models are left out
        for models of the user.

    """
    text = preset.template
    if teacher not in (None, preset.teacher):
        text = _without_arguments(text, "teacher")
    if student not in (None, preset.student):
        text = _without_arguments(text, "student")
    filled = Template(text).substitute(
        data=scalar(data or preset.data),
        teacher=scalar(teacher or preset.teacher),
        teacher_source=_teacher_source(preset, weights),
        student=scalar(student or preset.student),
    )
    return "".join(_aligned(line) for line in filled.splitlines(keepends=True))


def _aligned(line: str) -> str:
    """Put the comment that follows a tab into the comments' column."""
    value, tab, comment = line.partition("\t")
    return f"{value:<34}  {comment}" if tab else line


def _teacher_source(preset: Preset, weights: str | None) -> str:
    if weights is None:
        return f"  train: {preset.teacher_training}\t# or the file of a trained one: 'weights: teacher.safetensors'"
    lines = [f"  weights: {scalar(weights)}"]
    if not weights.endswith(".safetensors"):
        lines.append("  allow_pickle: true\t# a torch file; read with weights_only=True")
    return "\n".join(lines)


def _without_arguments(text: str, section: str) -> str:
    """Remove the ``args`` line of a section: a model of the user's own has other arguments."""
    lines, inside, kept = text.splitlines(), False, []
    for line in lines:
        if line and not line.startswith((" ", "#")):
            inside = line.startswith(f"{section}:")
        if not (inside and line.startswith("  args:")):
            kept.append(line)
    return "\n".join(kept) + "\n"
