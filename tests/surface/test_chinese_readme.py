"""README.zh-CN.md says what README.md says: the same sections, commands, links and numbers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [re.split(r"^## ", (ROOT / name).read_text(), flags=re.MULTILINE) for name in ("README.md", "README.zh-CN.md")]


def code(section: str) -> list[str]:
    """Return the commands and code of a section, without remarks, which are translated."""
    fenced = re.findall(r"```\w+\n(.*?)```", section, flags=re.DOTALL)
    indented = re.findall(r"^ {4}(\S.*)$", re.sub(r"```.*?```", "", section, flags=re.DOTALL), flags=re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()] + indented
    return [re.split(r"\s+#|\s{3,}", line)[0].rstrip() for line in lines]


def said(section: str) -> str:
    """Return what a section says in words, with tables and without code and the addresses of links."""
    words = re.sub(r"```.*?```|^ {4}.*$|\]\([^)]*\)", "", section, flags=re.DOTALL | re.MULTILINE)
    return words.translate({ord("\u2011"): "-"})


@pytest.mark.parametrize("number", range(len(TEXTS[0])))
def test_both_have_the_same_commands_links_and_numbers(number: int) -> None:
    english, chinese = (text[number] for text in TEXTS)
    assert code(english) == code(chinese)
    links = [Counter(re.findall(r"\]\(([^)]*)\)", text)) for text in (english, chinese)]
    assert links[0] - Counter(["README.zh-CN.md"]) == links[1] - Counter(["README.md"])
    named = [Counter(re.findall(r"`[^`]+`", said(text))) for text in (english, chinese)]
    assert named[0] == named[1]
    numbers = [Counter(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", said(text))) for text in (english, chinese)]
    assert numbers[0] == numbers[1]


def test_both_have_as_many_sections_and_lead_to_one_another() -> None:
    assert len(TEXTS[0]) == len(TEXTS[1]) > 8
    assert "[中文](README.zh-CN.md)" in TEXTS[0][0]
    assert "[English](README.md)" in TEXTS[1][0]
