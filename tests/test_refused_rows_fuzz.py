"""Random rows that only a model refuses, among good ones: each is named, and the others count as if it were not there.

Which rows are good is known from how they were drawn: questions have at most 60 characters of plain text, and each bad
one holds one fault that no tiny model takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from drawn_corpus import row, write_images, write_rows
from refused import lens_with_words

from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.count import count_domain

ROWS = 300
"""Rows of each model, about a third of them bad."""

PLAIN = "abc XYZ?!\n<>/[]|~é😀\t\x01{}"

Fault = Callable[[Random, str], str]


def inside(token: str) -> Fault:
    """A token at a random place of a question."""

    def fault(draw: Random, question: str) -> str:
        place = draw.randrange(len(question) + 1)
        return f"{question[:place]}{token}{question[place:]}"

    return fault


def among_words(token: str) -> Fault:
    """A token between two characters, so that it is no line of its own."""
    return lambda draw, question: f"a{question}{draw.choice(' .')}{token}{draw.choice(' .')}{question}b"


FAULTS: dict[str, Fault] = {
    "end of sequence": inside("</s>"),
    "begin of sequence": inside("<s>"),
    "padding": inside("<pad>"),
    "unknown token": inside("<unk>"),
    "placeholder within": among_words("<image>"),
    "placeholder lines, too many": lambda draw, question: "<image>\n" * draw.randrange(2, 9) + f"a{question}",
    "placeholder alone": lambda draw, question: draw.choice(["<image>", "<image>\n", "<image>\n  \n", " <image> "]),
    "longer than the model": lambda draw, question: "".join(draw.choices("abc ", k=draw.randrange(520, 3000))) + "z",
    "word without an embedding": inside("giraffe"),
}
QFORMER: dict[str, Fault] = {
    "longer than the Q-Former": lambda draw, question: "".join(draw.choices("abc ", k=draw.randrange(130, 400))) + "z",
    "word that the Q-Former lacks": inside("zebra"),
}


def question(draw: Random) -> str:
    """Plain text with something in it; now and then with its image's line, as LLaVA's conversation files write it."""
    text = "a" + "".join(draw.choices(PLAIN, k=draw.randrange(1, 60)))
    return f"<image>\n{text}" if draw.random() < 0.1 else text


def refused_rows(folder: Path, name: str, rows: int = ROWS, seed: int = 0) -> Counter[str]:
    """Counts random rows with one model. Returns how many of each kind were named; raises `AssertionError` if a row is
    named that is good, is not named that is bad, or if the others do not count as they do without it,
    but for float rounding at zero.
    """
    draw, lens = Random(f"{name} {seed}"), lens_with_words(name)
    faults = {**FAULTS, **(QFORMER if name == "instructblip" else {})}
    write_images(folder, "common", 12)
    lines, kinds = [], {}
    for number in range(1, rows + 1):
        text = question(draw)
        if draw.random() < 0.35:
            kinds[number] = draw.choice(list(faults))
            text = faults[kinds[number]](draw, text.removeprefix("<image>\n"))
        lines.append(row("common", draw.randrange(12), text, id=str(number)))
    samples, problems = read_folder(write_rows(folder, lines))
    good = [one for one in samples if int(one.id) not in kinds]
    settings = {"batch_size": draw.choice([1, 5, 32]), "exact": draw.random() < 0.5}
    found = count_domain(lens, samples, problems=problems, **settings)
    expected = count_domain(lens, good, **settings)
    assert sorted(one.line for one in problems) == sorted(kinds)
    assert all(str(one).isprintable() and len(str(one)) < 1000 for one in problems)
    assert found.samples == expected.samples == len(good)
    for site in expected.active:
        # Their batches differ, and with them the rounding of an activation next to zero.
        different = (found.active[site] - expected.active[site]).abs()
        assert different.max() <= 1, site
        assert (different > 0).sum() <= different.numel() // 1000, site
        assert torch.equal(found.tokens[site], expected.tokens[site]), site
    return Counter({"good": len(good), **Counter(kinds.values())})


@pytest.mark.parametrize("name", ["llava_next", "instructblip", "llava", "blip2"])
def test_rows_that_only_a_model_refuses(tmp_path, name):
    counted = refused_rows(tmp_path, name)
    assert sum(counted.values()) == ROWS
    assert counted.keys() >= {"good", *FAULTS}
