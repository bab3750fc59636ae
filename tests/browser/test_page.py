"""Pages in a real browser: no console error, every image loaded, hovering reads the layers, narrow and dark.

Needs `pip install playwright` and Debian's chromium (`apt-get install chromium`); MMNEURON_CHROMIUM names another one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_paper import LITTLE, MODEL

from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.paper.drawn import drawn_corpus
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.paper.run import paper
from mmneuron_lens.paper.summary import SELECTION, summary_of
from mmneuron_lens.report.heat import heat_of
from mmneuron_lens.report.page import write
from mmneuron_lens.runs.questions import corpus_questions
from mmneuron_lens.runs.store import Store

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
    store, models = Store(out), ["embedded/llava-next", MODEL]
    corpus = drawn_corpus(store, (plan.identification_images or 0) + (plan.evaluation_images or 0), domains)
    paper(store, models=models, questions=corpus_questions(corpus, plan, drawn=True), plan=plan)
    write(summary_of([ModelRun(out, model) for model in models]), out, SELECTION)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_api.sync_playwright() as started:
        one = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield one
        one.close()


WIDE = 1280


@contextmanager
def opened(browser, file: Path, width: int, scheme: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    one = context.new_page()
    one.errors = []
    one.on("console", lambda message: one.errors.append(message.text) if message.type == "error" else None)
    one.on("pageerror", lambda error: one.errors.append(str(error)))
    one.on("requestfailed", lambda failed: one.errors.append(failed.url[:80]))
    one.goto(file.as_uri())
    one.wait_for_load_state("load")
    yield one
    context.close()


SCREENS = pytest.mark.parametrize(
    ("width", "scheme"), [(WIDE, "light"), (390, "dark")], ids=["wide and light", "narrow and dark"]
)
"""A desk's screen and a phone's."""


@pytest.fixture(params=["index", SELECTION])
def either(request, browser, run, width, scheme) -> Iterator[Any]:
    """The paper's page, and the short one."""
    with opened(browser, run / f"{request.param}.html", width, scheme) as one:
        yield one


@pytest.fixture
def page(browser, run, width, scheme) -> Iterator[Any]:
    """The paper's page."""
    with opened(browser, run / "index.html", width, scheme) as one:
        yield one


pytestmark.append(SCREENS)


def test_no_error_and_every_image_is_there(either):
    broken = either.evaluate(
        "[...document.images].map(i => { i.loading = 'eager'; return i; })"
        ".filter(i => !i.complete || i.naturalWidth === 0).map(i => i.alt)"
    )
    assert broken == []
    assert either.evaluate("document.images.length") > 5
    assert either.errors == []


def test_nothing_is_wider_than_the_screen(either):
    width = either.evaluate("innerWidth")
    assert either.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider scrolls in a box of its own.
    outside = either.evaluate(
        "[...document.querySelectorAll('main table, main img')].filter(e => !e.closest('.scroll, .lens, details')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_no_table_has_to_scroll_on_a_wide_screen_and_each_can_on_a_narrow_one(either, width):
    either.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    longer = either.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        ".map(e => [getComputedStyle(e).overflowX, e.querySelector('th')?.textContent])"
    )
    if width == WIDE:
        assert longer == []
    else:
        assert longer
        assert {overflow for overflow, _ in longer} == {"auto"}


def test_both_pages_have_one_width_and_one_edge(browser, run, width, scheme):
    measured = []
    for name in ("index", SELECTION):
        with opened(browser, run / f"{name}.html", width, scheme) as one:
            measured.append(
                one.evaluate(
                    "['main', 'h1', 'h2', '.lead', 'figure.table', 'figure.picture', 'section > p'].map(name => {"
                    " const box = document.querySelector(name).getBoundingClientRect(); return [name, box.left]; })"
                    ".concat([['width', document.querySelector('main').getBoundingClientRect().width]])"
                )
            )
    assert measured[0] == measured[1]
    edges = {name: left for name, left in measured[0] if name not in ("main", "width")}
    assert len(set(edges.values())) == 1, edges


def test_the_page_follows_the_theme(either):
    dark = either.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    colour = either.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(23, 25, 29)" if dark else "rgb(255, 255, 255)")
    source = either.evaluate("document.querySelector('figure.picture img').currentSrc === "
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
