"""A teacher of other classes: probabilities are summed, classes that stand for nothing are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import TeacherError
from potstill.core.signals import Batch
from potstill.teachers import Reads, TorchModel
from potstill.teachers.merge import regroup
from potstill.teachers.regrouped import Regrouped, groups_of

LOGITS = 3 * torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GROUPS = [1, 0, -1, 1, 2]


def expected(logits):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    kept = np.stack([p[:, 1], p[:, 0] + p[:, 3], p[:, 4]], axis=1)
    return kept / kept.sum(1, keepdims=True)


def test_probabilities_are_summed_and_the_rest_left_out():
    found = regroup(LOGITS, torch.tensor(GROUPS), 3)
    np.testing.assert_allclose(found.exp().numpy(), expected(LOGITS.numpy()), rtol=1e-12)


def test_one_to_one_is_a_renamed_softmax_and_extremes_stay_finite():
    order = torch.tensor([2, 0, 1, 4, 3])
    found = regroup(LOGITS, order, 5)
    torch.testing.assert_close(found[:, order], LOGITS.log_softmax(1))
    extreme = regroup(torch.tensor([[1e4, -1e4, 0.0, 1e4, -1e4]]), torch.tensor(GROUPS), 3)
    assert torch.isfinite(extreme).all()
    assert extreme.dtype == torch.float32
    assert regroup(LOGITS[:1], torch.tensor(GROUPS), 3).shape == (1, 3)


def test_the_model_answers_in_the_datas_classes_and_keeps_its_layers():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    ids, inputs = torch.arange(3), torch.randn(3, 4)
    with TorchModel(model, then=(Regrouped(tuple(GROUPS), 3),)).teaching(Reads(taps={"hidden": "0"})) as teacher:
        answer = teacher(Batch(ids, torch.zeros_like(ids), inputs))
        assert teacher.sources["hidden"] == "model.0"
        assert teacher.module is None  # its answer is not what a layer of it says
    torch.testing.assert_close(answer["hidden"], model[0](inputs))
    np.testing.assert_allclose(answer["logits"].exp(), expected(model(inputs).detach().double().numpy()), rtol=1e-5)


def test_another_map_is_another_teacher():
    model = nn.Linear(4, 5)
    maps = ((), (Regrouped(tuple(GROUPS), 3),), (Regrouped((0, 1, -1, 1, 2), 3),))
    assert len({TorchModel(model, then=then).teaching().fingerprint for then in maps}) == 3


def test_another_number_of_outputs_than_names_is_refused():
    with pytest.raises(TeacherError, match=r"answers with \(4,\) classes, but 5 were named"):
        Regrouped(tuple(GROUPS), 3)(torch.zeros(2, 4))


def test_class_maps_are_checked():
    found = groups_of({"tabby": "cat", "siamese": "cat", "car": None, "pug": "dog"}, ["dog", "cat"])
    assert found == (1, 1, -1, 0)
    with pytest.raises(TeacherError, match=r"'pug' is said to stand for 'dgo'.*Did you mean 'dog'"):
        groups_of({"tabby": "cat", "pug": "dgo"}, ["dog", "cat"])
    with pytest.raises(TeacherError, match=r"No class of the teacher stands for \['dog'\]"):
        groups_of({"tabby": "cat"}, ["dog", "cat"])
