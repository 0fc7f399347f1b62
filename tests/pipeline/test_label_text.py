"""Labelling texts with a chat model behind a real server: nothing is lost, nothing is asked twice."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from potstill.core.errors import DataError, PotstillError, TeacherError, UsageError
from potstill.core.signals import Ragged
from potstill.pipeline import label_text
from potstill.pipeline.label_text import check_labelled, label_texts, plan_texts
from potstill.pipeline.text_store import read_tokens
from potstill.recipe.endpoint import Endpoint
from potstill.recipe.problems import schema_keys
from potstill.recipe.text import TextRecipe
from potstill.recipe.yaml import read, read_for_label
from potstill.store import open_store
from potstill.teachers.http import EndpointError

from ..teachers.endpoint_server import Reply, Request, Server, completion, serving, token  # noqa: TID252

KEY = "sk-secret-0123456789"
TEXTS = [f"text number {number} é" for number in range(12)]
Answer = Callable[[Request], Reply]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_text, "_BACKOFF", 0.01)


def write_texts(folder: Path, texts: list[str] = TEXTS, **columns: list[Any]) -> Path:
    path = folder / "texts.jsonl"
    rows = [
        {"id": 100 + number, "text": text, **{name: values[number] for name, values in columns.items()}}
        for number, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_recipe(server: Server, data: Path, *, classes: list[str] | None = None, **changes: Any) -> TextRecipe:
    section = {"train": str(data), "id": "id", **changes.pop("rows", {})}
    endpoint = {"url": server.url + "/v1", "model": "toy", "prompt": "Say: {text}", "top_logprobs": 2, "retries": 2}
    teacher = {"endpoint": endpoint | changes}
    return TextRecipe.model_validate({"task": "text", "data": section, "teacher": teacher, "classes": classes})


def echo(request: Request) -> Reply:
    """Two tokens: "Said" and the last word of the prompt."""
    said = f" {request.prompt.split()[-2]}"
    tokens = [token("Said", -0.125, [("Said", -0.125), ("Told", -2.5)]), token(said, -0.5, [(said, -0.5)])]
    return Reply(completion(f"Said{said}", tokens, usage=(20, 2)))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(echo) as found:
        yield found


def test_text_and_tokens_are_recorded(server: Server, tmp_path: Path) -> None:
    summary = label_texts(make_recipe(server, write_texts(tmp_path)), tmp_path / "out")
    check_labelled(summary)
    assert len(server.requests) == 12
    assert server.requests[0].path == "/v1/chat/completions"
    assert {name: summary[name] for name in ("rows", "answers", "asked", "kept", "tokens_in", "tokens_out")} == {
        "rows": 12, "answers": 12, "asked": 12, "kept": 0, "tokens_in": 240, "tokens_out": 24,
    }  # fmt: skip
    assert summary["finish_reasons"] == {"stop": 12}
    assert summary["mean_logprob"] == pytest.approx(-0.3125)
    assert json.loads((tmp_path / "out/answers-0-of-1.json").read_text()) == summary
    store = open_store(tmp_path / "out" / "store")
    store.verify()
    ids = torch.tensor([111, 100, 105])
    views = torch.zeros(3, dtype=torch.int64)
    assert store.read_text("text", ids, views) == ["Said 11", "Said 0", "Said 5"]
    vocabulary = read_tokens(tmp_path / "out" / "store")
    tokens, top, values = (store.read(name, ids, views) for name in ("tokens", "top_tokens", "top_logprobs"))
    assert isinstance(tokens, Ragged)
    assert isinstance(top, Ragged)
    assert isinstance(values, Ragged)
    assert tokens.lengths.tolist() == [2, 2, 2]
    words = [vocabulary[int(number)].decode() for number in tokens.values]
    assert words == ["Said", " 11", "Said", " 0", "Said", " 5"]
    assert [vocabulary[int(number)] for number in top.values[0]] == [b"Said", b"Told"]
    assert top.values[1, 1] == -1
    np.testing.assert_array_equal(values.values[0], [-0.125, -2.5])


def classify(request: Request) -> Reply:
    """B with 0.6 for even numbers, A with 0.6 for odd ones, 0.3 for the other."""
    number = int(re.findall(r"number (\d+)", request.prompt)[0])
    best, other = ("B", "A") if number % 2 == 0 else ("A", "B")
    top = [(best, math.log(0.6)), (other, math.log(0.3))]
    return Reply(completion(best, [token(best, math.log(0.6), top)], usage=(20, 1)))


def test_classes_become_logits(tmp_path: Path) -> None:
    labels = ["even", "odd"] * 6
    labels[3] = "even"
    with serving(classify) as server:
        data = write_texts(tmp_path, label=labels)
        recipe = make_recipe(server, data, classes=["odd", "even"], rows={"label": "label"})
        summary = label_texts(recipe, tmp_path / "out")
        assert server.requests[0].body["max_tokens"] == 8
        assert server.requests[0].prompt.endswith("A. odd\nB. even\n\nAnswer with one letter, and nothing else.")
    assert summary["accuracy"] == pytest.approx(11 / 12)
    assert summary["covered"] == pytest.approx(0.9)
    assert summary["hard_labels"] == 0
    store = open_store(tmp_path / "out" / "store")
    assert store.signals == {"logits"}
    logits = store.read("logits", torch.tensor([100, 101]), torch.zeros(2, dtype=torch.int64))
    assert isinstance(logits, torch.Tensor)
    torch.testing.assert_close(logits.exp(), torch.tensor([[0.35, 0.65], [0.65, 0.35]]), atol=1e-3, rtol=0)


def test_a_server_without_log_probabilities_is_said_once(tmp_path: Path) -> None:
    with serving(lambda request: Reply(completion("B", usage=None))) as server:
        data = write_texts(tmp_path)
        free = label_texts(make_recipe(server, data), tmp_path / "free")
        hard = label_texts(make_recipe(server, data, classes=["x", "y"]), tmp_path / "hard")
    assert free["findings"][0] == "The server gave no log-probabilities for 12 of 12 answers: text only there."
    assert "did not count the tokens of 12 answers" in free["findings"][1]
    assert open_store(tmp_path / "free" / "store").signals == {"text"}
    assert "hard labels there" in hard["findings"][0]
    assert hard["hard_labels"] == 12


def test_one_bad_row_does_not_lose_the_others(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        if "number 3" in request.prompt:
            return Reply({"error": {"message": "contains a bad word"}}, 400)
        if "number 5" in request.prompt:
            return Reply(completion("x", finish="content_filter", usage=(7, 1)))
        return echo(request)

    with serving(answer) as server:
        recipe = make_recipe(server, write_texts(tmp_path))
        summary = label_texts(recipe, tmp_path / "out")
        assert sorted(row["id"] for row in summary["failed"]) == ["103", "105"]
        assert summary["answers"] == 10
        # The filtered answer was paid for.
        assert summary["tokens_in"] == 207
        words = (
            r"(?s)2 of 12 rows have no answer:.*103: .*answered 400: contains a bad word.*Run the same command again"
        )
        with pytest.raises(PotstillError, match=words):
            check_labelled(summary)
        assert len(open_store(tmp_path / "out" / "store").ids) == 10
        server.answer = echo
        summary = label_texts(recipe, tmp_path / "out")
        assert len(server.requests) == 14
    check_labelled(summary)
    assert (summary["asked"], summary["kept"], summary["tokens_in"]) == (2, 10, 247)
    assert len(open_store(tmp_path / "out" / "store").ids) == 12


def test_passing_failures_pass(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    first = [
        Reply({"error": "slow down"}, 429, {"Retry-After": "0.05"}), Reply({}, 500), Reply(drop=True), Reply(b"{"),
    ]  # fmt: skip

    def answer(request: Request) -> Reply:
        seen[request.prompt] += 1
        number = int(re.findall(r"number (\d+)", request.prompt)[0])
        return first[number] if number < len(first) and seen[request.prompt] == 1 else echo(request)

    with serving(answer) as server:
        summary = label_texts(make_recipe(server, write_texts(tmp_path)), tmp_path / "out")
    check_labelled(summary)
    assert summary["retried"] == 4
    assert summary["tokens_unanswered"] > 0
    assert sorted(seen.values()) == [1] * 8 + [2] * 4


def test_the_spend_limit_holds_and_answers_are_kept(server: Server, tmp_path: Path) -> None:
    # An answer costs 20 in and 2 out: 24. Its worst case is 21 or 22 + 64 bytes in and 8 out: 101 or 102. So the fifth
    # may be asked with 96 spent, and the sixth may not with 120 spent, however many are under way at once.
    options = {"price_in": 1e6, "price_out": 2e6, "max_tokens": 8, "concurrency": 3}
    data = write_texts(tmp_path)
    summary = label_texts(make_recipe(server, data, spend_limit=200.0, **options), tmp_path / "out")
    assert "spend limit of 200" in summary["stopped"]
    assert summary["answers"] == len(server.requests) == 5
    assert summary["money"] == 120.0
    assert summary["failed"] == []
    with pytest.raises(PotstillError, match="raise spend_limit and run the same command again"):
        check_labelled(summary)
    # What earlier runs spent counts too.
    assert label_texts(make_recipe(server, data, spend_limit=200.0, **options), tmp_path / "out")["money"] == 120.0
    assert len(server.requests) == 5
    summary = label_texts(make_recipe(server, data, spend_limit=500.0, **options), tmp_path / "out")
    check_labelled(summary)
    assert sorted(Counter(server.prompts).values()) == [1] * 12
    assert summary["money"] == 12 * 24.0


def test_requests_of_a_process_that_died_count_in_full_and_answered_ones_once(tmp_path: Path) -> None:
    journals: list[tuple[list[Any], list[Any]]] = []

    def watched(request: Request) -> Reply:
        requests, answers = (
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in (tmp_path / "out" / "requests-0-of-1.jsonl", tmp_path / "out" / "answers-0-of-1.jsonl")
        )
        journals.append((requests, answers))
        return echo(request) if len(journals) != 3 else Reply({"error": "no"}, status=400)

    options = {"price_in": 1e6, "price_out": 2e6, "max_tokens": 8, "concurrency": 1}
    with serving(watched) as server:
        data = write_texts(tmp_path)
        summary = label_texts(make_recipe(server, data, spend_limit=1000.0, **options), tmp_path / "out")
        assert summary["money"] == 11 * 24.0  # a refused request costs nothing, an answered one what it says
        # The server was never asked before the request was on disk, with its worst case.
        for number, (requests, answers) in enumerate(journals):
            open_ones = {line["request"]: line.get("at_most") for line in requests}
            for line in answers:
                open_ones.pop(line["request"])
            assert [line for line in open_ones.values() if line] == [[64 + 21 + (number > 9), 8]]
        # A process that died with two requests under way: both may have been answered, and cost at most 300.
        with (tmp_path / "out" / "requests-0-of-1.jsonl").open("a") as file:
            for name in "ab":
                file.write(json.dumps({"request": name, "at_most": [100, 25]}) + "\n")
        asked = len(server.requests)
        stopped = label_texts(make_recipe(server, data, spend_limit=600.0, **options), tmp_path / "out")
        assert stopped["money"] == 11 * 24.0 + 300.0
        assert "spend limit of 600" in stopped["stopped"]
        assert len(server.requests) == asked
        # Also where the rows are divided anew.
        divided = label_texts(make_recipe(server, data, spend_limit=600.0, **options), tmp_path / "out", part=(0, 2))
        assert len(server.requests) == asked
        assert "spend limit" in divided["stopped"]


def test_answers_that_are_no_whole_text_are_kept_and_never_obeyed(tmp_path: Path) -> None:
    def odd(request: Request) -> Reply:
        reply = completion("half \ud83d \x1b[2J", finish="\x1b]0;title\x07\ud83d")
        return Reply(
            reply if request.number else {"error": {"message": "\x1b[31m\ud83d"}}, 200 if request.number else 400
        )

    with serving(odd) as server:
        recipe = make_recipe(server, write_texts(tmp_path, TEXTS[:3]), concurrency=1)
        summary = label_texts(recipe, tmp_path / "out")
    assert (summary["answers"], len(summary["failed"])) == (2, 1)
    with pytest.raises(PotstillError, match=re.escape("\\x1b[31m\\ud83d")):
        check_labelled(summary)
    page = (tmp_path / "out" / "label.html").read_text()
    assert not re.search("[\x00-\x08\x1b\ud800-\udfff]", page)
    assert open_store(tmp_path / "out" / "store").read_text("text", torch.tensor([101]), torch.tensor([0])) == [
        "half ? \x1b[2J"
    ]


def test_answers_belong_to_prompts_not_to_places(server: Server, tmp_path: Path) -> None:
    label_texts(make_recipe(server, write_texts(tmp_path)), tmp_path / "out")
    # Two rows are the same text; others move, one is new.
    summary = label_texts(
        make_recipe(server, write_texts(tmp_path, ["new one é", *TEXTS[::-1], TEXTS[0]])), tmp_path / "out"
    )
    assert len(server.requests) == 14
    assert (summary["answers"], summary["asked"]) == (14, 2)
    store = open_store(tmp_path / "out" / "store")
    assert store.read_text("text", torch.tensor([101]), torch.tensor([0])) == ["Said 11"]


def test_a_limit_draws_rows_and_raising_it_keeps_them(server: Server, tmp_path: Path) -> None:
    data = write_texts(tmp_path)
    label_texts(make_recipe(server, data, rows={"limit": 4}), tmp_path / "out")
    assert len(server.requests) == 4
    label_texts(make_recipe(server, data, rows={"limit": 9}), tmp_path / "out")
    assert len(server.requests) == 9
    assert len(open_store(tmp_path / "out" / "store").ids) == 9


def test_other_questions_are_refused_with_the_difference(server: Server, tmp_path: Path) -> None:
    data = write_texts(tmp_path)
    label_texts(make_recipe(server, data), tmp_path / "out")
    with pytest.raises(TeacherError, match=r"(?s)other questions:.*prompt: was 'Say: \{text\}', is 'Sing: \{text\}'"):
        label_texts(make_recipe(server, data, prompt="Sing: {text}"), tmp_path / "out")
    # How fast, how dear and where may change, and the last is said.
    write_texts(tmp_path, [*TEXTS, "one more é"])
    moved = {"url": server.url + "/v2", "concurrency": 1, "price_in": 2.0}
    summary = label_texts(make_recipe(server, data, **moved), tmp_path / "out")
    assert len(server.requests) == 13
    assert summary["findings"] == [f"The answers come from 2 addresses: {server.url}/v1, {server.url}/v2."]


def test_parts_make_the_store_of_one(server: Server, tmp_path: Path) -> None:
    recipe = make_recipe(server, write_texts(tmp_path))
    whole = label_texts(recipe, tmp_path / "whole")
    assert len(server.requests) == 12
    for part in (2, 0, 1):
        summary = label_texts(recipe, tmp_path / "parts", part=(part, 3))
        assert summary["asked"] == 4
        assert (summary["store"] is None) == (part != 1)
    assert len(server.requests) == 24
    check_labelled(summary)
    stores = [sorted(path for path in Path(one["store"]).rglob("*") if path.is_file()) for one in (whole, summary)]
    assert len(stores[0]) > 5
    compared = [[path.read_bytes() for path in files if not path.name.startswith(".")] for files in stores]
    assert compared[0] == compared[1]
    with pytest.raises(UsageError, match="part 4/3"):
        label_texts(recipe, tmp_path / "parts", part=(3, 3))


def test_what_makes_no_sense_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    data = write_texts(tmp_path)
    with serving(lambda request: Reply({"error": f"no {KEY}"}, 401)) as server:
        with pytest.raises(EndpointError, match=r"answered 401: no \*\*\*"):
            label_texts(make_recipe(server, data, key_env="TEST_KEY", concurrency=1), tmp_path / "a")
        assert len(server.requests) == 1
        server.answer = lambda request: Reply({"error": "unknown parameter"}, 400)
        with pytest.raises(
            EndpointError, match=r"The first 5 requests were all refused; the last: .*unknown parameter"
        ):
            label_texts(make_recipe(server, data, concurrency=1), tmp_path / "b")
        server.answer = lambda request: echo(request) if len(server.requests) < 13 else Reply({}, 503)
        with pytest.raises(EndpointError, match="5 requests in a row failed"):
            label_texts(make_recipe(server, data, concurrency=1, retries=0), tmp_path / "c")
        answers = (tmp_path / "c" / "answers-0-of-1.jsonl").read_text().count('"answer"')
    assert answers == 6


def test_the_key_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)

    def answer(request: Request) -> Reply:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        said = f"refused for {KEY}"
        return Reply({"error": said}, 400) if "number 1 " in request.prompt else echo(request)

    with serving(answer) as server:
        summary = label_texts(make_recipe(server, write_texts(tmp_path), key_env="TEST_KEY"), tmp_path / "out")
    assert "refused for ***" in summary["failed"][0]["reason"]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


CHILD = """
import sys
from pathlib import Path
from potstill.pipeline.label_text import check_labelled, label_texts
from potstill.recipe.yaml import read_for_label
check_labelled(label_texts(read_for_label(sys.argv[1]), Path(sys.argv[2])))
"""


def test_kill_9_loses_no_answer(tmp_path: Path) -> None:
    def slow(request: Request) -> Reply:
        reply = echo(request)
        return Reply(reply.body, delay=0.02)

    with serving(slow) as server:
        recipe = make_recipe(
            server, write_texts(tmp_path, [f"text number {one} é" for one in range(60)]), concurrency=2
        )
        path = tmp_path / "recipe.json"  # JSON is YAML
        path.write_text(recipe.model_dump_json())
        out = tmp_path / "out"
        journal = out / "answers-0-of-1.jsonl"
        command = [sys.executable, "-c", CHILD, str(path), str(out)]
        child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while len(server.requests) < 25:
            assert child.poll() is None
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
        kept = journal.read_bytes().count(b"\n")
        asked = len(server.requests)
        assert asked < 60
        # A thread asks anew only once its last answer is kept: at most the two requests under way were asked in vain.
        assert 0 <= asked - kept <= 2
        with journal.open("ab") as file:
            file.write(b'{"key":"torn by the ki')
        summary = label_texts(read_for_label(path), out)  # type: ignore[arg-type]
        assert (summary["asked"], summary["kept"]) == (60 - kept, kept)
        assert len(server.requests) == asked + 60 - kept
        times = Counter(server.prompts)
    assert len(times) == 60
    assert sum(count == 2 for count in times.values()) == asked - kept
    assert len(open_store(out / "store").ids) == 60


def test_two_writers_and_damaged_lines(server: Server, tmp_path: Path) -> None:
    recipe = make_recipe(server, write_texts(tmp_path))
    label_texts(recipe, tmp_path / "out")
    journal = tmp_path / "out" / "answers-0-of-1.jsonl"
    with label_text.open_journal(journal), pytest.raises(PotstillError, match="Another process is writing"):
        label_texts(recipe, tmp_path / "out")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], b"\x00" * 30 + b"\n", *lines[5:]]))
    summary = label_texts(recipe, tmp_path / "out")
    assert summary["asked"] == 1
    assert "1 lines of the journal were damaged" in summary["findings"][0]


def test_plan_says_the_most_it_can_cost(server: Server, tmp_path: Path) -> None:
    plan = plan_texts(make_recipe(server, write_texts(tmp_path), price_out=1e6, max_tokens=8, system="Be brief."))
    assert plan["rows"] == 12
    assert plan["example"][1] == {"role": "user", "content": "Say: text number 0 é"}
    assert plan["money_at_most"] == 12 * 8.0
    assert server.requests == []


@pytest.mark.parametrize(
    ("lines", "changes", "error", "words"),
    [
        (
            ['{"text": "a"}', '{"text": " "}'],
            {},
            DataError,
            r"1 of 2 rows cannot be used: row 1: 'text' is missing or b",
        ),
        (['{"id": 1, "text": "a"}'] * 2, {"id": "id"}, DataError, r"1 ids come more than once, such as 1"),
        (['{"text": "a"}', "{"], {}, DataError, r"texts\.jsonl:2: not JSON"),
        (['{"text": "a"}', "[" * 100_000], {}, DataError, r"texts\.jsonl:2: not JSON"),
        (['{"text": "a"}'], {"id": "di"}, DataError, r"no column 'di' \(data\.id\)"),
        (['{"txt": "a"}'], {}, UsageError, r"endpoint\.prompt: the data has no column 'text'\. Did you mean 'txt'"),
        ([], {}, UsageError, "no column 'text'"),
    ],
)
def test_bad_texts(
    server: Server, tmp_path: Path, lines: list[str], changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(lines))
    recipe = make_recipe(server, path, rows={"id": None, **changes})
    with pytest.raises(error, match=words):
        label_texts(recipe, tmp_path / "out")
    assert server.requests == []


def test_csv_and_parquet_are_read_as_text(server: Server, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.csv").write_text('code,text\n007,"x, y"\n008,"two\nlines"\n')
    pyarrow.parquet.write_table(
        pyarrow.table({"code": ["007", "008"], "text": ["x, y", "two\nlines"]}), tmp_path / "a.parquet"
    )
    for name in ("a.csv", "a.parquet"):
        recipe = make_recipe(server, tmp_path / name, prompt="{code} {text}", rows={"id": "code"})
        label_texts(recipe, tmp_path / name.replace(".", "-"))
    asked = sorted(server.prompts)
    assert asked == ["007 x, y"] * 2 + ["008 two\nlines"] * 2
    (tmp_path / "b.csv").write_text("text\n\nlonely,two\n")
    with pytest.raises(DataError, match="does not have 1 fields"):
        label_texts(make_recipe(server, tmp_path / "b.csv", rows={"id": None}), tmp_path / "b")


def test_recipes_of_text_are_read_with_lines(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: text\ndata: {train: a.jsonl}\nteacher:\n  endpoint: {url: 'http://x', modle: m}\nstudent: {}\n"
    )
    with pytest.raises(UsageError) as caught:
        read_for_label(path)
    assert "recipe.yaml:4: teacher.endpoint.model: this key is missing" in str(caught.value)
    assert "recipe.yaml:4: teacher.endpoint.modle: unknown key. Did you mean 'model'?" in str(caught.value)
    assert "recipe.yaml:5: student: unknown key" in str(caught.value)
    with pytest.raises(UsageError, match="task text has no student: 'potstill label'"):
        read(path)
    path.write_text(
        "task: text\ndata: {train: a.jsonl}\nteacher:\n  endpoint: {url: 'http://x', model: m, batch_size: 3}\n"
    )
    with pytest.raises(UsageError, match="batch_size is for protocol: open-inference"):
        read_for_label(path)
    with pytest.raises(UsageError, match="send secrets with key_env or headers"):
        read_for_label(path, ["teacher.endpoint.url=http://me:pw@x/v1"])
    recipe = read_for_label(path, ["teacher.endpoint.batch_size=32", "teacher.endpoint.concurrency=9"])
    assert isinstance(recipe, TextRecipe)
    assert recipe.teacher.endpoint.concurrency == 9


def test_the_example_runs_with_its_own_server(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "examples" / "endpoint"
    command = [sys.executable, str(folder / "serve.py"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        recipe = read_for_label(folder / "recipe.yaml", [f"teacher.endpoint.url={address}"])
        assert isinstance(recipe, TextRecipe)
        summary = label_texts(recipe, tmp_path / "out", base=folder)
    finally:
        server.kill()
        server.communicate()
    check_labelled(summary)
    assert summary["answers"] == 16
    assert summary["findings"] == []
    assert summary["covered"] == pytest.approx(0.98)
    assert 0.75 <= summary["accuracy"] < 1.0


GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "endpoints.md").read_text(encoding="utf-8")


def test_every_key_is_in_the_guide_with_its_default() -> None:
    def default_of(section: Any, name: str) -> str:
        field = section.model_fields[name]
        if field.is_required():
            return "required"
        value = field.get_default(call_default_factory=True)
        if hasattr(value, "model_dump"):
            return "section"
        return "`" + yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip() + "`"

    tables = {}
    for part in GUIDE.split("\n#### ")[1:]:
        heading, body = part.split("\n", 1)
        table = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (.{10,}|`text`) \|$", body.split("\n## ")[0], re.MULTILINE)
        tables["" if heading == "Top level" else heading] = {name: default for name, default, _ in table}
    expected: dict[str, dict[str, str]] = {}
    for place, section in schema_keys(TextRecipe):
        expected.setdefault(".".join(map(str, place[:-1])), {})[str(place[-1])] = default_of(section, str(place[-1]))
    assert sum(map(len, expected.values())) == 36
    assert tables == expected


def test_the_recipes_of_the_guide_are_recipes(tmp_path: Path) -> None:
    free, classes, arrays = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    for text in (free, classes):
        (tmp_path / "recipe.yaml").write_text(text)
        assert isinstance(read_for_label(tmp_path / "recipe.yaml"), TextRecipe)
    section = yaml.safe_load(arrays)["teacher"]["endpoint"]
    assert Endpoint.model_validate(section).protocol == "open-inference"
