"""Read: what the language model's layers say about image and text tokens, by the logit lens (sections 3.3, 4.2.3).

`trace_sample` decodes every chosen position of one question at every layer (Figures 6 and 10 to 13); `read_entropy`
averages the entropy of the decoded distributions by layer and kind of token (Figure 7, Table 9). Layer 0 is the
embedding; the last layer's state is normed once and unembedded, which is the model's output. Logits of the lens exist
for at most 256 positions at a time, so memory is bounded by 256 x vocabulary float32 beyond the forward pass itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Bool, Float, Float64, Int
from PIL import Image
from torch import Tensor

from interventions import batch_field, lens_entropy, logit_lens, reads
from interventions.errors import InvalidValue, OutOfRange, UnknownName
from mmneuron_lens.artifacts.counts import BUCKETS
from mmneuron_lens.artifacts.format import provenance, read_artifact, write_artifact
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
from mmneuron_lens.report import heat
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


@dataclass(frozen=True, eq=False)
class LensTrace:
    """What the tokens of one question decode to at every layer.

    - `tokens` int64, `probabilities` float32 [layer, position, k], best first; `entropy` float32 [layer, position], in
      nats. `layers`: "embedding", "1", "2", ...; `labels` and `kinds`: a name and "image" or "text" by position.
    - `boxes` float32 [position, 5]: image, left, top, right, bottom as shares of the image; NaN where a position is no
      part of the image. `pictures`: uint8 [height, width, 3], small copies to look at.
    - `words`: the vocabulary's text of every token in `tokens`. `expected`: the accepted answers.
    """

    model: str
    domain: str
    id: str
    question: str
    prompt: str
    expected: tuple[str, ...]
    layers: tuple[str, ...]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    tokens: Tensor
    probabilities: Tensor
    entropy: Tensor
    boxes: Tensor
    pictures: tuple[Tensor, ...]
    words: dict[str, str]
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def best(self, position: int, layer: int = -1) -> str:
        """The word that a position most probably continues with at a layer; Figure 6b's expected one is the last's."""
        return self.words[str(int(self.tokens[layer, position, 0]))]

    def last(self, kind: str) -> int:
        """The last position of a kind; `KeyError` names the kinds there are."""
        places = [place for place, name in enumerate(self.kinds) if name == kind]
        if not places:
            raise UnknownName(f"no {kind!r} position was read; choose from {', '.join(dict.fromkeys(self.kinds))}.")
        return places[-1]

    def position(self, kind: str, number: int) -> int:
        """The position of a kind by number, from 0; negative ones count from the end. `IndexError` names how many."""
        places = [place for place, name in enumerate(self.kinds) if name == kind]
        if not -len(places) <= number < len(places):
            raise OutOfRange(f"there are {len(places)} {kind} positions, no number {number}.")
        return places[number]

    def heat(self, position: int, even: bool = False) -> heat.Heat:
        """The heatmap of a position as in Figure 6: a row a layer, a column a rank. even: layers 2, 4, ... only."""
        rows = [row for row in range(len(self.layers)) if not even or (row > 0 and row % 2 == 0)]
        return heat.Heat(
            rows=tuple(f"layer {self.layers[row]}" if row else "embedding" for row in rows),
            words=tuple(tuple(self.words[str(token)] for token in self.tokens[row, position].tolist()) for row in rows),
            probabilities=tuple(tuple(self.probabilities[row, position].tolist()) for row in rows),
        )

    def document(self) -> dict[str, Any]:
        """Everything that the page's hover view shows, as JSON can hold it, words by their number in one list."""
        numbers = {token: number for number, token in enumerate(self.words)}
        return {
            "question": self.question,
            "expected": list(self.expected),
            "layers": list(self.layers),
            "labels": list(self.labels),
            "kinds": list(self.kinds),
            "boxes": [None if torch.isnan(box[0]) else [round(part, 5) for part in box.tolist()] for box in self.boxes],
            "words": list(self.words.values()),
            "tokens": [[[numbers[str(token)] for token in row] for row in layer] for layer in self.tokens.tolist()],
            # In thousandths, which is more than a colour shows.
            "probabilities": (1000 * self.probabilities).round().int().tolist(),
            "entropy": [[round(value, 2) for value in layer] for layer in self.entropy.tolist()],
        }

    def save(self, path: str | Path) -> None:
        """Writes an artifact of kind "lens trace"."""
        tensors = {name: getattr(self, name) for name in ("tokens", "probabilities", "entropy", "boxes")}
        tensors |= {f"picture/{number}": picture for number, picture in enumerate(self.pictures)}
        own = (name for name in self.__dataclass_fields__ if name not in tensors and name != "pictures")
        write_artifact(path, "lens trace", tensors, {name: getattr(self, name) for name in own})

    @classmethod
    def load(cls, path: str | Path) -> LensTrace:
        """Reads what `save` wrote; see `read_artifact` for what it refuses."""
        tensors, metadata = read_artifact(path, "lens trace")
        count = sum(name.startswith("picture/") for name in tensors)
        pictures = tuple(tensors.pop(f"picture/{number}") for number in range(count))
        own = {name: tuple(metadata[name]) for name in ("expected", "layers", "labels", "kinds")}
        return cls(**{**metadata, **own, **tensors, "pictures": pictures})

    def _repr_html_(self) -> str:
        shown = [self.position("image", 1 if self.kinds.count("image") > 1 else 0)] if "image" in self.kinds else []
        shown += [self.last("text")] if "text" in self.kinds else []
        parts = [heat.table(self.heat(place), f"{self.labels[place]} → {self.best(place)}") for place in shown]
        return f"<div>{''.join(parts)}</div>"


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


@dataclass(frozen=True, eq=False)
class Entropies:
    """Entropy of the next-token distribution in one domain, by layer and kind of token, in 16 buckets of images.

    - `entropy`: float64 [bucket, layer, kind], summed over tokens, in nats; layer 0 is the embedding.
    - `confidence`, `below`: float64 and int64 [bucket, kind] at the output: the sum of the most likely next token's
      probability, and how many tokens have it under `CONFIDENT`. `tokens`: int64 [bucket, kind].
    """

    model: str
    domain: str
    kinds: tuple[str, ...]
    entropy: Tensor
    confidence: Tensor
    below: Tensor
    tokens: Tensor
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def mean(self, buckets: Tensor | None = None) -> Float64[Tensor, "layer kind"]:
        """Token-weighted mean entropy, in nats; of these buckets (with repetition), if given. NaN without tokens."""
        chosen = torch.arange(len(self.tokens)) if buckets is None else buckets
        return self.entropy[chosen].sum(0) / self.tokens[chosen].sum(0)

    def save(self, path: str | Path) -> None:
        """Writes an artifact of kind "entropies"."""
        tensors = {name: getattr(self, name) for name in ("entropy", "confidence", "below", "tokens")}
        own = ("model", "domain", "kinds", "parameters", "provenance")
        write_artifact(path, "entropies", tensors, {name: getattr(self, name) for name in own})

    @classmethod
    def load(cls, path: str | Path) -> Entropies:
        """Reads what `save` wrote; see `read_artifact` for what it refuses."""
        tensors, metadata = read_artifact(path, "entropies")
        return cls(**{**metadata, "kinds": tuple(metadata["kinds"]), **tensors})


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
