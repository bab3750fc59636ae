"""PMC-VQA: accuracy of the option's letter, and how many answers named none.

`mode="letter"`, the default, is ours: the option that a chat model's answer names (`chosen_option.parse`), as wherever
a question has options; an answer that names none counts as the most similar option, and the share of such is reported.
`mode="official"` is the benchmark's own script for its own model (MedVInT_TD `test.py`): the last character is compared
with each choice's text by `difflib`, and so is the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics.chosen_option import letters_of, parse
from mmneuron_lens.metrics.measured import Measured, Metric, Pairs, choose, no_reference

Mode = Literal["letter", "official"]
MODES: tuple[Mode, ...] = ("letter", "official")


def official_correct(answer: str, options: Sequence[str], label: str) -> bool:
    """Whether the last character of the answer is most similar to the choice that the label is most similar to.

    - answer: what the model said; an empty one is wrong.
    - options: the choices' texts, compared in the form of the published cells, ` B:text `.
    - label: the letter of the right one.
    """
    cells = [f" {letter}:{option.strip()} " for letter, option in zip(letters_of(options), options, strict=True)]
    return bool(answer) and _most_similar(cells, answer[-1]) == _most_similar(cells, label)


def measure(pairs: Pairs, *, mode: Mode = "letter") -> Measured:
    """1 where the letter is right, else 0; with the share of answers not parsed, which still count as guessed."""
    if choose("mode", mode, MODES) == "official":
        return Measured([float(official_correct(said, one.options, one.answers[0])) for one, said in pairs])
    parsed = [parse(answer, sample.options) for sample, answer in pairs]
    scores = [float(found.letter in sample.answers) for found, (sample, _) in zip(parsed, pairs, strict=True)]
    details = {"letter": [found.letter for found in parsed], "how": [found.how for found in parsed]}
    return Measured(scores, details, shares={"unparsed": [float(not found.is_parsed) for found in parsed]})


def refuse(sample: Sample) -> str:
    """A letter needs options, and the accepted answer must be one of theirs."""
    if len(sample.options) < 2:
        return f"has {len(sample.options)} options; PMC-VQA has four."
    letters = letters_of(sample.options)
    if wrong := [answer for answer in sample.answers if len(answer) != 1 or answer not in letters]:
        return f"has the accepted answer {wrong[0]!r}; give the letter, one of {', '.join(letters)}."
    return no_reference(sample)


METRIC = Metric("PMC-VQA accuracy", measure, refuse)


def _most_similar(texts: Sequence[str], target: str) -> int | None:
    ratios = [SequenceMatcher(None, text, target).ratio() for text in texts]
    best = max(ratios)
    return ratios.index(best) if best > 0 else None
