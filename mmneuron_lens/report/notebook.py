"""What Jupyter shows of an artifact, where a table of its numbers is not the best of it. Light to import."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # A notebook's first import should not load torch.
    from mmneuron_lens.artifacts.lens_trace import LensTrace
    from mmneuron_lens.artifacts.neighbours import Neighbours


def register(ipython: Any) -> None:
    """Teaches an IPython shell to show artifacts; a second call changes nothing.

    - ipython: what `IPython.get_ipython()` returns.
    """
    # What tqdm says, in red, of every notebook without widgets, when transformers first asks for a progress bar.
    warnings.filterwarnings("ignore", message="IProgress not found")
    formatter = ipython.display_formatter.formatters["text/html"]
    formatter.for_type_by_name("mmneuron_lens.artifacts.lens_trace", "LensTrace", trace_html)
    formatter.for_type_by_name("mmneuron_lens.artifacts.neighbours", "Neighbours", neighbours_html)


def trace_html(trace: LensTrace) -> str:
    """The lens to point at, and for where no script runs two heatmaps: what the second image token and the last text
    token decode to at every layer.
    """
    from mmneuron_lens.artifacts.table_html import NO_MATH
    from mmneuron_lens.report.heat import heat_of, heat_table
    from mmneuron_lens.report.hover_frame import hover_frame
    from mmneuron_lens.report.html_text import html, joined

    parts = [
        heat_table(heat_of(trace, place), f"{trace.labels[place]} → {trace.best(place)}")
        for place in _shown(trace.kinds)
    ]
    still = "<details><summary>Two positions as tables, where no script runs</summary>{}</details>"
    return NO_MATH.format(hover_frame(trace) + html(still, joined(parts)))


def neighbours_html(found: Neighbours) -> str:
    """Two heatmaps: the nearest words in context of the second image token and the last text token, by layer."""
    from mmneuron_lens.artifacts.table_html import NO_MATH
    from mmneuron_lens.report.heat import heat_table, neighbour_heat

    parts = [
        heat_table(neighbour_heat(found, place), f"{found.labels[place]}, nearest words")
        for place in _shown(found.kinds)
    ]
    return NO_MATH.format("".join(parts))


def _shown(kinds: tuple[str, ...]) -> list[int]:
    """The second image token, or the only one, and the last text token."""
    images, texts = ([place for place, one in enumerate(kinds) if one == kind] for kind in ("image", "text"))
    return images[:2][-1:] + texts[-1:]
