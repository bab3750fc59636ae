"""The page in a real browser: no console error, every image loaded, hovering reads the layers, narrow and dark.

Needs `pip install playwright` and Debian's chromium (`apt-get install chromium`); MMNEURON_CHROMIUM names another one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_paper import LITTLE, MODEL

from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.paper import run as whole
from mmneuron_lens.report.heat import heat_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = os.environ.get("MMNEURON_CHROMIUM") or shutil.which("chromium")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
    # Playwright's own event loop, at the end of a session.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with an image in patches (LLaVA-NeXT) and one of a model that sees it whole."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("page")
    plan = replace(LITTLE, evaluation_images=1, deviation_questions=1, random_draws=1, cross=False)
    domains = ("remote_sensing", "document")
    questions = whole.drawn_questions(out, plan, lambda text: None, domains)
    whole.paper(out, models=["embedded/llava-next", MODEL], questions=questions, plan=plan)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_api.sync_playwright() as started:
        one = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield one
        one.close()


@pytest.fixture(params=[(1200, "light"), (390, "dark")], ids=["wide and light", "narrow and dark"])
def page(request, browser, run) -> Iterator[Any]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    one = context.new_page()
    one.errors = []
    one.on("console", lambda message: one.errors.append(message.text) if message.type == "error" else None)
    one.on("pageerror", lambda error: one.errors.append(str(error)))
    one.on("requestfailed", lambda failed: one.errors.append(failed.url[:80]))
    one.goto((run / "index.html").as_uri())
    one.wait_for_load_state("load")
    yield one
    context.close()


def test_no_error_and_every_image_is_there(page):
    broken = page.evaluate(
        "[...document.images].map(i => { i.loading = 'eager'; return i; })"
        ".filter(i => !i.complete || i.naturalWidth === 0).map(i => i.alt)"
    )
    assert broken == []
    assert page.evaluate("document.images.length") > 8
    assert page.errors == []


def test_nothing_is_wider_than_the_screen(page):
    width = page.evaluate("innerWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider scrolls in a box of its own.
    outside = page.evaluate(
        "[...document.querySelectorAll('main table, main img')].filter(e => !e.closest('.scroll, .lens, details')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_the_page_follows_the_theme(page):
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(23, 25, 29)" if dark else "rgb(255, 255, 255)")
    source = page.evaluate("document.querySelector('figure.picture img').currentSrc === "
                           "document.querySelector('figure.picture img').src")  # fmt: skip
    assert source is not dark


def test_hovering_a_patch_shows_what_it_decodes_to(page, run):
    trace = LensTrace.load(run / "traces" / "1" / "embedded+llava-next" / "remote_sensing.safetensors")
    lens = page.locator("#figure-6 .lens").first
    first = trace.kinds.index("image")
    for number in (0, 5):
        lens.locator(".patch").nth(number).hover()
        assert f"image patch {trace.labels[first + number]}" in lens.locator(".said .title").inner_text()
        rows = [row.locator("td.word").all_inner_texts() for row in lens.locator("tbody tr").all()]
        assert rows == [list(words) for words in heat_of(trace, first + number).words]
    word = trace.labels.index("User") if "User" in trace.labels else len(trace.labels) - 1
    chips = lens.locator(".words").last.locator(".chip")
    chips.nth([place for place, kind in enumerate(trace.kinds) if kind != "image"].index(word)).click()
    assert f"text token {trace.labels[word]}" in lens.locator(".said .title").inner_text()
    # A click holds while the pointer goes elsewhere.
    lens.locator(".patch").first.hover()
    page.mouse.move(1, 1)
    assert f"text token {trace.labels[word]}" in lens.locator(".said .title").inner_text()
    # The queries of InstructBLIP have no patch, but can be asked.
    queries = page.locator("#figure-6 .lens").nth(1)
    assert queries.locator(".patch").count() == 0
    queries.locator(".chip").first.focus()
    assert "image token" in queries.locator(".said .title").inner_text()


def test_a_link_to_an_artifact_opens_it(page):
    link = page.locator("#table-1 .sources a").first
    anchor = link.get_attribute("href")
    link.click()
    page.wait_for_function(f"document.querySelector('{anchor}').open")
    assert "sha256" in page.locator(anchor).inner_text()
