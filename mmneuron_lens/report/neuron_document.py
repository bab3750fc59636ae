"""What a card of a neuron says, as plain data: the page's script and the notebook's card show the same."""

from __future__ import annotations

import math
from base64 import b64encode
from typing import Any

from interventions.printable import printable
from mmneuron_lens.artifacts.digits import interval, number, percent
from mmneuron_lens.artifacts.neuron_examples import AROUND, NeuronExamples, ShownSample
from mmneuron_lens.report.neuron_maps import outline, outline_level
from mmneuron_lens.report.neuron_sources import KINDS, Neuron, NeuronSources
from mmneuron_lens.report.tables import domain_name

TEXTS = {
    "examples": "Largest activations, one an image. Colour: where on the picture it is active; white line: above the "
    "map’s 95th percentile; yellow box: the largest activation. Words are tinted by their activation.",
    "bars": "Share of tokens on which its activation is above zero.",
    "odds": "against the other domains, log-odds",
    "attribution": "Attribution (activation × gradient of the right answer’s log-probability)",
    "effect": "Measured effect: change of the right answer’s log-probability without it, in nats",
    "contribution": "Adds to the logit of the right answer’s first token",
    "top": "raises",
    "bottom": "lowers",
}
"""What stands beside the numbers."""

WRITING = ("llm.mlp.act", "llm.mlp.post")
UNSEEN = "It was active on none of the pictures that it was shown."
EXAMPLES_MISSING = "What it answers to was not run: `mmneuron neurons RUN --model ... --corpus ...`."
WRITES_MISSING = "Which words it writes was not run: `mmneuron neurons RUN --model ... --corpus ...`."
BARS_MISSING = "How often it is active is not in the run’s table: `mmneuron count ...`, then `mmneuron select RUN`."
ATTRIBUTION_MISSING = "Its attribution was not run: `mmneuron neurons RUN --attributions --model ... --corpus ...`."
EFFECT_MISSING = "Its own effect was not measured: `mmneuron neurons RUN --effects 20 --model ... --corpus ...`."


def neuron_name(neuron: Neuron) -> str:
    """As one searches for it: `llm.mlp.act 14/2051`."""
    site, layer, number = neuron
    return f"{site} {layer}/{number}"


def neuron_document(sources: NeuronSources, place: int) -> dict[str, Any]:
    """Everything a card shows of the neuron in this row of the table: text that is ready to be shown, and numbers.

    Text from outside is there as it is written, with what cannot be printed as its escape; none of it is HTML.

    - title, site, layer, neuron, module, selected; domains: their numbers, the neuron's own first; unreachable: why it
      cannot reach the logits, or "".
    - numbers: label and text. bars: by kind of token, "" for all, a row a domain: number, probability, low, high, text.
    - scale: the largest probability of all, where a bar ends.
    - odds, effect: value, low, high, text, and `ends`: zero, low, high and value on a line, in per cent; or None.
    - attribution: value, rank and their text, or None. writes: what it adds to the logits, or None.
    - examples: the best first; unseen: what is said where there are none. missing: what was not run, a sentence each.
    """
    neuron, row = sources.neurons[place], sources.row(place)
    examples = _examples(sources, neuron)
    writes = _writes(sources, neuron)
    own = dict.fromkeys([row["domain"], *(row["domains"] or [])])
    bars = _bars(sources, row)
    missing = [
        *([EXAMPLES_MISSING] if examples is None else []),
        *([] if bars else [BARS_MISSING]),
        *([WRITES_MISSING] if writes is None and neuron[0] in WRITING else []),
        *([writes["missing"]] if writes and writes["missing"] else []),
        *([ATTRIBUTION_MISSING] if row["attribution"] is None else []),
        *([EFFECT_MISSING] if row["effect"] is None else []),
    ]
    return {
        "title": neuron_name(neuron),
        "site": neuron[0],
        "layer": neuron[1],
        "neuron": neuron[2],
        "module": row["module"],
        "selected": bool(row["selected"]),
        "domains": [sources.domains.index(one) for one in own if one in sources.domains],
        "belongs": len(row["domains"] or []),
        "unreachable": _unreachable(sources, neuron, row),
        "numbers": _numbers(row),
        "bars": bars,
        "scale": max((end for _, rows in bars for one in rows for end in one[1:4] if end is not None), default=0) or 1,
        "odds": _interval(row, "log_odds"),
        "attribution": _attribution(row),
        "effect": _effect(row),
        "writes": writes,
        "examples": examples or [],
        "unseen": EXAMPLES_MISSING if examples is None else UNSEEN,
        "missing": missing,
    }


def _unreachable(sources: NeuronSources, neuron: Neuron, row: dict[str, Any]) -> str:
    if row["reaches_logits"] is not False:
        return ""
    return f"cannot reach the logits: {sources.reachability.why(neuron[0]) or 'as its architecture says'}"


def _numbers(row: dict[str, Any]) -> list[list[str]]:
    shown = {
        "entropy over domains": ("entropy", " nats"),
        "difference of probabilities": ("difference", ""),
        "F over buckets": ("f", ""),
        "mean activation": ("mean_act", ""),
        "largest activation": ("max_act", ""),
        "mean of act × up": ("mean_post", ""),
        "largest of act × up": ("max_post", ""),
    }
    return [[label, number(row[name]) + unit] for label, (name, unit) in shown.items() if row[name] is not None]


def _bars(sources: NeuronSources, row: dict[str, Any]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for kind in ("", *KINDS):
        rows = [
            _bar(row, place, sources.columns[domain, kind])
            for place, domain in enumerate(sources.domains)
            if (domain, kind) in sources.columns
        ]
        if any(one[1] is not None for one in rows):
            found.append([kind, rows])
    # One kind alone is all tokens once more.
    return found[:1] if len(found) == 2 and found[0][0] == "" else found


def _bar(row: dict[str, Any], place: int, column: str) -> list[Any]:
    value = _finite(row[column])
    low, high = (_finite(row.get(f"{column}_{end}")) for end in ("low", "high"))
    return [place, value, low, high, interval(value, low, high)]


def _interval(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    value, low, high = (_finite(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if value is None:
        return None
    text = interval(value, low, high)
    return {"value": value, "low": low, "high": high, "text": text, "ends": _ends(value, low, high)}


def _effect(row: dict[str, Any]) -> dict[str, Any] | None:
    found, rank = _interval(row, "effect"), _finite(row["effect_rank"])
    than = "" if rank is None else f"larger than that of {percent(rank)} of random neurons"
    return None if found is None else {**found, "than": than}


def _ends(value: float, low: float | None, high: float | None) -> list[float]:
    """Zero, low, high and value on a line that holds them all, in per cent of its length."""
    marks = [0.0, value if low is None else low, value if high is None else high, value]
    start, end = min(marks), max(marks)
    return [round(4 + 92 * (one - start) / (end - start), 2) if end > start else 50.0 for one in marks]


def _attribution(row: dict[str, Any]) -> dict[str, Any] | None:
    value, rank = _finite(row["attribution"]), _finite(row["attribution_rank"])
    if value is None:
        return None
    than = "" if rank is None else f"larger than that of {percent(rank)} of its module’s neurons"
    return {"value": value, "rank": rank, "text": f"{number(value)} nats", "than": than}


def _writes(sources: NeuronSources, neuron: Neuron) -> dict[str, Any] | None:
    found = (sources.written or {}).get(neuron)
    if found is None:
        return None
    sides = {name: [[_token(word), number(score)] for word, score in some] for name, some in
             (("top", found.top), ("bottom", found.bottom))}  # fmt: skip
    return {**sides, "contribution": "" if found.contribution is None else number(found.contribution),
            "missing": _text(found.missing)}  # fmt: skip


def _examples(sources: NeuronSources, neuron: Neuron) -> list[dict[str, Any]] | None:
    place, found = sources.place_of_example.get(neuron), sources.examples
    if place is None or found is None:
        return None
    site = neuron[0]
    there = (found.sample[site][place] >= 0).nonzero()[:, 0].tolist()
    return [_example(sources, found, site, place, rank) for rank in there]


def _example(sources: NeuronSources, found: NeuronExamples, site: str, place: int, rank: int) -> dict[str, Any]:
    sample = found.samples[int(found.sample[site][place, rank])]
    position, which = int(found.position[site][place, rank]), int(found.picture[site][place, rank])
    digest, height, width = sample.images[which] if which >= 0 else ("", 1, 1)
    values = found.maps[site][place, rank]
    level = outline_level(values) if which >= 0 else None
    box = found.box[site][place, rank].tolist()
    words = _words(sample, position, found.around[site][place, rank].tolist()) if site.startswith("llm.") else []
    return {
        "activation": number(float(found.activation[site][place, rank])),
        "domain": sources.domains.index(sample.domain) if sample.domain in sources.domains else -1,
        "domain_name": _text(sources.names.get(sample.domain, domain_name(sample.domain))),
        "id": _text(sample.id),
        "question": _text(sample.question),
        "answers": [_text(one) for one in sample.answers],
        "position": position,
        "picture": sources.pictures.get(digest[:16], "") if digest else "",
        "ratio": round(width / height, 4) if which >= 0 else None,
        "map": b64encode(values.numpy().tobytes()).decode() if level is not None else "",
        "maximum": float(found.map_maximum[site][place, rank]),
        "level": level,
        "outline": "" if level is None else _path(outline(values, level)),
        "box": None if which < 0 or math.isnan(box[0]) else [round(one, 4) for one in box],
        "words": words,
        # Tokens of whole words bring no space of their own.
        "spaced": any(isinstance(word, str) and word[:1].isspace() for word, *_ in words),
    }


def _words(sample: ShownSample, position: int, shares: list[int]) -> list[list[Any]]:
    """The tokens around a position of text, each with its share of the largest there (0 to 255) and whether it is the
    one; image positions in a row are one entry without text: their number, and the largest share among them.
    """
    text = {first + number: word for first, words in sample.tokens for number, word in enumerate(words)}
    if position not in text:
        return []
    found: list[list[Any]] = []
    for offset, share in enumerate(shares):
        here = position - AROUND + offset
        if not 0 <= here <= max(text):
            continue
        if here in text:
            found.append([_token(text[here]), share, int(here == position)])
        elif found and isinstance(found[-1][0], int):
            found[-1] = [found[-1][0] + 1, max(found[-1][1], share), 0]
        else:
            found.append([1, share, 0])
    return found


def _path(lines: list[list[tuple[float, float]]]) -> str:
    """Lines as the path of an SVG."""
    return "".join("M" + "L".join(f"{x:.3f} {y:.3f}" for x, y in line) for line in lines)


def _text(text: str) -> str:
    return printable(text, keep="\n\t")


def _token(text: str) -> str:
    return printable(text)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
