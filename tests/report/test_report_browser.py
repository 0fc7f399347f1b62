from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Page = Callable[[str], Path]
LABEL_KINDS = ["label-digits", "label-texts", "label-hostile"]
KINDS = ["images", "values", "partial", "unfinished", "hostile", *LABEL_KINDS]
pytestmark = pytest.mark.browser

# For every text on the page: the contrast of its colour with the nearest opaque background behind it (WCAG 2).
CONTRASTS = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = node => {
    for (let n = node; n; n = n.parentElement) {
      const c = parse(getComputedStyle(n).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, text = node.textContent.trim();
    if (!text || !element.getClientRects().length || element.closest(".skip, .hidden")) continue;
    const style = getComputedStyle(element);
    const colour = parse(element instanceof SVGElement ? style.fill : style.color);
    if (colour.length < 3) { found.push({text, ratio: 0}); continue; }
    const [a, b] = [luminance(colour), luminance(behind(element))].sort((x, y) => y - x);
    found.push({text: text.slice(0, 40), ratio: (a + 0.05) / (b + 0.05)});
  }
  return found;
}"""
BOXES = """() => [...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll, pre, .skip, .hidden, svg') && e.getClientRects().length
               && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("POTSTILL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        message = "no Chromium found: install it (Debian: apt-get install chromium) or set POTSTILL_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, page: Page) -> Iterator[Callable[..., Any]]:
    """Open a page; when the test ends, it must have asked for nothing but itself and reported nothing."""
    tabs: list[Any] = []
    requests: list[str] = []
    complaints: list[str] = []

    def open_page(kind: str, *, width: int = 1280, scheme: str = "light") -> Any:
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tabs.append(tab)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.goto(page(kind).as_uri())
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    asked = [url for url in requests if not url.startswith("data:")]
    assert len(asked) == len(tabs) > 0
    assert all(url.startswith("file://") and url.endswith(("report.html", "label.html")) for url in asked)
    assert complaints == []


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_sticks_out_of_the_screen(visit: Any, kind: str, width: int) -> None:
    tab = visit(kind, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(BOXES) == []
    shown = tab.locator("figure .chart svg >> visible=true").count()
    assert shown == tab.locator("figure").count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_can_be_read(visit: Any, kind: str, scheme: str) -> None:
    texts = visit(kind, scheme=scheme).evaluate(CONTRASTS)
    assert len(texts) > 60
    assert [text for text in texts if text["ratio"] < 4.5] == []


def test_dark_mode_is_dark_and_charts_follow(visit: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    mark = "getComputedStyle(document.querySelector('.chart.wide [fill=\"var(--distilled)\"]')).fill"
    light, dark = visit("images"), visit("images", scheme="dark")
    assert light.evaluate(background) == "rgb(255, 255, 255)"
    assert dark.evaluate(background) == "rgb(20, 22, 26)"
    assert light.evaluate(mark) == "rgb(29, 95, 191)"
    assert dark.evaluate(mark) == "rgb(125, 178, 247)"


def test_pictures_are_decoded_and_described(visit: Any) -> None:
    found = visit("images").evaluate(
        "Promise.all([...document.images].map(i => i.decode().then(() => [i.naturalWidth, i.alt])))"
    )
    assert len(found) == 24
    assert all(width == 28 and "true class" in alternative for width, alternative in found)


def test_every_link_of_the_page_leads_somewhere(visit: Any) -> None:
    tab = visit("images")
    targets = tab.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert len(targets) == 10
    for target in targets:
        assert tab.locator(target).is_visible()


def test_wide_tables_scroll_in_their_own_box(visit: Any) -> None:
    tab = visit("images", width=360)
    box = tab.locator(".scroll").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    box.focus()
    assert box.evaluate("e => document.activeElement === e")


def test_paper_is_light_even_in_dark_mode(visit: Any) -> None:
    tab = visit("images", scheme="dark")
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()") == "#1a1d23"
    assert tab.locator("nav").is_hidden()


def test_a_phone_shows_the_student_and_what_distillation_changed_without_scrolling(visit: Any) -> None:
    tab = visit("images", width=390)
    heads = tab.locator("table.scores").first.locator("thead th")
    assert [text.strip() for text in heads.all_inner_texts()][1:] == [
        "Student distilled",
        "Distilled \u2212 alone",
        "Student alone",
        "Teacher",
    ]
    for number in (1, 2):
        box = heads.nth(number).bounding_box()
        assert box["x"] + box["width"] <= 391
    cells = [cell.bounding_box() for cell in tab.locator("table.stack tbody td").all()]
    assert len(cells) >= 3
    assert all(box["x"] + box["width"] <= 391 and box["height"] < 100 for box in cells)
