"""How Jupyter shows each value: what it is, a compact table or a figure, and what to call next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE
from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.deviations import Deviations
from mmneuron_lens.artifacts.digits import interval, number
from mmneuron_lens.artifacts.effect_sizes import EffectSizes
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.artifacts.neighbours import Neighbours
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.artifacts.table_html import shown_html, value_html
from mmneuron_lens.evaluation.ablation import Ablation
from mmneuron_lens.evaluation.beyond_random import fraction_of
from mmneuron_lens.evaluation.comparison_claims import comparison_claims
from mmneuron_lens.evaluation.comparison_table import ComparisonTable
from mmneuron_lens.evaluation.deviation import DeviationTable
from mmneuron_lens.report import tables
from mmneuron_lens.report.heat import heat_of, heat_table, neighbour_heat
from mmneuron_lens.report.hover_frame import hover_frame
from mmneuron_lens.report.html_text import html, joined
from mmneuron_lens.report.tables import domain_name
from mmneuron_lens.report.terminal import MATTERS

SCROLLING = '<div class="mm-scroll">{}</div>'

WORDS = 12
"""Words of a prompt that are shown from its end."""


def counts(value: Counts) -> str:
    """A row a site and kind of token."""
    frame = value.to_frame().drop("model", "domain")
    told = f"of {domain_name(value.domain)} on {value.model}, {number(value.samples)} samples"
    return value_html("Counts", frame, told, ("counts.total(site)", "counts.per_bucket(site)", "counts.save(path)"))


def moments(value: Moments) -> str:
    """A row a site and kind of token."""
    frame = value.to_frame().drop("model", "domain")
    told = f"of {domain_name(value.domain)} on {value.model}, {number(value.samples)} samples"
    return value_html("Moments", frame, told, ("moments.to_frame()", "moments.save(path)"))


def selection(value: Selection) -> str:
    """How many neurons of each domain, module by module."""
    frame = tables.wide(tables.neurons_per_domain(value).drop("reachable"), "neurons", value.domains).drop("model")
    chosen = sum(value.selected(site) for site in value.masks)
    every = sum(one.numel() for one in value.entropy.values())
    told = f"of {value.model}: {number(chosen)} of {number(every)} neurons; one of several domains counts in each"
    first = value.domains[0] if value.domains else "domain"
    then = (f"selection.off({first!r})", "selection.to_frame()", "mm.ablate(lens, selection, corpus)")
    return value_html("Selection", frame, told, then)


def identified(value: Any) -> str:
    """The selection, and whether chance explains it."""
    told = value.controls
    parts = [selection(value.selection)]
    if told.discovery is not None and told.overlap is not None:
        frame = tables.control(told.discovery, told.overlap, value.selection).drop("model")
        kept = frame.select("module", "selected", "reachable", "fdr", pl.col("overlap_mean").alias("overlap of halves"))
        then = ("found.selection", "found.counts", "found.controls.effects", "found.silent(site)")
        parts.append(value_html("Controls", kept, "false discovery rate, and halves of the data", then))
    elif told.missing:
        parts.append(shown_html(str(html("<p>No controls: {}</p>", told.missing)), ("found.selection", "found.counts")))
    return "".join(parts)


def effect_sizes(value: EffectSizes) -> str:
    """Medians by module, with intervals."""
    rows = tables.effect(value).rows(named=True)
    frame = pl.DataFrame(
        {"module": row["module"], "memberships": row["memberships"]}
        | {
            title: interval(row[name], row[f"{name}_low"], row[f"{name}_high"], factor)
            for title, name, factor in (
                ("log-odds", "log_odds", 1),
                ("held out", "held_out", 1),
                ("difference, points", "difference", 100),
            )
        }
        for row in rows
    )
    return value_html("Effect sizes", frame, f"of {value.model}: medians, 95 % intervals", ("effects.to_frame()",))


def comparison(value: NeuronComparison) -> str:
    """Methods by domains: what their neurons do beyond random ones, marked where it holds."""
    at = fraction_of(value)
    rows: dict[str, dict[str, str]] = {}
    for method in value.methods:
        rows[method] = {"method": method}
    for claim in comparison_claims([value], at):
        for one in claim.findings:
            method, _, domain = claim.number.partition(" ")
            mark = f" {MATTERS}" if one.verdict == "holds" else ""
            rows[method][domain_name(domain)] = interval(one.value, one.low, one.high) + mark
    told = (
        f"on {value.model}, {100 * at:g} % of the neurons off: change of the right answer’s log-probability beyond as "
        f"many random ones, nats; {MATTERS} they matter more"
    )
    then = ("found.to_frame()", "found.claims()", "found.matrix()", "found.areas()")
    return value_html("Comparison", pl.DataFrame([*rows.values()]), told, then)


def comparison_table(value: ComparisonTable) -> str:
    return comparison(value.comparison)


def deviations(value: Sequence[Deviations]) -> str:
    """A row a domain, a column a module: the domain's neurons off, beside random ones."""
    frame = DeviationTable(value).to_frame()
    shown = [interval(row["deviation"], row["low"], row["high"]) for row in frame.iter_rows(named=True)]
    own = (
        pl.when(pl.col("condition") == DOMAIN)
        .then(pl.lit("the domain’s"))
        .otherwise(pl.format("as many {}", "condition"))
    )
    told = frame.with_columns(pl.Series("shown", shown, pl.String), neurons=own)
    order = told["domain"].unique(maintain_order=True)
    wide = told.pivot("domain", index=["module", "neurons"], values="shown", maintain_order=True)
    table = wide.select("module", "neurons", *(pl.col(one).alias(domain_name(one)) for one in order))
    models = ", ".join(dict.fromkeys(one.model for one in value))
    facts = f"on {models}: of the last hidden state with neurons off, per cent"
    return value_html("Deviation", table, facts, ("found.to_frame()", "found.to_frame('last position')"))


def one_deviations(value: Deviations) -> str:
    return deviations((value,))


def ablation(value: Ablation) -> str:
    """A row a module and domain: accuracy with nothing off, and what the domain's neurons cost beyond random ones."""
    scores, against = value.to_frame(), value.against_random()
    accuracy = {
        (row["module"], row["condition"], row["domain"]): row
        for row in scores.iter_rows(named=True)
        if row["condition"] in (NONE, DOMAIN)
    }
    beyond = {(row["module"], row["domain"]): row for row in against.iter_rows(named=True)}
    rows = [
        {"neurons off in": "all modules" if module == ALL else module, "domain": domain_name(domain)}
        | {"accuracy, %": number(row["accuracy"]), "change, points": _difference(row)}
        | {"less random, points": _difference(beyond.get((module, domain)))}
        for (module, condition, domain), row in accuracy.items()
        if condition == DOMAIN
    ]
    models = ", ".join(scores["model"].unique(maintain_order=True))
    then = ("found.to_frame()", "found.against_random()", "found.cross()")
    return value_html("Ablation", pl.DataFrame(rows), f"on {models}, 95 % intervals over questions", then)


def _difference(row: Mapping[str, Any] | None) -> str:
    return number(None) if row is None else interval(row["difference"], row["low"], row["high"])


def examples(value: NeuronExamples) -> str:
    """The best example of each neuron."""
    frame = value.to_frame().filter(pl.col("rank") == 1).select("site", "layer", "neuron", "activation", "question")
    told = f"of {number(len(frame))} neurons of {value.model}, the best of each"
    return value_html("Examples", frame, told, ("examples.to_frame()", "mm.neuron(run, site, layer, neuron)"), 8)


def entropies(value: Entropies) -> str:
    """A row a kind of token: its entropy at the first, the middle and the last layer."""
    mean = value.mean()
    rows = [
        {"tokens": kind, "number": int(value.tokens[:, place].sum())}
        | {f"layer {at}": float(mean[at, place]) for at in (0, len(mean) // 2, len(mean) - 1)}
        for place, kind in enumerate(value.kinds)
    ]
    facts = f"of {domain_name(value.domain)} on {value.model}, nats of the logit lens; layer 0 is the embedding"
    return value_html("Entropy", pl.DataFrame(rows), facts, ("entropies.save(path)",))


def lens_trace(value: LensTrace) -> str:
    """The lens to point at, and for where no script runs two heatmaps: what the second image token and the last text
    token decode to at every layer.
    """
    parts = [
        heat_table(heat_of(value, place), f"{value.labels[place]} → {value.best(place)}") for place in _two(value.kinds)
    ]
    still = "<details><summary>Two positions as tables, where no script runs</summary>{}</details>"
    shown = f"{hover_frame(value)}{SCROLLING.format(html(still, joined(parts)))}"
    return shown_html(shown, ("trace.rows(position)", "trace.best(position, layer)"))


def neighbours(value: Neighbours) -> str:
    """Two heatmaps: the nearest words in context of the second image token and the last text token, by layer."""
    parts = [
        heat_table(neighbour_heat(value, place), f"{value.labels[place]}, nearest words") for place in _two(value.kinds)
    ]
    return shown_html(SCROLLING.format("".join(parts)), ("found.to_frame()", "found.rows(position)"))


def _two(kinds: tuple[str, ...]) -> list[int]:
    """The second image token, or the only one, and the last text token."""
    images, texts = ([place for place, one in enumerate(kinds) if one == kind] for kind in ("image", "text"))
    return images[:2][-1:] + texts[-1:]


def corpus(value: Any) -> str:
    """A row a domain: questions, images, and one question with its answer."""
    rows = [
        {"domain": domain_name(domain), "questions": len(some), "images": len({one.images for one in some})}
        | {"for instance": some[0].question, "answer": ", ".join(some[0].answers)}
        for domain, some in value.by_domain().items()
    ]
    skipped = f", {number(len(value.problems))} skipped" if len(value.problems) else ""
    told = f"{value.name}, {number(len(value))} questions{skipped}"
    return value_html("Corpus", pl.DataFrame(rows), told, ("corpus[0]", "corpus.some(images=8)", "corpus.only(domain)"))


def batch(value: Any) -> str:
    """A row a row: its images, how many positions of each kind, and how its prompt ends."""
    rows = []
    for images, words, kinds in zip(value.images, value.tokens, value.kind, strict=True):
        counted = {kind: kinds.count(kind) for kind in ("image", "text", "generated", "padding")}
        text = [word for word, kind in zip(words, kinds, strict=True) if kind not in ("image", "padding")]
        told = {f"{kind} positions": count for kind, count in counted.items() if kind != "generated" or count}
        rows.append({"images": images, **told, "ends with": " ".join(text[-WORDS:])})
    then = ("batch.tokens[0]", "batch.positions('image')", "lens.run(graph, batch)")
    return value_html("Batch", pl.DataFrame(rows), f"{number(value.rows)} rows", then)


def result(value: Any) -> str:
    """A row a key: what was read, and its dtype and shape."""
    rows = [{"intervention": name, "site": site, "value": _form(one)} for (name, site), one in value.items()]
    texts = [one for one in value.text if one]
    facts = f"{number(len(texts))} answers, the first: {texts[0]}" if texts else ""
    first = next(iter(value), ("name", "site"))
    then = (f"result[{first[0]!r}, {first[1]!r}]", *(("result.text",) if texts else ()))
    return value_html("Result", pl.DataFrame(rows), facts, then)


def _form(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        shape = " × ".join(map(str, value.shape)) or "a number"
        return f"{str(value.dtype).removeprefix('torch.')}, {shape}"
    if isinstance(value, list | tuple) and value:
        return f"{len(value)} of {_form(value[0])}"
    return type(value).__name__ if not isinstance(value, int | float) else number(value)


def lens(value: Any) -> str:
    """A row a site: its axes, its layers, and which of them cannot reach the logits."""
    places = value.architecture.places
    rows = [
        {"site": site, "axes": value.architecture.axes(site), "layers": places[site].layers}
        | {"sizes": ", ".join(f"{name} {size}" for name, size in places[site].sizes.items())}
        for site in value.sites
    ]
    where = "remote" if value.remote else str(value.device)
    told = f"{value.name}: {value.architecture.name}, {str(value.dtype).removeprefix('torch.')}, {where}"
    then = ("lens.encode([image], [question])", "mm.identify(lens, corpus)", "lens['llm.mlp.act']")
    return value_html("Lens", pl.DataFrame(rows), told, then, most=40)
