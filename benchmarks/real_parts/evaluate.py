"""Measure a connector on held-out questions, with a blind and a swapped-image control, and write its card.

    python benchmarks/real_parts/evaluate.py --connector FILE --out FOLDER --images 20

An answer is right when greedy decoding would give exactly it and then end: every token of it, and the end, is the
likeliest one after those before. That is computed for all questions of an image in one forward (see packing.py).
Blind: the image is mean grey. Swapped: it is the next image of the same source. Counterfactual pairs: two images, one
question, two answers; half of what anybody says without looking is wrong there.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from asking import VALUES, Picture, easy_vqa, of_real_image, pair
from card import write_card
from packing import IGNORED, Form, logits, pack
from PIL import Image
from transformers.utils import logging

from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus.canvas import Question
from mmneuron_lens.embedded.corpus.draw import SPLITS, draw
from mmneuron_lens.embedded.corpus.real import DOMAINS_WITH_IMAGES
from mmneuron_lens.embedded.smol import CONNECTOR, parts
from mmneuron_lens.embedded.smol.assemble import load_connector

CONDITIONS = ("image", "blind", "swapped")
FORMS: tuple[Form, ...] = ("identification", "evaluation")
GREY = (124, 116, 104)
"""The mean that the processor subtracts."""

BATCH = 8

Asked = tuple[str, Image.Image, list[Question]]
"""A source, an image of it, and questions."""


def evaluate(connector: Path, images: int, forms: Sequence[Form] = FORMS) -> dict[str, Any]:
    """The card's figures: rows of source, kind, form and number of questions with a share right by condition."""
    model, processor = parts()
    metadata = load_connector(model, connector)
    model.to(torch.bfloat16)
    model.model.multi_modal_projector.float()
    own = _held_out(images)
    pairs = [_pairs(source, images) for source in (*DOMAINS, "easy-vqa")]
    tally: dict[tuple[str, str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for form in forms:
        for group in (*own, *pairs):
            for condition in CONDITIONS:
                shown = _shown(group, condition)
                for source, question, right in answers(model, processor, shown, form):
                    tally[source, question.kind, form][condition].append(right)
    rows = [
        {"source": source, "kind": kind, "form": form, "questions": len(shares["image"])}
        | {name: sum(shares[name]) / len(shares[name]) for name in CONDITIONS}
        for (source, kind, form), shares in sorted(tally.items())
    ]
    return {
        "model": "smol",
        "class": type(model).__name__,
        "parameters": sum(one.numel() for one in model.parameters()),
        "trained_parameters": sum(one.numel() for one in model.model.multi_modal_projector.parameters())
        + model.model.image_newline.numel(),
        "connector_sha256": content_hash(connector),
        "training": metadata.get("training", {}),
        "images_per_source": images,
        "dtype": "bfloat16, connector float32",
        "rows": rows,
    }


def answers(model: Any, processor: Any, asked: Sequence[Asked], form: Form) -> list[tuple[str, Question, bool]]:
    """Every question with whether greedy decoding answers it exactly; questions with options need their prompt."""
    kept: list[Asked] = []
    for source, image, questions in asked:
        some = [one for one in questions if form == "evaluation" or not one.options]
        if some:
            kept.append((source, image, some))
    found = []
    for start in range(0, len(kept), BATCH):
        sources, images, questions = zip(*kept[start : start + BATCH], strict=True)
        batch = pack(processor, images, questions, [source.removesuffix(PAIRS) for source in sources], form)
        with torch.no_grad():
            said = logits(model, batch).argmax(-1)
        chosen = batch.labels != IGNORED
        correct, owner = said == batch.labels[chosen], batch.owner[chosen]
        flat = [(source, one) for source, some in zip(sources, questions, strict=True) for one in some]
        found += [(source, one, bool(correct[owner == number].all())) for number, (source, one) in enumerate(flat)]
    return found


PAIRS = ", counterfactual pairs"


def _held_out(images: int) -> list[list[Asked]]:
    """A group of images for each source, with the questions that come with them."""
    seeds = SPLITS["held_out"][:images]
    groups: list[list[Asked]] = []
    real: list[Picture] = []
    for domain in DOMAINS:
        scenes = [draw(domain, seed) for seed in seeds]
        groups.append([(domain, scene.image, scene.questions) for scene in scenes])
    for index, seed in enumerate(seeds):
        real.append(of_real_image(DOMAINS_WITH_IMAGES[index % len(DOMAINS_WITH_IMAGES)], seed))
    tests = easy_vqa("test")
    tests = Random("held out").sample(tests, min(2 * images, len(tests)))
    for source, pictures in (("real", real), ("easy-vqa", tests)):
        groups.append([(source, one.image, _open_questions(one)) for one in pictures])
    return groups


def _open_questions(one: Picture) -> list[Question]:
    return [Question(question, answer, _kind(answer)) for (question, _), answer in one.answers.items()]


def _pairs(source: str, images: int) -> list[Asked]:
    random, group = Random(f"pairs:{source}"), []
    for _ in range(images // 2):
        pictures, both = pair(source, "held_out", random, 6)
        for one, questions in zip(pictures, both, strict=True):
            kept = [Question(q.question, q.answer, _kind(q.answer)) for q in questions if not q.options]
            group.append((source + PAIRS, one.image, kept))
    return group


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return next((name for name in ("shape", "colour") if answer in VALUES["easy-vqa", name]), "name")


def _shown(group: list[Asked], condition: str) -> list[Asked]:
    """The group with its own images, grey ones of the same sizes, or each with the next one's."""
    if condition == "image":
        return group
    if condition == "blind":
        return [(source, Image.new("RGB", image.size, GREY), questions) for source, image, questions in group]
    return [
        (source, group[(index + 1) % len(group)][1], questions) for index, (source, _, questions) in enumerate(group)
    ]


def main() -> None:
    """Read the command line, measure, write card.json and CARD.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connector", type=Path, default=CONNECTOR)
    parser.add_argument("--out", type=Path, default=CONNECTOR.parent, help="where card.json and CARD.md go")
    parser.add_argument("--images", type=int, default=20, help="of each source; twice as many of easy-vqa")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--notes", type=Path, default=None, help='JSON: {"training": text, "identified": text}')
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.disable_progress_bar()
    card = evaluate(given.connector, given.images, given.forms)
    if given.notes is not None:
        card["notes"] = json.loads(given.notes.read_text(encoding="utf-8"))
    write_card(card, given.out)


if __name__ == "__main__":
    main()
