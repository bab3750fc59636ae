"""The connector's first stage: patches learn to sound like the words for what they show. No language model is run.

A fact such as place = left is scored, at each patch, by how much what the connector writes there points along the word
embeddings of its name and of its value; over patches the scores are joined by a log-sum-exp, so some patch must say it.
The language model can then begin by reading words, and minutes of its time are saved.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from asking import SOURCES, VALUES, Picture, picture
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

SHARPNESS = 25.0


def speak_words(
    model: Any, processor: Any, random: Random, pictures: int = 1400, steps: int = 260, batch: int = 48,
    rate: float = 2e-3,
) -> dict[str, float]:  # fmt: skip
    """Train the projector on facts; afterwards its output has the mean and the spread of word embeddings.

    Returns, by "source name", the share of facts that were right in the last fifth of the steps.
    """
    seen = [picture(SOURCES[index % len(SOURCES)], "train", random) for index in range(pictures)]
    with torch.no_grad():
        features = [_features(model, processor, one) for one in seen]
    table = model.get_input_embeddings().weight.detach().float()
    words = _words(processor.tokenizer, table)
    projector = model.model.multi_modal_projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    tally: dict[str, list[float]] = {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20, 1.05 - step / steps)
        chosen = random.sample(range(pictures), batch)
        outputs = projector(torch.cat([features[index] for index in chosen])).split(
            [len(features[index]) for index in chosen]
        )
        losses = []
        for index, output in zip(chosen, outputs, strict=True):
            for name, value in seen[index].facts.items():
                values = VALUES[seen[index].source, name]
                scores = _scores(output, words[name], torch.stack([words[one] for one in values]))
                losses.append(cross_entropy(scores, torch.tensor(values.index(value))))
                if step >= 0.8 * steps:
                    right = float(scores.argmax() == values.index(value))
                    tally.setdefault(f"{seen[index].source} {name}", []).append(right)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        output = projector(torch.cat(features[: 10 * batch]))
        projector.linear_2.weight.mul_(table.std() / output.std())
        projector.linear_2.bias.mul_(table.std() / output.std()).add_(table.mean(0))
    return {name: round(sum(values) / len(values), 3) for name, values in sorted(tally.items())}


def _features(model: Any, processor: Any, one: Picture) -> Tensor:
    """What the projector is given, `[patch, hidden]` of all tiles."""
    pixels = processor.image_processor([one.image], return_tensors="pt")["pixel_values"][0]
    tower = model.model.vision_tower
    seen = tower(pixels.to(tower.dtype), output_hidden_states=True).hidden_states
    return seen[model.config.vision_feature_layer][:, 1:].flatten(0, 1).float()


def _scores(output: Tensor, name: Tensor, values: Tensor) -> Tensor:
    """One score a value: log-sum-exp over patches of how far a patch points to the name and to the value together."""
    output = normalize(output, dim=-1)
    return torch.logsumexp(SHARPNESS * ((output @ name)[:, None] + output @ values.T), dim=0)


def _words(tokenizer: Any, table: Tensor) -> dict[str, Tensor]:
    """A direction for every name and value: its tokens' embeddings without the mean of all, averaged, of length 1."""
    centre = table.mean(0)
    texts = {text for (_, name), values in VALUES.items() for text in (name, *values)}
    found = {}
    for text in sorted(texts):
        ids = tokenizer(f" {text}", add_special_tokens=False).input_ids
        # The token of a space alone precedes digits and says nothing.
        ids = [one for one in ids if tokenizer.decode([one]).strip()] or ids
        found[text] = normalize((table[ids] - centre).mean(0), dim=0)
    return found
