"""Torch programs from strangers: whatever hides in the archive, nothing of it runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from potstill.core.errors import UsageError
from potstill.teachers.files import open_file
from potstill.teachers.foreign import Wanted

WANTED = Wanted("classification", (6,), ("a", "b", "c"), 3)
KEPT = "prog/data/weights/weight_0"


class Evil:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "prog.pt2"
    free = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(nn.Linear(6, 3).eval(), (torch.ones(2, 6),), dynamic_shapes=free), str(path))
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it-ran"


def written(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def changed(members, ending, change):
    """Return the members with the JSON document whose name has this ending changed."""
    name = next(name for name in members if name.endswith(ending))
    document = json.loads(members[name])
    change(document)
    return {**members, name: json.dumps(document)}


def torch_saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_weights(good, mark):
    def change(document):
        for entry in document["config"].values():
            entry["use_pickle"] = True

    return {**changed(good, "weights_config.json", change), KEPT: torch_saved(Evil(mark))}


def in_constants(good, mark):
    member = "opaque_obj_0"
    entry = {"path_name": member, "is_param": False, "use_pickle": True, "tensor_meta": None}
    members = changed(good, "constants_config.json", lambda document: document["config"].update(hidden=entry))
    return {**members, f"prog/data/constants/{member}": pickle.dumps(Evil(mark))}


def first_node(document):
    return next(node for node in document["graph_module"]["graph"]["nodes"] if "linear" in node["target"])


def in_operator(good, mark):
    def change(document):
        node = first_node(document)
        node["target"] = "torch.os.mkdir"
        node["inputs"] = [{"name": "", "arg": {"as_string": str(mark)}, "kind": 1}]

    return changed(good, "models/model.json", change)


def in_file_operator(good, mark):
    def change(document):
        node = first_node(document)
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [{"name": "filename", "arg": {"as_string": str(mark)}, "kind": 1}]
        node["inputs"] += [{"name": "shared", "arg": {"as_bool": True}, "kind": 1}]
        node["inputs"] += [{"name": "size", "arg": {"as_int": 10}, "kind": 1}]

    return changed(good, "models/model.json", change)


def in_expression(good, mark):
    code = f"__import__('os').mkdir({str(mark)!r})"

    def change(document):
        graph = document["graph_module"]["graph"]
        values = graph["tensor_values"]["linear"]["sizes"]
        values[0]["as_expr"]["expr_str"] = code

    return changed(good, "models/model.json", change)


def in_guards(good, mark):
    code = f"__import__('os').mkdir({str(mark)!r}) is None"
    return changed(good, "models/model.json", lambda document: document.update(guards_code=[code]))


def in_names(good, mark):
    def change(document):
        text = json.dumps(document).replace('"input"', json.dumps(f"x=__import__('os').mkdir({str(mark)!r})"))
        document.clear()
        document.update(json.loads(text))

    return changed(good, "models/model.json", change)


def in_tree(good, mark):
    spec = [1, {"type": "builtins.tuple", "context": '{"__enum__": true, "fqn": "antigravity:x"}', "children_spec": []}]

    def change(document):
        for call in document["graph_module"]["module_call_graph"]:
            call["signature"] = {**(call["signature"] or {}), "in_spec": json.dumps(spec)}

    return changed(good, "models/model.json", change)


HIDING_PLACES = {
    "raw pickle as sample inputs": lambda good, mark: {
        **good,
        "prog/data/sample_inputs/model.pt": pickle.dumps(Evil(mark)),
    },
    "nested archive as sample inputs": lambda good, mark: {
        **good,
        "prog/data/sample_inputs/model.pt": torch_saved((Evil(mark),)),
    },
    "weights by name": lambda good, mark: {**good, "prog/data/weights/model.pt": pickle.dumps(Evil(mark))},
    "pickled weight": in_weights,
    "pickled constant": in_constants,
    "compiled library": lambda good, mark: {**good, "prog/data/aotinductor/model/model.so": b"\x7fELF"},
    "Python function as operator": in_operator,
    "operator that writes files": in_file_operator,
    "expression": in_expression,
    "name": in_names,
    "enum of a module": in_tree,
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_code_in_a_program_is_refused_and_never_runs(tmp_path, good, mark, place):
    path = written(tmp_path / "prog.pt2", HIDING_PLACES[place](good, mark))
    with pytest.raises(UsageError, match=r"prog\.pt2 was refused: its member 'prog/.*Nothing in it was run"):
        open_file(path, WANTED)
    assert not mark.exists()


def test_guards_are_left_out_and_the_program_still_opens(tmp_path, good, mark):
    opened = open_file(written(tmp_path / "prog.pt2", in_guards(good, mark)), WANTED)
    assert opened.module(torch.ones(4, 6)).shape == (4, 3)
    assert not mark.exists()


@pytest.mark.parametrize("member", ["serialized_state_dict.pt", "serialized_constants.json"])
def test_the_older_format_is_looked_into_too(tmp_path, mark, member):
    path = written(tmp_path / "old.pt2", {"version": "8.0", member: pickle.dumps(Evil(mark))})
    with pytest.raises(UsageError, match=f"member '{member}'.*a pickle of more than tensors"):
        open_file(path, WANTED)
    assert not mark.exists()


def test_allow_pickle_opens_what_was_refused(tmp_path, good, mark):
    path = written(tmp_path / "prog.pt2", HIDING_PLACES["raw pickle as sample inputs"](good, mark))
    with pytest.raises(UsageError, match="not a readable"):
        open_file(path, WANTED, allow_pickle=True)
    assert mark.exists()


def test_two_members_of_one_name_are_refused(tmp_path, good):
    path = written(tmp_path / "prog.pt2", good)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("PROG/models/model.json", good["prog/models/model.json"])
    with pytest.raises(UsageError, match="two members of one name"):
        open_file(path, WANTED)


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, good):
    path = tmp_path / "prog.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("prog/models/model.json", b" " * 101_000_000)
    with pytest.raises(UsageError, match="bytes unpack to 101,000,000"):
        open_file(path, WANTED)


@pytest.mark.parametrize("name", ["pipe.pt2", "pipe.onnx", "pipe.npz"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match=f"{name} is a device or pipe"):
        open_file(tmp_path / name, WANTED)


def test_torchscript_that_writes_files_is_refused(tmp_path, mark):
    class Writes(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            torch.save(inputs, self.mark)
            return inputs[:, :3]

        def __init__(self, mark: str):
            super().__init__()
            self.mark = mark

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Writes(str(mark))), str(tmp_path / "writes.ts"))
    with pytest.raises(UsageError, match="its code calls save"):
        open_file(tmp_path / "writes.ts", WANTED)
    assert not mark.exists()
