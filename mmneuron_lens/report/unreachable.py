"""How neurons that cannot reach the logits are marked wherever neurons, or numbers of them, are shown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.artifacts.selection import Selection, in_order, module_of, sites_of
from mmneuron_lens.report.figures import Ink

MARK = "†"
"""Behind the name of a module or site some of whose neurons cannot reach the logits."""

UNKNOWN = "Which layers can reach the logits was not kept with these counts, so no neuron is marked."

HATCH = "////"
LEGEND = "cannot reach the logits"


def marked(frame: pl.DataFrame, known: Mapping[str, Reachability]) -> pl.DataFrame:
    """The frame with `MARK` behind every module or site with a layer that cannot reach the logits.

    - frame: with a column model, and a column module or site (a module's branch may stand among the modules).
    - known: by model.
    """
    column = "module" if "module" in frame.columns else "site"
    names = []
    for model, name in frame.select("model", column).iter_rows():
        sites = known[model].sites or {} if model in known else {}
        names.append(f"{name} {MARK}" if any(name in (site, module_of(site), "All") for site in sites) else name)
    return frame.with_columns(pl.Series(column, names, dtype=pl.String))


def where(known: Reachability, sites: Collection[str] | None = None) -> str:
    """The layers that cannot reach the logits, and why; "" where there are none.

    - sites: of these alone; of all unless given.
    """
    named = [site for site in in_order(known.sites or {}) if sites is None or site in sites]
    return "; ".join(f"{site} {_layers(known.layers(site))}: {known.why(site)}" for site in named)


def of_selection(one: Selection) -> str:
    """How many selected neurons of a model cannot reach the logits, and where these are; "" where all can."""
    known = one.reachability
    if not known.known:
        return UNKNOWN
    sites = [site for site in known.sites or {} if site in one.masks]
    counted = []
    for module in dict.fromkeys(map(module_of, in_order(sites))):
        selected = sum(one.selected(site) for site in sites_of(one.masks, module))
        counted.append(f"{selected - (one.reachable(module) or 0):,} of {selected:,} in {module}")
    if not counted:
        return ""
    return (
        f"Of the selected neurons, {', '.join(counted)} cannot reach the logits, and are counted as in the paper "
        f"({where(known, sites)})."
    )


def of_neurons_off(one: Selection) -> str:
    """The same for tables and figures of what happens with neurons off."""
    said = of_selection(one)
    return (
        f"{said} Off or not, they change no answer and no last hidden state."
        if said and one.reachability.known
        else said
    )


def of_counts(known: Reachability, sites: Collection[str] | None = None) -> str:
    """The same for what is shown of all neurons, selected or not; `sites` as of `where`."""
    if not known.known:
        return UNKNOWN
    there = where(known, sites)
    return f"These cannot reach the logits: {there}." if there else ""


def notes_of(said_by_model: Mapping[str, str]) -> tuple[str, ...]:
    """What is said of each model as notes below a table, none for a model of which nothing is."""
    return tuple(f"{MARK} {model}: {said[0].lower()}{said[1:]}" for model, said in said_by_model.items() if said)


def hatched(panel: Axes, layers: Sequence[int], ink: Ink, over: float = 1) -> None:
    """Hatches these layers of a panel whose horizontal axis is the layer.

    - over: how many units of that axis a layer takes.
    """
    style = {"facecolor": "none", "edgecolor": ink.quiet, "hatch": HATCH, "linewidth": 0, "alpha": 0.6}
    for layer in layers:
        panel.axvspan(layer - 0.5, layer + over - 0.5, **style)


def hatch_handle(ink: Ink) -> Patch:
    """The entry of the legend for hatched layers."""
    return Patch(facecolor="none", edgecolor=ink.quiet, hatch=HATCH, linewidth=0, label=LEGEND)


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
