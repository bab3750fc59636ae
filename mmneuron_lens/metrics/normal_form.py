"""The normal form in which answers are compared: case, punctuation, markup, articles and white space do not count.

The rule is VQAv2's (number words, contractions, articles, punctuation), without what it takes from an answer's meaning:
a sign or comparison before a number (-5, <50) stays, and so does an A that ends a name (vitamin A).
"""

from __future__ import annotations

import re
import unicodedata

from mmneuron_lens.metrics.vqav2 import ARTICLES, CONTRACTIONS, NUMBERS

LATEX = re.compile(r"\\(?:boxed|text\w*|math\w*|mbox)\s*\{([^{}]*)\}")
MARKUP = re.compile(r"[*`$#~]|\\[()\[\]]|(?<!\w)_+(?=\S)|(?<=\S)_+(?!\w)")
QUOTES = str.maketrans("‘’“”„–—−", '\'\'"""---')
APART = re.compile(r"(?<=[<>])\s+(?=\.?\d)|(?<=\d)\s+(?=%)")
BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
POINT = re.compile(r"\.(?!\d)")
MARKS = re.compile(r"[;/\[\]\"{}()=\\_@,?!:]|[-+<>](?!\.?\d)|(?<=\w)-")


def unmarked(text: str) -> str:
    """The text without LaTeX and Markdown marks, in compatible characters (a full-width B is B), with single spaces."""
    text = unicodedata.normalize("NFKC", text).translate(QUOTES)
    while (plain := LATEX.sub(r"\1", text)) != text:
        text = plain
    return APART.sub("", " ".join(MARKUP.sub("", text).split()))


def normal_form(text: str) -> str:
    """The words of an answer as they are compared. An answer of articles alone, or of marks alone, is kept."""
    plain = unmarked(text).casefold()
    bare = MARKS.sub(" ", POINT.sub("", BETWEEN_DIGITS.sub("", plain)))
    words = [CONTRACTIONS.get(word, word) for word in (NUMBERS.get(word, word) for word in bare.split())]
    kept = [word for place, word in enumerate(words) if word not in ARTICLES or place == len(words) - 1]
    return " ".join(word.strip("'") or word for word in kept) or plain
