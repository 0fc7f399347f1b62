"""Labelling texts with a chat model: ask each question once, lose no answer, write the store from what came."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.explain import clear_errors
from potstill.core.files import check_folder, read_json, write_json
from potstill.core.progress import Advance, progress
from potstill.pipeline.journal import Journal, open_journal, read_journal
from potstill.pipeline.makers import located
from potstill.pipeline.text_page import write_text_page
from potstill.pipeline.text_questions import Questions, plan_texts, questions_of
from potstill.pipeline.text_store import Place, Survey, survey, write_text_store
from potstill.recipe.endpoint import Endpoint
from potstill.recipe.text import TextRecipe
from potstill.teachers import chat
from potstill.teachers.chat_classes import class_answer
from potstill.teachers.http import EndpointError, HttpClient, Limits, RefusedError, StoppedError, UnreachableError
from potstill.teachers.spend import Prices, Spend, SpendLimitError, Usage

__all__ = ["check_labelled", "label_texts", "plan_texts"]

SETTINGS = "question.json"
_REFUSALS_WITHOUT_ANY_ANSWER = 5
_FAILURES_IN_A_ROW = 5
_LISTED = 10
_BACKOFF = 1.0


@clear_errors
def label_texts(
    recipe: TextRecipe, out: Path, *, part: tuple[int, int] = (0, 1), base: Path = Path()
) -> dict[str, Any]:
    """Ask a chat model about every row of the data, and keep what it says.

    When to use it: for a teacher that is only reachable over the web. Every answer is on disk before the next one is
    counted, so the same call after any interruption asks only for what is missing.

    Args:
        recipe: what to ask, whom, and how much money may be spent.
        out: folder of the answers: one journal for each part, the summary, and the store if it has no path of its own.
        part: ``(i, n)``: ask only about the i-th of n parts of the rows, counted from 0. Each part may spend an n-th
            of the spend limit. The store is written once every row is answered.
        base: folder that the recipe's paths are relative to.

    Returns:
        The summary, which is also ``answers-<i>-of-<n>.json``: rows, answers, failed rows with reasons, tokens, money,
        seconds and, as ``stopped``, why it ended early. See `check_labelled`.

    Raises:
        UsageError: the recipe does not fit the data, or a key is not in the environment.
        DataError: the data cannot be used.
        TeacherError: the server refuses everything or is gone, or ``out`` holds answers to other questions.
            Answers so far are kept.

    """
    index, parts = part
    if not 0 <= index < parts:
        raise UsageError(f"part {index + 1}/{parts}: expected 1/{parts} to {parts}/{parts}.")
    questions = questions_of(recipe, base=base)
    out = Path(out)
    if recipe.store.path is not None:
        check_folder(located(recipe.store.path, base))
    name = f"answers-{index}-of-{parts}"
    answers = out / f"{name}.jsonl"
    with open_journal(answers) as journal, open_journal(_requests_of(answers)) as requests:
        _check_settings(questions, out)
        known = _known(out)
        mine = range(index * len(questions) // parts, (index + 1) * len(questions) // parts)
        missing = [row for row in mine if questions.keys[row] not in known.places]
        own = known if parts == 1 else _known(out, f"{name}.jsonl")
        same = _known(out, f"answers-*-of-{parts}.jsonl")
        limit = recipe.teacher.endpoint.spend_limit
        if limit is not None and parts > 1:
            # What was spent while the rows were divided otherwise is nobody's share.
            limit = max(0.0, limit - (known.money(recipe) - same.money(recipe))) / parts
        labelling = _Labelling(questions, journal, requests, own, limit)
        with progress("asking the teacher", len(mine), unit="answers", done=len(mine) - len(missing)) as advance:
            labelling.run(missing, advance)
    known = _known(out)
    found = survey(questions, known.places)
    store = None
    if found.rows and (parts == 1 or len(found.rows) == len(questions)):
        store = out / "store" if recipe.store.path is None else located(recipe.store.path, base)
        write_text_store(questions, known.places, found, store)
    summary = _summary(questions, labelling, known, found, store)
    if store is not None:
        summary["page"] = str(write_text_page(questions, store, out, summary))
    write_json(out / f"{name}.json", summary)
    return summary


def check_labelled(summary: Mapping[str, Any]) -> None:
    """Raise if a labelling is not whole, saying how to go on; the last step of a command that labels.

    Raises:
        PotstillError: it was stopped, or rows failed.

    """
    problems = [] if summary["stopped"] is None else [summary["stopped"]]
    failed = summary["failed"]
    if failed:
        lines = [f"\n  {row['id']}: {row['reason']}" for row in failed[:_LISTED]]
        more = f"\n  and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
        problems.append(
            f"{len(failed)} of {summary['rows']} rows have no answer:{''.join(lines)}{more}\n"
            "All other answers are kept. Run the same command again to ask about these rows only, after changing "
            "what is wrong with them, or remove them from the data."
        )
    if problems:
        raise PotstillError("\n".join(problems))


@dataclass
class _Known:
    """What the journals hold: where the answer to each key stands, who gave them, and what was spent."""

    places: dict[str, Place] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    unanswered: Usage = field(default_factory=Usage)
    urls: set[str] = field(default_factory=set)
    estimated: int = 0
    unreadable: int = 0

    def money(self, recipe: TextRecipe) -> float:
        """Return what all of it cost, at most."""
        endpoint = recipe.teacher.endpoint
        return Prices(endpoint.price_in, endpoint.price_out).of(self.usage + self.unanswered)


def _known(out: Path, pattern: str = "answers-*-of-*.jsonl") -> _Known:
    """Read the journals of ``out``; lines that are damaged count as questions that were not asked."""
    known = _Known()
    for path in sorted(out.glob(pattern)):
        ended: set[str] = set()
        for line in read_journal(path):
            value = line.value or {}
            try:
                if "answer" in value:
                    known.usage = known.usage + Usage(*value["answer"]["usage"])
                    known.estimated += bool(value["answer"]["usage_is_estimated"])
                    known.urls.add(str(value["url"]))
                    known.places.setdefault(str(value["key"]), (path, line.start, line.length))
                elif "problem" in value:
                    known.usage = known.usage + Usage(*value["usage"])
                elif "lost" in value:
                    known.unanswered = known.unanswered + Usage(*value["lost"])
                    continue
                else:
                    known.unreadable += 1
                ended.add(str(value.get("request")))
            except (KeyError, TypeError):
                known.unreadable += 1
        known.unanswered = sum(_under_way(_requests_of(path), ended), known.unanswered)
    return known


def _requests_of(answers: Path) -> Path:
    """Return the journal of what was sent, beside the journal of what was answered."""
    return answers.with_name(answers.name.replace("answers-", "requests-", 1))


def _under_way(path: Path, ended: set[str]) -> list[Usage]:
    """Return what requests may have cost whose process died before it knew what came of them."""
    sent: dict[str, Usage] = {}
    for line in read_journal(path):
        value = line.value or {}
        request = str(value.get("request"))
        if "at_most" in value:
            sent[request] = Usage(*value["at_most"])
        else:
            sent.pop(request, None)
    return [usage for request, usage in sent.items() if request not in ended]


def _check_settings(questions: Questions, out: Path) -> None:
    """Refuse a folder with answers to other questions."""
    path = out / SETTINGS
    if not path.exists():
        write_json(path, questions.settings)
        return
    before, now = read_json(path), questions.settings
    changes = [f"\n  {key}: was {before.get(key)!r}, is {now[key]!r}" for key in now if before.get(key) != now[key]]
    if changes:
        raise TeacherError(
            f"{out} holds answers to other questions:{''.join(changes)}\n"
            "Undo the change, or choose another folder to ask everything anew."
        )


class _Labelling:
    """The asking of one part: several rows at a time, each answer into the journal by the thread that got it."""

    def __init__(
        self, questions: Questions, journal: Journal, requests: Journal, known: _Known, limit: float | None
    ) -> None:
        endpoint = questions.recipe.teacher.endpoint
        self._questions, self._journal, self._requests = questions, journal, requests
        self._answered_before = bool(known.places)
        prices = Prices(endpoint.price_in, endpoint.price_out)
        self.spend = Spend(prices, limit, earlier=known.usage, earlier_lost=known.unanswered)
        self.client = _client(endpoint)
        self.failed: list[dict[str, str]] = []
        self.asked = 0
        self.stopped: str | None = None
        self.seconds = 0.0
        self._in_a_row = 0

    def run(self, rows: Sequence[int], advance: Advance) -> None:
        """Ask about ``rows``; fills the attributes."""
        started = time.monotonic()
        concurrency = self.client.limits.concurrency
        try:
            with ThreadPoolExecutor(concurrency, thread_name_prefix="potstill-ask") as executor:
                try:
                    for row, error in _as_they_end(executor, self._ask, rows, concurrency, lambda: bool(self.stopped)):
                        self._note(row, error)
                        advance(note=self._note_of_cost())
                finally:
                    # Whatever ends the loop: nothing more is sent, and what is under way reaches the journal.
                    self.client.stop()
        finally:
            self.client.close()
            self.seconds = time.monotonic() - started

    def _ask(self, row: int) -> None:
        questions, recipe = self._questions, self._questions.recipe
        key, body = questions.keys[row], questions.body(row)
        request = uuid.uuid4().hex
        named = {"request": request, "key": key, "id": questions.texts.names[row], "url": self.client.url}
        worst = chat.worst_case(body)
        at_most = [worst.tokens_in, worst.tokens_out]

        sent = False

        def send() -> None:
            nonlocal sent
            # On disk before the server can count it: what this process never hears of is counted by the next one.
            self._requests.add({"request": request, "at_most": at_most})
            sent = True

        def lost() -> None:
            self._journal.add({**named, "lost": at_most})

        try:
            answer = chat.ask(self.client, body, self.spend, on_send=send, on_lost=lost)
            if recipe.classes is not None:
                class_answer(answer, recipe.classes, recipe.class_form)
        except chat.UnusableError as error:
            usage = [error.usage.tokens_in, error.usage.tokens_out]
            self._journal.add({**named, "problem": self.client.hide(str(error)), "usage": usage})
            raise
        except BaseException:
            # Refused or not sent, which costs nothing, or lost, which is counted.
            if sent:
                self._requests.add({"request": request, "ended": True})
            raise
        self._journal.add({**named, "answer": answer.to_json()})

    def _note(self, row: int, error: BaseException | None) -> None:
        """Count what became of a row, and stop where going on makes no sense."""
        if error is None:
            self.asked += 1
            self._in_a_row = 0
            return
        if isinstance(error, SpendLimitError):
            self.stopped = self.stopped or str(error)
            return
        if isinstance(error, StoppedError):
            return
        if not isinstance(error, RefusedError | UnreachableError):
            raise error
        reason = self.client.hide(str(error))
        self.failed.append({"id": self._questions.texts.names[row], "reason": reason})
        self._in_a_row = self._in_a_row + 1 if isinstance(error, UnreachableError) else 0
        none_yet = not self._answered_before and self.asked == 0
        if self._in_a_row >= _FAILURES_IN_A_ROW:
            raise EndpointError(f"{self._in_a_row} requests in a row failed; the last: {reason} Answers are kept.")
        if none_yet and len(self.failed) >= _REFUSALS_WITHOUT_ANY_ANSWER:
            raise EndpointError(f"The first {len(self.failed)} requests were all refused; the last: {reason}")

    def _note_of_cost(self) -> str:
        usage = self.spend.usage
        note = f"{usage.tokens_in + usage.tokens_out:,} tokens"
        return f"{note}, {self.spend.money:,.4f} spent" if self.spend.money else note


def _client(endpoint: Endpoint) -> HttpClient:
    return HttpClient(
        endpoint.url,
        headers=endpoint.headers,
        key_env=endpoint.key_env,
        limits=Limits(
            concurrency=endpoint.concurrency,
            requests_per_minute=endpoint.requests_per_minute,
            tokens_per_minute=endpoint.tokens_per_minute,
            retries=endpoint.retries,
            timeout=endpoint.timeout,
            backoff=_BACKOFF,
        ),
    )


def _as_they_end(
    executor: ThreadPoolExecutor,
    ask: Callable[[int], None],
    rows: Sequence[int],
    concurrency: int,
    stopped: Callable[[], bool],
) -> Iterator[tuple[int, BaseException | None]]:
    """Yield ``(row, error or None)`` as the rows end; never more than ``concurrency`` are begun at once."""
    waiting = iter(rows)
    under_way: dict[Future[None], int] = {}
    while True:
        if not stopped():
            under_way |= {executor.submit(ask, row): row for row in islice(waiting, concurrency - len(under_way))}
        if not under_way:
            return
        ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in ended:
            yield under_way.pop(future), future.exception()


def _summary(
    questions: Questions, labelling: _Labelling, known: _Known, found: Survey, store: Path | None
) -> dict[str, Any]:
    answers = len(found.rows)
    soft = answers - found.hard
    classes = questions.recipe.classes is not None
    return {
        "rows": len(questions),
        "answers": answers,
        "asked": labelling.asked,
        "kept": answers - labelling.asked,
        "failed": labelling.failed,
        "retried": labelling.client.retried,
        "stopped": labelling.stopped,
        "tokens_in": known.usage.tokens_in,
        "tokens_out": known.usage.tokens_out,
        "tokens_unanswered": known.unanswered.tokens_in + known.unanswered.tokens_out,
        "money": known.money(questions.recipe),
        "seconds": labelling.seconds,
        "answers_per_second": labelling.asked / labelling.seconds if labelling.seconds > 0 else 0.0,
        "finish_reasons": dict(sorted(found.finish_reasons.items())),
        "with_logprobs": found.with_tokens,
        "mean_logprob": found.logprob / found.tokens if found.tokens else None,
        "hard_labels": found.hard if classes else None,
        "covered": found.covered / soft if classes and soft else None,
        "accuracy": found.right / answers if questions.targets is not None and answers else None,
        "findings": [finding.message for finding in questions.texts.findings]
        + _findings(questions, known, found, labelling),
        "store": None if store is None else str(store),
        "page": None,
    }


def _findings(questions: Questions, known: _Known, found: Survey, labelling: _Labelling) -> list[str]:
    answers = len(found.rows)
    asked_for = questions.recipe.teacher.endpoint.top_logprobs > 0
    said = []
    if asked_for and found.with_tokens < answers:
        without = answers - found.with_tokens
        what = "hard labels" if questions.recipe.classes else "text only"
        said.append(f"The server gave no log-probabilities for {without} of {answers} answers: {what} there.")
    if questions.recipe.classes and answers > found.hard and found.covered < 0.8 * (answers - found.hard):
        share = found.covered / (answers - found.hard)
        said.append(
            f"Only {share:.0%} of the probability is on tokens that name a class; the rest is spread evenly. "
            "Ask more clearly in the prompt, or for more top_logprobs."
        )
    if found.truncated and not questions.recipe.classes:
        said.append(f"{found.truncated} of {answers} answers were cut at max_tokens: {questions.max_tokens}.")
    if len(known.urls) > 1:
        said.append(f"The answers come from {len(known.urls)} addresses: {', '.join(sorted(known.urls))}.")
    if known.estimated:
        said.append(f"The server did not count the tokens of {known.estimated} answers; upper bounds are counted.")
    if known.unreadable:
        said.append(f"{known.unreadable} lines of the journal were damaged; what they held was asked again.")
    if known.unanswered != Usage():
        said.append("Some requests were sent and not answered; they are counted as if each had been the longest.")
    return said if answers or labelling.failed else [*said, "No row was answered."]
