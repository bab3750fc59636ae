"""Entropy: how sure the layers are of the next token, by layer and kind of token (Figure 7, Table 9; section 4.2.3).

Layer 0 is the embedding; the last layer's state is normed once and unembedded, which is the model's output. Logits of
the lens exist for at most 256 positions at a time: 256 x vocabulary float32 beyond the forward pass itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions import batch_field, lens_entropy, reads
from mmneuron_lens.artifacts.counts import BUCKETS
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.batching.batches import Step, ids_of, one_domain, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, add, by_group, gather
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.finite import refuse_not_finite

READ_AT = ("llm.embedding", "llm.residual")
"""Layer 0 and the layers after it."""

CONFIDENT = 0.4
"""Section 4.2.3: the most likely next token of an image token stays under 40 %."""

KINDS = ("image", "text")

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
        "sum": (best[:, None] * counted).masked_fill(counted == 0, 0).sum(0),
        "below": ((best < below)[:, None] * counted).sum(0),
        "tokens": counted.sum(0),
    }


def read_entropy(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    fitted: JacobianLens | None = None,
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> Entropies:
    """The entropies of one domain's questions: one forward a batch.

    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`.
    - fitted: a Jacobian lens of this model, of whose distributions the entropy is; the logit lens unless given.
    - keeper: where the batches that are done are kept; memory unless given.

    Raises `InvalidValue` for samples of several domains or none, or a lens of another model, `NotFinite` for hidden
    states that are infinite or NaN.
    """
    domain = one_domain(samples, "entropies")
    read = lens_entropy.at(READ_AT) if fitted is None else fitted.bound_entropy(lens).named("lens_entropy")
    graph, left = read | top_one, LeftOut(problems)
    asked, put = asked_as(lens, askable(lens, samples, prompt, problems), prompt, frames, prompt_form)

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, prompt, left, opened, frames, prompt_form)
        if batch is None:
            return Piece(step.group, {})
        out = lens.run(graph, batch)
        found = {name: value[: len(KINDS)].double().cpu() for name, value in out["top_one", "llm.logits"].items()}
        means = torch.cat([out["lens_entropy", READ_AT[0]][None], out["lens_entropy", READ_AT[1]]])
        # A mean times its weight is the sum again; a kind without tokens has none, and its mean is 0 / 0.
        absent = found["tokens"] == 0
        entropy = (means[:, : len(KINDS)].cpu() * found["tokens"]).masked_fill(absent, 0)
        refuse_not_finite(READ_AT[0], entropy[:1], lens.dtype, layered=False)
        refuse_not_finite(READ_AT[1], entropy[1:], lens.dtype, layered=True)
        refuse_not_finite("llm.logits", found["sum"], lens.dtype, layered=False)
        return Piece(step.group, {**found, "entropy": entropy}, ids_of(kept))

    steps = steps_of(sized(asked, problems), batch_size)
    held = gather(
        steps, run, add, keeper=keeper or Memory(), left=left, title=f"entropy of {domain}", progress=progress
    )  # fmt: skip
    buckets = {group: piece.tensors for group, piece in by_group(held, add).items() if piece.tensors}
    some = next(iter(buckets.values()))
    total = {
        name: torch.zeros(BUCKETS, *value.shape, dtype=torch.float64, device="cpu") for name, value in some.items()
    }
    for group, values in buckets.items():
        for name, value in values.items():
            total[name][group] = value
    facts: dict[str, Any] = {"prompt": prompt, "batch size": batch_size, "below": CONFIDENT, "unit": "nats"}
    facts |= put | ({} if fitted is None else {"lens": fitted.kind})
    return Entropies(
        model=lens.name,
        domain=domain,
        kinds=KINDS,
        entropy=total["entropy"],
        confidence=total["sum"],
        below=total["below"].long(),
        tokens=total["tokens"].long(),
        parameters={**facts, "questions": len(samples)},
        provenance=provenance(**lens.model.facts()),
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
