"""Files outside docs/ as pages of the site, each kept once; links and lists that work on a forge work in the site."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "notebooks/*.ipynb",
    "benchmarks/*.md",
    "mmneuron_lens/embedded/*/CARD.md",
)
"""What becomes pages, by its path in the repository."""

STANDS_FOR = {"README.md": "docs/index.md", "notebooks": "docs/gallery.md", "benchmarks": "docs/benchmarks.md"}
"""What has a page of another name."""

log = logging.getLogger("mkdocs.hooks.repository_files")

MARKDOWN_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?(?: \"[^\"]*\")?\))")
HTML_LINK = re.compile(r"((?:href|src)=\")([^\"#]+)((?:#[^\"]*)?\")")
BRACKETS = re.compile(r"\[(\w+)\]\[(\w+)\]")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|/", re.IGNORECASE)
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LIST = re.compile(r"^((?![-*+#>|\s]|\d+\. )[^\n]+\n)(?=- |1\. )", re.MULTILINE)
"""A list that begins right behind a line of text, which the site would take for more of it."""

CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


@event_priority(100)
def on_files(files: Files, config: Any) -> Files:
    """Adds the pages, before other plugins look at what there is."""
    for pattern in OUTSIDE:
        for file in sorted(ROOT.glob(pattern)):
            files.append(_file(file.relative_to(ROOT).as_posix(), config))
    return files


@event_priority(-100)
def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links, lists and brackets as a forge reads them become those of the site, outside code."""
    outside = FENCED.split(markdown)
    outside[::2] = (LIST.sub(r"\1\n", text) for text in outside[::2])
    parts = CODE.split("".join(outside))
    for number in range(0, len(parts), 2):
        links = MARKDOWN_LINK.sub(lambda found: _linked(found, page.file, config, files), parts[number])
        # The site would look for what the second brackets name.
        parts[number] = BRACKETS.sub(r"[\1]\\[\2]", links)
    return "".join(parts)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """The links of a notebook, which is rendered elsewhere, become links of the site."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def linked(found: re.Match[str]) -> str:
        target = _target(found[2], page.file.src_uri, config, files)
        if target is None:
            return found[0]
        return found[1] + target.url_relative_to(page.file.url) + found[3]

    return HTML_LINK.sub(linked, html)


def _linked(found: re.Match[str], file: Any, config: Any, files: Files) -> str:
    target = _target(found[2], file.src_uri, config, files)
    if target is None:
        return found[0]
    own = posixpath.relpath(target.src_uri, posixpath.dirname(file.src_uri) or ".")
    return found[1] + own + found[3]


def _target(link: str, page: str, config: Any, files: Files) -> File | None:
    """The file of the site that a link in a source means; None where there is none, or it leads elsewhere."""
    if ELSEWHERE.match(link):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(page)), link))
    path = STANDS_FOR.get(path, path)
    found = files.get_file_from_path(in_site(path))
    if found is None and (ROOT / path).is_file() and not path.startswith("docs/"):
        # A program, a log or a licence: it goes with the site as it is.
        found = _file(path, config)
        files.append(found)
    return found


def _file(path: str, config: Any) -> File:
    return File(path, str(ROOT), config.site_dir, config.use_directory_urls, inclusion=InclusionLevel.INCLUDED)


def in_repository(page: str) -> str:
    """The path in the repository of a source of the site."""
    return page if _outside(page) else f"docs/{page}"


def in_site(path: str) -> str:
    """The source of the site at a path in the repository."""
    return path.removeprefix("docs/")


def _outside(path: str) -> bool:
    return any(Path(path).match(pattern) for pattern in OUTSIDE)
