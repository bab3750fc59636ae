"""Train the connector of the smol model; DINOv2 and SmolLM2 stay as they are.

    python benchmarks/real_parts/train.py --out FOLDER --minutes 40

leaves connector.safetensors and train.jsonl. Every batch holds counterfactual pairs (see asking.py) and nothing else.
Wall-clock time sets the schedule unless --steps is given, so a slower machine trains less.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from asking import SOURCES, pair
from packing import IGNORED, Form, logits, pack
from torch import nn
from transformers.utils import logging
from words import speak_words

from mmneuron_lens.embedded.smol import parts
from mmneuron_lens.embedded.smol.assemble import load_connector, save_connector

WEIGHTS = {"easy-vqa": 1.5, "real": 0.75}
"""How often a source is drawn, beside 1 for each domain."""

EVALUATION_SHARE = 0.15
END_WEIGHT = 0.2
"""Weight of the token that ends an answer, which is soon learned, beside 1 for the answer's own."""

WARMUP = 5

LOUDEST = 8.0
"""What the connector writes may be so many times as long as a word embedding before it costs."""

RATES = {"linear_1": 0.3, "linear_2.weight": 1.0, "linear_2.bias": 10.0, "image_newline": 30.0}
"""Parts of the peak rate. A step of the second layer's weights moves what it writes by hundreds of inputs times the
rate: faster, and the words of the first stage are lost. Bias and newline move it by the rate alone; they are a soft
prompt, which says how answers are to be given, and soft prompts are learned at high rates."""

CLOSED_SHARES = (0.2, 0.5)
"""The share of yes-or-no questions in the first 40 % of the time and after: to compare what is seen with a word of the
question, a model must first see."""


def train(
    out: Path, minutes: float, steps: int | None, seed: int, rate: float, pairs: int, questions: int, start: Path | None
) -> None:
    """See the module. rate: AdamW's peak; pairs, questions: of images in a batch, and asked of each image."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    random = Random(f"connector:{seed}")
    model, processor = parts()
    learned = prepare(model, processor)
    if start is not None:
        load_connector(model, start)
    else:
        shares = speak_words(model, processor, random)
        _save(model, out, seed, 0)
        (out / "words.json").write_text(json.dumps(shares, indent=1) + "\n", encoding="utf-8")
    projector = model.model.multi_modal_projector
    groups = [
        {"params": [*projector.linear_1.parameters()], "part": RATES["linear_1"]},
        {"params": [projector.linear_2.weight], "part": RATES["linear_2.weight"]},
        {"params": [projector.linear_2.bias], "part": RATES["linear_2.bias"]},
        {"params": [model.model.image_newline], "part": RATES["image_newline"]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    began, last, step = time.monotonic(), time.monotonic(), 0
    running: dict[str, list[float]] = {}
    with open(out / "train.jsonl", "a", encoding="utf-8") as log:
        while (done := step / steps if steps else (time.monotonic() - began) / 60 / minutes) < 1:
            rise = min(1.0, (step + 1) / WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = group["part"] * rate * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            form: Form = "evaluation" if random.random() < EVALUATION_SHARE else "identification"
            closed = CLOSED_SHARES[0] if done < 0.4 else CLOSED_SHARES[1]
            loss, right = _step(model, processor, optimizer, learned, random, form, pairs, questions, closed)
            running.setdefault("loss", []).append(loss)
            for name, values in right.items():
                running.setdefault(name, []).extend(values)
            step += 1
            if step % 20 == 0:
                means = {name: round(sum(values) / len(values), 3) for name, values in sorted(running.items())}
                running = {}
                print(json.dumps({"step": step, "minutes": _minutes(began), **means}), file=log, flush=True)
            if time.monotonic() - last > 300:
                last = time.monotonic()
                _save(model, out, seed, step)
    _save(model, out, seed, step)


def prepare(model: Any, processor: Any, images: int = 64) -> list[nn.Parameter]:
    """Freeze everything but the connector, put the rest in bfloat16, and give the connector a fair beginning.

    Its first layer sees standardised features (mean and deviation over `images` pictures, folded into the weights), and
    its second writes at the scale of the word embeddings. Returns what is trained.
    """
    model.requires_grad_(False)
    random = Random("statistics")
    pictures = [pair(random.choice(SOURCES), "train", random, 1)[0][0].image for _ in range(images)]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"].flatten(0, 1)
    with torch.no_grad():
        seen = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        seen = seen[model.config.vision_feature_layer][:, 1:].flatten(0, 1)
        mean, deviation = seen.mean(0), seen.std(0)
        projector, words = model.model.multi_modal_projector, model.get_input_embeddings().weight
        first = torch.randn_like(projector.linear_1.weight) / len(mean) ** 0.5 / deviation
        projector.linear_1.weight.copy_(first)
        projector.linear_1.bias.copy_(-first @ mean)
        middle = projector.act(projector.linear_1(seen))
        second = torch.randn_like(projector.linear_2.weight)
        projector.linear_2.weight.copy_(second * words.std() / (middle @ second.T).std())
        projector.linear_2.bias.zero_()
        model.model.image_newline.copy_(words.mean(0))
        projector.word_length = float(words.norm(dim=-1).mean())
    model.to(torch.bfloat16)
    projector.float()
    model.model.image_newline.data = model.model.image_newline.data.float()
    learned = [*projector.parameters(), model.model.image_newline]
    for parameter in learned:
        parameter.requires_grad_(True)
    return learned


def _step(
    model: Any, processor: Any, optimizer: Any, learned: list[nn.Parameter], random: Random, form: Form, pairs: int,
    questions: int, closed: float,
) -> tuple[float, dict[str, list[float]]]:  # fmt: skip
    """One step; the loss, and by source and kind whether each answer's first token was right."""
    images, asked, sources = [], [], []
    drawn = random.choices(SOURCES, [WEIGHTS.get(source, 1.0) for source in SOURCES], k=pairs)
    for source in drawn:
        pictures, both = pair(source, "train", random, questions, closed)
        if form == "identification":
            both = [[one for one in some if not one.options] for some in both]
        if not both[0]:
            continue
        images += [one.image for one in pictures]
        asked += both
        sources += [source] * 2
    if not images:
        return 0.0, {}
    batch = pack(processor, images, asked, sources, form)
    projector, written = model.model.multi_modal_projector, []
    handle = projector.register_forward_hook(lambda module, inputs, output: written.append(output))
    said = logits(model, batch)
    handle.remove()
    chosen = batch.labels != IGNORED
    labels = batch.labels[chosen]
    weight = torch.where(labels == processor.tokenizer.eos_token_id, END_WEIGHT, 1.0)
    loss = (nn.functional.cross_entropy(said, labels, reduction="none") * weight).sum() / weight.sum()
    owner = batch.owner[chosen]
    # The last token of each answer, before the end: what tells it from the other picture's answer.
    ends = [*torch.nonzero(owner[:-1] != owner[1:]).flatten().tolist(), len(owner) - 1]
    last = torch.tensor(ends) - 1
    others = torch.tensor(_partners(asked))
    own, other = said[last, labels[last]], said[last, labels[last][others]]
    loss = loss + nn.functional.softplus(other - own).mean()
    length = written[0].norm(dim=-1) / projector.word_length
    loss = loss + 0.1 * (length - LOUDEST).clamp(min=0).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(learned, 1.0)
    optimizer.step()
    right: dict[str, list[float]] = {}
    flat = [(source, one) for source, some in zip(sources, asked, strict=True) for one in some]
    # Where an answer has several tokens, such as a number, its first may be only a space: all must be right.
    correct = (said.argmax(-1) == labels).float()
    for number, (source, one) in enumerate(flat):
        right.setdefault(f"{source} {one.kind}", []).append(correct[owner == number].min().item())
    for (_, one), ranked in zip(flat, (own > other).float().tolist(), strict=True):
        right.setdefault(f"ranked {one.kind}", []).append(ranked)
    return loss.item(), right


def _partners(asked: Sequence[Sequence[Any]]) -> list[int]:
    """For every question of the batch the number of the same question about the pair's other picture."""
    numbers, begin = [], 0
    for first in asked[::2]:
        count = len(first)
        numbers += [*range(begin + count, begin + 2 * count), *range(begin, begin + count)]
        begin += 2 * count
    return numbers


def _save(model: Any, out: Path, seed: int, step: int) -> None:
    save_connector(model, out / "connector.safetensors", {"training": {"seed": seed, "steps": step}})


def _minutes(began: float) -> float:
    return round((time.monotonic() - began) / 60, 2)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--start", type=Path, default=None, help="a connector to go on from")
    parser.add_argument("--threads", type=int, default=1)
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    logging.disable_progress_bar()
    train(**given)


if __name__ == "__main__":
    main()
