"""Deviate: how far the last hidden state moves when a domain's neurons are off (section 4.2.2, Table 3).

The deviation of a question is the Frobenius norm of the difference over that of the undisturbed state, over the
positions of its prompt that are not padding, on the evaluation prompt, without generation. Three measures come from
the same forward passes: after the final norm (the paper's hidden state of the last layer), before it, and at the last
position alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions import Graph, keep, last_hidden_state
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM
from mmneuron_lens.artifacts.deviations import MEASURES, Deviations
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.batches import Progress, Prompt, batches, encode, model_facts, quietly, sized
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.ablate import Condition, Off, conditions_of, modules_of
from mmneuron_lens.lens import Lens
from mmneuron_lens.metrics.intervals import mean_interval
from mmneuron_lens.runtime.batch import Batch

BY_LAYER = f"{RANDOM} by layer"
"""Draws that match the number of neurons in every layer, not only in the module."""


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
    lens: Lens, selection: Selection, domain: str, random_draws: int = 5, seed: int = 0, off: Off | None = None
) -> list[Condition]:
    """Each module's neurons off and all of them, and beside each as many random ones, matched by module (the paper's
    "Random") and, for all modules together, by layer.
    """
    shared: dict[str, Any] = {"random_draws": random_draws, "seed": seed, "off": off}
    modules = (*modules_of(selection), ALL)
    made = conditions_of(lens, selection, domain, modules=modules, match="module", **shared)
    stricter = conditions_of(lens, selection, domain, match="layer", **shared)
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
    selection_id: str = "",
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> Deviations:
    """The deviations of one domain's questions. One forward a batch and condition; one batch is held at a time.

    off: how neurons are switched, zero unless given. Raises `ValueError` for samples of several domains or none that
    can be read, and as `conditions_of` does.
    """
    domains = sorted({sample.domain for sample in samples})
    if len(domains) != 1:
        raise InvalidValue(
            f"deviations are of one domain, and these {len(samples)} samples are of {domains or 'none'}."
        )
    conditions = deviation_conditions(lens, selection, domains[0], random_draws, seed, off)
    made = batches(sized(samples, problems), batch_size, buckets=False)
    found: dict[str, list[Tensor]] = {measure: [] for measure in MEASURES}
    ids: list[str] = []
    for _, some in progress(made, f"deviation of {domains[0]} under {len(conditions)} conditions"):
        batch, kept = encode(lens, some, prompt, problems)
        if batch is None:
            continue
        ids += [sample.id for sample in kept]
        undisturbed = _states(lens, batch, Graph())
        rows = [_compared(undisturbed, _states(lens, batch, one.graph), batch) for one in conditions]
        for measure in MEASURES:
            found[measure].append(torch.stack([row[measure] for row in rows]))
    if not ids:
        raise InvalidValue(f"no sample of {domains[0]} could be read; see the problems of its rows.")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    facts = {"prompt": prompt, "batch size": batch_size, "random draws": random_draws, "seed": seed}
    return Deviations(
        model=selection.model,
        domain=domains[0],
        conditions=tuple((one.module, one.condition) for one in conditions),
        samples=tuple(ids[place] for place in order),
        values={measure: torch.cat(parts, dim=1)[:, order] for measure, parts in found.items()},
        parameters={**facts, "off": (off or Off()).described, "selection": selection_id},
        provenance=provenance(**model_facts(lens)),
    )


def deviation_rows(
    found: Sequence[Deviations], measure: Literal["after norm", "before norm", "last position"] = "after norm"
) -> list[dict[str, Any]]:
    """Table 3 as rows: model, module, condition, domain, deviation, low, high (per cent), samples, spread.

    "random" and "random by layer" are means over their draws, `spread` the standard deviation between draws. The
    interval is over questions.
    """
    rows = []
    for one in found:
        names = dict.fromkeys(
            (module, name if name == DOMAIN else name.rpartition(" ")[0]) for module, name in one.conditions
        )
        for module, condition in names:
            values = 100 * one.of(module, condition, measure).numpy()
            low, high = mean_interval(values)
            draws = [
                float(100 * one.values[measure][number].mean())
                for number, (place, name) in enumerate(one.conditions)
                if place == module and name.rpartition(" ")[0] == condition
            ]
            spread = float(numpy.std(draws, ddof=1)) if len(draws) > 1 else None
            row = {"model": one.model, "module": module, "condition": condition, "domain": one.domain}
            row |= {"deviation": float(values.mean()), "low": low, "high": high, "samples": len(values)}
            rows.append(row | {"spread": spread})
    return rows


def _states(lens: Lens, batch: Batch, graph: Graph) -> Mapping[str, Tensor]:
    before_norm = keep.at("llm.residual", layers=-1)
    out = lens.run(graph | last_hidden_state | before_norm, batch)
    return {"after norm": out["last_hidden_state", "llm.norm"][0], "before norm": out["keep", "llm.residual"][0][0]}


def _compared(first: Mapping[str, Tensor], second: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    weight = batch.fields["llm"]["weight"]
    found = {place: frobenius_ratio(first[place], second[place], weight).cpu() for place in first}
    # Prompts are padded on the left, so the last column is the last token of every row.
    after = MEASURES[0]
    last = frobenius_ratio(first[after][:, -1:], second[after][:, -1:], weight[:, -1:]).cpu()
    return found | {"last position": last}
