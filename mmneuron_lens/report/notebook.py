"""What Jupyter shows of an artifact, where a table of its numbers is not the best of it. Light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # A notebook's first import should not load torch.
    from mmneuron_lens.artifacts.lens_trace import LensTrace


def register(ipython: Any) -> None:
    """Teaches an IPython shell to show artifacts; a second call changes nothing.

    - ipython: what `IPython.get_ipython()` returns.
    """
    formatter = ipython.display_formatter.formatters["text/html"]
    formatter.for_type_by_name("mmneuron_lens.artifacts.lens_trace", "LensTrace", trace_html)


def trace_html(trace: LensTrace) -> str:
    """Two heatmaps: what the second image token and the last text token decode to at every layer."""
    from mmneuron_lens.artifacts.table_html import NO_MATH
    from mmneuron_lens.report.heat import heat_of, heat_table

    shown = [trace.position("image", 1 if trace.kinds.count("image") > 1 else 0)] if "image" in trace.kinds else []
    shown += [trace.last("text")] if "text" in trace.kinds else []
    parts = [heat_table(heat_of(trace, place), f"{trace.labels[place]} → {trace.best(place)}") for place in shown]
    return NO_MATH.format("".join(parts))
