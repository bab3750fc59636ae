"""Deviate: how far the last hidden state moves when a domain's neurons are off (section 4.2.2, Table 3).

The deviation of a question is the Frobenius norm of the difference over that of the undisturbed state, over the
positions of its prompt that are not padding, on the evaluation prompt, without generation. Three measures come from
the same forward passes: after the final norm (the paper's hidden state of the last layer), before it, and at the last
position alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions import Graph, keep, last_hidden_state
from mmneuron_lens.artifacts.answers import ALL, NONE, RANDOM
from mmneuron_lens.artifacts.deviations import BY_LAYER, MEASURES, Deviations
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.batches import Step, ids_of, one_domain, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, by_group, concatenate, gather
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.conditions import Condition, Off, conditions_of, modules_of
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_not_finite


def frobenius_ratio(
    before: Float[Tensor, "row token hidden"],
    after: Float[Tensor, "row token hidden"],
    weight: Int[Tensor, "row token"],
) -> Float[Tensor, " row"]:
    """||before - after|| / ||before|| of every row over its positions of weight above 0, in float64."""
    counts = (weight > 0)[..., None].to(before.device)
    first, second = before.double() * counts, after.double() * counts
    return (first - second).flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1)


def deviation_conditions(
    selection: Selection, domain: str, random_draws: int = 5, seed: int = 0, off: Off | None = None
) -> list[Condition]:
    """Each module's neurons off and all of them, and beside each as many random ones, matched by module (the paper's
    "Random") and, for all modules together, by layer.
    """
    modules = (*modules_of(selection), ALL)
    made = conditions_of(selection, domain, modules=modules, random_draws=random_draws, seed=seed, off=off)
    stricter = conditions_of(selection, domain, match="layer", random_draws=random_draws, seed=seed, off=off)
    made += [
        replace(one, condition=one.condition.replace(RANDOM, BY_LAYER)) for one in stricter if RANDOM in one.condition
    ]
    return [one for one in made if one.condition != NONE]


def deviate(
    lens: Lens,
    selection: Selection,
    samples: Sequence[Sample],
    *,
    random_draws: int = 5,
    seed: int = 0,
    off: Off | None = None,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    selection_id: str = "",
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> Deviations:
    """The deviations of one domain's questions: one forward a batch and condition; one batch is held at a time.

    - off: how neurons are switched, zero unless given.
    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`.
    - keeper: where the batches that are done are kept; memory unless given.

    Raises `InvalidValue` for samples of several domains or none that can be read, `NotFinite` for hidden states that
    are infinite or NaN, or all zero, and as `conditions_of` does.
    """
    domain = one_domain(samples, "deviations")
    conditions, left = deviation_conditions(selection, domain, random_draws, seed, off), LeftOut(problems)
    asked, put = asked_as(lens, askable(lens, samples, prompt, problems), prompt, frames, prompt_form)

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, prompt, left, opened, frames, prompt_form)
        if batch is None:
            return Piece(step.group, {})
        rows = _deviations(lens, batch, [one.graph for one in conditions])
        for site, measure in (
            ("llm.residual", "before norm"),
            ("llm.norm", "after norm"),
            ("llm.norm", "last position"),
        ):
            refuse_not_finite(site, torch.stack([row[measure] for row in rows]), lens.dtype, layered=False)
        return Piece(step.group, {name: torch.stack([row[name] for row in rows]) for name in MEASURES}, ids_of(kept))

    steps = steps_of(sized(asked, problems), batch_size, buckets=False)
    title = f"deviation of {domain} under {len(conditions)} conditions"
    held = gather(steps, run, concatenate, keeper=keeper or Memory(), left=left, title=title, progress=progress)
    total = by_group(held, concatenate)[0]
    order = sorted(range(len(total.seen)), key=total.seen.__getitem__)
    facts: dict[str, Any] = {"prompt": prompt, "batch size": batch_size, "random draws": random_draws, "seed": seed}
    facts |= put
    return Deviations(
        model=selection.model,
        domain=domain,
        conditions=tuple((one.module, one.condition) for one in conditions),
        samples=tuple(total.seen[place] for place in order),
        values={measure: values[:, order] for measure, values in total.tensors.items()},
        parameters={**facts, "off": (off or Off()).described, "selection": selection_id},
        provenance=provenance(**lens.model.facts()),
    )


AT_ONCE = 8
"""Conditions whose hidden states are held at once."""


def _deviations(lens: Lens, batch: Batch, graphs: Sequence[Graph]) -> list[dict[str, Tensor]]:
    """The measures of each graph on a batch; the undisturbed state is that of the first forward."""
    (undisturbed,) = _states(lens, batch, [Graph()])
    return [
        _compared(undisturbed, state, batch)
        for start in range(0, len(graphs), AT_ONCE)
        for state in _states(lens, batch, graphs[start : start + AT_ONCE])
    ]


def _states(lens: Lens, batch: Batch, graphs: Sequence[Graph]) -> list[Mapping[str, Tensor]]:
    reading = last_hidden_state | keep.at("llm.residual", layers=-1)
    return [
        {"after norm": out["last_hidden_state", "llm.norm"][0], "before norm": out["keep", "llm.residual"][0][0]}
        for out in lens.run([graph | reading for graph in graphs], batch)
    ]


def _compared(first: Mapping[str, Tensor], second: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    weight = batch.fields["llm"]["weight"]
    found = {place: frobenius_ratio(first[place], second[place], weight).cpu() for place in first}
    # Prompts are padded on the left, so the last column is the last token of every row.
    after = MEASURES[0]
    last = frobenius_ratio(first[after][:, -1:], second[after][:, -1:], weight[:, -1:]).cpu()
    return found | {"last position": last}
