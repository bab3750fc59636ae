"""Count: how often each neuron is active in the samples of one domain, M and N of equation 4 (section 3.1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions import GROUP_KINDS, SITES, Graph, count_checked, count_positions
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import BUCKETS, LEFT_OUT, REASONS, Counts
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.reachability import UNREACHABLE, UnreachableLayers
from mmneuron_lens.batching.batches import Step, ids_of, one_domain, sized, steps_of, steps_of_whole_images
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode, encode_packed
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.gather import (
    WHOLE,
    Fold,
    Held,
    Keeper,
    Memory,
    Piece,
    Shard,
    add,
    by_group,
    gather,
    name_samples,
)
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.batching.remote import Jobs, Values, gather_remotely
from mmneuron_lens.batching.shared_rows import packing_of
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count_checks import positions_in, refuse_impossible
from mmneuron_lens.experiments.tops import TopRead
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_tally

PACKED = 96
"""Questions of the same images that share one row, at most: RSVQA-HR asks about 90 of an image."""


def counting_graph(lens: Lens) -> Graph:
    """What is counted: at every `.act` site the active neurons, and the positions once, which every layer shares."""
    sites = [site for site in lens.sites if site.endswith(".act")]
    graph = Graph((count_checked.at(sites),))
    for site in sites:
        positions = count_positions.at(site)
        graph |= positions if lens.architecture.place(site).layers is None else positions.at(layers=0)
    return graph


@dataclass(frozen=True)
class CountPlan:
    """What is counted, before anything is: the steps, how they are encoded, and the facts that say what comes of it.

    - facts: everything that the counts depend on, as JSON; their provenance, and their key in a run.
    """

    domain: str
    steps: tuple[Step, ...]
    facts: Mapping[str, Any]
    prompt: Prompt
    frames: Frames
    packs: bool
    prompt_form: PromptForm = "auto"


@dataclass(frozen=True)
class Read:
    """What is read in the forwards of a count.

    - graph: of a lens. piece: what a run of it came to, as `piece_of`. fold: two of its results as one.
    """

    graph: Callable[[Lens], Graph]
    piece: Callable[..., Piece]
    fold: Fold


def plan_count(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    corpus: str = "",
    exact: bool = False,
    problems: Problems | None = None,
) -> CountPlan:
    """Samples of one domain as steps of work.

    - prompt: which of the paper's prompts.
    - frames: "fit": of several images a question as many evenly spaced ones as fit; "strip": all of them as one.
    - prompt_form: the frame of the evaluation prompt, see `chat.form_of`; identification is asked plainly.
    - corpus: its name, for the provenance.
    - exact: ask every question by itself. Otherwise up to `PACKED` questions of the same images share one row where the
      model allows it, and elsewhere their pass of the vision tower: the same counts but for float rounding at zero.
      Where its attention does not allow it, every question is asked by itself, and "packing" says why.
    - problems: where samples are named whose image cannot be read, or whose text holds control tokens of this model;
      without it the first raises `InvalidValue`.

    Raises `InvalidValue` for samples of several domains, or none.
    """
    domain = one_domain(samples, "counts")
    asked, put = asked_as(lens, askable(lens, samples, prompt, problems), prompt, frames, prompt_form)
    found = sized(asked, problems)
    packs, packing = packing_of(lens, asked, prompt, frames, prompt_form, exact, PACKED)
    rows = bool(lens.architecture.facts["images_in_text"])
    facts: dict[str, Any] = {"prompt": prompt, "batch size": batch_size, "packing": packing, "frames": frames}
    facts |= put
    source = {"name": corpus, "questions": len(found), "sha256": content_digest(one.sample for one in found)}
    facts |= {"method": "activation > 0", "corpus": source, "domain": domain, UNREACHABLE: unreachable_layers(lens)}
    steps = steps_of_whole_images(found, batch_size, PACKED, rows) if packs else steps_of(found, batch_size)
    return CountPlan(
        domain, tuple(steps), provenance(**lens.model.facts(), **facts), prompt, frames, packs, prompt_form
    )


def count_steps(
    lens: Lens,
    plan: CountPlan,
    *,
    keeper: Keeper | None = None,
    shard: Shard = WHOLE,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
    jobs: Jobs | None = None,
    read: Read | None = None,
    top: TopRead | None = None,
) -> list[Held]:
    """The pieces of a shard of the plan, each made unless it is kept: one forward a step, at every `.act` site.

    - keeper: where pieces are kept, so that a count that was killed goes on; memory unless given.
    - workers: processes that decode images ahead of the model, which changes no count; a server has no use for them.
    - problems: where samples are named that can be neither decoded, encoded nor run.
    - jobs: count on a server.
    - read: what is read in place of the active neurons; `experiments.moments.MOMENTS` for one.
    - top: of `top_read(plan.steps, k)`: also read each neuron's top activations, in the same forwards.
    """
    read = read or Read(counting_graph, piece_of, add)
    keeper, left, graph, fold = Memory() if keeper is None else keeper, LeftOut(problems), read.graph(lens), read.fold
    graph, fold = (graph, fold) if top is None else (graph | top.graph(lens), top.beside(fold))

    def encoded(samples: Sequence[Sample], opened: Opener = open_images) -> tuple[Batch | None, list[Sample]]:
        if plan.packs:
            found = encode_packed(lens, samples, plan.prompt, PACKED, left, opened, plan.frames, plan.prompt_form)
        else:
            found = encode(lens, samples, plan.prompt, left, opened, plan.frames, plan.prompt_form)
        return found if top is None else (top.numbered(*found), found[1])

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encoded(step.samples, opened)
        out = {} if batch is None else lens.run(graph, batch)
        tokens = 0 if batch is None else int(batch.fields["llm"]["weight"].sum())
        made = read.piece(lens, plan, step.group, out, ids_of(kept), tokens)
        return made if top is None else top.added(lens, made, out)

    shared: dict[str, Any] = {
        "keeper": keeper,
        "shard": shard,
        "left": left,
        "title": f"counting {plan.domain}",
        "progress": progress,
    }
    if jobs is None:
        return gather(plan.steps, run, fold, workers=workers, **shared)

    def returned(group: int, out: Values, facts: Mapping[str, Any]) -> Piece:
        made = read.piece(lens, plan, group, out, tuple(facts["seen"]))
        made = made if top is None else top.added(lens, made, out)
        return refuse_impossible(made, facts.get("positions", {}), jobs.remote)

    return gather_remotely(
        lens, graph, plan.steps, encoded, returned, told=lambda some: {"positions": positions_in(some)}, jobs=jobs,
        **shared,
    )  # fmt: skip


def count_domain(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
    jobs: Jobs | None = None,
    **planned: Any,
) -> Counts:
    """The counts of one domain, kept by nobody.

    - samples: of one domain.
    - workers: processes that decode images ahead.
    - problems: where samples are named whose image cannot be read; without it the first raises `InvalidValue`.
    - progress: wraps the steps that are gone through, such as in a bar; nothing is shown unless given.
    - jobs: of a lens that runs on a server, how its jobs are sent.
    - planned: settings of `plan_count`: batch_size, prompt, frames, prompt_form, exact.

    Raises `InvalidValue` for samples of several domains or none, `NotFinite` for activations that overflowed.
    """
    plan = plan_count(lens, samples, problems=problems, **planned)
    held = count_steps(lens, plan, workers=workers, problems=problems, progress=progress, jobs=jobs)
    return counts_of(held, plan.facts)


def piece_of(lens: Lens, plan: CountPlan, group: int, out: Values, seen: tuple[str, ...], tokens: int = 0) -> Piece:
    """What a run of `counting_graph` counted: `active/SITE` int64 [layer, kind, neuron], `tokens/SITE` int64 [kind].

    Raises `NotFinite` for activations that say nothing of their neurons.
    """
    tensors: dict[str, Tensor] = {}
    kinds = {site: prompt_kinds(site) for site in lens.sites if site.endswith(".act")}
    for site, names in kinds.items() if out else ():
        found, positions = out["count_checked", site], out["count_positions", site]
        refuse_tally(site, found["not finite"], lens.dtype)
        count = found["active"]
        if lens.architecture.place(site).layers is None:
            count, positions = count[None], positions[None]
        tensors[f"active/{site}"] = count[:, : len(names)].cpu().contiguous()
        tensors[f"tokens/{site}"] = positions[0, : len(names)].cpu().contiguous()
    facts = {"kinds": {site: list(names) for site, names in kinds.items()}, "steps": len(plan.steps)}
    return Piece(group, tensors, seen, facts=facts, tokens=tokens)


def counts_of(held: Sequence[Held], facts: Mapping[str, Any]) -> Counts:
    """All pieces of a count as its counts; the same bytes however they were cut. Needs no model.

    - facts: of the plan.

    Raises `InvalidValue` with the first reason when no sample could be read.
    """
    groups = by_group(held, add)
    reasons = {name: reason for one in held for name, reason in one.piece.reasons.items()}
    model, domain = facts["model id"], facts["domain"]
    filled = [piece for piece in groups.values() if piece.tensors]
    if not filled:
        first = f" The first: {next(iter(reasons.values()))}" if reasons else ""
        raise InvalidValue(f"no sample of {domain} could be read; see the problems of its rows.{first}")
    kinds = {site: tuple(names) for site, names in filled[0].facts["kinds"].items()}
    active, tokens = {}, {}
    for site in kinds:
        layers, names, neurons = filled[0].tensors[f"active/{site}"].shape
        active[site] = torch.zeros(BUCKETS, layers, names, neurons, dtype=torch.int64, device="cpu")
        tokens[site] = torch.zeros(BUCKETS, names, dtype=torch.int64, device="cpu")
        for piece in filled:
            active[site][piece.group] = piece.tensors[f"active/{site}"]
            tokens[site][piece.group] = piece.tensors[f"tokens/{site}"]
    left = sorted({name for one in held for name in one.piece.left}, key=json.dumps)
    samples = sum(len(one.piece.seen) for one in held)
    shared = {name: value for name, value in facts.items() if name != "domain"}
    why = {REASONS: {name: reasons[name] for name in left if name in reasons}} if reasons else {}
    return Counts(model, domain, active, tokens, kinds, samples, {**shared, LEFT_OUT: left, **why})


def unreachable_layers(lens: Lens) -> dict[str, UnreachableLayers]:
    """By site whose neurons are counted, the layers that cannot reach the logits; sites all of whose layers can have
    no entry. They are counted like all others.
    """
    found: dict[str, UnreachableLayers] = {}
    for site in (site for site in lens.sites if site.endswith(".act")):
        place = lens.architecture.place(site)
        if layers := [layer or 0 for layer, _ in place.paths() if not place.reaches(layer)]:
            found[site] = {"layers": layers, "why": place.why_dead}
    return found


def prompt_kinds(site: str) -> tuple[str, ...]:
    """The kinds of position that a prompt has at a site; generated tokens come last and are none of them."""
    kinds = GROUP_KINDS[SITES[site].group or ""]
    return tuple(kind for kind in kinds if kind != "generated")


def name_again(plan: CountPlan, counts: Counts, problems: Problems | None) -> None:
    """Names the samples that finished counts left out in the problems of this process, for the same reasons."""
    left = set(counts.provenance[LEFT_OUT])
    asked = [sample for step in plan.steps for sample in step.samples if sample.id in left]
    name_samples(asked, counts.provenance.get(REASONS, {}), problems)
