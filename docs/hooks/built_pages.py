"""The built pages: every link leads to a place that is there, and no page asks another machine for anything."""

from __future__ import annotations

import logging
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

log = logging.getLogger("mkdocs.hooks.built_pages")

NOTEBOOK_LIBRARIES = re.compile(
    r"<script[^>]*src=\"(?:(?:https?:)?//[^\"]*)?\"[^>]*>\s*</script>"
    r"|<script[^>]*>(?:(?!</script>).)*?(?:MathJax|mermaid)(?:(?!</script>).)*?</script>",
    re.DOTALL,
)
"""Formulas and diagrams, which notebooks are rendered with from a server elsewhere; ours have none."""

FOLDER = re.compile(r'href="((?:\.\./)*\.{1,2})/?"')
FETCHES = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "manifest"}


ELSEWHERE = re.compile(r"url\([\"']?(?:https?:)?//")


class Page(HTMLParser):
    """What a built page links to, fetches, and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.anchors.update(own[name] for name in ("id", "name") if own.get(name))
        if tag == "a" and "href" in own:
            self.links.append(own["href"])
        wanted = FETCHES.get(tag)
        if wanted and own.get(wanted) and (tag != "link" or FETCHED_LINKS & set(own.get("rel", "").split())):
            self.fetched.append(own[wanted])


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Takes out of notebooks what would be fetched from elsewhere."""
    return NOTEBOOK_LIBRARIES.sub("", html) if page.file.src_uri.endswith(".ipynb") else html


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Links to a folder name its page, so that the site can be read without a server."""
    return FOLDER.sub(lambda found: f'href="{found[1]}/index.html"', output)


def on_post_build(config: Any) -> None:
    """Warns of what is wrong, which a strict build refuses."""
    for problem in problems(Path(config.site_dir)):
        log.warning(problem)


def problems(site: Path) -> list[str]:
    """One line for every link to nothing and everything that is fetched from elsewhere."""
    pages = {file.relative_to(site).as_posix(): Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    found = [
        f"{name}: {link!r} {why}"
        for name, page in sorted(pages.items())
        if name != "404.html"
        for link in dict.fromkeys(page.links + page.fetched)
        if (why := _wrong(site, pages, name, link, link in page.fetched))
    ]
    styles = ((file, file.read_text(encoding="utf-8")) for file in site.rglob("*.css"))
    return found + [f"{file.name}: fetches from elsewhere" for file, text in styles if ELSEWHERE.search(text)]


def _wrong(site: Path, pages: dict[str, Page], name: str, link: str, fetched: bool) -> str:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return "is fetched from elsewhere" if fetched and parts.scheme != "data" else ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
    if path not in pages:
        return "" if (site / path).is_file() else "leads to no file of the site"
    anchor = unquote(parts.fragment)
    return f"has no such place on {path}" if anchor and anchor not in pages[path].anchors else ""
