"""The section that shows neurons: of each model and domain, the one that is most specific, with its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from markupsafe import Markup

from mmneuron_lens.paper.model_run import ModelRun, sources_of
from mmneuron_lens.report.html_text import html, joined
from mmneuron_lens.report.neuron_sources import NeuronSources
from mmneuron_lens.report.neuron_strip import neuron_strip
from mmneuron_lens.report.page import INDEX
from mmneuron_lens.report.sections import Section
from mmneuron_lens.runs.neuron_sources import FOLDER, TABLE, neuron_sources


def neuron_examples(runs: Sequence[ModelRun]) -> Section:
    """What the most specific neuron of each domain answers to; where pictures were read."""
    title, out = "What neurons answer to", runs[0].out
    found = [one for one in _sources(out) if one.model in {run.model for run in runs} and one.examples is not None]
    if not found:
        missing = "what single neurons answer to was not read: `mmneuron neurons RUN --model ... --corpus ...`."
        return Section(title, missing=missing, name="Neurons")
    text = (
        "Of each domain, the selected neuron whose log-odds of being active there rather than elsewhere are surely the "
        "largest (by the lower end of their interval), with the pictures on which it is most active, one a picture; "
        "colour shows where. Whether such neurons matter is another question.",
    )
    after: list[Markup] = []
    for one in found:
        strips = [neuron_strip(one, place, out / FOLDER, f"{FOLDER}/{INDEX}.html") for place in shown_first(one)]
        name = html("<h3>{}</h3>", one.model) if len(found) > 1 else html("")
        after.append(name + html('<div class="strips">{}</div>', joined(strips)))
    everything = html(
        '<p><a href="{}">All of them: a card each, on a page of their own.</a></p>', f"{FOLDER}/{INDEX}.html"
    )
    return Section(title, text, after=(*after, everything), sources=sources_of(runs, "examples"), name="Neurons")


def _sources(out: Path) -> list[NeuronSources]:
    return neuron_sources(out) if (out / TABLE).is_file() else []


def shown_first(sources: NeuronSources) -> list[int]:
    """The row of one neuron a domain: selected, able to reach the logits, with examples; the largest lower end."""
    places = sources.frame.with_row_index("place").with_columns(
        pl.Series("shown", [one in sources.place_of_example for one in sources.neurons], dtype=pl.Boolean)
    )
    chosen = places.filter("selected", "shown", pl.col("reaches_logits").fill_null(True))
    lowest = pl.coalesce("log_odds_low", "log_odds", pl.lit(0.0))
    found: list[int] = []
    for domain in sources.domains:
        own = chosen.filter(pl.col("domain") == domain).sort(lowest, descending=True, nulls_last=True)
        found += own["place"].head(1).to_list()
    return found
