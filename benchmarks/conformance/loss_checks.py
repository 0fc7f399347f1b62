"""Invariants of losses: what a number and its gradient must be, whatever the tool.

A loss claims what it is, and is asked about its claims only: ``soft`` (the classic soft loss as its documentation calls
it), ``divergence`` (0 at the teacher), ``minimum`` (smallest there), ``shift`` (compares softmax distributions),
``classes`` (sums over classes), ``samples`` (the mean of per-sample values), ``temperature``, ``keep`` (takes a mask),
``logits`` (reads them), ``classifier`` (a softmax loss for classification, not for vocabularies alone) and ``targets``
(reads classes too). Shape legend: b rows, c classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.conformance import reference
from benchmarks.conformance.adapter import Adapter, ToolError
from benchmarks.conformance.probes import Answer, Judged, Loss, Probe, ask, close, for_each_loss, largest, shown

EXACT = 1e-4
HALF = 5e-2
KEEP = np.array([True, False, True, True, False, True])


def pair(loss: Loss, rows: int = 6) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what a loss reads of student and teacher: logits or vectors (b, 5), or maps (b, 5, 3, 3)."""
    if loss["reads"] == "maps":
        return tuple(reference.logits(rows, 45, seed).reshape(rows, 5, 3, 3) for seed in (1, 2))  # type: ignore[return-value]
    return reference.logits(rows, 5, 1), reference.logits(rows, 5, 2)


def soft_loss_is_the_divergence(tool: Adapter) -> Iterator[Probe]:
    """The soft loss with its default options has the gradient of the batch mean of KL(teacher ‖ student), at T = 1.

    A loss that is smaller by a factor, or of another formula, trains to something else with every published weight and
    learning rate, and nothing shows it.
    """

    def judge(loss: Loss) -> Judged:
        student, teacher = pair(loss)
        observed = ask(tool, loss, student, teacher)["gradient"]
        expected = reference.kl_gradient(student, teacher)
        return observed, expected, close(observed, expected, EXACT)

    return for_each_loss(tool, judge, "soft", on="6 x 5 logits, gradient")


def gradient_keeps_its_size_at_any_temperature(tool: Adapter) -> Iterator[Probe]:
    """The soft loss's gradient is as large at T = 1000 as at T = 100.

    This is what the factor T² is for (Hinton et al., section 2): without it, raising the temperature silently turns the
    teacher off.
    """

    def judge(loss: Loss) -> Judged:
        size = [largest(ask(tool, loss, *pair(loss), temperature=t)["gradient"]) for t in (1000.0, 100.0)]
        return size[0] / size[1], 1.0, close(size[0] / size[1], 1.0, 0.02)

    on = "6 x 5 logits, gradient at T = 1000 over gradient at T = 100"
    return for_each_loss(tool, judge, "soft", "temperature", on=on, temperature=1000.0)


def smallest_where_student_is_teacher(tool: Adapter) -> Iterator[Probe]:
    """No loss against the teacher is smaller near the teacher than at the teacher.

    A sign error makes training push the student away.
    """

    def judge(loss: Loss) -> Judged:
        _, teacher = pair(loss)
        noise = np.random.default_rng(5).normal(size=teacher.shape)
        answer = ask(tool, loss, teacher, teacher, dtype="float64")
        at, gradient = answer["value"], np.asarray(answer["gradient"])
        # Three students at random, and one where the gradient leads.
        moves = [0.3 * noise, -0.3 * noise, noise, -0.1 * gradient / max(largest(gradient), 1e-5)]
        near = [ask(tool, loss, teacher + move, teacher, dtype="float64")["value"] for move in moves]
        # Some losses add 1e-7 where they divide.
        return at, f"at most {min(near):.6g}", at <= min(near) + 1e-6 * max(1.0, abs(at))

    return for_each_loss(tool, judge, "minimum", on="student = teacher, against four students nearby")


def zero_where_student_is_teacher(tool: Adapter) -> Iterator[Probe]:
    """A divergence is 0 with gradient 0 where student and teacher are the same.

    Otherwise a perfect student goes on moving.
    """

    def judge(loss: Loss) -> Judged:
        answer = ask(tool, loss, pair(loss)[1], pair(loss)[1])
        size = largest(answer["gradient"])
        observed = f"value {answer['value']:.3g}, largest gradient {size:.3g}"
        return observed, "0 and 0", abs(answer["value"]) < 1e-5 and size < 1e-5

    return for_each_loss(tool, judge, "divergence", on="student = teacher")


def logits_may_be_shifted(tool: Adapter) -> Iterator[Probe]:
    """Adding 10 to all of a sample's logits changes nothing in a loss that compares distributions.

    softmax does not see the shift, so a loss that does is not comparing probabilities.
    """

    def judge(loss: Loss) -> Judged:
        student, teacher = pair(loss)
        plain, moved = (ask(tool, loss, student + by, teacher + by)["value"] for by in (0.0, 10.0))
        return moved, plain, close(moved, plain, EXACT)

    return for_each_loss(tool, judge, "shift", on="6 x 5 logits, all + 10")


def impossible_classes_change_nothing(tool: Adapter) -> Iterator[Probe]:
    """Five more classes that neither side gives any probability leave the loss as it is.

    A loss that is divided by the number of classes vanishes for large vocabularies: 32 000 times at 32 000 tokens.
    """

    def judge(loss: Loss) -> Judged:
        student, teacher = pair(loss)
        never = np.full((len(student), 5), -1000.0)
        targets = {"targets": [0, 1, 2, 3, 4, 0]} if "targets" in loss["claims"] else {}
        plain = ask(tool, loss, student, teacher, **targets)["value"]
        more = ask(tool, loss, np.hstack([student, never]), np.hstack([teacher, never]), **targets)["value"]
        return more, plain, close(more, plain, EXACT)

    return for_each_loss(tool, judge, "classes", on="6 x 5 logits and 5 more classes with logit -1000")


def batch_is_the_mean_of_its_samples(tool: Adapter) -> Iterator[Probe]:
    """The loss of a batch is the mean of the losses of its samples.

    A loss that grows with the batch, or shrinks, makes the learning rate depend on the batch size.
    """

    def judge(loss: Loss) -> Judged:
        student, teacher = pair(loss)
        targets = [row % student.shape[1] for row in range(len(student))] if "targets" in loss["claims"] else None
        each = [
            ask(
                tool, loss, student[row : row + 1], teacher[row : row + 1],
                **({} if targets is None else {"targets": targets[row : row + 1]}),
            )["value"]
            for row in range(len(student))
        ]  # fmt: skip
        whole = ask(tool, loss, student, teacher)["value"]
        return whole, float(np.mean(each)), close(whole, np.mean(each), EXACT)

    return for_each_loss(tool, judge, "samples", on="6 samples at once and one by one")


def hard_weight_zero_is_the_limit(tool: Adapter) -> Iterator[Probe]:
    """A hard weight of exactly 0 gives the same loss as one of 1e-9.

    A branch for 0 that forgets the factor T² makes the soft loss 16 times smaller at T = 4.
    """
    zero, tiny = _mixed(tool, 0.0, 4.0), _mixed(tool, 1e-9, 4.0)
    expected = f"{shown(tiny['value'])}, as at 1e-9"
    yield Probe(zero["call"], zero["link"], shown(zero["value"]), expected, close(zero["value"], tiny["value"], EXACT))


def whole_numbers_are_numbers(tool: Adapter) -> Iterator[Probe]:
    """Weights and temperature may be whole numbers: 0 and 4 do what 0.0 and 4.0 do.

    Configuration files say `1`, not `1.0`.
    """
    expected = _mixed(tool, 0.0, 4.0)
    try:
        answer = _mixed(tool, 0, 4)
    except ToolError as error:
        call = expected["call"].replace("0.0", "0").replace("1.0", "1").replace("4.0", "4")
        yield Probe(call, expected["link"], str(error), shown(expected["value"]), passed=False)
    else:
        same = close(answer["value"], expected["value"], EXACT)
        yield Probe(answer["call"], answer["link"], shown(answer["value"]), shown(expected["value"]), same)


def defaults_run(tool: Adapter) -> Iterator[Probe]:
    """What the documentation lists, called with nothing but its required arguments, runs.

    A default that crashes was never run by anybody, its tests included.
    """
    for attempt in tool.call("defaults"):
        error = attempt["error"]
        yield Probe(attempt["call"], attempt["link"], error or "it ran", "it runs", error is None)


def masked_is_left_out(tool: Adapter) -> Iterator[Probe]:
    """Masking rows gives the loss of the others alone, and no gradient to the masked ones.

    Padding is most of many batches. Counted in, it waters the loss down, by an amount that depends on the longest
    neighbour.
    """

    def judge(loss: Loss) -> Judged:
        student, teacher = pair(loss)
        targets = [row % student.shape[1] for row in range(6)] if "targets" in loss["claims"] else None
        some = {} if targets is None else {"targets": [t for t, kept in zip(targets, KEEP, strict=True) if kept]}
        alone = ask(tool, loss, student[KEEP], teacher[KEEP], keep=[True] * 4, **some)["value"]
        wild = np.where(KEEP.reshape(-1, *[1] * (student.ndim - 1)), student, 50.0)
        answer = ask(tool, loss, wild, teacher, keep=KEEP.tolist())
        leak = largest(np.asarray(answer["gradient"])[~KEEP])
        observed = f"{answer['value']:.6g}, largest gradient of a masked row {leak:.3g}"
        return observed, f"{alone:.6g} and 0", close(answer["value"], alone, EXACT) and leak == 0.0

    return for_each_loss(tool, judge, "keep", on="6 rows, 2 of them masked")


def nothing_left_is_finite(tool: Adapter) -> Iterator[Probe]:
    """With every row masked, value and gradient are finite.

    A mean over nothing is NaN, and one such batch ends a training.
    """

    def judge(loss: Loss) -> Judged:
        return _finite(ask(tool, loss, *pair(loss), keep=[False] * 6))

    return for_each_loss(tool, judge, "keep", on="6 rows, all of them masked")


def certainty_stays_finite(tool: Adapter) -> Iterator[Probe]:
    """Value and gradient are finite where both sides are certain, of different classes or of the same.

    log(softmax(x)) is infinite for a confidently wrong student, and one NaN ends a training of days.
    """

    def judge(loss: Loss) -> Judged:
        teacher = np.full((6, 5), -1e4)
        teacher[:, 0] = 1e4
        different = _finite(ask(tool, loss, np.roll(teacher, 1, axis=1), teacher))
        return _finite(ask(tool, loss, teacher, teacher)) if different[2] else different

    return for_each_loss(tool, judge, "logits", on="logits of ±10 000")


def half_precision_is_enough(tool: Adapter) -> Iterator[Probe]:
    """float16 and bfloat16 inputs give the value of the same numbers in float64, to 5 per cent.

    Softmax in half precision loses the small probabilities, which are what distillation transfers; squares of features
    overflow float16 above 256.
    """
    for dtype in ("float16", "bfloat16"):

        def judge(loss: Loss, dtype: str = dtype) -> Judged:
            student, teacher = pair(loss)
            if loss["reads"] == "logits":
                # Near the teacher, where training ends.
                student = teacher + np.round(student * 2) / 16
            else:
                student, teacher = student * 64, teacher * 64
            wide = ask(tool, loss, student, teacher, dtype="float64")["value"]
            answer = ask(tool, loss, student, teacher, dtype=dtype)
            finite = _finite(answer)
            return finite if not finite[2] else (answer["value"], wide, close(answer["value"], wide, HALF))

        yield from for_each_loss(tool, judge, on=f"{dtype} inputs (logits to ±8, features to ±508)")


def two_classes_are_learned(tool: Adapter) -> Iterator[Probe]:
    """With 2 classes, a teacher of another confidence gives the student a gradient, or the loss refuses.

    Standardised logits of 2 classes are always ±0.707 and the non-target part of DKD is always 0: such a loss trains
    to nothing, quietly.
    """
    student = np.array([[1.0, 0.0], [0.0, 0.5], [2.0, 0.0], [0.0, 1.5]])
    teacher = np.array([[3.0, 0.0], [0.0, 2.0], [0.5, 0.0], [0.0, 5.0]])

    def judge(loss: Loss) -> Judged:
        return _learns(ask(tool, loss, student, teacher))

    return for_each_loss(tool, judge, "logits", on="4 x 2 logits, largest gradient", may_refuse=True)


def one_class_is_refused(tool: Adapter) -> Iterator[Probe]:
    """With a single logit, a softmax loss refuses.

    The softmax of one number is 1: a binary model with one output trains to nothing, with a loss of 0 that looks
    like success.
    """
    student, teacher = np.array([[1.0], [0.0], [-2.0]]), np.array([[3.0], [-1.0], [0.5]])

    def judge(loss: Loss) -> Judged:
        return _learns(ask(tool, loss, student, teacher))

    return for_each_loss(tool, judge, "classifier", on="3 x 1 logits, largest gradient", may_refuse=True)


def batch_of_one_is_finite_or_refused(tool: Adapter) -> Iterator[Probe]:
    """A batch of one sample gives finite numbers or a refusal.

    The last batch of an epoch may have one sample. Relations between samples do not exist then, and their mean is NaN.
    """

    def judge(loss: Loss) -> Judged:
        return _finite(ask(tool, loss, *pair(loss, rows=1)))

    return for_each_loss(tool, judge, on="1 sample", may_refuse=True)


def jsd_has_no_jump(tool: Adapter) -> Iterator[Probe]:
    """The generalised Jensen-Shannon family is continuous: beta = 0 and beta = 0.001 nearly agree.

    Where beta = 0 switches to the forward KL and 0.001 does not, the loss changes a thousandfold between two settings
    that mean the same.
    """
    arguments = {"student": reference.logits(6, 5, 1).tolist(), "teacher": reference.logits(6, 5, 2).tolist()}
    for end, near in ((0.0, 1e-3), (1.0, 1.0 - 1e-3)):
        at, by = tool.call("jsd", beta=end, **arguments), tool.call("jsd", beta=near, **arguments)
        expected = f"{shown(at['value'])}, as at beta = {end:g}"
        yield Probe(by["call"], by["link"], shown(by["value"]), expected, close(by["value"], at["value"], 0.05))


def _mixed(tool: Adapter, hard_weight: float, temperature: float) -> Answer:
    answer: Answer = tool.call(
        "mixed", student=reference.logits(6, 5, 1).tolist(), teacher=reference.logits(6, 5, 2).tolist(),
        targets=[0, 1, 2, 3, 4, 0], hard_weight=hard_weight, temperature=temperature,
    )  # fmt: skip
    return answer


def _finite(answer: Answer) -> Judged:
    bad = int((~np.isfinite(np.asarray(answer["gradient"], dtype=np.float64))).sum())
    if np.isfinite(answer["value"]) and not bad:
        return answer["value"], "finite", True
    return f"value {answer['value']:.6g}, {bad} gradients not finite", "finite", False


def _learns(answer: Answer) -> Judged:
    size = largest(answer["gradient"])
    return size, "more than 1e-4, or a refusal", size > 1e-4


CHECKS = (
    soft_loss_is_the_divergence,
    gradient_keeps_its_size_at_any_temperature,
    hard_weight_zero_is_the_limit,
    smallest_where_student_is_teacher,
    zero_where_student_is_teacher,
    logits_may_be_shifted,
    impossible_classes_change_nothing,
    batch_is_the_mean_of_its_samples,
    masked_is_left_out,
    nothing_left_is_finite,
    certainty_stays_finite,
    half_precision_is_enough,
    two_classes_are_learned,
    one_class_is_refused,
    batch_of_one_is_finite_or_refused,
    jsd_has_no_jump,
    defaults_run,
    whole_numbers_are_numbers,
)
