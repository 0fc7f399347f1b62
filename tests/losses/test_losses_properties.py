"""What every loss promises, whatever its formula."""

from __future__ import annotations

import math

import pytest
import torch
from loss_contract import ROWS

from potstill import losses
from potstill.core.errors import UsageError

rows = pytest.mark.parametrize("row", ROWS, ids=str)
paired = pytest.mark.parametrize("row", [row for row in ROWS if row.zero_when_equal], ids=str)
taught = pytest.mark.parametrize("row", [row for row in ROWS if row.reads_teacher], ids=str)
softmaxes = pytest.mark.parametrize(
    "row", [row for row in ROWS if row.min_classes >= 2 and row.parameters[0] == "student_logits"], ids=str
)
answers = pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.parameters[0] in ("student_logits", "student_values") and not row.over_batch],
    ids=str,
)
separate = pytest.mark.parametrize("row", [row for row in ROWS if not row.over_batch], ids=str)
related = pytest.mark.parametrize("row", [row for row in ROWS if row.over_batch], ids=str)
DIVERGENCES = [losses.forward_kl, losses.reverse_kl, losses.jsd]


def gradient(values, student):
    (found,) = torch.autograd.grad(values.sum(), student)
    return found


def random_logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_selections_are_not_empty():
    assert len(ROWS) >= 20
    assert sum(row.zero_when_equal for row in ROWS) >= 15
    assert sum(row.reads_teacher for row in ROWS) >= 12
    assert sum(row.min_classes == 2 for row in ROWS) >= 10
    assert len(answers.args[1]) >= 30


@paired
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minimum_where_both_sides_are_equal(row, dtype):
    count = row.student_tensors
    tensors = row.tensors(6, 5, dtype=dtype)
    others, rest = tensors[count : 2 * count], tensors[2 * count :]
    students = [other.clone().requires_grad_() for other in others]
    values = row(*students, *others, *rest)
    assert values.abs().max() <= 1e-6
    for student in students:
        assert gradient(row(*students, *others, *rest), student).abs().max() <= 1e-5
    for step in (1e-3, 0.1, 3.0):
        moved = [other + step * random_logits(*other.shape, seed=7, dtype=dtype) for other in others]
        assert (row(*moved, *others, *rest) > (0 if dtype == torch.float64 else -1e-6)).all()


def test_cross_entropy_has_its_minimum_at_the_target():
    targets = torch.softmax(random_logits(4, 6), dim=1)
    student = targets.log().requires_grad_()
    values = losses.cross_entropy(student, targets)
    torch.testing.assert_close(values.detach(), -(targets * targets.log()).sum(1))
    assert gradient(values, student).abs().max() < 1e-12


@rows
def test_adding_a_number_to_all_logits_of_a_sample(row):
    tensors = row.tensors(4, 5, dtype=torch.float64)
    count, taught_by = row.student_tensors, row.teacher_tensors
    values = row(*tensors)

    def shifted(low, high):
        offset = torch.tensor([10.0, -3.0, 100.0, 0.5], dtype=torch.float64)
        moved = [tensor + offset.reshape(4, *[1] * (tensor.dim() - 1)) for tensor in tensors[low:high]]
        return row(*tensors[:low], *moved, *tensors[high:])

    unchanged = torch.allclose(shifted(0, count), values, rtol=1e-9)
    assert unchanged is row.shift_invariant
    if row.shift_invariant and row.reads_teacher:
        torch.testing.assert_close(shifted(count, count + taught_by), values)


@rows
def test_order_of_samples_and_of_classes_does_not_matter(row):
    tensors = row.tensors(5, 4)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(row(*(tensor[order] for tensor in tensors)), row(*tensors)[order])
    if row.targets != "classes" and row.flip_invariant:
        torch.testing.assert_close(row(*(tensor.flip(-1) for tensor in tensors)), row(*tensors))


@rows
def test_losses_on_relations_are_marked(row):
    assert getattr(row.loss, "over_batch", False) is row.over_batch  # training reads the mark


@related
def test_relations_of_one_sample_are_refused(row):
    tensors = row.tensors(3, 5)
    with pytest.raises(UsageError, match="batch"):
        row(*(tensor[:1] for tensor in tensors))
    with pytest.raises(UsageError, match="batch"):
        row(*tensors, where=torch.tensor([False, True, False]))
    assert row(*(tensor[:0] for tensor in tensors)).shape == (0,)


@separate
def test_values_do_not_depend_on_the_batch(row):
    tensors = row.tensors(7, 5)
    whole = row(*tensors)
    alone = torch.cat([row(*(tensor[index : index + 1] for tensor in tensors)) for index in range(7)])
    torch.testing.assert_close(alone, whole, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient(alone, tensors[0]), gradient(whole, tensors[0]), rtol=1e-6, atol=1e-7)
    assert row(*(tensor[:0] for tensor in tensors)).shape == (0,)


@rows
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e30])
def test_a_mask_is_the_same_as_dropping_rows(row, rubbish):
    clean = row.tensors(6, 4)
    where = torch.tensor([True, False, True, True, False, True])
    dirty = [tensor.detach().clone() for tensor in clean]
    for tensor in dirty:
        tensor[~where] = rubbish if tensor.is_floating_point() else -100
    student = dirty[0].requires_grad_()
    values = row(*dirty, where=where)
    dropped = row(*(tensor[where] for tensor in clean))
    torch.testing.assert_close(values[where], dropped, rtol=1e-6, atol=1e-7)
    assert torch.equal(values[~where], torch.zeros(2))
    masked_gradient = gradient(values, student)
    torch.testing.assert_close(masked_gradient[where], gradient(dropped, clean[0])[where], rtol=1e-6, atol=1e-7)
    assert torch.equal(masked_gradient[~where], torch.zeros_like(masked_gradient[~where]))


@answers
def test_leading_dimensions_are_positions_like_samples(row):
    flat = row.tensors(6, 4)
    where = torch.tensor([[True, False, True], [True, True, False]])
    folded = [tensor.detach().reshape(2, 3, *tensor.shape[1:]) for tensor in flat]
    student = folded[0].requires_grad_()
    for options, flat_options in (({}, {}), ({"where": where}, {"where": where.flatten()})):
        values, expected = row(*folded, **options), row(*flat, **flat_options)
        torch.testing.assert_close(values, expected.reshape(2, 3), rtol=1e-6, atol=1e-7)
        got = gradient(values, student).reshape(6, 4)
        torch.testing.assert_close(got, gradient(expected, flat[0]), rtol=1e-6, atol=1e-7)
    with pytest.raises(UsageError, match=r"boolean tensor of shape \(2, 3\)"):
        row(*folded, where=where[:, 0])


@related
def test_relations_between_samples_read_no_positions_of_their_parts(row):
    if row.parameters[0] == "student_logits":
        with pytest.raises(UsageError, match=r"shape \(batch, classes\)"):
            row(*(tensor.reshape(2, 3, *tensor.shape[1:]) for tensor in row.tensors(6, 4)))


@rows
def test_everything_masked_gives_zero_with_a_valid_graph(row):
    tensors = row.tensors(3, 4)
    values = row(*tensors, where=torch.zeros(3, dtype=torch.bool))
    assert torch.equal(values, torch.zeros(3))
    assert torch.equal(gradient(values, tensors[0]), torch.zeros_like(tensors[0]))


@rows
@pytest.mark.parametrize("where", [torch.ones(3), torch.ones(4, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)])
def test_masks_of_another_kind_are_refused(row, where):
    with pytest.raises(UsageError, match="boolean tensor of shape"):
        row(*row.tensors(3, 4), where=where)


@rows
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_extreme_numbers_stay_finite(row, scale):
    tensors = row.tensors(4, 6)
    count = row.student_tensors

    def corners(tensor, sign=1.0):
        ends = sign * scale * torch.tensor([1.0, -1.0])
        return ends.repeat(-(-tensor.numel() // 2))[: tensor.numel()].reshape(tensor.shape)

    opposite = list(tensors[count:])
    for index in range(row.teacher_tensors or row.targets == "values"):
        opposite[index] = corners(opposite[index], -1.0)  # confidently the opposite
    for make in (corners, torch.zeros_like):
        for others in (tensors[count:], opposite):
            students = [make(tensor).requires_grad_() for tensor in tensors[:count]]
            values = row(*students, *others)
            assert values.isfinite().all()
            assert gradient(values, students[0]).isfinite().all()
    if row.zero_when_equal and not row.any_shapes:
        students = [corners(tensor).requires_grad_() for tensor in tensors[:count]]
        saturated = row(*students, *(student.detach() for student in students), *tensors[2 * count :])
        assert saturated.abs().max() <= 1e-6
        assert gradient(saturated, students[0]).isfinite().all()


@rows
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(row, dtype):
    tensors = row.tensors(4, 6, dtype=dtype)
    values = row(*tensors)
    lifted = [tensor.detach().float() if tensor.is_floating_point() else tensor for tensor in tensors]
    assert values.dtype == torch.float32
    assert torch.equal(values, row(*lifted))
    assert gradient(values, tensors[0]).dtype == dtype
    big = torch.full_like(tensors[0], 1e4).requires_grad_()
    assert gradient(row(big, *tensors[1:]), big).isfinite().all()  # squares of 1e4 do not fit into float16


@rows
def test_autocast_changes_nothing(row):
    tensors = row.tensors(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = row(*tensors)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, row(*tensors), rtol=1e-6, atol=1e-7)


@taught
def test_the_teacher_gets_no_gradient(row):
    tensors = row.tensors(3, 4)
    count = row.student_tensors
    teachers = tensors[count : count + row.teacher_tensors]
    for teacher in teachers:
        teacher.requires_grad_()
    row(*tensors).sum().backward()
    assert all(teacher.grad is None for teacher in teachers)
    assert all(student.grad is not None for student in tensors[:count])
    assert not row(*(tensor.detach() for tensor in tensors[:count]), *tensors[count:]).requires_grad


@rows
def test_tensors_from_inference_mode_are_fine(row):
    with torch.inference_mode():
        made = row.tensors(3, 4)[row.student_tensors :]
    tensors = row.tensors(3, 4)
    students, normal = tensors[: row.student_tensors], tensors[row.student_tensors :]
    student = students[0]
    where = torch.tensor([True, True, False])
    torch.testing.assert_close(row(*students, *made), row(*students, *normal))
    torch.testing.assert_close(
        gradient(row(*students, *made, where=where), student), gradient(row(*students, *normal, where=where), student)
    )


@rows
def test_inputs_are_not_changed(row):
    tensors = row.tensors(3, 4)
    before = [tensor.detach().clone() for tensor in tensors]
    row(*tensors, where=torch.tensor([True, False, True])).sum().backward()
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


@rows
@pytest.mark.parametrize("classes", [1, 2, 3, 1000])
def test_one_two_and_many_classes_and_a_batch_of_one(row, classes):
    batch = 4 if row.over_batch else 1
    tensors = row.tensors(batch, classes)
    if classes < row.min_classes:
        with pytest.raises(UsageError, match=row.refusal_of_one if classes == 1 else row.refusal):
            row(*tensors)
        return
    values = row(*tensors)
    assert values.shape == (batch,)
    assert values.isfinite().all()
    if not (row.can_be_zero or (row.can_be_flat and classes <= 2)):
        assert gradient(values, tensors[0]).abs().max() > 0


@taught
def test_shapes_that_differ_are_refused(row):
    tensors = row.tensors(3, 4)
    count = row.student_tensors
    teacher = tensors[count]
    wrongs = (teacher[:2], teacher[:1]) if row.any_shapes else (teacher[:, :-1], teacher[:2], teacher[:1])
    for wrong in wrongs:
        with pytest.raises(UsageError, match="shape"):
            row(*tensors[:count], wrong, *tensors[count + 1 :])


@softmaxes
def test_logits_have_classes_in_their_last_dimension(row):
    student, *rest = row.tensors(3, 4)
    with pytest.raises(UsageError, match=r"\(batch, (\.\.\., )?classes\)"):
        row(student[0], *rest)
    with pytest.raises(UsageError, match="shape"):
        row(student[None], *rest)
    with pytest.raises(UsageError, match="floating point"):
        row(student.detach().long(), *rest)


# temperature and limits


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 5e-3)])
def test_high_temperature_becomes_half_the_variance_of_the_difference(loss, dtype, tolerance):
    student, teacher = random_logits(8, 10, dtype=dtype), random_logits(8, 10, seed=1, dtype=dtype)
    half_variance = 0.5 * (student - teacher).double().var(dim=1, correction=0)
    temperature = 1e5 if dtype == torch.float64 else 1e3
    got = loss(student, teacher, temperature=temperature)
    torch.testing.assert_close(got.double(), half_variance, rtol=tolerance, atol=0)
    centred = [logits - logits.mean(1, keepdim=True) for logits in (student, teacher)]
    torch.testing.assert_close(got.double(), 0.5 * losses.logit_mse(*centred).double(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_the_gradient_keeps_its_size_over_temperatures(loss):
    teacher = random_logits(64, 10, seed=3)
    sizes = []
    for temperature in (2.0, 4.0, 8.0, 16.0):
        student = random_logits(64, 10, scale=0.1).requires_grad_()
        sizes.append(gradient(loss(student, teacher, temperature=temperature), student).norm().item())
    assert max(sizes) / min(sizes) < 2


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_temperature_is_dividing_the_logits_and_multiplying_by_its_square(loss):
    student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
    torch.testing.assert_close(loss(student, teacher, temperature=4.0), 16 * loss(student / 4, teacher / 4))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_bad_temperatures_are_refused(loss, temperature):
    with pytest.raises(UsageError, match="temperature"):
        loss(random_logits(2, 3), random_logits(2, 3), temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("near", [1e-4, 1e-6, 1e-9])
def test_jsd_agrees_with_its_limits(dtype, near):
    """No jump at the ends, in values and in gradients; the larger the beta, the larger the true difference."""
    teacher = random_logits(8, 5, seed=1, scale=1.0, dtype=dtype)
    for beta, end in ((near, losses.forward_kl), (1 - near, losses.reverse_kl)):
        student = random_logits(8, 5, scale=1.0, dtype=dtype).requires_grad_()
        values, limit = losses.jsd(student, teacher, beta=beta, temperature=2.0), end(student, teacher, temperature=2.0)
        tolerance = max(5 * near, 1e-5)
        torch.testing.assert_close(values, limit, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gradient(values, student), gradient(limit, student), rtol=tolerance, atol=tolerance)


def test_jsd_divided_and_undivided_are_the_papers_limits():
    student, teacher = random_logits(8, 5), random_logits(8, 5, seed=1)
    beta = 1e-7
    paper = beta * (1 - beta) * losses.jsd(student, teacher, beta=beta)
    torch.testing.assert_close(paper / beta, losses.forward_kl(student, teacher), rtol=1e-4, atol=1e-6)
    paper = beta * (1 - beta) * losses.jsd(student, teacher, beta=1 - beta)
    torch.testing.assert_close(paper / beta, losses.reverse_kl(student, teacher), rtol=1e-4, atol=1e-6)


def test_jsd_is_symmetric_and_bounded():
    student, teacher = random_logits(16, 5, scale=30.0), random_logits(16, 5, seed=1, scale=30.0)
    values = losses.jsd(student, teacher)
    torch.testing.assert_close(values, losses.jsd(teacher, student))
    assert values.max() <= 4 * math.log(2) + 1e-9
    torch.testing.assert_close(
        losses.jsd(student, teacher, beta=0.2), losses.jsd(teacher, student, beta=0.8), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_bad_betas_are_refused(beta):
    with pytest.raises(UsageError, match="beta"):
        losses.jsd(random_logits(2, 3), random_logits(2, 3), beta=beta)


def test_forward_and_reverse_are_each_other_with_the_sides_exchanged():
    student, teacher = random_logits(4, 5), random_logits(4, 5, seed=1)
    torch.testing.assert_close(losses.forward_kl(student, teacher), losses.reverse_kl(teacher, student))
    assert not torch.allclose(losses.forward_kl(student, teacher), losses.reverse_kl(student, teacher))


def test_directions_of_the_two_divergences():
    """Forward punishes missing a mode of the teacher, reverse punishes inventing one."""
    teacher = torch.tensor([[5.0, 5.0, -5.0]])
    one_mode, too_wide = torch.tensor([[8.0, -2.0, -5.0]]), torch.tensor([[5.0, 5.0, 5.0]])
    assert losses.forward_kl(one_mode, teacher) > losses.forward_kl(too_wide, teacher)
    assert losses.reverse_kl(one_mode, teacher) < losses.reverse_kl(too_wide, teacher)


def test_soft_targets_and_forward_kl_have_one_gradient():
    teacher = random_logits(4, 5, seed=1)
    student = random_logits(4, 5).requires_grad_()
    hard = losses.cross_entropy(student, teacher.softmax(1))
    torch.testing.assert_close(
        gradient(hard, student), gradient(losses.forward_kl(student, teacher), student), rtol=1e-9, atol=1e-12
    )


# single losses


@pytest.mark.parametrize(
    "targets",
    [
        torch.tensor([0, 1, 4, 2]), torch.tensor([0, 1, -100, 2]), torch.tensor([0, -1, 0, 0]),
        torch.full((4, 4), 0.5), torch.tensor([[2.0, -1.0, 0.0, 0.0]] * 4), torch.full((4, 4), math.nan),
    ],
    ids=["too large", "minus 100", "negative", "sums to two", "negative share", "nan"],
)  # fmt: skip
def test_impossible_targets_are_refused(targets):
    with pytest.raises(UsageError, match="targets"):
        losses.cross_entropy(random_logits(4, 4), targets)


@pytest.mark.parametrize(
    "targets",
    [
        torch.zeros(4), torch.zeros(4, 1, dtype=torch.long), torch.zeros(3, dtype=torch.long),
        torch.zeros(4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.long), torch.zeros(4, 5),
    ],
)  # fmt: skip
def test_targets_of_another_shape_or_type_are_refused(targets):
    with pytest.raises(UsageError, match=r"integer classes of shape \(4,\)"):
        losses.cross_entropy(random_logits(4, 4), targets)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_bad_smoothing_is_refused(smoothing):
    with pytest.raises(UsageError, match="label_smoothing"):
        losses.cross_entropy(random_logits(2, 3), torch.tensor([0, 1]), label_smoothing=smoothing)


@pytest.mark.parametrize("loss", [losses.mse, losses.huber, losses.teacher_mse, losses.teacher_huber])
def test_one_output_with_and_without_a_column_is_the_same(loss):
    student, wanted = random_logits(5, 1), random_logits(5, 1, seed=1)
    expected = loss(student, wanted)
    assert expected.shape == (5,)
    for left, right in ((student[:, 0], wanted), (student, wanted[:, 0]), (student[:, 0], wanted[:, 0])):
        assert torch.equal(loss(left, right), expected)
    with pytest.raises(UsageError, match="outputs"):
        loss(random_logits(5, 2), wanted)


@pytest.mark.parametrize(("bent", "squared"), [(losses.huber, losses.mse), (losses.teacher_huber, losses.teacher_mse)])
def test_huber_limits(bent, squared):
    student, wanted = random_logits(5, 3), random_logits(5, 3, seed=1)
    torch.testing.assert_close(bent(student, wanted, delta=1e6), 0.5 * squared(student, wanted))
    torch.testing.assert_close(bent(student, wanted, delta=1e-9) / 1e-9, (student - wanted).abs().mean(1))
    with pytest.raises(UsageError, match="delta"):
        bent(student, wanted, delta=0.0)


def test_integer_regression_targets_are_numbers():
    assert losses.mse(torch.tensor([[1.0], [4.0]]), torch.tensor([1, 2])).tolist() == [0.0, 4.0]


def test_normalised_hidden_signals_compare_directions():
    student, teacher = random_logits(4, 3, 5, 5), random_logits(4, 3, 5, 5, seed=1)
    values = losses.hint_mse(student, teacher, normalize=True)
    torch.testing.assert_close(losses.hint_mse(100 * student, 0.01 * teacher, normalize=True), values)
    torch.testing.assert_close(losses.hint_mse(student, -student, normalize=True), torch.full((4,), 4.0).double())
    zeros = torch.zeros(2, 3, requires_grad=True)
    silent = losses.hint_mse(zeros, torch.zeros(2, 3), normalize=True)
    assert silent.tolist() == [0.0, 0.0]
    assert gradient(silent, zeros).isfinite().all()


def test_hidden_signals_need_a_sample_dimension_and_one_more():
    with pytest.raises(UsageError, match="at least 2 dimensions"):
        losses.hint_mse(torch.zeros(3), torch.zeros(3))
