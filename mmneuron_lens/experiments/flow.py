"""Flow: through which layers what the image says reaches the answer, by cutting attention around each of them.

Three routes (arXiv 2411.18620): image to question, image to last position, question to last position. What is measured
is 100 (p_cut - p) / p of the answer's first token, on questions that are answered right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions import Graph, module, reads
from mmneuron_lens.artifacts.answers import NONE, Answer
from mmneuron_lens.artifacts.flow import KnockOutFlow
from mmneuron_lens.artifacts.format import provenance
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
from mmneuron_lens.evaluation.accuracy import is_right
from mmneuron_lens.experiments.knock_out import Part, knocked_out
from mmneuron_lens.lens import Lens
from mmneuron_lens.metrics.intervals import mean_interval
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.encoding import MASKED
from mmneuron_lens.runtime.finite import refuse_not_finite

ROUTES: tuple[tuple[Part, Part], ...] = (("image", "question"), ("image", "last"), ("question", "last"))
"""From which positions to which: the keys, and the queries that no longer attend to them."""

MASK = "llm.attention.mask"

NEW_TOKENS = 16
"""Tokens that an answer may have, to be compared with the accepted ones."""


@reads("llm.norm", over="list", unembed=module("llm.unembed"))
def next_token_probability(
    hidden: Float[Tensor, "row 1 hidden"], unembed: Callable[[Tensor], Tensor], token: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """The probability of one token a row, at one position: narrowed with `.at(positions=...)`.

    - hidden: `[row, 1, hidden]`, after the final norm
    - unembed: the unembedding
    - token: int64 `[row]`

    Returns float64 `[row]`.
    """
    chances = unembed(hidden[:, 0]).double().softmax(-1)
    return chances.gather(-1, token.to(chances.device)[:, None])[:, 0]


def read_flow(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    window: int | None = None,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> KnockOutFlow:
    """The knock-out curves of one domain's questions: they are answered, and those answered right are asked again with
    each route cut around each layer, many of them in one forward.

    - window: in how many layers a route is cut; 9 of 32 of them if left out
    - batch_size: questions at a time; their copies are as many as `lens.run` lets stand in one forward
    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`
    - keeper: where the batches that are done are kept; memory unless given
    - problems: where samples are named whose images cannot be read; without it the first raises `InvalidValue`
    - progress: wraps the batches that are gone through, such as in a bar; nothing is shown unless given

    Answers are greedy, of at most `NEW_TOKENS` tokens, and right as `is_right` says. A model whose attention cannot be
    cut, or that answers nothing right, gives a value without questions, whose `missing` says why.

    Raises `InvalidValue` for samples of several domains or none that can be read, or a window below 1.
    """
    domain = one_domain(samples, "knock-out curves")
    layers = 0 if why_uncut(lens) else lens.architecture.place(MASK).layers or 0
    width = max(1, round(9 * layers / 32)) if window is None else window
    facts: dict[str, Any] = {"prompt": prompt, "batch size": batch_size, "new tokens": NEW_TOKENS}
    if not layers:
        return _flow(lens, domain, {}, (), width, len(samples), facts, layers)
    left = LeftOut(problems)
    some = askable(lens, samples, prompt, problems)
    asked, put = asked_as(lens, some, prompt, frames, prompt_form, new_tokens=NEW_TOKENS)

    def run(step: Step, opened: Opener) -> Piece:
        held: dict[str, Any] = {}

        def once(sample: Sample, told: Problems | None = None) -> Any:
            if sample.id not in held:
                held[sample.id] = opened(sample, told)
            return held[sample.id]

        batch, kept = encode(lens, step.samples, prompt, left, once, frames, prompt_form, NEW_TOKENS)
        if batch is None:
            return Piece(step.group, {})
        right = _answered(lens, batch, kept)
        found = torch.zeros(1 + len(ROUTES) * layers, len(kept), dtype=torch.float64, device="cpu")
        tokens = torch.full((len(kept),), -1, dtype=torch.int64, device="cpu")
        if right:
            batch, again = encode(lens, [kept[place] for place in right], prompt, left, once, frames, prompt_form)
            assert batch is not None
            assert len(again) == len(right)
            tokens[list(right)] = torch.tensor(list(right.values()), device="cpu")
            found[:, list(right)] = _probabilities(lens, batch, tokens[list(right)], width)
        refuse_not_finite("llm.norm", found, lens.dtype, layered=False)
        return Piece(step.group, {"probability": found, "token": tokens}, ids_of(kept))

    steps = steps_of(sized(asked, problems), batch_size, buckets=False)
    title = f"knock-out curves of {domain}"
    held = gather(steps, run, concatenate, keeper=keeper or Memory(), left=left, title=title, progress=progress)
    total = by_group(held, concatenate)[0]
    return _flow(lens, domain, total.tensors, total.seen, width, len(samples), facts | put, layers)


def why_uncut(lens: Lens) -> str:
    """Why attention of this model cannot be cut; "" where it can."""
    if MASK not in lens.sites:
        return f"{lens.architecture.name} has no site {MASK}, so its attention cannot be cut."
    if lens.attention not in MASKED:
        return f"it runs {lens.attention} attention, which takes no mask; load it with attn_implementation='sdpa'."
    return ""


def _answered(lens: Lens, batch: Batch, samples: Sequence[Sample]) -> dict[int, int]:
    """The first token of the answer of each row that is answered right, by row."""
    said = lens.generate(Graph(), batch, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
    found: dict[int, int] = {}
    for row, (one, text, tokens) in enumerate(zip(samples, said.text, said.tokens, strict=True)):
        names = {"model": lens.name, "module": "None", "condition": NONE, "neurons_of": "", "domain": one.domain}
        answer = Answer(
            **names, id=one.id, question=one.question, answers=one.answers, answer=text, options=one.options
        )
        if is_right(answer) and len(tokens):
            found[row] = int(tokens[0])
    return found


def _probabilities(
    lens: Lens, batch: Batch, tokens: Int[Tensor, " row"], window: int
) -> Float[Tensor, "condition row"]:
    """Of each row's token: with nothing cut, then route by route with it cut around each layer."""
    read = next_token_probability.bind(token=tokens).at(positions=-1)
    cuts = [
        knocked_out(lens, batch, queries=queries, keys=keys, around=layer, window=window)
        for keys, queries in ROUTES
        for layer in range(lens.architecture.place(MASK).layers or 0)
    ]
    results = lens.run([Graph((read,)), *(Graph((cut, read)) for cut in cuts)], batch)
    return torch.stack([one[read.name, "llm.norm"][0].cpu() for one in results])


def _flow(
    lens: Lens,
    domain: str,
    tensors: dict[str, Tensor],
    seen: tuple[str, ...],
    window: int,
    asked: int,
    facts: dict[str, Any],
    layers: int,
) -> KnockOutFlow:
    tokens = tensors.get("token", torch.empty(0, dtype=torch.int64, device="cpu"))
    values = tensors.get("probability", torch.empty(1 + len(ROUTES) * layers, 0, dtype=torch.float64, device="cpu"))
    order = sorted((place for place in range(len(seen)) if tokens[place] >= 0), key=seen.__getitem__)
    missing = "" if order else why_uncut(lens) or f"it answers none of {asked} questions right."
    return KnockOutFlow(
        model=lens.name,
        domain=domain,
        routes=tuple(f"{keys} to {queries}" for keys, queries in ROUTES),
        questions=tuple(seen[place] for place in order),
        tokens=tokens[order],
        plain=values[0, order],
        cut=values[1:, order].unflatten(0, (len(ROUTES), layers)),
        window=window,
        asked=asked,
        missing=missing,
        parameters=facts,
        provenance=provenance(**lens.model.facts()),
    )


def flow_rows(found: Sequence[KnockOutFlow], seed: int = 0) -> pl.DataFrame:
    """The curves as a table: model, domain, route, layer, change, low, high, questions.

    - found: of `read_flow`, one a domain. seed: of the intervals' resamples.

    change is the mean over questions in per cent, low and high its 95 % bootstrap interval, null of one question.
    """
    rows: list[dict[str, Any]] = []
    for one in found:
        for route, by_layer in zip(one.routes, one.change(), strict=True):
            for layer, values in enumerate(by_layer.numpy()):
                if not len(values):
                    continue
                low, high = mean_interval(values, seed=seed)
                row = {"model": one.model, "domain": one.domain, "route": route, "layer": layer}
                row |= {"change": float(values.mean()), "low": low, "high": high, "questions": len(values)}
                rows.append(row)
    names = {"model": pl.String, "domain": pl.String, "route": pl.String, "layer": pl.Int64, "change": pl.Float64}
    return pl.DataFrame(rows, schema={**names, "low": pl.Float64, "high": pl.Float64, "questions": pl.Int64})
