"""Pages of models, domains, questions and answers that are called like elements, in a real browser: text alone.

Needs what `test_page.py` needs.
"""

from __future__ import annotations

import pytest
from strange_names import DOMAINS, MODELS, strange_run
from test_page import SCREENS, browser, opened, pytestmark  # noqa: F401

from interventions.printable import printable


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    return strange_run(tmp_path_factory.mktemp("strange"), whole=True)[0]


@pytest.mark.parametrize("name", ["index", "selection"])
def test_names_are_text_and_nothing_of_them_lives(browser, strange, name, width, scheme):  # noqa: F811
    with opened(browser, strange / f"{name}.html", width, scheme) as page:
        dialogs = []
        page.on("dialog", lambda one: (dialogs.append(one.message), one.dismiss()))
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        # The page's own script.
        assert page.evaluate("document.querySelectorAll('[onerror], iframe, body script:not([type])').length") == 1
        assert page.evaluate("[...document.images].filter(one => !/^data:image.(png|jpeg);/.test(one.src)).length") == 0
        assert page.evaluate("[...document.images].filter(one => !one.naturalWidth).length") == 0
        said = page.evaluate("document.body.textContent")
        models = MODELS if name == "selection" else MODELS[:1]
        assert [one for one in (*map(printable, models), *DOMAINS) if one not in said] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (page.errors, dialogs) == ([], [])


def test_the_policy_stops_what_is_not_the_pages_own(browser, strange, tmp_path, width, scheme):  # noqa: F811
    """An element that came in after all: its script does not run, its image is not fetched."""
    text = (strange / "selection.html").read_text()
    planted = "<script>document.title = 1</script><img src='https://example.org/a.png' onerror='document.title = 2'>"
    assert "<h1>" in text
    (tmp_path / "page.html").write_text(text.replace("<h1>", f"{planted}<h1>"))
    with opened(browser, tmp_path / "page.html", width, scheme) as page:
        assert page.title().startswith("Domain-specific neurons")
        assert any("Content Security Policy" in one for one in page.errors)
