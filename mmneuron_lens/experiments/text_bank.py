"""The bank of text states: what texts leave in the residual stream at each of their tokens, after every layer.

After LatentLens (Krojer et al., arXiv 2602.00462), whose package was read for what it keeps: states of tokens in
context, the first of a text left out, one of equal prefixes. docs/lenses.md says what differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from interventions import Graph, Intervention, reads
from interventions.errors import InvalidValue
from interventions.sites import GROUP_KINDS
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.text_states import TextStates
from mmneuron_lens.batching.control_tokens import ControlTokens
from mmneuron_lens.batching.left_out import LeftOut, attributed
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.prompts import without_image_lines
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.knock_out import knocked_out
from mmneuron_lens.experiments.residual_stream import refuse_below
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_not_finite
from mmneuron_lens.runtime.readable_tokens import readable

MOST = 20_000
"""States of a bank: of 4,096 numbers they are 160 MB in float16."""

_SITE = "llm.residual"


@reads(_SITE, over="list")
def unit_states(
    hidden: Float[Tensor, "row token hidden"], chosen: Bool[Tensor, "row token"]
) -> Float[Tensor, "state hidden"]:
    """The states at some positions, each of length 1, row by row.

    - hidden: `[row, token, hidden]`
    - chosen: bool `[row, token]`

    Returns float16 `[state, hidden]`.
    """
    states = hidden[chosen.to(hidden.device)].float()
    return (states / states.norm(dim=-1, keepdim=True)).half()


def read_text_states(
    lens: Lens,
    texts: Sequence[str],
    *,
    most: int = MOST,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = quietly,
) -> TextStates:
    """A bank of the states of texts, after each layer of the language model: one forward for `batch_size` texts.

    - texts: as they are, without a prompt around them
    - most: states in the bank, of all layers together; more are drawn from, the same tokens at every layer
    - seed: of the draw

    Of a text the first token is left out, to which attention drains whatever it is; of equal beginnings, whose states
    are equal where attention is causal, the first is kept. A model that takes no text without an image reads a grey
    one, to which no text position may attend.

    Raises `InvalidValue` for no text, none of more than one token, one with a control token, or fewer states than
    layers; `NotFinite` for states that are infinite or NaN.
    """
    refuse_below(1, most=most, batch_size=batch_size)
    refuse_below(0, seed=seed)
    layers = lens.architecture.place(_SITE).layers or 1
    if most < layers:
        raise InvalidValue(f"most is {most}; a bank has at least a state of each of the {layers} layers.")
    kept = tuple(dict.fromkeys(text for text in texts if text.strip()))
    if not kept:
        raise InvalidValue("There is no text to make a bank of; give one.")
    control = ControlTokens(lens.processor)
    for text in kept:
        if token := control.first_in(text):
            raise InvalidValue(
                f"The text {text!r:.80} holds {token!r}, which this model's tokenizer reads as a control token; leave "
                "it out, as `texts_of` does."
            )
    generator, known = torch.Generator("cpu").manual_seed(seed), set[tuple[int, ...]]()
    states, tokens = list[Tensor](), list[tuple[int, int, str]]()
    starts = range(0, len(kept), batch_size)
    for number, start in enumerate(progress(starts, "states of texts")):
        batch, cut = _alone(lens, kept[start : start + batch_size])
        quota = (most // layers - len(tokens)) // (len(starts) - number)
        chosen, found = _drawn(lens, batch, known, quota, generator)
        if not found:
            continue
        out = lens.run(Graph((*cut, unit_states.bind(chosen=chosen))), batch)[unit_states.name, _SITE][0].cpu()
        refuse_not_finite(_SITE, out, lens.dtype, layered=True)
        states.append(out)
        tokens += [(start + row, place, token) for row, place, token in found]
    if not tokens:
        raise InvalidValue(f"None of {len(kept)} texts has more than one token; give longer ones.")
    text, place, names = zip(*tokens, strict=True)
    return TextStates(
        model=lens.name,
        fingerprint=lens.model.fingerprint,
        texts=kept,
        tokens=names * layers,
        states=torch.cat(states, 1).flatten(0, 1),
        layer=torch.arange(1, layers + 1, device="cpu").repeat_interleave(len(names)),
        text=torch.tensor(text, device="cpu").repeat(layers),
        place=torch.tensor(place, device="cpu").repeat(layers),
        parameters={
            "most": most,
            "seed": seed,
            "batch size": batch_size,
            "picture": _GREY if needs_picture(lens) else "",
        },
        provenance=provenance(**lens.model.facts()),
    )


def texts_of(lens: Lens, samples: Sequence[Sample], problems: Problems | None = None) -> list[str]:
    """Each question with its first answer as a text, but for those that hold a control token of this model.

    - problems: where samples are named whose text the model refuses, by a forward each few; none is tried without it
    """
    control = ControlTokens(lens.processor)
    by_text: dict[str, Sample] = {}
    for one in samples:
        by_text.setdefault(" ".join([without_image_lines(one.question)[0].strip(), *one.answers[:1]]), one)
    texts = [text for text in by_text if text.strip() and control.first_in(text) is None]
    if problems is None:
        return texts
    left, kept = LeftOut(problems), list[str]()
    for start in range(0, len(texts), _TRIED):

        def tried(some: Sequence[str]) -> bool:
            batch, cut = _alone(lens, some)
            lens.run(Graph(cut), batch)
            return True

        kept += attributed(texts[start : start + _TRIED], tried, left, by_text.__getitem__)[1]
    return kept


_TRIED = 32

_GREY = "a grey picture, to which no text position attends"


def needs_picture(lens: Lens) -> bool:
    """Whether the model takes no text without an image."""
    facts = lens.architecture.facts
    return not (facts["images_in_text"] and facts["text_only"])


def _alone(lens: Lens, texts: Sequence[str]) -> tuple[Batch, tuple[Intervention, ...]]:
    """The texts without anything to be seen, and what keeps it from being seen."""
    if not needs_picture(lens):
        return lens.encode([[] for _ in texts], list(texts)), ()
    grey = Image.fromarray(numpy.full((32, 32, 3), 127, dtype=numpy.uint8))
    batch = lens.encode([[grey] for _ in texts], list(texts))
    return batch, (knocked_out(lens, batch, queries="text", keys="image"),)


def _drawn(
    lens: Lens, batch: Batch, known: set[tuple[int, ...]], quota: int, generator: torch.Generator
) -> tuple[Bool[Tensor, "row token"], list[tuple[int, int, str]]]:
    """Which positions are kept, and of each the row, the number of the token in its text, and how it reads."""
    fields, ids = batch.fields["llm"], batch.inputs["input_ids"].cpu()
    text = ((fields["weight"] > 0) & fields["kind"][..., GROUP_KINDS["llm"].index("text")]).cpu()
    there: list[tuple[int, int, int]] = []
    for row in range(batch.rows):
        columns = text[row].nonzero().flatten().tolist()
        for place, column in enumerate(columns):
            prefix = tuple(ids[row, columns[: place + 1]].tolist())
            if place and prefix not in known:
                known.add(prefix)
                there.append((row, column, place))
    order = torch.randperm(len(there), generator=generator, device="cpu")[:quota].sort().values.tolist()
    chosen, found = torch.zeros_like(text), list[tuple[int, int, str]]()
    for row, column, place in (there[number] for number in order):
        chosen[row, column] = True
        found.append((row, place, readable(lens.processor.tokenizer, int(ids[row, column]))))
    return chosen, found
