"""The lens to be hovered over in a notebook: in a frame of its own, apart from the page's styles and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from mmneuron_lens.report.hover import hover
from mmneuron_lens.report.html_text import html, joined
from mmneuron_lens.report.page import own_file

if TYPE_CHECKING:
    from mmneuron_lens.artifacts.lens_trace import LensTrace

MOST = 100_000
"""Words that a frame holds, about 2 MB; a notebook with more is slow to open."""

HIGH = 640
"""Pixels; what is longer scrolls."""


def hover_frame(trace: LensTrace) -> Markup:
    """A trace as an element for a notebook's cell: point at a patch or a word and read what it decodes to.

    Where a trace has more than `MOST` words, a sentence says how to read fewer positions.
    """
    size = trace.tokens.numel()
    if size > MOST:
        said = "{} words at {} positions are too many for a lens to point at here: give positions= or a smaller top_k=."
        return html("<p>" + said + "</p>", f"{size:,}", f"{len(trace.labels):,}")
    lens = hover(trace.document(), trace.pictures, f"lens of {trace.model}")
    style = joined([own_file("style.css"), own_file("hover_frame.css")], "\n")
    page = html(
        '<!doctype html><html lang="en"><meta charset="utf-8"><style>{}</style>{}<script>{}</script>',
        *(style, lens, own_file("hover.js")),
    )
    return html(
        '<iframe class="lens-frame" title="What each position decodes to" sandbox="allow-scripts" srcdoc="{}" '
        'style="width:100%;height:{}px;border:0"></iframe>',
        *(str(page), HIGH),
    )
