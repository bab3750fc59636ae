"""One neuron of a run: its card in a notebook, its numbers, and a figure for a paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl

from interventions.errors import InvalidValue
from mmneuron_lens.report.neuron_card import neuron_card
from mmneuron_lens.report.neuron_document import neuron_document, neuron_name
from mmneuron_lens.report.neuron_figure import neuron_figure
from mmneuron_lens.report.neuron_sources import NeuronSources
from mmneuron_lens.runs.folder import RunError
from mmneuron_lens.runs.neuron_sources import FOLDER, TABLE, neuron_sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class NeuronCard:
    """A neuron of a run: Jupyter shows what it answers to, how specific it is, and what it does.

    - run: the folder. model, site, layer, neuron: which one.
    """

    run: Path
    model: str
    site: str
    layer: int
    neuron: int
    _sources: NeuronSources = field(repr=False)
    _place: int = field(repr=False)

    def to_frame(self) -> pl.DataFrame:
        """Its row of the table of neurons: the columns of `neurons.parquet`."""
        return self._sources.frame[self._place]

    def examples(self) -> pl.DataFrame:
        """A row per example, the largest activation first, as `NeuronExamples.to_frame` has them: rank, activation,
        domain, sample, question, answers, position, the picture's sha256, left, top, right, bottom (of the position in
        shares of the picture; null for words), map_maximum. No row where the examples were not run.
        """
        found = self._sources.examples
        frame = pl.DataFrame() if found is None else found.to_frame()
        own = {"site": self.site, "layer": self.layer, "neuron": self.neuron}
        return frame.filter(**own) if len(frame) else frame

    def figure(self, theme: Literal["light", "dark"] = "light") -> Figure:
        """Up to four pictures with its map on them, its activation probability in each domain (with intervals where the
        table has them), and by kind of token.

        - theme: "light" or "dark".
        """
        return neuron_figure(self._sources, self._place, self.run / FOLDER, theme)

    def __repr__(self) -> str:
        said = neuron_document(self._sources, self._place)
        odds = f", log-odds {said['odds']['text']}" if said["odds"] else ""
        domain = self.to_frame()["domain"][0]
        return f"NeuronCard({neuron_name((self.site, self.layer, self.neuron))} of {self.model}: {domain}{odds})"

    def _repr_html_(self) -> str:
        return neuron_card(self._sources, self._place, self.run / FOLDER)


def neuron(run: str | Path, site: str, layer: int, neuron: int, *, model: str | None = None) -> NeuronCard:
    """The card of one neuron of a run.

    - run: the folder. site: such as `llm.mlp.act`. layer: from 0. neuron: its index there.
    - model: whose; must be named where the run has several.

    Raises `RunError` with the choices for a model, a site, a layer or a neuron that the run's table does not have, and
    for a folder without a table of neurons.
    """
    found = neuron_sources(run, model)
    if len(found) != 1:
        raise RunError(f"{run} has neurons of {', '.join(one.model for one in found)}; say whose: model=...")
    sources = found[0]
    wanted = (site, layer, neuron)
    if wanted not in sources.neurons:
        raise InvalidValue(_refusal(Path(run), sources, site, layer, neuron))
    return NeuronCard(Path(run), sources.model, site, layer, neuron, sources, sources.neurons.index(wanted))


def _refusal(run: Path, sources: NeuronSources, site: str, layer: int, neuron: int) -> str:
    """Why there is no such card, with the choices."""
    sites = sources.frame["site"].unique(maintain_order=True).to_list()
    if site not in sites:
        return f"no neurons of {site!r} in {run / TABLE}; choose a site from {', '.join(sites)}."
    layers, neurons = sources.shapes[site]
    if not 0 <= layer < layers:
        return f"{site} has no layer {layer} in {sources.model}; choose from 0 to {layers - 1}."
    if not 0 <= neuron < neurons:
        return f"{site} has no neuron {neuron} in {sources.model}; choose from 0 to {neurons - 1}."
    here = sources.frame.filter(pl.col("site") == site, pl.col("layer") == layer)["neuron"].to_list()
    some = ", ".join(map(str, here[:10])) + (", ..." if len(here) > 10 else "")
    has = f"of layer {layer} it has {some}" if here else f"it has none of layer {layer}"
    return (
        f"{neuron_name((site, layer, neuron))} is not in {run / TABLE}; {has}. The table holds the selected neurons "
        "unless it was written with all of them."
    )
