"""Chat completions: what is sent, what is read, and classes from the first token."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from potstill.core.errors import UsageError
from potstill.teachers.chat import (
    ChatAnswer,
    Token,
    UnusableError,
    answer_from_json,
    ask,
    fill,
    messages,
    read_answer,
    request_body,
    template_columns,
    worst_case,
)
from potstill.teachers.chat_classes import class_answer, class_prompt, words_of
from potstill.teachers.http import HttpClient, Limits
from potstill.teachers.spend import Prices, Spend, SpendLimitError, Usage

from .endpoint_server import Reply, completion, serving, token

WORST = Usage(100, 50)
SENTIMENT = ["negative", "positive"]


def test_templates() -> None:
    template = "{{json}} {text} and {other text}, {text}"
    assert template_columns(template, ["text", "other text"]) == ["text", "other text"]
    assert fill(template, {"text": "{x}", "other text": "b"}) == "{json} {x} and b, {x}"
    for bad, words in [
        ("{txt}", r"no column 'txt'\. Did you mean 'text'\?"),
        ("{text!r}", r"'\{text!r\}' is not the name of a column"),
        ("{text.__class__}", "is not the name of a column"),
        ("{0[1]}", "is not the name of a column"),
        ("{", "for braces that are meant as such"),
        ("{}", "is not the name of a column"),
    ]:
        with pytest.raises(UsageError, match=words):
            template_columns(bad, ["text"])


def test_what_is_sent() -> None:
    conversation = messages("hello", "be brief")
    body = request_body("m", conversation, max_tokens=7, top_logprobs=5, parameters={"temperature": 0.5})
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_tokens": 7,
        "logprobs": True,
        "top_logprobs": 5,
        "temperature": 0.5,
    }
    plain = request_body("m", messages("é", None), max_tokens=7, top_logprobs=0)
    assert not {"logprobs", "top_logprobs"} & set(plain)
    assert worst_case(plain) == Usage(2 + 64, 7)
    newer = request_body("m", conversation, max_tokens=7, top_logprobs=0, parameters={"max_completion_tokens": 9})
    assert "max_tokens" not in newer
    assert worst_case(newer).tokens_out == 9
    for name in ("stream", "n", "logprobs", "max_tokens", "messages"):
        with pytest.raises(UsageError, match=f"parameters.{name} cannot be set here"):
            request_body("m", conversation, max_tokens=7, top_logprobs=0, parameters={name: 1})


def test_what_is_read() -> None:
    tokens = [token("Hi", -0.25, [("Ho", -3.0), ("Hi", -0.25)]), token(" \n", -0.5)]
    answer = read_answer(completion("Hi \n", tokens, usage=(12, 2)), WORST)
    assert answer.text == "Hi \n"
    assert answer.finish_reason == "stop"
    assert answer.usage == Usage(12, 2)
    assert not answer.usage_is_estimated
    assert answer.tokens == (Token(b"Hi", -0.25, ((b"Hi", -0.25), (b"Ho", -3.0))), Token(b" \n", -0.5))


def test_answers_survive_json_whatever_their_bytes() -> None:
    payload = completion("\ud83d", [{"token": "\\xf0", "logprob": -1, "bytes": [240, 159], "top_logprobs": []}])
    answer = read_answer(payload, WORST)
    assert answer.tokens is not None
    assert answer.tokens[0].content == b"\xf0\x9f"
    assert answer_from_json(json.loads(json.dumps(answer.to_json()))) == answer
    bare = read_answer(completion("x"), WORST)
    assert bare.tokens is None
    assert answer_from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_servers_that_leave_things_out() -> None:
    uncounted = read_answer(completion("x", usage=None), WORST)
    assert (uncounted.usage, uncounted.usage_is_estimated) == (WORST, True)
    half = read_answer(completion("x", [token("x", -1.0)], usage=None), WORST)
    assert half.usage == Usage(100, 1)
    odd = completion("x", [{"token": "é", "logprob": None, "top_logprobs": None}])
    odd["usage"] = {"prompt_tokens": "7"}
    read = read_answer(odd, WORST)
    assert read.tokens == (Token("é".encode(), -9999.0),)
    assert read.usage_is_estimated


@pytest.mark.parametrize(
    ("payload", "words", "cost"),
    [
        ({"error": "x"}, "not a chat completion", WORST),
        ([], "not a chat completion", WORST),
        ({"choices": []}, "not a chat completion", WORST),
        (completion(None), "The answer has no text", Usage(10, 2)),
        (completion("x", finish="content_filter"), "content filter stopped", Usage(10, 2)),
        (completion("x", [{"token": "x", "logprob": "low"}]), "log-probabilities cannot be read", Usage(10, 2)),
    ],
)
def test_unusable_answers_have_been_paid_for(payload: Any, words: str, cost: Usage) -> None:
    with pytest.raises(UnusableError, match=words) as caught:
        read_answer(payload, WORST)
    assert caught.value.usage == cost
    body = request_body("m", messages("x" * 36, None), max_tokens=50, top_logprobs=0)
    with serving(lambda request: Reply(payload)) as server:
        client, spend = HttpClient(server.url), Spend()
        with pytest.raises(UnusableError):
            ask(client, body, spend)
        client.close()
        assert server.requests[0].path == "/chat/completions"
    assert spend.usage == cost


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bytes", 99_999_999_999),
        ("bytes", [65] * 10_001),
        ("bytes", [256]),
        ("logprob", math.inf),
        ("logprob", math.nan),
        ("logprob", 0.5),
        ("logprob", 10**400),
        ("logprob", True),
        ("top_logprobs", [3]),
        ("top_logprobs", 3),
    ],
)
def test_numbers_that_no_token_has_are_refused(name: str, value: Any) -> None:
    place = {**token("A", -0.1, [("A", -0.1)]), name: value}
    with pytest.raises(UnusableError, match="log-probabilities cannot be read"):
        read_answer(completion("A", [place]), Usage(1, 1))


def test_counts_that_no_answer_has_are_not_believed() -> None:
    payload = completion("A", usage=(10**400, 2))
    assert read_answer(payload, Usage(7, 8)).usage == Usage(7, 8)


def test_asking_counts_what_the_server_counts_and_stops_before_the_limit() -> None:
    body = request_body("m", messages("x" * 36, None), max_tokens=50, top_logprobs=0)
    with serving(lambda request: Reply(completion("y", usage=(40, 10)))) as server:
        client = HttpClient(server.url)
        # The worst case of a request is 100 + 2 * 50 = 200, its true price 40 + 2 * 10 = 60.
        spend = Spend(Prices(1e6, 2e6), limit=330.0)
        for _ in range(3):
            ask(client, body, spend)
        with pytest.raises(SpendLimitError, match=r"180\.0000 is spent.* might become 380\.0000"):
            ask(client, body, spend)
        client.close()
        assert len(server.requests) == 3
    assert spend.money == 180.0


def test_lost_tries_are_told_and_counted() -> None:
    body = request_body("m", messages("x" * 36, None), max_tokens=50, top_logprobs=0)
    told: list[int] = []
    with serving(lambda request: Reply(completion("y"), drop=request.number == 0)) as server:
        client, spend = HttpClient(server.url, limits=Limits(backoff=0.01)), Spend()
        assert ask(client, body, spend, on_lost=lambda: told.append(1)).text == "y"
        client.close()
    assert told == [1]
    assert (spend.usage, spend.unanswered) == (Usage(10, 2), WORST)


def said(text: str, *places: tuple[str, float, list[tuple[str, float]]]) -> ChatAnswer:
    """An answer whose places are (token, probability, [(other, probability), ...])."""
    tokens = [
        token(name, math.log(chance), [(other, math.log(value)) for other, value in top])
        for name, chance, top in places
    ]
    return read_answer(completion(text, tokens or None), WORST)


def test_letters_and_names_are_asked_for() -> None:
    assert class_prompt("Good?", SENTIMENT, "letters") == (
        "Good?\n\nA. negative\nB. positive\n\nAnswer with one letter, and nothing else."
    )
    assert class_prompt("Good?", SENTIMENT, "names").endswith("nothing else: negative, positive")
    assert words_of(["a", "b", "c"], "letters") == ("A", "B", "C")
    for classes, form, words in [
        (["one"], "letters", "expected at least 2"),
        ([str(number) for number in range(27)], "letters", "26 letters; set class_form: names"),
        (["sport", "sports"], "names", "cannot be told apart by their beginning; set class_form: letters"),
        (["Yes", "yes "], "letters", "cannot be told apart"),
    ]:
        with pytest.raises(UsageError, match=words):
            words_of(classes, form)  # type: ignore[arg-type]


def test_probabilities_of_classes_are_sums_over_tokens() -> None:
    # A: 0.5 + 0.2, B: 0.1, other tokens 0.15, not listed 0.05: a fifth to spread over two classes.
    top = [("A", 0.5), (" A", 0.2), ("B.", 0.1), ("The", 0.15)]
    found = class_answer(said("A", ("A", 0.5, top)), SENTIMENT, "letters")
    assert found.covered == pytest.approx(0.8)
    assert [math.exp(value) for value in found.log_probabilities] == pytest.approx([0.8, 0.2])
    # A class that is not listed gets its share of the rest only.
    three = class_answer(said("A", ("A", 0.7, [("A", 0.7), ("C", 0.2)])), ["x", "y", "z"], "letters")
    assert [math.exp(value) for value in three.log_probabilities] == pytest.approx(
        [0.7 + 0.1 / 3, 0.1 / 3, 0.2 + 0.1 / 3]
    )


def test_blank_tokens_come_before_the_answer() -> None:
    blank, answer = ("\n", 0.9, [("\n", 0.9), ("A", 0.1)]), ("B", 0.75, [("B", 0.75), ("A", 0.25)])
    found = class_answer(said("\nB", blank, answer), SENTIMENT, "letters")
    assert [math.exp(value) for value in found.log_probabilities] == pytest.approx([0.25, 0.75])


def test_names_are_told_by_their_first_tokens() -> None:
    top = [("Pos", 0.6), ("neg", 0.3), ("pos", 0.1)]
    found = class_answer(said("Positive", ("Pos", 0.6, top)), SENTIMENT, "names")
    assert [math.exp(value) for value in found.log_probabilities] == pytest.approx([0.3, 0.7])
    with pytest.raises(UnusableError, match="The token 'p' begins several classes: politics, people"):
        class_answer(said("politics", ("p", 0.9, [("p", 0.9)])), ["politics", "people", "other"], "names")


def test_without_log_probabilities_the_text_must_be_a_class() -> None:
    found = class_answer(said(" b. "), SENTIMENT, "letters")
    assert found.covered is None
    assert [math.exp(value) for value in found.log_probabilities] == pytest.approx([1e-4, 1 - 1e-4])
    assert class_answer(said("Positive!"), SENTIMENT, "names").log_probabilities == found.log_probabilities
    for text in ("", "The answer is B", "AB", "positive"):
        with pytest.raises(UnusableError, match="names no class; expected one of A, B"):
            class_answer(said(text), SENTIMENT, "letters")


def test_an_answer_that_begins_otherwise_is_not_guessed() -> None:
    with pytest.raises(UnusableError, match="'The answer is B' names no class"):
        class_answer(said("The answer is B", ("The", 0.95, [("The", 0.95), ("A", 0.04)])), SENTIMENT, "letters")


def test_certain_answers_stay_finite_and_sum_to_one() -> None:
    sure = read_answer(completion("B", [token("B", 0.0, [("B", 0.0), ("A", -9999.0)])]), WORST)
    found = class_answer(sure, SENTIMENT, "letters")
    assert all(math.isfinite(value) for value in found.log_probabilities)
    assert sum(math.exp(value) for value in found.log_probabilities) == pytest.approx(1.0, abs=1e-6)
    assert found.log_probabilities[1] > found.log_probabilities[0] + 10
