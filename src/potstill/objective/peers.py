"""The objective of students that learn in one pass, and from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from potstill.core.names import Signal, of_peer, own
from potstill.objective.term import Names, Term
from potstill.objective.total import Objective
from potstill.tasks import task_of


def with_peers(objective: Objective, count: int, mutual: float, task: str) -> Objective:
    """Return the objective of a student and its peers: each peer's own terms, and what they tell each other.

    Mutual terms are `forward_kl` from every other student to each, at temperature 1 and ``mutual`` divided by the
    number of others (Ying Zhang, Tao Xiang, Timothy M. Hospedales, Huchuan Lu: Deep Mutual Learning, 2017,
    arXiv:1706.00384); `teacher_mse` in regression. What another student says is a constant, as a teacher's answer is.

    Args:
        objective: of one student.
        count: number of peers; with 0 the objective stays as it is.
        mutual: weight of the mutual terms.
        task: ``"classification"`` or ``"regression"``.

    """
    if not count:
        return objective
    everyone = range(count + 1)
    terms = [*objective.terms, *(_of_peer(term, peer) for peer in everyone[1:] for term in objective.terms)]
    if mutual:
        loss = task_of(task).soft
        terms += [
            Term(
                loss,
                mutual / count,
                student=of_peer(learner),
                teacher=own(of_peer(other)),
                name=f"{_called(learner)} from {_called(other)}",
            )
            for learner in everyone
            for other in everyone
            if learner != other
        ]
    return Objective(terms)


def _called(student: int) -> str:
    return f"peer{student}" if student else "student"


def _of_peer(term: Term, peer: int) -> Term:
    """Return a term as a peer's: it reads the peer's signals and the same of the teacher."""

    def renamed(signals: Sequence[Signal], names: Names) -> Names:
        new = tuple(
            str(signal if signal.side == "teacher" else replace(signal, name=of_peer(peer, signal.name)))
            for signal in signals
        )
        return new[0] if isinstance(names, str) else new

    return term.changed(
        student=renamed(term.read, term.student),
        teacher=None if term.teacher is None else renamed(term.taught, term.teacher),
        name=of_peer(peer, term.name),
    )
