"""A corpus with rows that only a model refuses, and a model that raises for some, for tests."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from conftest import tiny_lens
from drawn_corpus import QUESTIONS, row, write_images, write_rows

from mmneuron_lens import Lens
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.neurons.selection import select

LENSES = ("llava_next", "instructblip", "llava", "blip2")


CONTROL = "which this model's tokenizer reads as a control token; write it otherwise, or remove the row."


REFUSED = {
    "a placeholder within": ("Is the <image> red?", "question 'Is the <image> red?' holds '<image>', " + CONTROL),
    "a placeholder before": ("<image> is it red?", f"holds '<image>', {CONTROL}"),
    "a placeholder behind": ("What is this: <image>", f"holds '<image>', {CONTROL}"),
    "more placeholders than images": ("<image>\n<image>\nIs it red?", "begins or ends with 2 '<image>' for 1 images"),
    "a placeholder alone": ("<image>", "is empty without '<image>'; write one, or remove the row."),
    "placeholder lines alone": ("<image>\n \n", "is empty without '<image>'"),
    "the end of a sequence": ("Is it </s> red?", f"question 'Is it </s> red?' holds '</s>', {CONTROL}"),
    "the beginning of one": ("<s>Is it red?", f"holds '<s>', {CONTROL}"),
    "padding": ("Is it red?<pad><pad>", f"holds '<pad>', {CONTROL}"),
    "the unknown token": ("a <unk> car", f"holds '<unk>', {CONTROL}"),
    "control tokens alone": ("<s></s><pad>", f"holds '<s>', {CONTROL}"),
    "600 words": ("why " * 600, "the prompt takes 24"),
    "100,000 characters": ("w" * 100_000, "the prompt takes 100"),
}
"""Questions that no tiny model can be asked, and what is said."""


def cases(name: str) -> dict[str, tuple[str, str]]:
    """What a tiny lens refuses: `REFUSED`, and what belongs to its Q-Former or to words added to its tokenizers."""
    found = dict(REFUSED, **{"a word without an embedding": ("is it a giraffe?", "token 'giraffe' has the id 101")})
    if name == "instructblip":
        found["a word that the Q-Former does not know"] = (
            "is it a zebra?",
            "token 'zebra' has the id 101, and the embe",
        )
        found["a question too long for the Q-Former"] = (
            "why " * 40,
            "the prompt takes 160 positions, and the Q-Former",
        )
    return found


def lens_with_words(name: str) -> Lens:
    """A tiny lens whose tokenizers know a word for which there is no embedding."""
    lens = tiny_lens(name)
    processor = copy.deepcopy(lens.processor)
    processor.tokenizer.add_tokens(["giraffe"])
    if name == "instructblip":
        processor.qformer_tokenizer.add_tokens(["zebra"])
    return Lens.wrap(lens.module, processor)


def corpus(folder: Path, bad: dict[int, str], questions: int = 14, domain: str = "common"):
    """A corpus of good rows with bad ones at these lines (from 1); images are shared by four rows, good and bad."""
    write_images(folder, domain, 4)
    good, rows = iter(range(questions)), []
    while len(rows) < questions + len(bad):
        number = len(rows)
        question = bad.get(number + 1) or f"{QUESTIONS[next(good) % 3]}{'?' * (number % 4)}"
        rows.append(row(domain, number % 4, question, id=f"row {number + 1}"))
    return read_folder(write_rows(folder, rows))


def same(one: Counts, other: Counts) -> bool:
    return one.samples == other.samples and all(
        torch.equal(one.active[site], other.active[site]) and torch.equal(one.tokens[site], other.tokens[site])
        for site in one.active.keys() | other.active.keys()
    )


def without(samples, bad):
    return [one for one in samples if one.id not in {f"row {line}" for line in bad}]


@contextmanager
def raising(lens: Lens, character: str = "~", error: type[BaseException] = IndexError):
    """A fault in the model: the forward raises for a prompt with this character."""
    (number,) = lens.processor.tokenizer.convert_tokens_to_ids([character])
    seen = []

    def hook(_module, given):
        if given[0].device.type != "meta" and type(given[0]) is torch.Tensor and (given[0] == number).any():
            seen.append(len(given[0]))
            raise error("no such thing in /some/folder/of/this/machine.py")

    handle = lens.module.get_input_embeddings().register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def read_nothing(question: str):
    from mmneuron_lens import Sample

    return Sample("1", "common", (Path("none.png"),), question, ("yes",))


def selection_of(lens, samples):
    others = [replace(one, domain="medical") for one in samples]
    counts = [count_domain(lens, some) for some in (samples, others[:3])]
    return select(counts, fraction=0.3, percentile=0.6)
