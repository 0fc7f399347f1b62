"""TorchScript and torch.export files as teachers, against the module they were made of."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import TeacherError, UsageError
from potstill.models.measure import bytes_of_weights, num_parameters
from potstill.models.preprocess import Preprocessor
from potstill.teachers.files import open_file
from potstill.teachers.foreign import Reading, Wanted, source_of

WANTED = Wanted("classification", (1, 6, 6), ("a", "b", "c"), 3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(64, 3))
    return layers.eval()


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(7, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def saved(model, path, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.name.startswith("traced"):
            torch.jit.save(torch.jit.trace(model, inputs), str(path))
        elif path.name.startswith("scripted"):
            torch.jit.save(torch.jit.script(model), str(path))
        else:
            free = ({0: torch.export.Dim("batch")},) if "free" in path.name else None
            torch.export.save(torch.export.export(model, (inputs[:4],), dynamic_shapes=free), str(path))
    return path


@pytest.mark.parametrize("name", ["traced.pt", "scripted.ts", "free.pt2", "fixed.pt2"])
def test_answers_are_those_of_the_module(tmp_path, model, inputs, name, asked):
    found = open_file(saved(model, tmp_path / name, inputs), WANTED)
    opened = source_of(found, Reading("logits", 3, WANTED.classes), Preprocessor())
    with torch.no_grad():
        expected = model(inputs)
        torch.testing.assert_close(asked(opened, inputs)["logits"], expected, rtol=1e-4, atol=1e-5)
        copied = copy.deepcopy(opened.whole())
        copied.train()
        copied.eval()
        torch.testing.assert_close(copied(inputs[:3]), expected[:3], rtol=1e-4, atol=1e-5)
    assert not opened.facts.layers  # a program's layers cannot be read
    assert opened.facts.parameters == num_parameters(model)
    assert opened.facts.size_bytes - bytes_of_weights(model) in (0, -8)


@pytest.mark.parametrize("name", ["traced.pt", "fixed.pt2"])
def test_a_live_teacher_of_a_file_gives_it_back_unchanged(tmp_path, model, inputs, name):
    from potstill.core.signals import Batch

    found = open_file(saved(model, tmp_path / name, inputs), WANTED)
    opened = source_of(found, Reading("logits", 3, WANTED.classes), Preprocessor())
    ids = torch.arange(7)
    with opened.teaching() as live:
        answer = live(Batch(ids, torch.zeros_like(ids), inputs))["logits"]
        live.verify_unchanged()
    np.testing.assert_allclose(answer.numpy(), model(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_probabilities_become_logits_and_change_the_fingerprint(tmp_path, model, inputs, asked):
    path = saved(nn.Sequential(model, nn.Softmax(1)).eval(), tmp_path / "free.pt2", inputs)
    found = open_file(path, WANTED)
    opened = source_of(found, Reading("probabilities", 3, WANTED.classes, (1, 2, 0)), Preprocessor())
    expected = model(inputs).log_softmax(1)[:, [1, 2, 0]].detach()
    torch.testing.assert_close(asked(opened, inputs)["logits"], expected, rtol=1e-3, atol=1e-5, check_stride=False)
    plain = source_of(found, Reading("logits", 3, WANTED.classes), Preprocessor())
    assert opened.teaching().fingerprint != plain.teaching().fingerprint


def test_files_of_weights_are_told_from_programs(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"no TorchScript file.*give teacher.model and teacher.weights"):
        open_file(tmp_path / "weights.pt", WANTED)
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(UsageError, match=r"no TorchScript file"):
        open_file(tmp_path / "whole.pt", WANTED)
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"not a readable torch.export file"):
        open_file(tmp_path / "bad.pt2", WANTED)


def test_a_program_for_other_samples_is_refused(tmp_path, model, inputs):
    path = saved(model, tmp_path / "free.pt2", inputs)
    with pytest.raises(TeacherError, match=r"takes samples of shape 1 x 6 x 6, but the data has 3 x 6 x 6"):
        open_file(path, Wanted("classification", (3, 6, 6), ("a", "b", "c"), 3))
