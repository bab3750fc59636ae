"""The heatmap of Figure 6 as HTML: candidates for the next token, a row a layer, from the page's colour to blue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from markupsafe import Markup

from mmneuron_lens.artifacts.digits import number, percent
from mmneuron_lens.artifacts.neighbours import Neighbours
from mmneuron_lens.report.html_text import html, joined

if TYPE_CHECKING:  # A notebook shows a heatmap without loading matplotlib.
    from mmneuron_lens.report.figures import Theme


class Scale(NamedTuple):
    """Colours of a heatmap: of 0, of 1, of −1 where there is less than nothing, and of the text, which can be read on
    every one between them."""

    zero: str
    one: str
    minus: str
    text: str


SCALES: dict[Theme, Scale] = {
    "light": Scale("#ffffff", "#4f93d2", "#e07b5a", "#1d1f23"),
    "dark": Scale("#17191d", "#2166b0", "#a8431f", "#e7e8ea"),
}
"""By theme; `style.css` has them as `--heat-zero`, `--heat-one` and `--heat-text`. Where no page sets these, as in a
notebook, a heatmap is light."""

_CELL = (
    "background:color-mix(in srgb,var(--heat-one,{0.one}) {{:g}}%,var(--heat-zero,{0.zero}));"
    "color:var(--heat-text,{0.text});text-align:center"
).format(SCALES["light"])


@dataclass(frozen=True)
class Heat:
    """Words and their probabilities, [row][rank], best first.

    - told: what is said of a word that is pointed at, [row][rank]; its probability where there is none.
    """

    rows: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]
    told: tuple[tuple[str, ...], ...] = ()


class HasRows(Protocol):
    """A `LensTrace` or `Neighbours`: by layer its name, the words of a position, and how much each is it."""

    def rows(self, position: int, even: bool = False) -> list[tuple[str, tuple[str, ...], tuple[float, ...]]]: ...


def neighbour_heat(found: Neighbours, position: int, even: bool = False) -> Heat:
    """A position by its nearest words in context, coloured by cosine; see `heat_of`."""
    told = tuple(
        tuple(
            f"cosine {number(cosine, decimals=2)}; token {one['place'] + 1} of “{one['text']}” "
            f"after layer {one['layer']}"
            for one, cosine in zip(places, cosines, strict=True)
        )
        for _, places, cosines in found.places(position, even)
    )
    return replace(heat_of(found, position, even), told=told)


def heat_of(trace: HasRows, position: int, even: bool = False) -> Heat:
    """A position of a question as in Figure 6: a row a layer, a column a rank.

    - position: an index into `trace.labels`.
    - even: layers 2, 4, ... only.
    """
    rows = trace.rows(position, even)
    names, words, probabilities = zip(*rows, strict=True) if rows else ((), (), ())
    return Heat(names, words, probabilities)


def colour(probability: float, theme: Theme = "light") -> str:
    """From the theme's paper to its blue, as `#rrggbb`."""
    share = _share(probability)
    ends = zip(_parts(SCALES[theme].zero), _parts(SCALES[theme].one), strict=True)
    return "#" + "".join(f"{round(zero + share * (one - zero)):02x}" for zero, one in ends)


def _share(probability: float) -> float:
    return min(max(probability, 0.0), 1.0)


def _parts(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def heat_table(heat: Heat, caption: str = "") -> Markup:
    """The heatmap as an HTML table, the last layer at the bottom; any script and any theme can show its words."""
    ranks = max(map(len, heat.words), default=0)
    head = joined(html('<th scope="col">Top {}</th>', rank + 1) for rank in range(ranks))
    body = Markup("")
    chances = tuple(tuple(percent(value, 1) for value in row) for row in heat.probabilities)
    rows = zip(heat.rows, heat.words, heat.probabilities, heat.told or chances, strict=True)
    for name, words, probabilities, told in rows:
        cells = joined(
            html(
                '<td style="{}" title="{}">{}</td>',
                *(_CELL.format(round(100 * _share(value), 1)), said, word),
            )
            for word, value, said in zip(words, probabilities, told, strict=True)
        )
        body += html('<tr><th scope="row">{}</th>{}</tr>', name, cells)
    return html(
        '<table class="heat"><caption>{}</caption><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table>',
        *(caption, head, body),
    )
