"""Train an embedded model: first its vision tower on the scenes' facts, then all of it on the answers.

Loss is the cross entropy of the answer's token and of the end after it; the temporary heads go on helping in the second
stage. Wall-clock time sets the schedule unless `steps` is given, so a slower machine trains less.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.train.batches import Encoder, choose, pixels, scenes_of
from mmneuron_lens.embedded.train.build import PROMPTS, WIDTH, Name, build
from mmneuron_lens.embedded.train.checking import check, random_of
from mmneuron_lens.embedded.train.forward import forward, see
from mmneuron_lens.embedded.train.heads import AnswerHead, FactHeads

REAL_SHARE = 0.1
OPTION_SHARE = 0.4
FACTS_WEIGHT = 0.5
OTHERS = tuple(d for d in DOMAINS if d != "auto_driving")


def train(
    name: Name, out: str | Path, minutes: float = 60.0, seed: int = 0, steps: int | None = None,
    facts_share: float = 0.2, rate: float = 1e-3, images: int = 32, questions: int = 5, check_minutes: float = 5.0,
    check_images: int = 16, log_every: int = 20, start: str | Path | None = None,
) -> PreTrainedModel:  # fmt: skip
    """Train for `minutes` or `steps` and leave the best checkpoint, its processor and the log in `out`.

    Every `check_minutes` it is checked on `check_images` a domain. `facts_share` of the time goes to the first stage;
    `start` continues from an exported folder.
    """
    out, random = Path(out), random_of(seed, "training")
    out.mkdir(parents=True, exist_ok=True)
    model, processor = build(name, seed)
    if start is not None:
        model, processor = (
            AutoModelForImageTextToText.from_pretrained(start).train(),
            AutoProcessor.from_pretrained(start),
        )
    encoder, heads = Encoder(PROMPTS[name], processor), FactHeads(WIDTH, places=80)
    answer_head = AnswerHead(WIDTH, len(processor.tokenizer))
    helpers = nn.ModuleList([heads, answer_head])
    began, last_check, best, step = time.monotonic(), time.monotonic(), -1.0, 0
    second_stage, optimizer, begun_at = False, _optimizer(helpers, model, rate), 0.0

    with open(out / "train.jsonl", "a", encoding="utf-8") as log:
        while (progress := step / steps if steps else (time.monotonic() - began) / 60 / minutes) < 1:
            if not second_stage and progress >= facts_share:
                second_stage, optimizer, begun_at, step_of_stage = True, _optimizer(helpers, model, rate), progress, 0
            elif step == 0:
                step_of_stage = 0
            end = 1.0 if second_stage else facts_share
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step_of_stage, (progress - begun_at) / (end - begun_at), second_stage)
            if second_stage:
                form = "identification" if random.random() < 0.5 else "evaluation"
                domains, count = DOMAINS, images
                if form == "evaluation":
                    # The driving role is long and stands in many questions: batches of its own save padding.
                    driving = random.random() < 0.33
                    domains, count = (("auto_driving",), images // 2) if driving else (OTHERS, images)
                scenes = scenes_of(random, count, REAL_SHARE, domains=domains)
                batch = encoder(scenes, [choose(s, random, form, questions, OPTION_SHARE) for s in scenes], form)
                seen = forward(model, batch)
                loss = nn.functional.cross_entropy(seen.logits, seen.labels)
                right = (seen.logits.argmax(-1) == seen.labels)[::2].float().mean().item()
                facts_loss, facts_right = heads.loss(seen.patches, scenes)
                helping = FACTS_WEIGHT * (1 - progress)
                total = loss + helping * facts_loss
                if seen.queries is not None:
                    total = total + 2 * helping * answer_head.loss(seen.queries, seen.labels[::2])[0]
            else:
                scenes, form = scenes_of(random, 2 * images, 0.0), "facts"
                total, right = heads.loss(see(model, pixels(processor, scenes))[0], scenes)
                loss, facts_right = total, right
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
            if step % log_every == 0:
                line = {"step": step, "form": form, "minutes": round((time.monotonic() - began) / 60, 2)}
                line |= {"loss": round(loss.item(), 4), "right": round(right, 3), "facts_right": round(facts_right, 3)}
                _log(log, **line)
            step, step_of_stage = step + 1, step_of_stage + 1
            if second_stage and (time.monotonic() - last_check) / 60 > check_minutes:
                best = _keep(model, processor, encoder, out, best, log, step, check_images)
                last_check = time.monotonic()
        _keep(model, processor, encoder, out, best, log, step, check_images)
    return model


def _optimizer(heads: nn.Module, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW; matrices decay, vectors and embeddings do not."""
    named = [*model.named_parameters(), *heads.named_parameters()]
    decays = [p for name, p in named if p.ndim >= 2 and "embed" not in name]
    rests = [p for name, p in named if p.ndim < 2 or "embed" in name]
    groups = [{"params": decays, "weight_decay": 0.05}, {"params": rests, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def _schedule(step: int, share_done: float, second_stage: bool, warmup: int = 100) -> float:
    """Linear warm-up, then flat in the first stage and a cosine to nearly nothing in the second."""
    rise = min(1.0, (step + 1) / warmup)
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share_done, 1.0)))) if second_stage else rise


def _keep(
    model: PreTrainedModel, processor: ProcessorMixin, encoder: Encoder, out: Path, best: float, log: object, step: int,
    check_images: int,
) -> float:  # fmt: skip
    """Check the model, log what was found, and export it when it is the best so far."""
    report = check(model, encoder, check_images)
    score = (report["identification image"] + report["evaluation image"]) / 2  # type: ignore[operator]
    _log(log, step=step, check=report, score=round(score, 4))
    if score > best:
        export(model, processor, out)
    return max(best, score)


def export(model: PreTrainedModel, processor: ProcessorMixin, out: Path) -> None:
    """Write model and processor beside `out` first and move the files in, so that `out` is whole at any time."""
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    for path in sorted(p for p in fresh.rglob("*") if p.is_file()):
        target = out / path.relative_to(fresh)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o644)
        os.replace(path, target)
    shutil.rmtree(fresh)


def _log(log: object, **line: object) -> None:
    print(json.dumps(line), file=log, flush=True)  # type: ignore[arg-type]
