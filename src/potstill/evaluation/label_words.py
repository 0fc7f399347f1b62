"""What the numbers of a labelling say in words: a headline, what a student can hope for, and what to look at first.

Everything here reads the JSON data that `potstill.evaluation.label_scores` and its siblings return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.core.text import kind_and_column
from potstill.evaluation.shown import significant
from potstill.evaluation.verdict import COLUMNS_NAMED

Numbers = Mapping[str, Any]
Finding = dict[str, str]

KEPT = 0.99  # of the variance of values that a store must keep
SATURATED = 0.02  # of the largest possible entropy: below, the soft targets are nearly the teacher's hard labels
FLAT = 0.95  # of the largest possible entropy: above, the answers say nearly nothing
UNCOVERED = 0.05  # of the probability mass
STRETCHED = 1.25  # of the gradient's length, or its inverse
MEMORISED = 0.05  # of accuracy or R2, training over validation
UNSTABLE = 0.1  # of the answers to further views
CUT_OFF = 0.05  # of the texts
WEAK = 0.8  # accuracy below which a teacher cannot tell a wrong label from its own mistake
SKILL = 0.5  # balanced accuracy, from chance (0) to always right (1), below which it knows its classes too badly
WEAK_R2 = 0.3
FEW_CLASSES = 4  # moved classes that are named


def percent(value: float, digits: int = 1) -> str:
    """Return ``93.4 %``; more digits where a share is small."""
    while digits < 3 and 0 < abs(value) < 0.5 * 10.0 ** -(digits + 1):
        digits += 1
    return f"{100 * value:.{digits}f} %"


def range_of(bounds: Sequence[float]) -> str:
    """Return ``92.9 to 93.8`` for the ends of an interval of a share."""
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def count_of(number: int, what: str) -> str:
    """Return ``1 sample`` or ``1,000 samples``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def bits_of(value: float) -> str:
    """Return ``0.42 bits``."""
    return f"{value:.2f} bits" if value >= 0.1 or value == 0 else f"{value:.2g} bits"


def class_headline(splits: Mapping[str, Numbers], size: str) -> str:
    """Return one sentence: how often the teacher is right, and what its answers take."""
    for name, place in (("validation", "validation"), ("train", "the training data")):
        if "accuracy" in splits.get(name, {}):
            return f"The teacher is right on {percent(splits[name]['accuracy'])} of {place}; {size}."
    return f"The teacher's answers carry {bits_of(splits['train']['entropy_bits'])} each beyond their class; {size}."


def class_hopes(facts: Numbers) -> list[str]:
    """Return what a student can hope for, one plain statement each. ``facts``: the fields of `LabelFacts`."""
    splits, errors = facts["splits"], facts["label_errors"]
    train, held = splits["train"], splits.get("validation")
    if stopped(facts["warnings"]):
        return [_nothing()]
    hopes = []
    if held:
        hopes.append(
            f"On {count_of(held['num'], 'validation sample')} the teacher is right on {percent(held['accuracy'])} "
            f"(95 % interval {range_of(held['accuracy_interval'])}). That is the ceiling to plan with: a student that "
            "copies the teacher perfectly ends there, and most end below; the true labels beside it can lift one above."
        )
    elif "accuracy" in train:
        hopes.append(
            "There were no labelled validation samples to ask, so the ceiling of a student is not known: "
            f"{percent(train['accuracy'])} on the training data says little about new data."
        )
    else:
        hopes.append("There are no labels, so nothing here says how often the teacher is right.")
    if "accuracy" in train:
        hopes.append(_disagreement(train, errors))
    hopes.append(_information(train, facts))
    if held and facts["seen"] and train["entropy_bits"] < 0.8 * held["entropy_bits"]:
        hopes.append(
            f"The teacher was trained on these samples and is surer of them ({bits_of(train['entropy_bits'])}) than of "
            f"new ones ({bits_of(held['entropy_bits'])}): a student sees less of its doubt than new data would show."
        )
    return [*hopes, *_stored(facts), _limits()]


def _disagreement(train: Numbers, errors: Numbers | None) -> str:
    wrong = 1 - train["accuracy"]
    if not wrong:
        return (
            "The teacher never contradicts a training label: its class adds nothing to the labels, only its "
            "probabilities of the other classes can."
        )
    text = f"The teacher contradicts the label of {percent(wrong)} of the training samples."
    if errors and errors["contradicted"]:
        share = errors["contradicted"] / (wrong * train["num"])
        text += (
            f" {percent(share, 0)} of these labels look wrong: there the soft signal helps. On the others it teaches "
            "the teacher's own mistakes, and true labels beside it correct them."
        )
    return text


def _information(train: Numbers, facts: Numbers) -> str:
    most = float(np.log2(max(len(facts["classes"]), 2)))
    return (
        f"Beyond the class it names, an answer carries {bits_of(train['entropy_bits'])} on average, of "
        f"{most:.2f} possible: {percent(train['off_top'])} of the probability lies on other classes, as if the teacher "
        f"wavered between {train['effective_classes']:.2f} classes. This is what labels alone do not have."
    )


def _stored(facts: Numbers) -> list[str]:
    chosen = next((row for row in facts["fidelity"] if row.get("chosen")), None)
    if chosen is None:
        return []
    if chosen.get("r2") is not None:
        left = f"R² = {chosen['r2']:.4f}" if chosen["r2"] > 0 else "nothing of their variance"
        return [f"What is stored, read back, keeps {left} of the teacher's answers to the probe set (1 is all)."]
    parts = [f"{chosen['kl']:.2g} nats of divergence"] if chosen.get("kl") is not None else []
    if chosen.get("angle") is not None:
        angle = chosen["angle"]
        parts.append(f"{f'{angle:.1f}' if angle >= 0.1 else f'{angle:.2g}'}° between the gradients")
    return (
        [f"What is stored is this far from the full answers on the probe set: {' and '.join(parts)}."] if parts else []
    )


def stopped(warnings: Sequence[Mapping[str, str]]) -> bool:
    """Return whether something has to be put right before these answers are of use."""
    return any(one["level"] == "stop" for one in warnings)


def _nothing() -> str:
    return (
        "As it stands, nothing: something is wrong between the teacher and the data, and the numbers below mean little "
        "until it is put right."
    )


def _limits() -> str:
    return (
        "None of this is a promise: whether these answers help a student is measured by a run, which trains the same "
        "student with and without them."
    )


def weak(splits: Mapping[str, Numbers]) -> bool:
    """Return whether a teacher of classes contradicts so many labels that none of them can be judged by it."""
    judged = splits.get("validation") or splits["train"]
    return "accuracy" in judged and (judged["accuracy"] < WEAK or _skill(judged) < SKILL)


def _skill(scores: Numbers) -> float:
    chance = 1 / max(sum(one["num"] > 0 for one in scores["per_class"]), 2)
    return float((scores["balanced_accuracy"] - chance) / (1 - chance))


def _weakness(scores: Numbers, where: str) -> str:
    rarely = (
        f" and finds {percent(scores['balanced_accuracy'])} of the samples of an average class (balanced accuracy)"
        if _skill(scores) < SKILL
        else ""
    )
    return (
        f"The teacher is weak: it is right on {percent(scores['accuracy'])} of {where}{rarely}. Where it contradicts a "
        "label, most likely the teacher is wrong: nothing is said of wrong labels here, and a student that copies it "
        "copies its mistakes. A better teacher, or true labels with more weight beside it, help more than any setting."
    )


def class_warnings(facts: Numbers) -> list[Finding]:
    """Return what to look at before training on these answers: ``{"level": "stop" | "warning", "message"}``."""
    splits = facts["splits"]
    train, held = splits["train"], splits.get("validation")
    judged = held or train
    found = []
    if facts["reordered"]:
        found.append(_stop(_permuted(facts["reordered"], facts["classes"])))
    elif "accuracy" in judged and judged["accuracy_interval"][0] <= max(judged["majority"], 1 / len(facts["classes"])):
        where = "validation" if held else "the training data"
        found.append(
            _stop(
                f"On {where} the teacher is right on {percent(judged['accuracy'])}, not clearly more than "
                f"{percent(judged['majority'])} for always answering the most frequent class. Check its "
                "preprocessing, the order of the classes and that the weights were loaded."
            )
        )
    elif weak(splits):
        found.append(_warn(_weakness(judged, "validation" if held else "the training data")))
    if train["silent"]:
        found.append(
            _warn(
                f"On {percent(train['silent'])} of the samples the teacher says nothing (every class is equally "
                "probable); there its class counts as the first one in all numbers of this page."
            )
        )
    found += _information_warnings(train, facts)
    found += fidelity_warnings(facts["fidelity"])
    if held and _memorised(train, held, "accuracy"):
        found.append(
            _warn(
                f"The teacher is right on {percent(train['accuracy'])} of the training data but on "
                f"{percent(held['accuracy'])} of validation: it has learned the training data by heart, and its "
                "answers there are more sure and more right than it is. Augmented views, answers on data it has not "
                "seen, or teachers trained on the other folds give a truer signal."
            )
        )
    views = facts["views"]
    if views and views["answers_changed"] > UNSTABLE:
        found.append(
            _warn(
                f"On {percent(views['answers_changed'])} of the further views the teacher names another class than on "
                "the first: the augmentation may be stronger than the teacher can stand."
            )
        )
    if facts["sampled"]:
        found.append(
            _warn(
                "The numbers of this page come from sampled probabilities: accuracy and the average probabilities are "
                "right on average, but single answers look surer than they were and the entropy is too small."
            )
        )
    return found


def _information_warnings(train: Numbers, facts: Numbers) -> list[Finding]:
    share = train["entropy_bits"] / float(np.log2(len(facts["classes"])))
    if train["hard"]:
        return [
            _warn(
                "The teacher gives a class and no probabilities: its answers are hard labels. A student learns nothing "
                "from them that labels of the same quality would not teach; they are worth having where labels are "
                "missing or worse."
            )
        ]
    if share < SATURATED:
        soft = next((row for row in facts["temperatures"] if row["temperature"] == 4.0), None)
        example = (
            f" At temperature 4 the answers carry {bits_of(soft['entropy_bits'])} instead of "
            f"{bits_of(train['entropy_bits'])}."
            if soft
            else ""
        )
        return [
            _warn(
                f"The probabilities are saturated: {percent(1 - train['off_top'], 2)} on average lie on the top class. "
                f"At temperature 1 they add little to the class itself; raise the temperature.{example}"
            )
        ]
    if share > FLAT:
        return [
            _stop(
                f"The answers are nearly the same for every class ({bits_of(train['entropy_bits'])} of "
                f"{np.log2(len(facts['classes'])):.2f}). Check that the answers are not probabilities that were taken "
                "for logits, and that the weights were loaded."
            )
        ]
    return []


def _permuted(found: Numbers, classes: Sequence[str]) -> str:
    moves = found["moves"]
    named = ", ".join(f"'{classes[own]}' is mostly labelled '{classes[label]}'" for own, label in moves[:FEW_CLASSES])
    more = f" and {len(moves) - FEW_CLASSES} more" if len(moves) > FEW_CLASSES else ""
    return (
        f"The order of the classes looks permuted: with {len(moves)} classes moved the teacher would be right on "
        f"{percent(found['accuracy'])} instead of {percent(found['before'])}. The teacher's answer {named}{more}. "
        "Give the class names in the order of the teacher's outputs."
    )


def fidelity_warnings(rows: Sequence[Numbers]) -> list[Finding]:
    """Return what is wrong with the stored form of the answers."""
    found = []
    for row in (row for row in rows if row.get("chosen")):
        missing, length, kept = row.get("uncovered"), row.get("norm_ratio"), row.get("r2")
        if kept is not None and kept < KEPT:
            found.append(
                _warn(
                    f"What is stored ({row['codec']}) has lost more than {percent(1 - KEPT)} of the variance of what "
                    "the teacher says: a student learns from stairs. Record with store.dtype: float32."
                )
            )
        if missing is not None and missing > UNCOVERED:
            found.append(
                _warn(
                    f"{percent(missing)} of the probability is not covered by what is stored ({row['codec']}): the "
                    "student is told less of the rare classes. Store more classes, or a sampled codec."
                )
            )
        if length is not None and not 1 / STRETCHED <= length <= STRETCHED:
            word = "longer" if length > 1 else "shorter"
            found.append(
                _warn(
                    f"The gradient from what is stored ({row['codec']}) is {max(length, 1 / length):.1f} times {word} "
                    "than that of the full answers: the student is pushed towards wrong confidence."
                )
            )
    return found


def value_headline(splits: Mapping[str, Numbers], size: str) -> str:
    """Return one sentence about a teacher of values."""
    for name, place in (("validation", "validation"), ("train", "the training data")):
        if "r2" in splits.get(name, {}):
            return f"The teacher has R² = {splits[name]['r2']:.3f} on {place}; {size}."
    return f"The teacher answered {count_of(splits['train']['num'], 'sample')}; {size}."


def value_hopes(facts: Numbers) -> list[str]:
    """Return what a student of values can hope for."""
    train, held = facts["splits"]["train"], facts["splits"].get("validation")
    if stopped(facts["warnings"]):
        return [_nothing()]
    hopes = []
    if held:
        low, high = held["r2_interval"]
        hopes.append(
            f"On {count_of(held['num'], 'validation sample')} the teacher has R² = {held['r2']:.3f} (95 % interval "
            f"{low:.3f} to {high:.3f}){_typical(held)}. That is the ceiling to plan "
            "with: a student that copies the teacher perfectly ends there, and most end below."
        )
    elif "r2" in train:
        hopes.append(
            "There were no labelled validation samples to ask, so the ceiling of a student is not known: "
            f"R² = {train['r2']:.3f} on the training data says little about new data."
        )
    else:
        hopes.append("There are no labels, so nothing here says how good the teacher's values are.")
    hopes.append(
        "A value carries no probabilities of alternatives. A student gains where the teacher's values are less noisy "
        "than the labels, and where samples have no label."
    )
    return [*hopes, *_stored(facts), _limits()]


def _typical(scores: Numbers) -> str:
    """Return the typical error in words, of several columns the first ones'; nothing where none was measured."""
    if "rmse" in scores:
        return f" and a typical error (RMSE) of {significant(scores['rmse'])}"
    names = [name for name in scores if kind_and_column(name)[0] == "rmse"]
    told = [f"{significant(scores[name])} in column {kind_and_column(name)[1]}" for name in names[:COLUMNS_NAMED]]
    more = f" and {len(names) - COLUMNS_NAMED} more" if len(names) > COLUMNS_NAMED else ""
    return f" and typical errors (RMSE) of {', '.join(told)}{more}" if told else ""


def value_warnings(facts: Numbers) -> list[Finding]:
    """Return what to look at before training on these values."""
    train, held = facts["splits"]["train"], facts["splits"].get("validation")
    judged = held or train
    found = []
    if "r2" in judged and judged["r2_interval"][0] <= 0:
        found.append(
            _stop(
                f"The teacher is not clearly better than always answering the mean (R² = {judged['r2']:.3f}). Check "
                "the unit and the order of its outputs, its preprocessing and its weights."
            )
        )
    elif "r2" in judged and judged["r2"] < WEAK_R2:
        found.append(
            _warn(
                f"The teacher is weak: it explains {percent(judged['r2'])} of what varies (R² = {judged['r2']:.3f}), "
                "and a student that copies it copies the rest as mistakes."
            )
        )
    if held and _memorised(train, held, "r2"):
        found.append(
            _warn(
                f"The teacher has R² = {train['r2']:.3f} on the training data but {held['r2']:.3f} on validation: it "
                "has learned the training values by heart, noise included. Answers on data it has not seen give a "
                "truer signal."
            )
        )
    return found + fidelity_warnings(facts["fidelity"])


def _memorised(train: Numbers, held: Numbers, metric: str) -> bool:
    if metric not in train:
        return False
    apart = train[f"{metric}_interval"][0] > held[f"{metric}_interval"][1]
    return bool(apart and train[metric] - held[metric] > MEMORISED)


def text_hopes(text: Numbers) -> list[str]:
    """Return what a student of texts can hope for."""
    if text["num_logprobs"]:
        share = text["num_logprobs"] / text["answers"]
        told = "All answers come" if share == 1 else f"{percent(share)} of the answers come"
        hopes = [
            f"{told} with token probabilities: a student learns from them as from soft targets. The teacher gave the "
            f"tokens it chose {np.exp(text['mean_logprob']):.3f} on average (geometric mean)."
        ]
    else:
        hopes = [
            "No answer comes with token probabilities: a student can learn from the texts only, one right token at "
            "each place, as from labels that the teacher wrote."
        ]
    return [*hopes, "Nothing here says whether the texts are right: read some before you train on them.", _limits()]


def text_warnings(text: Numbers) -> list[Finding]:
    """Return what to look at before training on these texts."""
    found = []
    if text["failed"]:
        asked = text["answers"] + text["failed"]
        found.append(
            _warn(
                f"{text['failed']:,} of {count_of(asked, 'question')} got no answer; the same command asks "
                "for them again."
            )
        )
    cut = text["finish_reasons"].get("length", 0)
    if text["answers"] and cut / text["answers"] > CUT_OFF:
        found.append(
            _warn(
                f"{percent(cut / text['answers'])} of the answers were cut off at the length limit: a student learns "
                "to stop in the middle. Raise the limit, or leave these answers out."
            )
        )
    if text["empty"]:
        found.append(_warn(f"{count_of(text['empty'], 'answer')} {'is' if text['empty'] == 1 else 'are'} empty."))
    return found


def _warn(message: str) -> Finding:
    return {"level": "warning", "message": message}


def _stop(message: str) -> Finding:
    return {"level": "stop", "message": message}
