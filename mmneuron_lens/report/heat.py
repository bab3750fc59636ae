"""The heatmap of Figure 6 as HTML: candidates for the next token, a row a layer, from white (0) to blue (1)."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.report.html_text import html, joined

BLUE = (8, 69, 148)
"""The colour of probability 1; 0 is white, in both themes, as a heatmap's scale should not turn round."""


@dataclass(frozen=True)
class Heat:
    """Words and their probabilities, [row][rank], best first."""

    rows: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]


def heat_of(trace: LensTrace, position: int, even: bool = False) -> Heat:
    """A position of a question as in Figure 6: a row a layer, a column a rank.

    - position: an index into `trace.labels`.
    - even: layers 2, 4, ... only.
    """
    rows = trace.rows(position, even)
    names, words, probabilities = zip(*rows, strict=True) if rows else ((), (), ())
    return Heat(names, words, probabilities)


def colour(probability: float) -> str:
    """White to blue, as `#rrggbb`."""
    share = min(max(probability, 0.0), 1.0)
    return "#" + "".join(f"{round(255 + share * (part - 255)):02x}" for part in BLUE)


def ink(probability: float) -> str:
    """Text that can be read on `colour(probability)`."""
    return "#ffffff" if probability > 0.5 else "#1d1f23"


def heat_table(heat: Heat, caption: str = "") -> Markup:
    """The heatmap as an HTML table, the last layer at the bottom; any script and any theme can show its words."""
    ranks = max(map(len, heat.words), default=0)
    head = joined(html('<th scope="col">Top {}</th>', rank + 1) for rank in range(ranks))
    body = Markup("")
    for name, words, probabilities in zip(heat.rows, heat.words, heat.probabilities, strict=True):
        cells = joined(
            html(
                '<td style="background:{};color:{};text-align:center" title="{} %">{}</td>',
                *(colour(value), ink(value), f"{100 * value:.1f}", word),
            )
            for word, value in zip(words, probabilities, strict=True)
        )
        body += html('<tr><th scope="row">{}</th>{}</tr>', name, cells)
    return html(
        '<table class="heat"><caption>{}</caption><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table>',
        *(caption, head, body),
    )
