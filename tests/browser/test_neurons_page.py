"""The page of neurons in a real browser: filters, search, order, keys, links, values under the pointer.

Needs what `test_page` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from neuron_inputs import HOSTILE, Made, rows_of, write_run
from test_page import CHROMIUM, browser, sync_api  # noqa: F401

from interventions.printable import printable
from mmneuron_lens.artifacts.digits import number
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.paper.neurons_page import publish_neurons
from mmneuron_lens.runs.neuron_sources import neuron_sources

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MODEL = Made().model


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = write_run(tmp_path_factory.mktemp("neurons"), Made(share=0.05), replace(HOSTILE, measured=False))
    publish_neurons(out)
    return out


@contextmanager
def opened(browser, run, width=1280, scheme="light", link="", order="log_odds") -> Iterator[Any]:  # noqa: F811
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    one = context.new_page()
    one.errors, one.asked = [], []
    one.on("console", lambda message: one.errors.append(message.text) if message.type == "error" else None)
    one.on("pageerror", lambda error: one.errors.append(str(error)))
    one.on("requestfailed", lambda failed: one.errors.append(failed.url[:80]))
    one.on("request", lambda asked: one.asked.append(asked.url))
    one.on("dialog", lambda said: one.errors.append(said.message))
    one.goto((run / "neurons" / "index.html").as_uri() + link)
    one.wait_for_selector(".card .line > *", state="attached")
    if order:
        one.evaluate("o => { const s = document.querySelector('#order'); s.value = o; "
                     "s.dispatchEvent(new Event('change')); }", order)  # fmt: skip
    yield one
    assert one.errors == []
    assert {url.partition(":")[0] for url in one.asked} == {"file"}
    context.close()


@pytest.fixture
def page(browser, run) -> Iterator[Any]:  # noqa: F811
    with opened(browser, run) as one:
        yield one


def shown(page) -> list[str]:
    """The order of all cards, as the page has it, by site and layer/neuron: read as one scrolls through it."""
    page.wait_for_timeout(0)
    found: dict[int, str] = {}
    page.evaluate("scrollTo(0, 0)")
    while True:
        cards = page.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done([...document."
            "querySelectorAll('.card')].map(c => [+c.getAttribute('aria-posinset'), c.getAttribute('href')])))))"
        )
        found |= {place: href.lstrip("#").replace("/", " ", 1) for place, href in cards}
        if page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 2"):
            assert sorted(found) == [*range(1, len(found) + 1)]
            return [found[place] for place in sorted(found)]
        page.evaluate("scrollBy(0, 1500)")


def named(rows) -> list[str]:
    return [f"{row['site']} {row['layer']}/{row['neuron']}" for row in rows]


def by(rows: list[dict], key) -> list[dict]:
    """Rows in an order, those without a number last; ties stay."""
    return sorted(rows, key=lambda row: (key(row) is None, key(row) or 0))


def test_those_that_teach_most_come_first(browser, run):  # noqa: F811
    sources = next(one for one in neuron_sources(run) if one.model == MODEL)
    rows, examples = rows_of(run, MODEL), sources.examples
    assert examples is not None

    def evidence(row: dict[str, Any]) -> tuple[Any, ...]:
        place = examples.neurons[row["site"]].tolist().index([row["layer"], row["neuron"]])
        samples, pictures = (one[row["site"]][place].tolist() for one in (examples.sample, examples.picture))
        pairs = zip(samples, pictures, strict=True)
        domains = [examples.samples[one].domain for one, which in pairs if one >= 0 and which >= 0]
        half = bool(domains) and domains.count(row["domain"]) * 2 >= len(domains)
        clear = row["effect_low"] is not None and (row["effect_low"] > 0 or row["effect_high"] < 0)
        return (row["reaches_logits"], bool(domains), half, row["log_odds_low"] > 0, clear, row["log_odds"])

    with opened(browser, run, order="") as page:
        assert page.input_value("#order") == "evidence"
        assert shown(page) == named(sorted(rows, key=evidence, reverse=True))


def test_numbers_are_written_as_everywhere_else(page):
    seen = np.random.default_rng(0)
    values = [0.0, None, 0.0009996, 99999.5, -0.0000014, *(seen.normal(size=300) * 10.0 ** seen.integers(-9, 6, 300))]
    assert page.evaluate("values => values.map(shortly)", values) == [number(one) for one in values]


def test_every_order_is_the_frames(page, run):
    rows = rows_of(run, MODEL)
    orders = {
        "log_odds": lambda row: -row["log_odds"],
        "entropy": lambda row: row["entropy"],
        "attribution": lambda row: -abs(row["attribution"]),
        "effect": lambda row: None if row["effect"] is None else -abs(row["effect"]),
        "layer": lambda row: row["layer"],
    }
    assert shown(page) == named(by(rows, orders["log_odds"]))
    page.select_option("#module", "Vision Encoder · vision.mlp.act")
    rows = [row for row in rows if row["site"] == "vision.mlp.act"]
    assert len(rows) == 19
    for name, key in orders.items():
        page.select_option("#order", name)
        assert shown(page) == named(by(rows, key)), name


def test_filters_leave_the_rows_that_they_name(page, run):
    rows = by(rows_of(run, MODEL), lambda row: -row["log_odds"])
    cases = {
        ("domain", "2"): lambda row: row["domain"] == "medical" or "medical" in row["domains"],
        ("layer", "3"): lambda row: row["layer"] == 3,
        ("reach", "no"): lambda row: not row["reaches_logits"],
        ("effect", "attribution"): lambda row: row["attribution_rank"] > 0.95,
        ("effect", "random"): lambda row: row["effect_rank"] is not None and row["effect_rank"] > 0.95,
        ("effect", "measured"): lambda row: row["effect"] is not None and row["effect_low"] * row["effect_high"] > 0,
    }
    for (name, value), keeps in cases.items():
        page.select_option(f"#{name}", value)
        kept = [row for row in rows if keeps(row)]
        assert shown(page) == named(kept), name
        assert 0 < len(kept) < len(rows)
        assert page.inner_text("#count") == f"{len(kept)} of {len(rows)} neurons"
        page.select_option(f"#{name}", "")


def test_a_search_finds_by_site_layer_and_neuron(page, run):
    rows = by(rows_of(run, MODEL), lambda row: -row["log_odds"])
    row = next(row for row in rows if row["site"] == "llm.mlp.act" and row["neuron"] >= 100)
    name = f"{row['layer']}/{row['neuron']}"
    for asked, keeps in {
        f"llm.mlp.act {name}": lambda one: named([one]) == named([row]),
        name: lambda one: (one["layer"], one["neuron"]) == (row["layer"], row["neuron"]),
        name[:-1]: lambda one: f"{one['layer']}/{one['neuron']}".startswith(name[:-1]),
        f"{row['layer']}/": lambda one: one["layer"] == row["layer"],
        "VISION": lambda one: one["site"] == "vision.mlp.act",
        "medical": lambda one: one["domain"] == "medical",
    }.items():
        page.fill("#search", asked)
        exact = [one for one in rows if f"{one['layer']}/{one['neuron']}" == asked]
        assert shown(page) == named(exact or [one for one in rows if keeps(one)]), asked
    short = next(
        one
        for one in rows
        if any(
            more["layer"] == one["layer"] and re.fullmatch(f"{one['neuron']}[0-9]+", str(more["neuron"]))
            for more in rows
        )
    )
    place = (short["layer"], short["neuron"])
    page.fill("#search", "/".join(map(str, place)))
    assert shown(page) == named([one for one in rows if (one["layer"], one["neuron"]) == place])
    page.fill("#search", "nothing like this")
    assert page.locator(".card").count() == 0
    assert page.locator("#none").is_visible()
    page.fill("#search", f"llm.mlp.act {name}")
    page.press("#search", "Enter")
    page.wait_for_selector("dialog[open] .example")
    assert page.inner_text("#called").startswith(name)


def test_a_card_opens_by_click_key_and_link_and_the_back_button_closes_it(browser, run, page):  # noqa: F811
    first, second = page.locator(".card").nth(0), page.locator(".card").nth(1)
    link = second.get_attribute("href")
    second.click()
    page.wait_for_selector("dialog[open] .example")
    assert page.evaluate("location.hash") == link
    page.go_back()
    page.wait_for_selector("dialog", state="hidden")
    page.wait_for_function("link => document.activeElement.getAttribute('href') === link", arg=link)
    assert page.evaluate("location.hash") == ""
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.getAttribute('href')") == first.get_attribute("href")
    for key, place in (("j", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowDown", 4), ("ArrowUp", 1)):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.getAttribute('aria-posinset')") == str(place + 1), key
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] .example")
    page.keyboard.press("ArrowRight")
    third = page.locator(".card").nth(2).get_attribute("href")
    page.locator("#called", has_text=third.partition("/")[2]).wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    # The address goes back first, and then the focus.
    page.wait_for_function("link => document.activeElement.getAttribute('href') === link", arg=third)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    with opened(browser, run, link=link) as other:
        other.wait_for_selector("dialog[open] .example")
        site, called = other.inner_text("#opened .where").split(" · ")[1], other.inner_text("#called")
        assert f"#{site}/{called.removesuffix(' †')}" == link
        other.click("#close")
        other.wait_for_selector("dialog", state="hidden")
    with opened(browser, run, link="#llm.mlp.act/5/9999") as other:
        other.wait_for_selector("dialog[open] .quiet")
        assert "no card of llm.mlp.act 5/9999" in other.inner_text("dialog")


def one_with_a_map(run) -> tuple[str, np.ndarray, float]:
    """The link to a neuron of the vision tower, the map of its best example, and what 255 stands for."""
    examples = NeuronExamples.load(run / "examples" / "made+model.safetensors")
    layer, neuron = examples.neurons["vision.mlp.act"][0].tolist()
    maximum = examples.map_maximum["vision.mlp.act"][0, 0].item()
    return f"#vision.mlp.act/{layer}/{neuron}", examples.maps["vision.mlp.act"][0, 0].numpy(), maximum


def test_hovering_shows_the_value_that_the_raster_has_there(browser, run):  # noqa: F811
    link, values, maximum = one_with_a_map(run)
    with opened(browser, run, link=link) as page:
        picture = page.locator("dialog .shown").first
        picture.wait_for()
        box = picture.bounding_box()
        row, column = np.unravel_index(values.argmax(), values.shape)
        for down, across in ((row, column), (0, 0), (23, 23), ((row + 11) % 24, (column + 7) % 24), (7, 19)):
            page.mouse.move(box["x"] + box["width"] * (across + 0.5) / 24, box["y"] + box["height"] * (down + 0.5) / 24)
            said = float(page.inner_text("#value"))
            assert said == pytest.approx(values[down, across] / 255 * maximum, rel=6e-3), (down, across)


def test_the_overlay_is_strongest_where_the_maps_maximum_is(browser, run):  # noqa: F811
    link, values, _ = one_with_a_map(run)
    with opened(browser, run, link=link) as page:
        page.wait_for_selector("dialog canvas.heat")
        seen = page.evaluate(
            "(() => { const c = document.querySelector('dialog canvas.heat');"
            " const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            " return [c.width, c.height, [...p]]; })()"
        )
        width, height, pixels = seen[0], seen[1], np.array(seen[2]).reshape(seen[1], seen[0], 4)
        opacity = pixels[..., 3]
        at = np.unravel_index(opacity.argmax(), opacity.shape)
        row, column = np.unravel_index(values.argmax(), values.shape)
        assert (int(at[0] * 24 / height), int(at[1] * 24 / width)) == (row, column)
        faint = opacity[
            int((values.argmin() // 24 + 0.5) * height / 24), int((values.argmin() % 24 + 0.5) * width / 24)
        ]
        assert faint == 0
        # The picture, its map and the box lie on each other exactly, and the box is around the maximum.
        boxes = page.evaluate(
            "[...document.querySelector('dialog .shown').children].map(one => { const b = one.getBoundingClientRect();"
            " return [b.x, b.y, b.width, b.height]; })"
        )
        assert len(boxes) == 3
        assert np.allclose(boxes, boxes[0])
        x, y, wide, high = page.evaluate(
            "(() => { const b = document.querySelector('dialog rect').getBBox();"
            " return [b.x, b.y, b.width, b.height]; })()"
        )
        assert (int(24 * (y + high / 2)), int(24 * (x + wide / 2))) == (row, column)
        picture = page.locator("dialog .shown").first.evaluate("e => e.offsetWidth / e.offsetHeight")
        own = page.locator("dialog .shown img").first.evaluate("e => e.naturalWidth / e.naturalHeight")
        assert picture == pytest.approx(own, rel=0.02)


def test_a_dot_of_the_map_opens_its_neuron(page, run):
    row = next(row for row in rows_of(run, MODEL) if row["site"] == "llm.mlp.act")
    canvas = page.locator("figure.site", has_text="llm.mlp.act").locator("canvas")
    box = canvas.bounding_box()
    gutter, top, high = 26, 4, (box["height"] - 4) / 6
    x = box["x"] + gutter + (row["neuron"] + 0.5) / 256 * (box["width"] - gutter)
    page.mouse.move(x, box["y"] + top + (row["layer"] + 0.5) * high)
    assert page.inner_text("#tip").startswith(f"llm.mlp.act {row['layer']}/{row['neuron']},")
    page.mouse.click(x, box["y"] + top + (row["layer"] + 0.5) * high)
    page.wait_for_selector("dialog[open] .example")
    assert page.evaluate("location.hash") == f"#llm.mlp.act/{row['layer']}/{row['neuron']}"


def test_hostile_names_are_text(browser, run):  # noqa: F811
    row = rows_of(run, HOSTILE.model)[0]
    with opened(browser, run, link=f"#2:llm.mlp.act/{row['layer']}/{row['neuron']}") as page:
        page.wait_for_selector("dialog[open] .example")
        elements = {one.lower() for one in page.evaluate("[...document.querySelectorAll('*')].map(e => e.tagName)")}
        assert not elements & {"iframe", "object", "base", "form2"}
        assert page.locator("img[src='x'], [onerror]").count() == 0
        said = page.inner_text("dialog")
        assert all(text in said for text in (printable(HOSTILE.question), printable(HOSTILE.answer)))
        assert page.locator("#model option").nth(1).inner_text() == printable(HOSTILE.model)
        legend = page.locator("#legend .domain").all_inner_texts()
        assert legend == [printable(one) for one in HOSTILE.domains]
        page.keyboard.press("Escape")
        page.select_option("#model", "0")
        page.locator("figure.site").nth(2).wait_for()
        assert shown(page)[0] == named(by(rows_of(run, MODEL), lambda one: -one["log_odds"]))[0]


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1280, "dark")])
def test_nothing_is_wider_than_the_screen_in_either_theme(browser, run, width, scheme):  # noqa: F811
    with opened(browser, run, width, scheme) as page:
        paper = "rgb(23, 25, 29)" if scheme == "dark" else "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".card").first.click()
        page.wait_for_selector("dialog[open] .example")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('#opened').scrollWidth") <= width
        assert page.evaluate("getComputedStyle(document.querySelector('dialog')).backgroundColor") == paper
        outside = page.evaluate(
            "[...document.querySelectorAll('dialog *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert outside == []


def test_thousands_of_cards_are_not_thousands_of_elements(page, run):
    assert len(rows_of(run, MODEL)) == 99
    assert page.locator(".card").count() < 33
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_selector(".card[aria-posinset='99']")
    assert page.locator(".card").count() < 33
    names = pl.Series(page.evaluate("[...document.querySelectorAll('.card')].map(c => c.ariaLabel)"))
    assert names.str.contains(r"^[a-z.]+ \d+/\d+, ").all()
    assert not re.search("undefined|NaN|null", page.inner_text("main"))


def test_neurons_that_were_not_selected_are_fainter_and_can_be_left_out(browser, tmp_path):  # noqa: F811
    made = Made(shapes={"llm.mlp.act": (2, 30)}, unselected=True, examples=False)
    out = write_run(tmp_path, made, pictures=False)
    publish_neurons(out, most=50)
    with opened(browser, out) as page:
        assert page.inner_text("#count") == "50 neurons"
        page.select_option("#selected", "1")
        rows = by([row for row in rows_of(out, MODEL) if row["selected"]], lambda row: -row["log_odds"])
        assert shown(page) == named(rows)
        page.select_option("#selected", "")
        # The middle of a neuron's cell, where no line is: selected ones are opaque, those without a card the faintest.
        strength = {row["neuron"] + 30 * row["layer"]: number for number, row in enumerate(rows_of(out, MODEL))}
        seen = page.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => { const c ="
            " document.querySelector('canvas.map'), x = c.getContext('2d'), w = (c.width - 26) / 30;"
            " const high = (c.height - 4) / 2; done([0, 1].flatMap(layer => [...Array(30).keys()].map(n =>"
            " [...x.getImageData(26 + (n + 0.5) * w, 4 + (layer + 0.4) * high, 1, 1).data]))); })))"
        )
        stage = np.array([243, 244, 246])
        away = {at: np.abs(np.array(pixel[:3]) - stage).sum() for at, pixel in enumerate(seen)}
        groups = [[away[at] for at, place in strength.items() if low <= place < high]
                  for low, high in ((0, 6), (6, 50), (50, 60))]  # fmt: skip
        assert min(groups[0]) > max(groups[1])
        assert np.mean(groups[1]) >= np.mean(groups[2]) > 10
