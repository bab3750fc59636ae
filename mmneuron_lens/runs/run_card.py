"""The card of a shared run: what it was made from, what its controls say, what was left out, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmneuron_lens.artifacts.counts import LEFT_OUT, Counts
from mmneuron_lens.artifacts.digits import number
from mmneuron_lens.artifacts.selection import Selection, in_order, module_of
from mmneuron_lens.runs.identify import Controls
from mmneuron_lens.runs.run_results import controls_of, counts_by_model, selections_by_model
from mmneuron_lens.runs.shared_files import SharedFiles
from mmneuron_lens.runs.until import LLM, enough_line

TAGS = ("mmneuron-lens", "interpretability", "vision-language-models", "neurons")

METHOD = (
    "A neuron is active at a token when its activation is above 0. Of each module, the neurons whose activation "
    "probabilities have the lowest entropy over the domains are selected, and belong to each domain where their "
    "probability is above the threshold (MMNeuron, arXiv 2406.11193)."
)


def card_of(run: Path, shared: SharedFiles, licence: str, url: str = "") -> str:
    """The card, as Markdown with the header that data sets of the hub have.

    - url: where it will lie, if others may know.
    """
    counts, selections = counts_by_model(run), selections_by_model(run)
    models = sorted({*counts, *selections})
    title = f"Domain-specific neurons of {_listed(models)}"
    header = {"license": licence, "pretty_name": title, "tags": [*TAGS]}
    parts = [
        "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---"]),
        f"# {_text(title)}",
        METHOD,
    ]
    for model in models:
        parts += _model(model, counts.get(model, []), selections.get(model), controls_of(run, model))
    gone = {(one.model, one.domain): len(one.provenance.get(LEFT_OUT, ())) for some in counts.values() for one in some}
    parts += ["## What was left out", _left_out(gone, shared), "## How to load it", _loading(url)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _model(model: str, counts: Sequence[Counts], selection: Selection | None, controls: Controls) -> list[str]:
    made = [f"## {_text(model)}"]
    facts = counts[0].provenance if counts else selection.provenance if selection else {}
    settings = {name: facts[name] for name in ("revision", "dtype", "prompt", "packing", "method") if facts.get(name)}
    settings |= {f"version of {name}": value for name, value in facts.get("versions", {}).items()}
    made.append(_table(("setting", "value"), settings.items()))
    made.append(_table(("domain", "corpus", "questions", "LLM tokens", "left out"), map(_domain, counts)))
    made += [f"- {_text(line)}" for line in map(enough_line, counts) if line]
    if selection is None:
        return [*made, "Nothing is selected yet."]
    rule = selection.parameters
    made.append(
        f"The {100 * rule['fraction']:g} % of each module's neurons with the lowest entropy, of those with a "
        f"probability above the {100 * rule['percentile']:g} % quantile."
    )
    rows = [
        (module_of(site), site, selection.selected(site), selection.requested[site], *_of_controls(site, controls))
        for site in in_order(selection.masks)
    ]
    names = ("module", "site", "selected", "asked for", "by chance (false discovery rate)", "overlap of halves")
    return [*made, _table(names, rows), _text(controls.missing)]


def _domain(counts: Counts) -> tuple[Any, ...]:
    corpus = counts.provenance.get("corpus")
    name = corpus.get("name") if isinstance(corpus, dict) else corpus
    tokens = int(counts.tokens[LLM].sum()) if LLM in counts.tokens else "not known"
    return counts.domain, name or "not named", counts.samples, tokens, len(counts.provenance.get(LEFT_OUT, ()))


def _of_controls(site: str, controls: Controls) -> tuple[str, str]:
    known = controls.discovery is not None and site in controls.discovery.null
    rate = number(controls.discovery.rate(site)) if controls.discovery is not None and known else "not run"
    known = controls.overlap is not None and site in controls.overlap.shared
    overlap = number(controls.overlap.mean(site)) if controls.overlap is not None and known else "not run"
    return rate, overlap


def _left_out(gone: dict[tuple[str, str], int], shared: SharedFiles) -> str:
    samples = [f"{count:,} of {domain} in {model}" for (model, domain), count in sorted(gone.items()) if count]
    lines = [f"- samples that could not be read or run: {_text('; '.join(samples)) or 'none'}"]
    lines += [f"- {count:,} files not sent: {_text(why)}" for why, count in shared.left_out.items()]
    if not any("texts" in why for why in shared.left_out):
        return "\n".join(lines)
    return "\n".join([*lines, "- ids of samples: digests stand in their place"])


def _loading(url: str) -> str:
    where = url or "URL"
    return (
        f"```python\nimport mmneuron_lens as mm\n\nrun = mm.load_run({json.dumps(where)})\nrun.selection()\n"
        f'run.table("neurons_per_domain")\n```\n\n`mmneuron pull {where} --out FOLDER` fetches the files, each held '
        "to its size and sha256 in `manifest.json`. No model is needed to read them."
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    told = [[_text(cell) for cell in row] for row in rows]
    if not told:
        return ""
    lines = [names, ["---"] * len(names), *told]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """A value as plain text of Markdown: what a name holds makes no table, link, tag or heading."""
    shown = f"{value:,}" if isinstance(value, int) else str(value)
    shown = " ".join("".join(one if one.isprintable() else " " for one in shown).split())
    return re.sub(r"([\\`*<>\[\]|#&~!$])", r"\\\1", shown)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
