"""Does a model look at its image? Accuracy on unseen scenes, and with the image blanked or swapped."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from random import Random
from typing import Literal, get_args

import torch
from PIL import Image
from transformers import PreTrainedModel

from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus.canvas import Question
from mmneuron_lens.embedded.corpus.draw import SPLITS, Scene, draw
from mmneuron_lens.embedded.train.batches import Encoder, Form
from mmneuron_lens.embedded.train.forward import forward

Condition = Literal["image", "blank", "swapped"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
GREY = (122, 117, 104)
"""The mean colour that the processors of CLIP and BLIP subtract."""


def shown(scenes: list[Scene], condition: Condition) -> list[Scene]:
    """The scenes with their own image, a mean grey one of its size, or the domain's next scene's image."""
    if condition == "blank":
        return [replace(scene, image=Image.new("RGB", scene.image.size, GREY)) for scene in scenes]
    if condition == "swapped":
        peers: dict[str, list[Scene]] = defaultdict(list)
        for scene in scenes:
            peers[scene.domain].append(scene)
        follower = {id(s): g[(i + 1) % len(g)] for g in peers.values() for i, s in enumerate(g)}
        return [replace(scene, image=follower[id(scene)].image) for scene in scenes]
    return scenes


@torch.no_grad()
def answers_right(
    model: PreTrainedModel, encoder: Encoder, scenes: list[Scene], asked: list[list[Question]], form: Form
) -> list[bool]:
    """For every question in turn, whether the two likeliest next tokens are the answer and the end."""
    right: list[bool] = []
    for start in range(0, len(scenes), 32):
        out = forward(model, encoder(scenes[start : start + 32], asked[start : start + 32], form))
        right += (out.logits.argmax(-1) == out.labels).view(-1, 2).all(1).tolist()
    return right


def check(model: PreTrainedModel, encoder: Encoder, images_per_domain: int) -> dict[str, object]:
    """Share of right answers: overall in each form and condition; by kind and by domain with the image shown."""
    scenes = [draw(domain, seed) for domain in DOMAINS for seed in SPLITS["validation"][:images_per_domain]]
    report: dict[str, object] = {}
    tally: dict[str, list[bool]] = defaultdict(list)
    model.eval()
    for form in ("identification", "evaluation"):
        asked = [[q for q in scene.questions if form == "evaluation" or not q.options] for scene in scenes]
        for condition in CONDITIONS:
            right = answers_right(model, encoder, shown(scenes, condition), asked, form)
            report[f"{form} {condition}"] = _share(right)
            if condition == "image":
                flat = [
                    (scene.domain, q.kind) for scene, questions in zip(scenes, asked, strict=True) for q in questions
                ]
                for (domain, kind), hit in zip(flat, right, strict=True):
                    tally[domain].append(hit)
                    tally[kind].append(hit)
    model.train()
    return report | {name: _share(hits) for name, hits in tally.items()}


def _share(hits: list[bool]) -> float:
    return round(sum(hits) / max(len(hits), 1), 3)


def random_of(seed: int, purpose: str) -> Random:
    """A stream of its own per purpose, so that checking never moves what is trained on."""
    return Random(f"{seed}:{purpose}")
