"""Read: what the language model's layers say about image and text tokens, by the logit lens (sections 3.3, 4.2.3).

`trace_sample` decodes every chosen position of one question at every layer (Figures 6 and 10 to 13); `read_entropy`
averages the entropy of the decoded distributions by layer and kind of token (Figure 7, Table 9). Layer 0 is the
embedding; the last layer's state is normed once and unembedded, which is the model's output. Logits of the lens exist
for at most 256 positions at a time, so memory is bounded by 256 x vocabulary float32 beyond the forward pass itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from interventions import batch_field, lens_entropy, logit_lens, reads
from interventions.errors import InvalidValue, OutOfRange
from mmneuron_lens.artifacts.counts import BUCKETS
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.batching.batches import (
    Progress,
    Prompt,
    batches,
    encode,
    model_facts,
    model_kind,
    prompt_of,
    quietly,
    sized,
)
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.patches import boxes_of

READ_AT = ("llm.embedding", "llm.residual")
"""Layer 0 and the layers after it."""

SHOWN_PIXELS = 384
"""The longer side, at most, of the image that a trace keeps to be looked at."""

CONFIDENT = 0.4
"""Section 4.2.3: the most likely next token of an image token stays under 40 %."""

_CHUNK = 256


@reads("llm.logits", over="sum", weight=batch_field("weight"), kind=batch_field("kind"))
def top_one(
    logits: Float[Tensor, "*where vocabulary"],
    weight: Int[Tensor, "*where"],
    kind: Bool[Tensor, "*where kind"],
    below: float = CONFIDENT,
) -> dict[str, Tensor]:
    """The most likely next token's probability by kind of position: its `sum`, how often it is `below`, `tokens`."""
    rows = logits.flatten(0, -2).split(_CHUNK)
    best = torch.cat([row.float().log_softmax(-1).amax(-1).exp() for row in rows]).double()
    counted = (weight[..., None] * kind).flatten(0, -2)
    return {
        "sum": (best[:, None] * counted).sum(0),
        "below": ((best < below)[:, None] * counted).sum(0),
        "tokens": counted.sum(0),
    }


def trace_sample(
    lens: Lens,
    sample: Sample,
    *,
    prompt: Prompt = "evaluation",
    top_k: int = 5,
    positions: Sequence[int] | None = None,
) -> LensTrace:
    """What every position of a question decodes to at every layer, or only `positions` (columns of the prompt).

    Negative positions count from the end. Raises `ValueError` for an image that cannot be read, `IndexError` for a
    position that the prompt does not have.
    """
    batch, _ = encode(lens, [sample], prompt)
    assert batch is not None
    length = batch.inputs["input_ids"].shape[1]
    chosen = list(range(length)) if positions is None else list(positions)
    wrong = [place for place in chosen if not -length <= place < length]
    if wrong:
        raise OutOfRange(f"positions {wrong} are not in this prompt of {length} tokens.")
    chosen = sorted({place % length for place in chosen})
    out = lens.run(logit_lens.at(READ_AT, positions=chosen).bind(top_k=top_k), batch)
    embedded, layers = (out["logit_lens", site][0] for site in READ_AT)
    read = {name: torch.cat([embedded[name][None], layers[name]])[:, 0].cpu() for name in embedded}
    words = {
        token: _word(lens, int(token)) for token in sorted({str(one) for one in read["tokens"].flatten().tolist()})
    }
    return LensTrace(
        model=model_facts(lens)["model id"],
        domain=sample.domain,
        id=sample.id,
        question=sample.question,
        prompt=prompt_of(lens, sample, prompt),
        expected=sample.answers,
        layers=("embedding", *map(str, range(1, len(read["tokens"])))),
        labels=tuple(_labels(lens, batch)[place] for place in chosen),
        kinds=tuple(batch.kind[0][place] for place in chosen),
        tokens=read["tokens"],
        probabilities=read["probabilities"].float(),
        entropy=read["entropy"].float(),
        boxes=boxes_of(batch)[chosen],
        pictures=tuple(_small(picture) for picture in _seen(lens, sample)),
        words=words,
        parameters={"prompt": prompt, "top k": top_k, "positions": "all" if positions is None else chosen},
        provenance=provenance(**model_facts(lens)),
    )


def read_entropy(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> Entropies:
    """The entropies of one domain's questions: one forward a batch. Raises `ValueError` for several domains or none."""
    domains = sorted({sample.domain for sample in samples})
    if len(domains) != 1:
        raise InvalidValue(f"entropies are of one domain, and these {len(samples)} samples are of {domains or 'none'}.")
    kinds = ("image", "text")
    layers = 1 + (lens.architecture.place(READ_AT[1]).layers or 1)
    entropy = torch.zeros(BUCKETS, layers, len(kinds), dtype=torch.float64)
    found = {name: torch.zeros(BUCKETS, len(kinds), dtype=torch.float64) for name in ("sum", "below", "tokens")}
    graph = lens_entropy.at(READ_AT) | top_one
    made = progress(batches(sized(samples, problems), batch_size), f"entropy of {domains[0]}")
    for bucket, group in groupby(made, key=lambda one: one[0]):
        out = lens.run(graph, _encoded(lens, group, prompt, problems))
        if not out:
            continue
        for name, value in out["top_one", "llm.logits"].items():
            found[name][bucket] = value[: len(kinds)].cpu()
        means = torch.cat([out["lens_entropy", READ_AT[0]][None], out["lens_entropy", READ_AT[1]]])
        # A mean times its weight is the sum again; a kind without tokens has none.
        entropy[bucket] = (means[:, : len(kinds)].cpu() * found["tokens"][bucket]).nan_to_num(0.0)
    if not float(found["tokens"].sum()):
        raise InvalidValue(f"no sample of {domains[0]} could be read; see the problems of its rows.")
    facts = {"prompt": prompt, "batch size": batch_size, "below": CONFIDENT, "unit": "nats"}
    return Entropies(
        model=model_facts(lens)["model id"],
        domain=domains[0],
        kinds=kinds,
        entropy=entropy,
        confidence=found["sum"],
        below=found["below"].long(),
        tokens=found["tokens"].long(),
        parameters={**facts, "questions": len(samples)},
        provenance=provenance(**model_facts(lens)),
    )


def entropy_rows(found: Sequence[Entropies]) -> list[dict[str, Any]]:
    """Figure 7 and Table 9 as rows: model, domain, kind, layer (0 is the embedding), entropy (nats), tokens."""
    return [
        {"model": one.model, "domain": one.domain, "kind": kind, "layer": layer}
        | {"entropy": float(value), "tokens": int(one.tokens[:, number].sum())}
        for one in found
        for number, kind in enumerate(one.kinds)
        for layer, value in enumerate(one.mean()[:, number].tolist())
    ]


def _encoded(lens: Lens, group: Any, prompt: Prompt, problems: Problems | None) -> Iterator[Batch]:
    for _, some in group:
        batch, _ = encode(lens, some, prompt, problems)
        if batch is not None:
            yield batch


def _word(lens: Lens, token: int) -> str:
    """A token as it reads. One of space alone is drawn; one that is no whole character has its vocabulary's name."""
    tokenizer = lens.processor.tokenizer
    text = tokenizer.decode([token])
    if not text.strip():
        text = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    readable = text.strip().isprintable() and "\ufffd" not in text
    return text.strip() if text and readable else str(tokenizer.convert_ids_to_tokens([token])[0])


def _labels(lens: Lens, batch: Batch) -> list[str]:
    ids = batch.inputs["input_ids"][0].tolist()
    return [
        name if kind == "image" else _word(lens, token)
        for name, kind, token in zip(batch.tokens[0], batch.kind[0], ids, strict=True)
    ]


def _seen(lens: Lens, sample: Sample) -> list[Image.Image]:
    """The images that the model is given; see `asking.encode`."""
    decoded = open_images(sample) or []
    return [decoded[len(decoded) // 2]] if model_kind(lens) == "instructblip" and decoded else decoded


def _small(picture: Image.Image) -> Tensor:
    shown = picture.copy()
    shown.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    return torch.from_numpy(numpy.array(shown))
