"""What of a run is shared: the files that `mmneuron push` sends, those that it sends when asked to, and why not else.

A file that is none of these is never sent, and never fetched: a run's folder holds commands, locks and records too.
"""

from __future__ import annotations

import re
from typing import Literal

CARD, MANIFEST, UNFINISHED = "README.md", "manifest.json", "unfinished.json"

Holds = Literal["numbers", "texts", "pictures", "texts and pictures"]
"""What of a corpus a file holds: nothing but numbers about it, its texts, its pictures."""

_ONE, _TWO, _DOMAINS = r"[^/]+", r"[^/]+/[^/]+", r"[^/]+/[^/]+[.]safetensors"

KINDS: dict[str, Holds] = {
    rf"(counts|moments|attributions|neuron_effects|top_activations|controls|deviations)/{_DOMAINS}": "numbers",
    rf"(entropies|entropies_jacobian|flow)/{_DOMAINS}": "numbers",
    rf"controls/{_TWO}/{_ONE}[.]safetensors": "numbers",
    rf"(selection|selection_wider|means|comparison|planted|probes|jacobian)/{_ONE}[.]safetensors": "numbers",
    rf"(selections|selections_wider)/{_DOMAINS}": "numbers",
    r"neurons[.](parquet|csv)": "numbers",
    rf"tables/({_ONE}/)?{_ONE}[.](csv|tex)": "numbers",
    rf"figures/({_ONE}/)?{_ONE}[.]png": "numbers",
    r"(index|selection)[.]html": "numbers",
    rf"(answers|official_scores)/{_ONE}[.]jsonl": "texts",
    rf"(examples|text_states)/{_ONE}[.]safetensors": "texts",
    rf"words/{_ONE}[.]jsonl": "texts",
    rf"neurons/(index[.]html|{_ONE}[.](js|css))": "texts",
    r"paper[.]json": "texts",
    rf"(traces/{_TWO}|(traces_jacobian|neighbours)/{_ONE})/{_ONE}[.]safetensors": "texts and pictures",
    rf"embeddings/{_ONE}[.]safetensors": "pictures",
    rf"neurons/pictures/{_ONE}[.](jpg|png)": "pictures",
}
"""Patterns of paths below a run's folder, and what of the corpus such a file holds."""

_PATTERNS: dict[re.Pattern[str], Holds] = {re.compile(pattern): holds for pattern, holds in KINDS.items()}


def kind_of_file(path: str) -> Holds | None:
    """What of the corpus a file of a run holds, by its path; None for a file that is not shared."""
    return next((holds for pattern, holds in _PATTERNS.items() if pattern.fullmatch(path)), None)


def why_not_sent(path: str, pages_show_corpus: bool, texts: bool, pictures: bool) -> str:
    """Why a file of a run is not sent; "" for one that is.

    - pages_show_corpus: whether the run's pages show questions with pictures, as those of traces and neurons do.
    - texts, pictures: whether such files are sent.
    """
    if path in (CARD, MANIFEST, UNFINISHED):
        return "written anew"
    holds = kind_of_file(path)
    if holds is None:
        return "part of the corpus" if path.startswith(("corpus/", "samples/")) else "no result: records, or not ours"
    if holds == "numbers" and path.endswith(".html") and pages_show_corpus:
        holds = "texts and pictures"
    lacks = [name for name, sent in (("texts", texts), ("pictures", pictures)) if name in holds and not sent]
    options = " ".join(f"--with-{name}" for name in lacks)
    return f"holds {' and '.join(lacks)} of the corpus ({options})" if lacks else ""
