"""What each stage's result depends on: equal inputs, equal result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from potstill.core import fingerprint
from potstill.core.source import digests, files_of, typed_code
from potstill.data import Data
from potstill.objective import Schedule
from potstill.pipeline.build import Job
from potstill.pipeline.inputs import Inputs, settings_of
from potstill.pipeline.racing import teacher_stage
from potstill.pipeline.student import KINDS, Arm, Kind, Student
from potstill.recipe.schema import Member, Model
from potstill.teachers.at_rest import TorchModel, modules_of
from potstill.teachers.model import Source
from potstill.training.spec import NOT_IN_WEIGHTS

_WHERE = (
    "answers_checked",
    "model",
    "weights",
    "allow_pickle",
    "file",
    "endpoint",
    "python",
    "train",
    "args",
    "preprocess",
    "taps",
)
_PROGRESS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def seeds(job: Job) -> tuple[int, ...]:
    """Return the seeds of the students."""
    return tuple(job.recipe.seed + offset for offset in range(job.recipe.seeds))


def kinds(job: Job) -> tuple[Kind, ...]:
    """Return the students of each seed.

    ``pseudo`` where samples have no label and the teacher gives classes, ``alone`` where any has one.
    """
    train, signals = job.data.train, job.objective.teacher_signals
    answered = train.labelled is not None and job.has_teacher and job.comparable and "logits" in signals
    left_out = {"pseudo": not answered, "alone": not train.num_labelled}
    return tuple(kind for kind in KINDS if not left_out.get(kind))


def teachers_of(job: Job) -> list[int]:
    """Return the teachers that are trained here: numbers of members, then 0 for the teacher, or the members' head."""
    members = [number for number, member in enumerate(job.members, 1) if member.train is not None]
    own = job.has_teacher and (job.teacher.train is not None or job.teacher.merge.concatenate is not None)
    return members + ([0] if own else [])


def teacher_folder(number: int) -> str:
    """Return where a teacher that is trained here lies in the run folder, see `teachers_of`."""
    return f"teacher/{number}" if number else "teacher"


def student_runs(job: Job) -> Iterator[tuple[int, Kind]]:
    """Yield every student to train, in order."""
    for seed in seeds(job):
        for kind in kinds(job):
            yield seed, kind


def stage_name(seed: int, kind: Kind) -> str:
    """Return the name of a student's stage, for example ``student alone, seed 0``."""
    return f"student {kind}, seed {seed}"


def store_name(job: Job, link: int) -> str:
    """Return the name of the stage that records the teacher (0) or a model of the chain."""
    return f"store of {job.chain[link - 1].name}" if link else "store"


@dataclass(frozen=True)
class Keys:
    """The inputs of every stage of a job; asked for when the stages before it have their results.

    A new setting enters the inputs of the stages that it changes here, as ``settings_of`` its section; a new stage gets
    a method, and its name stands under ``stages`` in the inputs of those that read its result.

    Attributes:
        job: the job.
        results: a digest of each finished stage's result by its name; filled as stages finish.
        answers: returns a digest of what the teacher answers; an empty text before it is trained.

    """

    job: Job
    results: dict[str, str] = field(default_factory=dict)
    answers: Callable[[], str] = str
    _made: dict[Any, Inputs] = field(default_factory=dict)

    def features(self, layer: str) -> Inputs:
        """Of what one of the teacher's layers says of the samples."""
        return self._source(0) | self._data() | Inputs({"student.on_features": layer})

    def store(self, link: int = 0) -> Inputs:
        """Of what the teacher, or the i-th model of a chain, says of the samples; its key names the store."""
        job = self.job
        signals = {"signals that are read": sorted(job.objective.teacher_signals), "teacher.taps": job.teacher.taps}
        settings = {**settings_of(job.recipe.store, "store", without=("path", "accept_loss")), **signals}
        return self._source(link) | self._data(self.job.data.with_every_label()) | Inputs(settings)

    def privacy(self) -> Inputs:
        """Of what the votes of private teachers cost."""
        return self.after("store") | Inputs({"teacher.votes": self.job.teacher.votes})

    def pool(self) -> Inputs:
        """Of the teacher's likeliest classes of the samples without a label."""
        return self._answered(0) | self._data() | Inputs({"data.min_confidence": self.job.recipe.data.min_confidence})

    def predictions(self) -> Inputs:
        """Of what all models answer to the test split."""
        models = [link.name for link in self.job.chain] + [stage_name(*one) for one in student_runs(self.job)]
        return self._asked() | Inputs(parts={"the data": self.job.data.fingerprint}) | self.after(*models)

    def export(self) -> Inputs:
        """Of the files to deploy."""
        recipe = self.job.recipe
        measured = settings_of(recipe.evaluation, "evaluation", without=("batch_size",))
        settings = {**settings_of(recipe.export, "export"), **measured, **settings_of(recipe.budget, "budget")}
        return self.after("predictions") | Inputs(settings)  # the budget says which file is recommended

    def evaluation(self) -> Inputs:
        """Of the numbers and the verdict."""
        recipe = self.job.recipe
        settings = {**settings_of(recipe.evaluation, "evaluation"), **settings_of(recipe.budget, "budget")}
        settings["data.classes"] = list(self.job.data.classes)
        return self.after("predictions", "export") | Inputs(settings)

    def back(self) -> Inputs:
        """Of what the student gives back to the teacher."""
        recipe = self.job.recipe
        students = [stage_name(seed, "distilled") for seed in seeds(self.job)]
        settings = settings_of(recipe.back_to_teacher, "back_to_teacher") | {
            "training.batch_size": recipe.training.batch_size,
            "training.precision": recipe.training.precision,
        }
        return self._asked() | self._data() | self.after(*students) | Inputs(settings)

    def after(self, *stages: str) -> Inputs:
        """Of earlier stages: their results."""
        return Inputs(stages={name: self.results.get(name) for name in stages})

    def _data(self, data: Data | None = None) -> Inputs:
        recipe, data = self.job.recipe, data or self.job.data
        settings = {**settings_of(recipe.data.augment, "data.augment"), "seed": recipe.seed}
        if self.job.task.has_units:
            settings["data.standardise_targets"] = recipe.data.standardise_targets
        return Inputs(settings, {"the data": data.fingerprint})

    def _model(self, name: str, made: Any, make: Callable[[], Source], written: Iterable[Any] = ()) -> Inputs:
        """Return what a model is: its modules, the weights it starts from, and the code of both."""
        if (name, made) not in self._made:
            model = make()
            state = {name: value for name, value in model.state().items() if not nn.parameter.is_lazy(value)}
            parts = {
                f"the layers of {name}": fingerprint.of_json(str(model)),
                f"the starting weights of {name}": fingerprint.of_state(state),
            }
            classes = {type(module) for module in modules_of(model)}
            files = digests(files_of([*written, *classes], base=self.job.base), base=self.job.base)
            self._made[name, made] = Inputs(parts=parts, files=files)
        return self._made[name, made]

    def teacher(self, number: int) -> Inputs:
        """Of a teacher that is trained here; of several the i-th, counted from 1; the choice of its rates aside."""
        section, model = self.job.part_of_teacher(number)
        place = f"teacher.members.{number - 1}" if number else "teacher"
        settings = {
            **_named(section, place),
            **settings_of(section.preprocess, f"{place}.preprocess"),
            **settings_of(section.train, f"{place}.train", without=NOT_IN_WEIGHTS),
            **({f"{place}.classes": section.classes} if isinstance(section, Member) else {}),
            **_judged(self.job),
        }
        made = self._model("the teacher", number, lambda: model, _written(section))
        return made | self._data(self.job.data.for_teacher()) | Inputs(settings)

    def head(self) -> Inputs:
        """Of the head that is learned on what members say, side by side."""
        source = self._source(0)
        members = {name: result for name, result in source.stages.items() if name != teacher_stage(0)}
        return replace(source, stages=members) | self._made["the teacher", 0] | self._data()

    def _source(self, link: int) -> Inputs:
        """Return what answers as the teacher: the teacher itself, or the i-th model of the chain."""
        job = self.job
        if link:
            return self.after(job.chain[link - 1].name) | Inputs({"teacher.precision": job.teacher.precision})
        if not job.has_teacher:
            return Inputs({"teacher.average_of_student": job.teacher.average_of_student})
        teacher = job.teacher
        settings = settings_of(teacher, "teacher", without=(*_WHERE, "live", "members", "average_of_student"))
        settings |= settings_of(teacher.preprocess, "teacher.preprocess")
        if job.teacher_scale is not None:
            settings["units of the teacher's answers"] = job.teacher_scale.to_json()
        for index, member in enumerate(teacher.members):
            settings |= settings_of(member, f"teacher.members.{index}", without=_WHERE[:-2])
        stages = [teacher_stage(number) for number in teachers_of(job)]
        written = [one for section in (teacher, *teacher.members) for one in _written(section)]
        model = self._model("the teacher", 0, partial(job.teacher_at, 0), written)
        if stages:  # its weights are what the training made of them
            parts = {name: digest for name, digest in model.parts.items() if "weights" not in name}
            model = Inputs(parts=parts, files=model.files)
        return model | self.after(*stages) | Inputs(settings)

    def _asked(self) -> Inputs:
        """Return the teacher as one who is asked: its code counts by what it answers."""
        answers = {"what the teacher answers": self.answers()}
        return replace(self._source(0) | Inputs(parts=answers), files={})

    def student(self, student: Student, arm: Arm, link: int) -> Inputs:
        """Of a student, taught by the teacher (0) or the i-th model of the chain; the choice of its rates aside."""
        seed, kind = arm
        job, recipe, section = self.job, self.job.recipe, student.section
        training = settings_of(student.training, "training", without=NOT_IN_WEIGHTS)
        training["training.minutes"] = student.training.minutes or recipe.budget.minutes
        settings = {
            **_named(section, "student"),
            **settings_of(section.preprocess, "student.preprocess"),
            **training,
            "seed of the student": seed,
            **_judged(job),
        }
        written = [*_written(section), student.given]
        common, make = self._data() | Inputs(settings), lambda: TorchModel(student.fresh(seed, kind))
        if kind != "distilled":
            labels = Inputs() if kind == "alone" else self.after("pool")
            return self._model("the student", (student.name, seed, kind), make, written) | common | labels
        written += [one for peer in recipe.peers for one in _written(peer)]
        learner = self._model("the student", (student.name, seed, kind), make, written)
        more = {"student.exits": section.exits, "student.taps": section.taps, "mutual": recipe.mutual}
        more |= {f"peers.{index}.taps": peer.taps for index, peer in enumerate(recipe.peers)}
        more |= {"objective": job.objective.describe()}
        taught = Inputs(more, self._functions(), files=self._objective_files())
        if job.teacher.average_of_student is not None or not job.objective.needs_teacher:
            source = Inputs({"teacher.average_of_student": job.teacher.average_of_student})
        else:
            source = self._answered(link)
        chosen = Inputs() if recipe.data.min_confidence is None else self.after("pool")
        return learner | common | taught | source | chosen

    def _answered(self, link: int) -> Inputs:
        """Return what the answers of the teacher (0) or the i-th model of the chain depend on, recorded or live."""
        if self.job.teacher.live:
            return (self._source(link) if link else self._asked()) | Inputs({"teacher.live": True})
        return self.after(store_name(self.job, link))

    def _objective_files(self) -> Mapping[str, str]:
        """Return the code of the objective's own functions."""
        if "objective" not in self._made:
            functions = [one for term in self.job.objective.terms for one in (term.loss, term.head, term.transform)]
            functions += [one for term in self.job.objective.terms for one in (term.weight, *term.options.values())]
            own: list[Any] = [one for one in functions if _is_function(one)]
            own += _named_functions(self.job.recipe.objective)
            files = digests(files_of(own, base=self.job.base), base=self.job.base)
            self._made["objective"] = Inputs(files=files)
        return self._made["objective"].files

    def _functions(self) -> dict[str, str]:
        """Return digests of what has no text: weights that are functions of progress, and functions without a file."""
        found = {}
        for term in self.job.objective.terms:
            if _is_function(term.weight):
                weights = [term.weight_at(share) for share in _PROGRESS]
                found[f"the weight of {term.name}"] = fingerprint.of_json(weights)
            typed = [typed_code(one) for one in (term.loss, term.head, term.transform, *term.options.values())]
            if any(typed):
                found[f"the code of {term.name}"] = fingerprint.of_json(typed)
        return found


def _named_functions(objective: Any) -> list[str]:
    """Return the names of the user's own functions in a recipe's objective."""
    sections = objective if isinstance(objective, list) else []
    names = [name for section in sections for name in (section.loss, section.head, section.transform)]
    return [name for name in names if name and ":" in name]


def _judged(job: Job) -> dict[str, Any]:
    """Return the metric that chooses checkpoints, where it is not the task's own."""
    metric = job.recipe.other_metric
    return {} if metric is None else {"metric": metric}


def _is_function(number: Any) -> bool:
    return callable(number) and not isinstance(number, Schedule)


def _named(section: Model, place: str) -> dict[str, Any]:
    return {f"{place}.model": section.model, **{f"{place}.args.{name}": value for name, value in section.args.items()}}


def _written(section: Model) -> list[str]:
    """Return the name of a section's own function, as the recipe writes it."""
    return [section.model] if ":" in section.model else []
