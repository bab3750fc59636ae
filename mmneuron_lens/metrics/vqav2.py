"""VQAv2 accuracy, as the official evaluator computes it (GT-Vision-Lab/VQA, `vqaEval.py`), or as EvalAI's copies do.

Each human answer is left out once; the prediction scores min(1, matches among the others / 3), and the question the
mean of that: 0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 or more of ten annotators agreeing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics.measured import Measured, Metric, Pairs, choose, no_reference

Mode = Literal["official", "evalai"]
MODES: tuple[Mode, ...] = ("official", "evalai")

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
NUMBER_WORDS = "none zero one two three four five six seven eight nine ten"
# "none" and "zero" are both 0.
NUMBERS = {word: str(max(0, place - 1)) for place, word in enumerate(NUMBER_WORDS.split())}
DIGIT_COMMA_DIGIT: dict[Mode, re.Pattern[str]] = {"official": re.compile(r"\d,\d"), "evalai": re.compile(r"\d,+\d")}

# The published pattern `(?!<=\d)(\.)(?!\d)` means a look-behind and is a look-ahead that always holds, so what is left
# is this; and the flag re.UNICODE, 32, stands where `sub` takes its count.
PERIOD = re.compile(r"\.(?!\d)")
PERIODS_REMOVED = 32


ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm
    I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
    shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're
    there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've
"""
WOULD = "he'd I'd it'd she'd somebody'd someone'd something'd there'd they'd we'd who'd you'd"
NEGATED = "couldn't hadn't mightn't shouldn't wouldn't"


def _contractions() -> dict[str, str]:
    several = [f"{stem}'ve" for stem in f"{NEGATED} {WOULD}".split()]
    several += ["'ow's'at", "y'all'll", "y'all'd've"]
    table = {word.replace("'", ""): word for word in ONE_APOSTROPHE.split()}
    for word in several:
        places = [index for index, letter in enumerate(word) if letter == "'"]
        table |= {word[:place] + word[place + 1 :]: word for place in places}
    # These stand in the published table as they are; the last loses its apostrophe.
    return table | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()
"""Spellings that lost one apostrophe, or all; those with a capital never match, as the text is lower-cased before."""


def normalise(text: str, mode: Mode = "official") -> str:
    """Punctuation, then number words, articles and contractions, exactly as coded; white space becomes one space."""
    return _digits_and_articles(_punctuation(text, mode))


def accuracy(prediction: str, answers: Sequence[str], mode: Mode = "official") -> float:
    """The score in [0, 1] of a prediction against the human answers (ten in the published files).

    In mode "official" nothing is normalised when all answers are identical: the prediction is then compared raw, case
    included. Mode "evalai" always normalises. Answers are left out one by one, as their distinct `answer_id`s make the
    official evaluator do.
    """
    prediction, *answers = map(_one_line, (prediction, *answers))
    if mode == "evalai" or len(set(answers)) > 1:
        prediction, *answers = (normalise(text, mode) for text in (prediction, *answers))
    agreeing = sum(answer == prediction for answer in answers)
    scores = [min(1, (agreeing - (answer == prediction)) / 3) for answer in answers]
    return sum(scores) / len(scores)


def measure(pairs: Pairs, *, mode: Mode = "official") -> Measured:
    """`accuracy` of each pair."""
    choose("mode", mode, MODES)
    return Measured([accuracy(answer, sample.answers, mode) for sample, answer in pairs])


def refuse(sample: Sample) -> str:
    """Leaving one answer out needs another."""
    if len(sample.answers) == 1:
        return "has 1 human answer where VQAv2 has ten; a single answer left out leaves none to agree with."
    return no_reference(sample)


METRIC = Metric("VQAv2 accuracy", measure, refuse)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str, mode: Mode) -> str:
    has_number_comma = DIGIT_COMMA_DIGIT[mode].search(text) is not None
    out = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or has_number_comma else " ")
    return PERIOD.sub("", out, count=PERIODS_REMOVED)


def _digits_and_articles(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
