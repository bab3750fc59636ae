"""Compare: what changing the neurons of several methods does to each question, beside as many random ones.

The measure is the log-probability of the right answer, teacher-forced: accuracy saturates. It comes, with how far the
last hidden state moves, from one forward a batch and condition; accuracy, where it is asked for, from generations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions import Graph, batch_field, reads, value_of
from interventions.sites import SITES
from interventions.targets import answer_log_probability
from mmneuron_lens.artifacts.answers import Answer
from mmneuron_lens.artifacts.comparison import OFF, Compared, NeuronComparison
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.batching.answer_tokens import unanswerable
from mmneuron_lens.batching.batches import Step, ids_of, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, by_group, concatenate, gather
from mmneuron_lens.batching.left_out import LeftOut, raise_none_left
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.evaluation.accuracy import is_right
from mmneuron_lens.experiments.ablate import generation_settings
from mmneuron_lens.experiments.conditions import Off, tensors_digest
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.compared import NeuronSet
from mmneuron_lens.runtime.finite import refuse_not_finite

AT = (0.01,)
"""The fraction at which accuracy and amplification are looked at unless others are asked for."""


@reads("llm.norm", over="list", before=value_of(source=True), weight=batch_field("weight"))
def state_change(
    hidden: Float[Tensor, "row token hidden"],
    before: Float[Tensor, "row token hidden"],
    weight: Int[Tensor, "row token"],
    prompt: int,
) -> Float[Tensor, " row"]:
    """How far the state moves from that of the source batch: ||before - after|| / ||before|| over the prompt.

    - hidden, before: `[row, token, hidden]`
    - weight: int64 `[row, token]`, 0 at padding
    - prompt: positions of the prompt; the answer's come behind them
    """
    counts = (weight[:, :prompt] > 0)[..., None].to(hidden.device)
    first, second = before[:, :prompt].to(hidden.device).double() * counts, hidden[:, :prompt].double() * counts
    return ((first - second).flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1)).float()


def graph_of(one: NeuronSet) -> Graph:
    """A graph that multiplies these neurons by 1 + strength, at every position and step; empty where it changes none.

    Scaling the activation scales as much what the down projection is given, which is that times `up` where it is gated.
    """
    masks = {site: mask for site, mask in one.masks.items() if bool(mask.any())}
    if not masks or one.strength == 0:
        return Graph()
    layerless = [site for site in masks if not SITES[site].per_layer]
    off = Off() if one.strength == OFF else Off("scale", 1 + one.strength)
    return off.graph(masks, layerless)


def digest_of(one: NeuronSet) -> str:
    """The same for two sets that do the same to a model."""
    masks = {site: mask for site, mask in one.masks.items() if bool(mask.any())}
    strength = 0.0 if not masks else one.strength
    return hashlib.sha256(f"{strength} {tensors_digest(masks if strength else {})}".encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class AskedUnder:
    """Which domains' questions are asked under which conditions, bool [condition, domain].

    - read: the answer's log-probability is read. said: an answer is generated.
    """

    read: Bool[Tensor, "condition domain"]
    said: Bool[Tensor, "condition domain"]


def asked_under(
    sets: Sequence[NeuronSet],
    domains: Sequence[str],
    others: Sequence[float] | None = None,
    accuracy: Sequence[float] = (),
) -> AskedUnder:
    """A method's neurons are tried on their own domain's questions, and on those of every other domain at the fractions
    `others` (all if None); answers are generated at `accuracy`, of the own domain, with the neurons off. Draws are
    tried on the questions of what is matched to them.
    """
    read = torch.zeros(len(sets), len(domains), dtype=torch.bool, device="cpu")
    said = torch.zeros_like(read)
    for place, one in enumerate(sets):
        if one.draw:
            continue
        own = torch.tensor([one.domain == domain for domain in domains], device="cpu")
        everywhere = others is None or one.fraction in others
        for number in (place, *one.draws):
            read[number] |= torch.ones_like(own) if everywhere else own
            if one.fraction in accuracy and one.strength == OFF:
                said[number] |= own
    return AskedUnder(read, said)


def compare(
    lens: Lens,
    sets: Sequence[NeuronSet],
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    methods: Sequence[str],
    domains: Sequence[str],
    others: Sequence[float] | None = None,
    accuracy: Sequence[float] = (),
    batch_size: int = 32,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    overlaps: Sequence[Mapping[str, Any]] = (),
    parameters: Mapping[str, Any] | None = None,
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
    **generation: Any,
) -> NeuronComparison:
    """Asks every question under every condition: few forwards a batch, and one for conditions that do the same.

    - sets: as `neurons.compared.with_draws` and `with_strengths` give them. domains: theirs; questions of others are
      refused.
    - others, accuracy: see `asked_under`.
    - frames, prompt_form: how questions are asked; see `batching.encoding.encode`.
    - keeper: where the batches that are done are kept; memory unless given.
    - generation: settings of `generate`, over greedy decoding of at most 16 new tokens.

    Raises `InvalidValue` where no question can be asked, `NotFinite` for log-probabilities that are infinite or NaN.
    """
    settings, left = generation_settings(generation), LeftOut(problems)
    asked = asked_under(sets, domains, others, accuracy)
    room = settings["max_new_tokens"] if bool(asked.said.any()) else 0
    how: dict[str, Any] = {"frames": frames, "prompt_form": prompt_form}
    steps, put = _steps(lens, samples_by_domain, domains, batch_size, left, {**how, "new_tokens": room})
    trial = _Trial(lens, sets, asked, settings)

    def run(step: Step, opener: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, "evaluation", left, opener, **how, answered=True)
        if batch is None:
            return Piece(step.group, {})
        found = trial.read(batch, step.group)
        if bool(asked.said[:, step.group].any()):
            prompts, _ = encode(lens, kept, "evaluation", left, opener, **how, new_tokens=room)
            found |= trial.said(prompts, kept, step.group)
        return Piece(step.group, found, ids_of(kept))

    title = f"comparing {', '.join(methods)} under {len(sets)} conditions"
    held = gather(steps, run, concatenate, keeper=keeper or Memory(), left=left, title=title, progress=progress)
    pieces = by_group(held, concatenate)
    questions = tuple((domains[group], name) for group in sorted(pieces) for name in pieces[group].seen)
    values = {name: _joined(pieces, name) for name in ("before", "change", "deviation", "right_before", "right")}
    group = torch.tensor([domains.index(domain) for domain, _ in questions], dtype=torch.int64, device="cpu")
    for name, there in (("change", asked.read), ("deviation", asked.read), ("right", asked.said)):
        values[name] = values[name].masked_fill(~there[:, group], torch.nan)
    values["right_before"] = values["right_before"].masked_fill(~asked.said.any(0)[group], torch.nan)
    facts: dict[str, Any] = {"prompt": "evaluation", "batch size": batch_size, **put, **(parameters or {})}
    return NeuronComparison(
        model=lens.name,
        domains=tuple(domains),
        methods=tuple(methods),
        conditions=tuple(_told(one) for one in sets),
        questions=questions,
        overlaps=tuple(dict(one) for one in overlaps),
        parameters=facts,
        provenance=provenance(**lens.model.facts()),
        **values,
    )


def _steps(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    domains: Sequence[str],
    batch_size: int,
    left: LeftOut,
    how: Mapping[str, Any],
) -> tuple[list[Step], dict[str, Any]]:
    """Batches, each of one domain, whose number is their group; and what an artifact says of how they are asked."""
    steps, put = list[Step](), dict[str, Any]()
    for number, domain in enumerate(domains):
        for sample in (samples := samples_by_domain.get(domain, [])):
            if says := unanswerable(sample):
                left.add_sample(sample, says)
        answered = [one for one in samples if not left.holds(one)]
        shown, told = asked_as(lens, askable(lens, answered, "evaluation", left), "evaluation", **how)
        put |= {f"{name}, {domain}" if name.startswith("frames") else name: value for name, value in told.items()}
        some = steps_of(sized(shown, left), batch_size, buckets=False)
        steps += [Step(number, one.samples) for one in some]
    if not steps:
        everything = [one for samples in samples_by_domain.values() for one in samples]
        raise_none_left(everything, left.reason(everything[0]) if everything else "there are none", left.cause)
    return steps, put


class _Trial:
    """The conditions, and what a batch of a domain comes to under those that it is asked under."""

    def __init__(self, lens: Lens, sets: Sequence[NeuronSet], asked: AskedUnder, settings: Mapping[str, Any]) -> None:
        self.lens, self.asked, self.settings = lens, asked, dict(settings)
        self.digests = [digest_of(one) for one in sets]
        self.graphs = {digest: graph_of(one) for digest, one in zip(self.digests, sets, strict=True)}

    def read(self, batch: Any, group: int) -> dict[str, Tensor]:
        """The log-probability of each answer as it is, its change and that of the last state under each condition."""
        needed = self._needed(self.asked.read[:, group])
        reading = answer_log_probability | state_change.bind(prompt=batch.prompt_length)
        graphs = [Graph() | reading, *(self.graphs[digest] | reading for digest in needed)]
        found = self.lens.run(graphs, batch, sources=batch)
        likely = torch.stack([out["answer_log_probability"][0].float().cpu() for out in found])
        moved = torch.stack([out["state_change"][0].float().cpu() for out in found])
        refuse_not_finite("llm.logits", likely, self.lens.dtype, layered=False)
        refuse_not_finite("llm.norm", moved, self.lens.dtype, layered=False)
        change = likely[1:] - likely[:1]
        spread = self._spread
        return {"before": likely[0], "change": spread(needed, change), "deviation": spread(needed, moved[1:])} | {
            "right_before": torch.zeros_like(likely[0]),
            "right": change.new_zeros(len(self.digests), change.shape[1]),
        }

    def said(self, batch: Any, samples: Sequence[Sample], group: int) -> dict[str, Tensor]:
        """Whether each generated answer is right, as it is and under each condition."""
        needed = self._needed(self.asked.said[:, group])
        graphs = [Graph(), *(self.graphs[digest] for digest in needed)]
        found = self.lens.generate(graphs, batch, **self.settings)
        right = torch.tensor(
            [[float(_right(sample, text)) for sample, text in zip(samples, out.text, strict=True)] for out in found],
            dtype=torch.float32,
            device="cpu",
        )
        return {"right_before": right[0], "right": self._spread(needed, right[1:])}

    def _needed(self, there: Bool[Tensor, " condition"]) -> list[str]:
        """The digests of these conditions, each once."""
        return list(dict.fromkeys(digest for digest, is_there in zip(self.digests, there, strict=True) if is_there))

    def _spread(self, needed: Sequence[str], values: Float[Tensor, "some question"]) -> Float[Tensor, "..."]:
        """The values by condition, 0 where a condition is none of these."""
        where = {digest: number for number, digest in enumerate(needed)}
        full = values.new_zeros(len(self.digests), values.shape[1])
        for place, digest in enumerate(self.digests):
            if digest in where:
                full[place] = values[where[digest]]
        return full


def _right(sample: Sample, text: str) -> bool:
    shown = (sample.domain, sample.id, sample.question, sample.answers, text)
    return is_right(Answer("", "", "", "", *shown, options=sample.options))


def _joined(pieces: Mapping[int, Piece], name: str) -> Tensor:
    return torch.cat([pieces[group].tensors[name] for group in sorted(pieces) if pieces[group].seen], dim=-1)


def _told(one: NeuronSet) -> Compared:
    return Compared(
        one.method, one.domain, one.fraction, one.neurons, one.wanted, one.strength, one.draw, one.draws, one.taken
    )
