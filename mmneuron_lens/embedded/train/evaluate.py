"""Measure an exported model on the held-out split, through its stock processor and `generate`, and write its card.

Beside the accuracy stand three controls: the answer that training scenes most often have to the same question (what a
model could say without looking), the model with a mean grey image, and with another image of the same domain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from mmneuron_lens.corpora import prompts
from mmneuron_lens.corpora.prompts import ModelKind
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus.canvas import Question
from mmneuron_lens.embedded.corpus.draw import SPLITS, Scene, draw, draw_real
from mmneuron_lens.embedded.corpus.real import DOMAINS_WITH_IMAGES
from mmneuron_lens.embedded.train.batches import Form
from mmneuron_lens.embedded.train.build import NAMES, PROMPTS, Name
from mmneuron_lens.embedded.train.card import write_card
from mmneuron_lens.embedded.train.checking import CONDITIONS, shown

BATCH = 32
FORMS: tuple[Form, ...] = ("identification", "evaluation")


class Asked(NamedTuple):
    """One question put to a model: `group` is the domain, or "real" for crops of real images."""

    group: str
    scene: int
    question: Question


def evaluate(folder: str | Path, name: Name, images_per_domain: int = 50) -> dict[str, object]:
    """All figures of the card: `rows` of group, kind, form and number of questions with their accuracies."""
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()
    held_out = SPLITS["held_out"][:images_per_domain]
    groups = {domain: [draw(domain, seed) for seed in held_out] for domain in DOMAINS}
    groups["real"] = [
        draw_real(domain, seed) for domain in DOMAINS_WITH_IMAGES for seed in held_out[: images_per_domain // 2]
    ]
    habits = _habits()
    tally: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for form in FORMS:
        for group, scenes in groups.items():
            asked = [
                Asked(group, i, q)
                for i, s in enumerate(scenes)
                for q in s.questions
                if form == "evaluation" or not q.options
            ]
            for item in asked:
                counter = tally[group, item.question.kind, form]
                counter["questions"] += 1
                counter["majority"] += habits.get((group, item.question.question)) == item.question.answer
            for condition in CONDITIONS:
                for item, answer in _answers(model, processor, PROMPTS[name], shown(scenes, condition), asked, form):
                    tally[group, item.question.kind, form][condition] += answer == item.question.answer
    rows = [
        {"group": group, "kind": kind, "form": form, "questions": counter["questions"]}
        | {name: counter[name] / counter["questions"] for name in ("majority", *CONDITIONS)}
        for (group, kind, form), counter in sorted(tally.items())
    ]
    weights = Path(folder) / "model.safetensors"
    return {
        "model": name,
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "images_per_domain": images_per_domain,
        "rows": rows,
        "summary": {form: summary(rows, form) for form in FORMS},
    }


def summary(rows: list[dict], form: Form) -> dict[str, dict[str, float]]:
    """Accuracy and controls of each group over all its questions, and `mean`, the plain mean of the five domains."""
    total: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group and row["form"] == form]
        count = sum(row["questions"] for row in mine)
        shares = {name: sum(row[name] * row["questions"] for row in mine) / count for name in ("majority", *CONDITIONS)}
        total[group] = {"questions": count, **shares}
    total["mean"] = {
        name: sum(total[domain][name] for domain in DOMAINS) / len(DOMAINS) for name in ("majority", *CONDITIONS)
    }
    return total


def _habits(scenes_per_domain: int = 2000) -> dict[tuple[str, str], str]:
    """For every question of the training split its most frequent answer."""
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for seed in SPLITS["train"][:scenes_per_domain]:
        for domain in DOMAINS:
            for question in draw(domain, seed).questions:
                answers[domain, question.question][question.answer] += 1
        for question in draw_real(DOMAINS_WITH_IMAGES[seed % len(DOMAINS_WITH_IMAGES)], seed).questions:
            answers["real", question.question][question.answer] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in answers.items()}


@torch.no_grad()
def _answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    model_kind: ModelKind,
    scenes: list[Scene],
    asked: list[Asked],
    form: Form,
) -> Iterator[tuple[Asked, str]]:
    """Greedy generation of two tokens, the answer and the end; decoded and stripped.

    Texts of a batch are equally long: the stock processor pads the Q-Former's text on the left, where its absolute
    positions would make a padded row compute something else than it does alone.
    """
    by_length: dict[int, list[tuple[Asked, str]]] = defaultdict(list)
    for item in asked:
        question = item.question
        text = prompts.identification(model_kind, question.question)
        if form == "evaluation":
            text = prompts.evaluation(model_kind, question.question, question.options, scenes[item.scene].domain)
        by_length[len(processor.tokenizer(text).input_ids)].append((item, text))
    for group in by_length.values():
        for start in range(0, len(group), BATCH):
            items, texts = zip(*group[start : start + BATCH], strict=True)
            images = [scenes[item.scene].image for item in items]
            batch = processor(images=images, text=list(texts), padding=True, return_tensors="pt")
            tokens = model.generate(**batch, max_new_tokens=2, do_sample=False)[:, batch["input_ids"].shape[1] :]
            answers = processor.batch_decode(tokens, skip_special_tokens=True)
            yield from zip(items, (answer.strip() for answer in answers), strict=True)


def main() -> None:
    """`python -m mmneuron_lens.embedded.train.evaluate llava-next FOLDER`: write CARD.md and card.json there."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=50, help="images per domain")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    card = evaluate(given.folder, given.model, given.images)
    write_card(card, Path(given.folder))
    print(json.dumps(card["summary"], indent=1))


if __name__ == "__main__":
    main()
