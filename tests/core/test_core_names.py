"""Names of signals: what each means, in which place, and that other names stay names of layers."""

from __future__ import annotations

import pytest

from potstill.core.names import Signal, of_exit, of_peer, own, parse, split_run


@pytest.mark.parametrize(
    ("text", "taught", "signal"),
    [
        ("logits", False, Signal("logits", "student", False, "logits", None, None)),
        ("logits", True, Signal("logits", "teacher", True, "logits", None, None)),
        ("layer2#1", False, Signal("layer2#1", "student", False, "layer2", 1, None)),
        ("layer#x", False, Signal("layer#x", "student", False, "layer#x", None, None)),
        ("student.a.0", True, Signal("a.0", "student", True, "a.0", None, None)),
        ("student.a.0", False, Signal("student.a.0", "student", False, "student.a.0", None, None)),
        ("a.0.b(teacher.c.1)", False, Signal("a.0.b(teacher.c.1)", "student", False, "a.0.b", None, "c.1")),
        ("a(teacher.c)", True, Signal("a(teacher.c)", "teacher", True, "a(teacher.c)", None, None)),
        ("a(student.c)", False, Signal("a(student.c)", "student", False, "a(student.c)", None, None)),
    ],
)
def test_a_name_means_what_its_place_says_and_is_written_as_it_was_read(text: str, taught: bool, signal: Signal):
    assert parse(text, taught=taught) == signal
    assert str(signal) == text


def test_signals_of_peers_and_exits_are_told_apart_from_layers_of_such_names():
    assert parse("peer2.layer#1").beside(2) == (2, "layer#1")
    assert parse("peer2.layer").beside(1) == (0, "peer2.layer")
    assert parse("peer0.layer").beside(9) == (0, "peer0.layer")
    assert parse("peer01.layer").beside(9) == (0, "peer01.layer")
    assert parse("peer").beside(3) == (0, "peer")
    assert parse(of_peer(3)).beside(3) == (3, "logits")
    assert (of_peer(0), of_exit(2), own("logits")) == ("logits", "exit2.logits", "student.logits")


def test_what_is_an_answer_and_which_run_of_a_layer_is_meant():
    assert [parse(name).is_answer for name in ("logits", "exit1.logits", "layer", "logits.0")] == [1, 1, 0, 0]
    assert split_run("a.b#12") == ("a.b", 12)
    assert split_run("#1") == ("", 1)
    assert split_run("a#") == ("a#", None)
