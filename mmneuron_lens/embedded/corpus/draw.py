"""Entry point of the drawn corpus: `draw(domain, seed)` makes a scene, `write_folder` a corpus on disk.

Every fact of a scene is drawn first, uniformly and independently, and only then painted: so each question's answers are
equally frequent, and nothing but the image tells which one is right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus import auto_driving, common, document, medical, real, remote_sensing
from mmneuron_lens.embedded.corpus.canvas import Facts, Question

PAINTERS = {
    "common": common, "remote_sensing": remote_sensing, "medical": medical,
    "document": document, "auto_driving": auto_driving,
}  # fmt: skip

SPLITS = {name: range(i * 10**9, (i + 1) * 10**9) for i, name in enumerate(("train", "validation", "demo", "held_out"))}
"""Disjoint ranges of seeds. Real images are split by region as well: see `real`."""


@dataclass(frozen=True)
class Scene:
    """An image, what is true of it (empty for a crop of a real image), and all questions about it."""

    domain: str
    image: Image.Image
    questions: list[Question]
    facts: Facts


def draw(domain: str, seed: int) -> Scene:
    """The scene of a domain that a seed names; the same on every machine with the same Pillow."""
    if domain not in PAINTERS:
        raise InvalidValue(f"unknown domain {domain!r}: choose one of {', '.join(DOMAINS)}")
    painter, random = PAINTERS[domain], Random(f"{domain}:{seed}")
    facts = {name: random.choice(values) for name, values in painter.FACTS.items()}
    return Scene(domain, painter.paint(facts, random), painter.ask(facts, random), facts)


def draw_real(domain: str, seed: int) -> Scene:
    """A crop of a real image of a domain; seeds of the held-out split see regions that no other split sees."""
    image, questions = real.crop(domain, Random(f"real:{domain}:{seed}"), held_out=seed in SPLITS["held_out"])
    return Scene(domain, image, questions, {})


def write_folder(
    folder: str | Path,
    split: str = "demo",
    images_per_domain: int = 20,
    domains: Sequence[str] = DOMAINS,
    real_share: float = 0.0,
) -> Path:
    """Write `images/*.png` and `questions.jsonl`, the form in which users bring corpora of their own.

    `real_share` of each domain's images, where a real one may be redistributed, are crops of real images.
    """
    if split not in SPLITS:
        raise InvalidValue(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "questions.jsonl", "w", encoding="utf-8") as rows:
        for domain in domains:
            real_images = round(real_share * images_per_domain) if domain in real.DOMAINS_WITH_IMAGES else 0
            for i in range(images_per_domain):
                scene = (draw_real if i < real_images else draw)(domain, SPLITS[split][i])
                name = f"images/{domain}_{i:05d}.png"
                scene.image.save(folder / name)
                for j, question in enumerate(scene.questions):
                    row: dict[str, object] = {"id": f"{domain}-{i:05d}-{j}", "domain": domain, "image": name}
                    row |= {"question": question.question, "answer": question.answer, "kind": question.kind}
                    if question.options:
                        row["options"] = list(question.options)
                    rows.write(json.dumps(row) + "\n")
    return folder
