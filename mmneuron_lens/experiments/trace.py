"""Trace: what every position of one question decodes to at every layer (Figures 6 and 10 to 13), by the logit lens or a
fitted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from PIL import Image
from torch import Tensor

from interventions import logit_lens
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.positions import Position, place_of, positions_of
from mmneuron_lens.artifacts.tuned_lens import TunedLens
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode, shown
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.prompting import Prompt, prompt_of
from mmneuron_lens.corpora.folder import open_images
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.entropy import READ_AT
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_not_finite
from mmneuron_lens.runtime.patches import boxes_of
from mmneuron_lens.runtime.readable_tokens import readable

SHOWN_PIXELS = 384
"""The longer side, at most, of the image that a trace keeps to be looked at."""


def trace_sample(
    lens: Lens,
    sample: Sample,
    *,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    top_k: int = 5,
    positions: Sequence[Position] | Literal["paper"] | None = None,
    fitted: JacobianLens | TunedLens | None = None,
) -> LensTrace:
    """What every position of a question decodes to at every layer, or only `positions`.

    - positions: columns of the prompt or names, see `artifacts.positions.place_of`; "paper": those that the paper shows
      of the question's domain.
    - fitted: a lens that was fitted on this model; the logit lens unless given

    Raises `InvalidValue` for an image or a text that the model cannot read, what is no position or a lens of another
    model, `OutOfRange` for a position that the prompt does not have, `NotFinite` for hidden states that are infinite or
    NaN.
    """
    read_by = logit_lens.at(READ_AT).bind(top_k=top_k) if fitted is None else fitted.bound(lens, top_k=top_k)
    one = one_question(lens, sample, prompt, frames, prompt_form, positions)
    out = lens.run(read_by.at(READ_AT, positions=one.chosen), one.batch)
    embedded, layers = (out[read_by.name, site][0] for site in READ_AT)
    refuse_not_finite(READ_AT[0], embedded["entropy"], lens.dtype, layered=False)
    refuse_not_finite(READ_AT[1], layers["entropy"], lens.dtype, layered=True)
    read = {name: torch.cat([embedded[name][None], layers[name]])[:, 0].cpu() for name in embedded}
    words = {
        token: readable(lens.processor.tokenizer, int(token))
        for token in sorted({str(one) for one in read["tokens"].flatten().tolist()})
    }
    asked, batch = one.asked, one.batch
    seen = shown(lens, asked, open_images(asked) or [], frames)[0] if asked.images else []
    return LensTrace(
        model=lens.name,
        domain=sample.domain,
        id=sample.id,
        question=sample.question,
        prompt=prompt_of(lens, asked, prompt, len(seen), prompt_form),
        expected=sample.answers,
        layers=("embedding", *map(str, range(1, len(read["tokens"])))),
        labels=one.labels,
        kinds=one.kinds,
        tokens=read["tokens"],
        probabilities=read["probabilities"].float(),
        entropy=read["entropy"].float(),
        boxes=boxes_of(batch)[one.chosen],
        pictures=tuple(_small(picture) for picture in seen),
        words=words,
        parameters={
            **{"prompt": prompt, "top k": top_k, "positions": "all" if positions is None else one.chosen, **one.put},
            **({} if fitted is None else {"lens": fitted.kind}),
        },
        provenance=provenance(**lens.model.facts()),
    )


@dataclass(frozen=True, eq=False)
class OneQuestion:
    """A question as a batch of one row.

    - asked: the sample with as many images as fit. put: what an artifact says of how it is asked.
    - chosen: columns of the prompt, in order; labels, kinds: a name and "image" or "text" of each.
    """

    asked: Sample
    put: dict[str, Any]
    batch: Batch
    chosen: list[int]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]


def one_question(
    lens: Lens,
    sample: Sample,
    prompt: Prompt,
    frames: Frames,
    prompt_form: PromptForm,
    positions: Sequence[Position] | Literal["paper"] | None,
) -> OneQuestion:
    """A question as it is asked, and the positions that are read of it; settings and errors as of `trace_sample`."""
    (asked,), put = asked_as(lens, askable(lens, [sample], prompt), prompt, frames, prompt_form)
    batch, _ = encode(lens, [asked], prompt, frames=frames, prompt_form=prompt_form)
    assert batch is not None
    named = positions_of(sample.domain) if positions == "paper" else positions
    kinds, labels = batch.kind[0], _labels(lens, batch)
    chosen = sorted({place_of(one, kinds) for one in (range(len(kinds)) if named is None else named)})
    return OneQuestion(
        asked, put, batch, chosen, tuple(labels[place] for place in chosen), tuple(kinds[place] for place in chosen)
    )


def _labels(lens: Lens, batch: Batch) -> list[str]:
    ids = batch.inputs["input_ids"][0].tolist()
    return [
        name if kind == "image" else readable(lens.processor.tokenizer, token)
        for name, kind, token in zip(batch.tokens[0], batch.kind[0], ids, strict=True)
    ]


def _small(picture: Image.Image) -> Tensor:
    shown = picture.copy()
    shown.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    return torch.from_numpy(numpy.array(shown))
