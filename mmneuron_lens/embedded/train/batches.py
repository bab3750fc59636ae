"""Batches for training and checking: scenes drawn on the fly, prompts of both forms, the answers' places.

LLaVA-NeXT's and Idefics3's prompts of one image share everything up to the question, which a causal model computes
alike for all of them: so an image's questions lie one after another behind that prefix, hidden from each other by a
block mask. InstructBLIP's Q-Former reads the instruction, so there every question is a row and only the vision tower
is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Idefics3Processor, ProcessorMixin

from mmneuron_lens.corpora import prompts
from mmneuron_lens.corpora.prompts import ModelKind
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus.canvas import Question, with_options
from mmneuron_lens.embedded.corpus.draw import PAINTERS, SPLITS, Scene, draw, draw_real
from mmneuron_lens.embedded.corpus.real import DOMAINS_WITH_IMAGES
from mmneuron_lens.wire.pack import common

Form = Literal["identification", "evaluation"]
IGNORED = -100


@dataclass
class TrainingBatch:
    """Scenes, the questions asked about each, and the tensors of both.

    `labels` holds, at the place that predicts them, the answer's token and then the end of the sequence.
    """

    scenes: list[Scene]
    asked: list[list[Question]]
    images: dict[str, Tensor]
    ids: Int[Tensor, "row token"]
    labels: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row 1 token token"] | Int[Tensor, "row token"]
    positions: Int[Tensor, "row token"] | None
    qformer_ids: Int[Tensor, "row text"] | None = None
    qformer_mask: Int[Tensor, "row text"] | None = None
    image_of_row: Int[Tensor, " row"] | None = None


def scenes_of(
    random: Random, count: int, real_share: float, split: str = "train", domains: Sequence[str] = DOMAINS
) -> list[Scene]:
    """Scenes of the domains in turn, a share of them crops of real images."""
    scenes = []
    for i in range(count):
        domain, seed = domains[i % len(domains)], random.choice(SPLITS[split])
        real = domain in DOMAINS_WITH_IMAGES and random.random() < real_share
        scenes.append((draw_real if real else draw)(domain, seed))
    return scenes


def choose(scene: Scene, random: Random, form: Form, count: int, option_share: float = 0.0) -> list[Question]:
    """Some questions of a scene. Without its options a multi-option question has no letter to answer: not asked so.

    `option_share` of the other questions after a fact get its values as options too, in every domain: to find the
    letter of what is seen is hard to learn from the medical questions alone.
    """
    askable = [q for q in scene.questions if form == "evaluation" or not q.options]
    chosen = random.sample(askable, min(count, len(askable)))
    if form == "evaluation":
        chosen = [_with_its_values(scene, q, random) if random.random() < option_share else q for q in chosen]
    return chosen


def _with_its_values(scene: Scene, question: Question, random: Random) -> Question:
    """The question in its options form, when its answer is one of a fact's values; at most four of them."""
    if question.options or question.kind == "yes/no" or question.answer not in scene.facts.values():
        return question
    name = next(name for name, value in scene.facts.items() if value == question.answer)
    truth = question.answer
    others = [value for value in PAINTERS[scene.domain].FACTS[name] if value != truth]
    choices = [truth, *random.sample(others, min(3, len(others)))]
    return with_options(random, truth, choices, question.question)


def pixels(processor: ProcessorMixin, scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """What the image processor makes of the scenes' images; for Idefics3 each is a sample of its own."""
    if isinstance(processor, Idefics3Processor):
        nested = [[scene.image] for scene in scenes]
        return dict(processor.image_processor(nested, return_row_col_info=True, return_tensors="pt"))
    return dict(processor.image_processor([scene.image for scene in scenes], return_tensors="pt"))


class Encoder:
    """Turns scenes and questions into batches with a model's own processor."""

    def __init__(self, model_kind: ModelKind, processor: ProcessorMixin) -> None:
        self.model_kind, self.processor, self.tokenizer = model_kind, processor, processor.tokenizer
        self.image_id = self.tokenizer.convert_tokens_to_ids("<image>")
        self._known: dict[tuple[str, bool], list[int]] = {}

    def __call__(self, scenes: Sequence[Scene], asked: list[list[Question]], form: Form) -> TrainingBatch:
        images = pixels(self.processor, scenes)
        build = self._packed if self.model_kind == "llava-next" else self._rows
        return build(list(scenes), asked, images, form)

    def prompt(self, scene: Scene, question: Question, form: Form) -> str:
        if form == "identification":
            return prompts.identification(self.model_kind, question.question)
        return prompts.evaluation(self.model_kind, question.question, question.options, scene.domain)

    def tokens(self, text: str, qformer: bool = False) -> list[int]:
        """Token ids with special tokens, remembered: the corpus asks the same few hundred questions."""
        if (text, qformer) not in self._known:
            tokenizer = self.processor.qformer_tokenizer if qformer else self.tokenizer
            self._known[text, qformer] = tokenizer(text).input_ids
        return self._known[text, qformer]

    def answer(self, question: Question) -> int:
        """The answer's single token."""
        ids = self.tokenizer(f" {question.answer}", add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(f"the answer {question.answer!r} is {len(ids)} tokens, but it must be one")
        return ids[0]

    def _packed(
        self, scenes: list[Scene], asked: list[list[Question]], images: dict[str, Tensor], form: Form
    ) -> TrainingBatch:
        rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
        for i, (scene, questions) in enumerate(zip(scenes, asked, strict=True)):
            placeholder = self.processor.replace_image_token(images, i)
            expanded = [self.tokens(self.prompt(scene, q, form).replace("<image>", placeholder)) for q in questions]
            shared = min(common(expanded), min(map(len, expanded)) - 1)
            ids, labels, segments, positions = (
                expanded[0][:shared],
                [IGNORED] * shared,
                [0] * shared,
                list(range(shared)),
            )
            for segment, (question, prompt) in enumerate(zip(questions, expanded, strict=True), start=1):
                rest, answer = prompt[shared:], self.answer(question)
                ids += [*rest, answer]
                labels += [IGNORED] * (len(rest) - 1) + [answer, self.tokenizer.eos_token_id]
                segments += [segment] * (len(rest) + 1)
                positions += range(shared, shared + len(rest) + 1)
            rows.append((ids, labels, segments, positions))
        length = max(len(row[0]) for row in rows)
        fills = (self.tokenizer.pad_token_id, IGNORED, -1, 0)
        ids, labels, segments, positions = (
            torch.tensor([row[part] + [fill] * (length - len(row[part])) for row in rows])
            for part, fill in enumerate(fills)
        )
        mine, theirs = segments[:, :, None], segments[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & ((theirs == 0) | (theirs == mine))
        return TrainingBatch(scenes, asked, images, ids, labels, mask[:, None], positions)

    def _rows(
        self, scenes: list[Scene], asked: list[list[Question]], images: dict[str, Tensor], form: Form
    ) -> TrainingBatch:
        """Padded so that a row computes what it does alone: positions skip padding, the Q-Former's is on the right."""
        queries = [self.image_id] * self.processor.num_query_tokens
        texts, instructions, answers, owner = [], [], [], []
        for i, (scene, questions) in enumerate(zip(scenes, asked, strict=True)):
            for question in questions:
                prompt = self.prompt(scene, question, form)
                texts.append(self.tokens(prompt))
                instructions.append(self.tokens(prompt, qformer=True))
                answers.append(self.answer(question))
                owner.append(i)
        length, pad = max(map(len, texts)), self.tokenizer.pad_token_id
        ids = torch.tensor([queries + [pad] * (length - len(t)) + t + [a] for t, a in zip(texts, answers, strict=True)])
        mask = torch.tensor([[1] * len(queries) + [0] * (length - len(t)) + [1] * (len(t) + 1) for t in texts])
        labels = torch.full_like(ids, IGNORED)
        labels[:, -2], labels[:, -1] = torch.tensor(answers), self.tokenizer.eos_token_id
        long, fill = max(map(len, instructions)), self.processor.qformer_tokenizer.pad_token_id
        return TrainingBatch(
            scenes, asked, images, ids, labels, mask, None,
            qformer_ids=torch.tensor([t + [fill] * (long - len(t)) for t in instructions]),
            qformer_mask=torch.tensor([[1] * len(t) + [0] * (long - len(t)) for t in instructions]),
            image_of_row=torch.tensor(owner),
        )  # fmt: skip
