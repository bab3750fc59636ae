"""Domain probes: from which layer on a linear classifier tells the domain of a question, beside shuffled labels.

Read off the residual stream at the prompt's last position, and off its mean over image positions. A good probe says
what is there, not that the model uses it (Hewitt and Liang 2019, arXiv 1909.03368).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from interventions import Graph
from interventions.errors import InvalidValue
from interventions.sites import GROUP_KINDS
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.layer_probes import IMAGE, PLACES, LayerProbes
from mmneuron_lens.batching.batches import Step, ids_of, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, concatenate, gather
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.entropy import READ_AT
from mmneuron_lens.experiments.probes import column, cross_validated, mean_of_kind
from mmneuron_lens.lens import Lens
from mmneuron_lens.metrics.intervals import estimate
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_not_finite


def read_domain_probes(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    folds: int = 5,
    ridge: float = 0.1,
    shuffles: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> LayerProbes:
    """Probes of the domain at the embedding and after every layer: one forward a batch.

    - samples_by_domain: one question an image; images that several questions share would be on both sides of a fold
    - folds, ridge, shuffles, seed: as of `fit_probes`; fewer folds where a domain has fewer questions
    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`
    - batch_size: questions of a forward
    - keeper: where the batches that are done are kept; memory unless given
    - problems: where samples are named whose images cannot be read; without it the first raises `InvalidValue`
    - progress: wraps the batches that are gone through, such as in a bar; nothing is shown unless given

    Features of `[place, layer, question, hidden]` float32 are held until the probes are fitted.

    Raises `InvalidValue` for fewer than two domains or two questions of each that can be read, `NotFinite` for hidden
    states that are infinite or NaN.
    """
    if len(samples_by_domain) < 2:
        raise InvalidValue(f"domains are {', '.join(samples_by_domain) or 'none'}; a probe tells two or more apart.")
    left, steps, put = LeftOut(problems), list[Step](), dict[str, Any]()
    for number, samples in enumerate(samples_by_domain.values()):
        asked, told = asked_as(lens, askable(lens, samples, prompt, problems), prompt, frames, prompt_form)
        made = steps_of(sized(asked, problems), batch_size, buckets=False)
        steps += [Step(number, step.samples) for step in made]
        put |= told

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, prompt, left, opened, frames, prompt_form)
        if batch is None:
            return Piece(step.group, {})
        read = _features(lens, batch)
        refuse_not_finite(READ_AT[1], read, lens.dtype, layered=False)
        return Piece(step.group, {"states": read}, ids_of(kept))

    held = gather(
        steps, run, concatenate, keeper=keeper or Memory(), left=left, title="states for the probes", progress=progress
    )
    pieces = [one.piece for one in held if one.piece.tensors]
    labels = [list(samples_by_domain)[piece.group] for piece in pieces for _ in piece.seen]
    least = min((labels.count(domain) for domain in samples_by_domain), default=0)
    if least < 2:
        raise InvalidValue(f"some domain has {least} questions that can be read; a probe needs two of each or more.")
    states = torch.cat([piece.tensors["states"] for piece in pieces], -1)
    facts = {"folds": min(folds, least), "ridge": ridge, "shuffles": shuffles, "seed": seed}
    found = [cross_validated(place.transpose(1, 2), labels, **facts) for place in states]
    return LayerProbes(
        model=lens.name,
        classes=tuple(samples_by_domain),
        samples=tuple(name for piece in pieces for name in piece.seen),
        labels=tuple(labels),
        right=torch.stack([right for right, _ in found]),
        shuffled=torch.stack([shuffled for _, shuffled in found]),
        parameters={**facts, "prompt": prompt, "batch size": batch_size, **put},
        provenance=provenance(**lens.model.facts()),
    )


def _features(lens: Lens, batch: Batch) -> Float[Tensor, "place layer hidden row"]:
    reads = {
        place: mean_of_kind.bind(number=GROUP_KINDS["llm"].index(IMAGE)) if place == IMAGE else column.at(positions=-1)
        for place in PLACES
    }
    out = lens.run(Graph(tuple(read.at(READ_AT) for read in reads.values())), batch)
    whole = []
    for read in reads.values():
        first, rest = (out[read.name, site][0] for site in READ_AT)
        whole.append(torch.cat([first[None].float().cpu(), rest.float().cpu()]))
    return torch.stack(whole).transpose(2, 3).contiguous()


def probe_rows(found: Sequence[LayerProbes]) -> pl.DataFrame:
    """The probes as a table: model, place, layer (0 is the embedding), accuracy, low, high, shuffled, selectivity,
    chance, questions.

    - found: of `read_domain_probes`, one a model.

    Accuracies are in per cent, selectivity in points; low and high are a 95 % bootstrap interval over questions, of the
    probes as they are; chance is the share of the most frequent domain.
    """
    rows: list[dict[str, Any]] = []
    for one in found:
        chance = 100 * max(map(one.labels.count, one.classes)) / len(one.labels)
        for number, place in enumerate(PLACES):
            for layer, right in enumerate(one.right[number]):
                told = estimate(right.double().tolist(), seed=int(one.parameters.get("seed", 0)))
                shuffled = 100 * float(one.shuffled[number, layer].mean())
                row = {"model": one.model, "place": place, "layer": layer, "accuracy": told.value, "low": told.low}
                row |= {"high": told.high, "shuffled": shuffled, "selectivity": told.value - shuffled}
                rows.append(row | {"chance": chance, "questions": told.questions})
    return pl.DataFrame(rows)
