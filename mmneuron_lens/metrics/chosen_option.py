"""Which option of a multiple-choice question an answer names: by its text, by its letter, or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from mmneuron_lens.metrics.normal_form import normal_form, unmarked

How = Literal["letter", "option text", "similar text", "nothing"]

TEXT = "□"
"""Stands for the text of an option where letters are looked for."""

OPEN = r"[(\[{\"']*"
# Before any other word a letter is the article, or a part of a name.
ALONE = (
    rf"(?=\s*$|[.,:;!?)\]}}\"'](?![\w-])|[:)\]]|(?<!a)\s+{TEXT}|\s+[-(\[\"]|\s+(?:because|since|as|is|are|was|not|and|or|"
    r"but|nor|for|due|with|which|given|based|rather|instead)\b)"
)
SAID = r"(?:\s+(?:is|are|was|be|would|should|must|will|could|may|might|to|the|most|likely|probably|clearly|therefore))*"
ANSWER = r"\b(?:answer|solution|correct|choose|select|pick|guess|go with)\b(?:\s+(?:answer|option|choice|letter|one))?"
FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        # "the answer is B", "Answer: (b)", "correct option: B".
        rf"{ANSWER}{SAID}\s*[:=-]?\s*(?:(?:option|choice|letter)\s+)?{OPEN}([a-z]){ALONE}",
        # "B. text", "b) text", "(b) text", "B: text", "B text" where the text is an option's.
        rf"^[(\[\"']*([a-z])(?:[)\]]+[.:]?|[.:](?=\s|{TEXT}|(?-i:[A-Z])|$))|^([b-hj-z])\s+{TEXT}",
        # "option c", "choice (B)".
        rf"\b(?:options?|choices?|letters?)\s*[:=-]?\s*{OPEN}([a-z])(?![\w'+-])",
        # "I think it's (C) because".
        r"(?<!\w)[(\[]\s*([a-z])\s*[)\]]",
        # "C, not D", "BBQ: B", "I think B".
        r"(?:^|[:(]\s*|[.,;!?]\s+|\b(?:is|it's|be|say|think|believe|with|or|and|but|so|nor|not|both|either|neither)\s+)"
        rf"[\"'(]*([a-hj-z]){ALONE}",
    )
)
"""How a letter is said, the most explicit first."""

WHOLE = re.compile(r"[^\w+%-]*([A-Za-z])[^\w+%-]*")
NOT = re.compile(
    r"(?:\bnot|n't|\bnor|\brather than|\binstead of|\bexcept|\bneither)(?:\s+(?:an?|the|option))*\s*$", re.I
)


@dataclass(frozen=True)
class Parsed:
    """The letter an answer comes to (None: no option of the question, or several), and how it was found."""

    letter: str | None
    how: How

    @property
    def is_parsed(self) -> bool:
        """Whether the answer names an option, by letter or text; the most similar option is only a guess."""
        return self.how in ("letter", "option text")


NOTHING = Parsed(None, "nothing")


def letters_of(options: Sequence[str]) -> str:
    """ "ABCD" for four options."""
    return "".join(chr(65 + index) for index in range(len(options)))


def parse(answer: str, options: Sequence[str]) -> Parsed:
    """The option an answer names; the strongest evidence decides.

    1. The whole answer is one option's text in normal form: "Hepatitis B." is the option Hepatitis B, whatever its
       letter.
    2. A letter that is said as one, in the most explicit form there is: "B", "the answer is B", "B. ...", "(b)",
       "option c", "I think C". It is not looked for within the texts of options; the article "A", the letter of a name
       ("vitamin D") and a letter that is negated ("not D") are none.
    3. The text of one option stands in the answer, and not only within that of a longer one ("lung", "left lung").
    4. The option with the highest `difflib` ratio above 0, the first of equals: a guess, counted as not parsed.

    Of letters, several in the most explicit form ("A or B"), or only such as no option has, name nothing.
    """
    letters, said = letters_of(options), unmarked(answer)
    if (same := _same_text(said, options)) is not None:
        return Parsed(letters[same], "option text")
    if whole := WHOLE.fullmatch(said):
        letter = whole[1].upper()
        return Parsed(letter, "letter") if letter in letters else NOTHING
    held, rest = _texts_in(said, options)
    beyond = False
    for form in FORMS:
        found = {one[one.lastindex or 1].upper() for one in form.finditer(rest) if not _negated(rest, one)}
        if named := found & set(letters):
            return Parsed(named.pop(), "letter") if len(named) == 1 else NOTHING
        beyond = beyond or bool(found)
    if len(held) == 1:
        return Parsed(letters[held.pop()], "option text")
    return NOTHING if beyond else _most_similar(answer, options)


def _same_text(said: str, options: Sequence[str]) -> int | None:
    """The one option whose text the whole answer is: as it is written but for case and a final mark, or as it reads."""
    for form in (lambda text: unmarked(text).casefold().rstrip(" .,;:!?"), normal_form):
        own = form(said)
        same = [place for place, option in enumerate(options) if form(option) == own]
        # A letter in the first form only: "(B)" is not the text B.
        if len(same) == 1 and own and (form is not normal_form or not (len(own) == 1 and own.isalpha())):
            return same[0]
    return None


def _texts_in(said: str, options: Sequence[str]) -> tuple[set[int], str]:
    """The options whose text stands in the answer, and the answer with these texts taken out."""
    spans = [(*one.span(), place) for place, option in enumerate(options) for one in _pattern(option).finditer(said)]
    longest = [
        (start, end, place)
        for start, end, place in spans
        if not any(first <= start and end <= last and last - first > end - start for first, last, _ in spans)
    ]
    rest = said
    for start, end in sorted({(start, end) for start, end, _ in longest if end - start > 1}, reverse=True):
        rest = f"{rest[:start]}{TEXT}{rest[end:]}"
    return {place for start, _, place in longest if not NOT.search(said[:start])}, rest


def _pattern(option: str) -> re.Pattern[str]:
    """The option's text as words of an answer, whatever stands between them; not within a word, number or compound."""
    text = unmarked(option).strip(" .,;:!?\"'()")
    words = r"[\W_]+".join(re.escape(word) for word in re.findall(r"^[-+<>]?\s?[\w.]+|\w+", text)) or re.escape(text)
    return re.compile(rf"(?<![\w+<>-])(?<!\d\.){words}(?![\w-]|\.\d)", re.IGNORECASE)


def _negated(text: str, found: re.Match[str]) -> bool:
    return NOT.search(text[: found.start(found.lastindex or 1)]) is not None


def _most_similar(answer: str, options: Sequence[str]) -> Parsed:
    ratios = [SequenceMatcher(None, option.strip().lower(), answer.strip().lower()).ratio() for option in options]
    best = max(ratios)
    return Parsed(letters_of(options)[ratios.index(best)], "similar text") if best > 0 else NOTHING
