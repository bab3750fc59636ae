"""PMC-VQA: accuracy of the option's letter, and how many answers named none.

`mode="letter"` parses what a chat model says. `mode="official"` is the benchmark's own script for its own model
(MedVInT_TD `test.py`): the last character is compared with each choice's text by `difflib`, and so is the label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics.measured import Measured, Metric, Pairs, choose, no_reference

Mode = Literal["letter", "official"]
MODES: tuple[Mode, ...] = ("letter", "official")

How = Literal["letter", "option text", "similar text", "nothing"]


@dataclass(frozen=True)
class Parsed:
    """The letter an answer comes to (None: it resembles no option at all), and how it was found."""

    letter: str | None
    how: How

    @property
    def is_parsed(self) -> bool:
        """Whether the answer names an option, by letter or text; the most similar option is only a guess."""
        return self.how in ("letter", "option text")


def letters_of(options: Sequence[str]) -> str:
    """ "ABCD" for four options."""
    return "".join(chr(65 + index) for index in range(len(options)))


def parse(answer: str, options: Sequence[str]) -> Parsed:
    """The option an answer means; the first of these that finds one decides.

    1. the first standalone capital letter of an option ("BBQ: B" is B; the A of "Answer" stands for nothing);
    2. a letter of either case that starts the answer and is followed by `:`, `.`, `)` or nothing ("b)");
    3. the whole answer is one option's text, or holds the text of exactly one, case aside;
    4. the option with the highest `difflib` ratio above 0, the first of equals: counted as not parsed.
    """
    letters = letters_of(options)
    if found := re.search(rf"\b([{letters}])\b", answer):
        return Parsed(found[1], "letter")
    if found := re.match(rf"\s*([{letters}])(?:[:.)]|\s*$)", answer, re.IGNORECASE):
        return Parsed(found[1].upper(), "letter")
    text = answer.strip().lower()
    texts = [option.strip().lower() for option in options]
    if text in texts:
        return Parsed(letters[texts.index(text)], "option text")
    held = [index for index, option in enumerate(texts) if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text)]
    if len(held) == 1:
        return Parsed(letters[held[0]], "option text")
    index = _most_similar(texts, text)
    return Parsed(None, "nothing") if index is None else Parsed(letters[index], "similar text")


def official_correct(answer: str, options: Sequence[str], label: str) -> bool:
    """Whether the last character of the answer is most similar to the choice that the label is most similar to.

    The choices are in the form of the published cells, ` B:text `. An empty answer is wrong.
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
