"""Neighbours: which words in context an image token is nearest to, layer by layer.

After LatentLens (Krojer et al., arXiv 2602.00462): the state of a token, after any layer, is compared by cosine with
those of text tokens after all layers, and the nearest ones name it. docs/lenses.md says what differs from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interventions import reads
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.fitted_model import refuse_other_model
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.neighbours import Neighbours, TextPlace
from mmneuron_lens.artifacts.positions import Position
from mmneuron_lens.artifacts.text_states import TextStates
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.entropy import READ_AT
from mmneuron_lens.experiments.trace import one_question
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.finite import refuse_not_finite

_CHUNK = 256


@reads(*READ_AT, over="list")
def nearest_states(
    hidden: Float[Tensor, "row token hidden"],
    states: Float[Tensor, "state hidden"],
    top_k: int = 5,
    chunk: int = _CHUNK,
) -> dict[str, Tensor]:
    """The nearest of some states to each position's, by cosine.

    - hidden: `[row, token, hidden]`
    - states: `[state, hidden]`
    - top_k: how many
    - chunk: cosines exist for at most so many positions at a time

    Returns `states` int64 and `cosines` float32 `[row, token, top_k]`, nearest first.
    """
    bank = torch.nn.functional.normalize(states.to(hidden.device).float(), dim=-1)
    asked = torch.nn.functional.normalize(hidden.float(), dim=-1).flatten(0, -2)
    found = [(some @ bank.T).topk(top_k, dim=-1) for some in asked.split(chunk)]
    where = hidden.shape[:-1]
    return {
        "states": torch.cat([one.indices for one in found]).unflatten(0, where),
        "cosines": torch.cat([one.values for one in found]).unflatten(0, where),
    }


def read_neighbours(
    lens: Lens,
    sample: Sample,
    bank: TextStates,
    *,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    top_k: int = 5,
    positions: Sequence[Position] | Literal["paper"] | None = None,
) -> Neighbours:
    """The nearest neighbours in a bank of every position of a question, or only of `positions`, at every layer.

    - bank: of `text_bank.read_text_states` on this model
    - top_k: how many neighbours
    - prompt, frames, prompt_form, positions: as of `trace_sample`

    Raises as `trace_sample` does, and `InvalidValue` for a bank of another model or of fewer states than `top_k`.
    """
    refuse_other_model("bank of text states", bank.model, bank.fingerprint, lens)
    if not 1 <= top_k <= len(bank.tokens):
        raise InvalidValue(f"top_k is {top_k}; give 1 to {len(bank.tokens)}, the number of states in the bank.")
    one = one_question(lens, sample, prompt, frames, prompt_form, positions)
    read = nearest_states.bind(states=bank.states, top_k=top_k).at(READ_AT, positions=one.chosen)
    out = lens.run(read, one.batch)
    embedded, layers = (out[read.name, site][0] for site in READ_AT)
    refuse_not_finite(READ_AT[0], embedded["cosines"], lens.dtype, layered=False)
    refuse_not_finite(READ_AT[1], layers["cosines"], lens.dtype, layered=True)
    found = {name: torch.cat([embedded[name][None], layers[name]])[:, 0].cpu() for name in embedded}
    return Neighbours(
        model=lens.name,
        domain=sample.domain,
        id=sample.id,
        question=sample.question,
        layers=("embedding", *map(str, range(1, len(found["states"])))),
        labels=one.labels,
        kinds=one.kinds,
        states=found["states"],
        cosines=found["cosines"].clamp(-1, 1),
        found={str(state): _place(bank, state) for state in sorted(set(found["states"].flatten().tolist()))},
        parameters={
            **{"prompt": prompt, "top k": top_k, "positions": "all" if positions is None else one.chosen, **one.put},
            **{"states in the bank": len(bank.tokens), "texts in the bank": len(bank.texts)},
        },
        provenance=provenance(**lens.model.facts()),
    )


def _place(bank: TextStates, state: int) -> TextPlace:
    text = bank.texts[int(bank.text[state])]
    return {
        "token": bank.tokens[state],
        "layer": int(bank.layer[state]),
        "text": text,
        "place": int(bank.place[state]),
    }
