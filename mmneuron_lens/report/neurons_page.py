"""The page of a run's neurons, and the files of data that it asks for: a card a neuron, a map of where they lie."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from interventions.printable import printable
from mmneuron_lens.artifacts.neuron_examples import SIDE
from mmneuron_lens.artifacts.selection import in_order, module_of
from mmneuron_lens.report.html_text import joined, json_in_html
from mmneuron_lens.report.looks import colours_of
from mmneuron_lens.report.neuron_document import TEXTS, neuron_document, neuron_name
from mmneuron_lens.report.neuron_maps import OPACITY, RAMP
from mmneuron_lens.report.neuron_sources import NeuronSources, evidence_ranks, most_specific
from mmneuron_lens.report.page import own_file, template
from mmneuron_lens.report.tables import listed

TOGETHER = 16
"""Cards in one file."""

NUMBERS = (
    *("log_odds", "log_odds_low", "log_odds_high", "entropy", "attribution", "attribution_rank"),
    *("effect", "effect_low", "effect_high", "effect_rank"),
)
"""Columns that the page sorts and filters by, in full precision; they may be null."""

SCRIPTS = ("files", "pictures", "card", "map", "grid")
HOW = (
    "Each card is one neuron, named by site, layer and its index there. It shows what the neuron is most active on, "
    "one example an image, with its activation laid over the picture; how often it is active (above zero) in each "
    "domain; how specific that makes it, as the log-odds of its domain against all others with a 95 % interval over "
    "images; and, where they were run, what it does to the answers and which words it writes.",
    "By evidence, those come first that reach the logits, have pictures mostly of their own domain, and log-odds whose "
    "whole interval lies above 0; of these, those with a measured effect, then the largest log-odds.",
    "A neuron that is specific to a domain need not matter to it: most do not. Rank by effect to see those that do.",
    "Neurons marked † cannot reach the logits: whatever they do, no answer depends on them.",
)


@dataclass(frozen=True)
class NeuronsPage:
    """Everything on the page.

    - models: what is known of each model's neurons; all rows of their tables.
    - most: cards of a model at most; the selected neurons have theirs first, then those with the largest log-odds.
    - back, beside: text and address of the page above, and of the files beside it.
    """

    models: tuple[NeuronSources, ...]
    most: int = 5000
    back: tuple[str, str] | None = None
    beside: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    how: tuple[str, ...] = HOW

    @property
    def title(self) -> str:
        return f"Neurons of {listed(one.model for one in self.models)}"

    @property
    def lead(self) -> str:
        return "What single neurons answer to, how specific they are to a visual domain, and whether they matter."

    @property
    def example(self) -> str:
        """Of what may be searched for."""
        found = [neuron_name(one.neurons[0]) for one in self.models if one.neurons]
        return found[0] if found else "llm.mlp.act 14/2051"


def page_files(page: NeuronsPage) -> Iterator[tuple[str, str]]:
    """Name and text of every file of the page; `index.html`, which names the others, is the last.

    A file of data is called after what it holds: another page never finds it under the same name.
    """
    models: list[dict[str, Any]] = []
    for whole in page.models:
        kept = whole.keeping(most_specific(whole.frame, page.most, whole.place_of_example))
        table = _script("table", table_document(kept, whole.frame))
        yield table
        chunks: list[str] = []
        for start in range(0, len(kept.frame), TOGETHER):
            some = range(start, min(start + TOGETHER, len(kept.frame)))
            chunk = _script("cards", [neuron_document(kept, place) for place in some])
            yield chunk
            chunks.append(chunk[0])
        models.append({"table": table[0], "chunks": chunks, "kept": _kept(kept, whole)})
    facts = {"ramp": RAMP, "opacity": OPACITY, "side": SIDE, "size": TOGETHER, "texts": TEXTS, "models": models}
    parts = [own_file(f"neurons_{name}.js") for name in SCRIPTS] + [own_file("neurons.js")]
    style = joined(map(own_file, ("style.css", "neuron_card.css", "neurons.css")), "\n")
    shown = {"page": page, "run": json_in_html(facts), "script": joined(parts, "\n"), "style": style}
    yield "index.html", template("neurons.html.jinja").render(shown)


def table_document(kept: NeuronSources, whole: pl.DataFrame) -> dict[str, Any]:
    """What the page's script knows of every card without opening it, by column, and where all neurons lie.

    - sites: site, module, how it is called, layers and neurons, layers that cannot reach the logits, and others: the
      neurons without a card, a byte for each neuron of the site: 0, or 1 + the number of its domain; "" without any.
    """
    frame = kept.frame
    sites = in_order({*frame["site"], *whole["site"]})
    domains = {name: place for place, name in enumerate(kept.domains)}
    rest = whole.join(frame.select("site", "layer", "neuron"), on=["site", "layer", "neuron"], how="anti")
    return {
        "domains": [printable(kept.names[one]) for one in kept.domains],
        "colours": colours_of(kept.domains),
        "sites": [_site(kept, site, rest.filter(pl.col("site") == site), domains) for site in sites],
        "columns": {
            "site": [sites.index(one) for one in frame["site"]],
            "layer": frame["layer"].to_list(),
            "neuron": frame["neuron"].to_list(),
            "selected": [int(bool(one)) for one in frame["selected"]],
            "domain": [domains.get(one, -1) for one in frame["domain"]],
            "domains": [[domains[one] for one in some or [] if one in domains] for some in frame["domains"].to_list()],
            "evidence": evidence_ranks(kept),
            "reaches_logits": _column(frame, "reaches_logits", pl.Int64),
            **{name: _column(frame, name, pl.Float64) for name in NUMBERS},
        },
    }


def _column(frame: pl.DataFrame, name: str, kind: type[pl.DataType]) -> list[Any]:
    if name not in frame.columns:
        return [None] * len(frame)
    found = frame[name].cast(kind)
    return (found.fill_nan(None) if kind == pl.Float64 else found).to_list()


def _site(kept: NeuronSources, site: str, rest: pl.DataFrame, domains: dict[str, int]) -> dict[str, Any]:
    layers, neurons = kept.shapes[site]
    module, known = module_of(site), kept.reachability
    others = np.zeros(layers * neurons if len(rest) else 0, dtype=np.uint8)
    if len(rest):
        places = (rest["layer"] * neurons + rest["neuron"]).to_numpy()
        others[places] = [1 + domains[one] if one in domains else 0 for one in rest["domain"]]
    return {
        "site": site,
        "module": module,
        "called": site if module == site else f"{module} · {site}",
        "layers": layers,
        "neurons": neurons,
        "unreachable": list(known.layers(site)),
        "others": b64encode(others.tobytes()).decode(),
    }


def _kept(kept: NeuronSources, whole: NeuronSources) -> str:
    """Which neurons have a card, as a sentence."""
    cards, rows = len(kept.frame), len(whole.frame)
    total = sum(layers * neurons for layers, neurons in whole.shapes.values())
    selected = int(whole.frame["selected"].fill_null(False).sum())
    if cards < rows:
        return (
            f"{cards:,} of {rows:,} neurons have a card: the selected ones first, then those with examples, then those "
            "with the largest log-odds. The table has them all."
        )
    if cards == selected:
        return f"The {cards:,} selected neurons of {total:,}, a card each."
    return f"{cards:,} neurons of {total:,}, a card each; {selected:,} of them are selected."


def _script(kind: str, value: Any) -> tuple[str, str]:
    text = json_in_html(value)
    name = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.js"
    return name, f'neuronData("{name}",{text});\n'


def stale_files(names: Sequence[str], fresh: Sequence[str]) -> list[str]:
    """Of the files in a folder, those that an earlier page there asked for and this one does not."""
    own = [name for name in names if name.endswith(".js") and name.partition("-")[0] in ("table", "cards")]
    return sorted({*own} - {*fresh})
