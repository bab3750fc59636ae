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
from mmneuron_lens.paper import page as page_of_paper
from mmneuron_lens.paper.drawn import drawn_corpus
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.paper.page import paper_of
from mmneuron_lens.paper.run import paper
from mmneuron_lens.paper.summary import SELECTION, summary_of
from mmneuron_lens.report.heat import heat_of
from mmneuron_lens.report.page import write
from mmneuron_lens.report.sections import Picture
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


def test_the_pages_share_their_letters_colours_and_edges_with_that_of_the_neurons(browser, run, width, scheme):
    looks = []
    for name in ("index.html", f"{SELECTION}.html", "neurons/index.html"):
        with opened(browser, run / name, width, scheme) as one:
            looks.append(
                one.evaluate(
                    "['body', 'h1', '.lead', 'a', 'details:not(.sources) > summary'].map(name => {"
                    " const one = document.querySelector('main ' + name) || document.querySelector(name);"
                    " const { color, backgroundColor, fontFamily, fontSize, fontWeight } = getComputedStyle(one);"
                    " return [name, color, backgroundColor, fontFamily, fontSize, fontWeight,"
                    " name === 'body' ? 0 : document.querySelector('h1').getBoundingClientRect().left]; })"
                )
            )
    assert looks[0] == looks[1] == looks[2]


def test_findings_are_first_and_the_provenance_is_last_and_closed_until_it_is_printed(either):
    heads = either.evaluate("[...document.querySelectorAll('main h2')].map(one => one.textContent)")
    assert heads[0] == "Findings"
    assert heads[-1] == "How it was run"
    assert len(either.locator("#findings li").all()) >= 3
    last = either.locator("main > :last-child")
    assert (last.get_attribute("id"), last.get_attribute("open")) == ("provenance", None)
    assert not last.locator("table.facts").first.is_visible()
    either.emulate_media(media="print")
    # The policy of the page lets no condition be evaluated again and again: attributes are waited for.
    either.locator("details:not([open])").first.wait_for(state="detached")
    assert last.locator("table.facts").first.is_visible()
    assert not either.locator("nav.contents").is_visible()
    either.emulate_media(media="screen")
    either.locator("details[open]").first.wait_for(state="detached")


def test_a_table_that_is_wider_says_so_until_its_end_and_can_be_scrolled_by_keys(either, width):
    more = either.evaluate("[...document.querySelectorAll('main .scroll[data-more~=right]')].length")
    assert (more > 0) == (width < WIDE)
    if not more:
        return
    assert either.evaluate(
        "[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.role === 'region' && e.ariaLabel)"
    )
    box = either.query_selector("main figure.table .scroll[data-more~=right]")
    name = box.query_selector("tbody th")
    assert "gradient" in box.evaluate("e => getComputedStyle(e).maskImage")
    before = name.bounding_box()["x"]
    box.focus()
    either.keyboard.press("ArrowRight")
    either.locator("main .scroll[data-more^=left]").wait_for()
    box.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
    either.locator("main .scroll[data-more=left]").wait_for()
    # The first column stays.
    assert name.bounding_box()["x"] == before


RATIOS = """elements => {
  const parts = colour => {
    const mixed = colour.startsWith('color(srgb');
    return colour.match(/[0-9.]+(e-?[0-9]+)?/g).slice(0, 3).map(one => mixed ? +one : one / 255);
  };
  const light = colour => parts(colour).map(one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
  return elements.map(one => {
    const style = getComputedStyle(one), ground = light(style.backgroundColor), ink = light(style.color);
    return [ground, (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05)];
  });
}"""
"""Of elements, how light the ground is, and the contrast of the text on it."""


def test_heatmaps_follow_the_theme_and_can_be_read(page, scheme):
    for cells in ("#figure-6 .case table.heat td", "#figure-6 .lens td.word"):
        found = page.eval_on_selector_all(cells, RATIOS)
        assert len(found) >= 20
        assert min(ratio for _, ratio in found) >= 4.5
        # What is unlikely has the colour of the page, what is likely one of its own.
        lights = sorted(ground for ground, _ in found)
        if scheme == "dark":
            assert lights[0] < 0.02
            assert lights[-1] > 0.08
        else:
            assert lights[-1] > 0.95
            assert lights[0] < 0.5


@pytest.fixture(scope="module")
def pictures(run) -> list[Picture]:
    with pytest.MonkeyPatch.context() as patch:
        # No figure is of them, and they take seconds.
        patch.setattr(page_of_paper, "claims", lambda *_, **__: ())
        return [one for section in paper_of(run).sections for one in section.pictures]


def test_no_figure_is_of_one_value(page, run, pictures):
    assert all(one.values is not None for one in pictures)
    drawn = {one.name for one in pictures if not one.instead}
    assert {file.stem for file in (run / "figures").glob("*.png")} == drawn
    assert page.locator("figure.picture").count() == len(drawn)
    assert page.locator("p.instead").all_inner_texts() == [one.instead for one in pictures if one.instead]
    assert len(drawn) < len(pictures)


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
    page.locator("#table-1 .sources summary").click()
    link = page.locator("#table-1 .sources a").first
    anchor = link.get_attribute("href")
    link.click()
    page.wait_for_function(f"document.querySelector('{anchor}').open")
    assert "sha256" in page.locator(anchor).inner_text()
