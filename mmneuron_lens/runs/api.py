"""The main job in calls: on a lens and a corpus, kept in a run's folder where one is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, Literal, overload

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.neighbours import Neighbours
from mmneuron_lens.artifacts.positions import Position
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.artifacts.text_states import TextStates
from mmneuron_lens.artifacts.tuned_lens import TunedLens
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.evaluation.ablation import Ablation
from mmneuron_lens.evaluation.deviation import DeviationTable
from mmneuron_lens.experiments.conditions import Match, Off
from mmneuron_lens.experiments.entropy import read_entropy as read_domain
from mmneuron_lens.experiments.moments import counts_from
from mmneuron_lens.experiments.neighbours import read_neighbours
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.enough import EnoughRule
from mmneuron_lens.neurons.selection import PUBLISHED
from mmneuron_lens.neurons.selectors.registry import selector_named
from mmneuron_lens.runs.answer import answer_stage, score_stage
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.deviate import deviate_stage
from mmneuron_lens.runs.examples import examples_stage
from mmneuron_lens.runs.folder import file_of, selection_facts, selection_file
from mmneuron_lens.runs.identify import Identified, find
from mmneuron_lens.runs.moments import moments_stage
from mmneuron_lens.runs.neuron_tables import write_neurons
from mmneuron_lens.runs.observed import observed_on
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runs.until import count_until


def identify(
    lens: Lens,
    corpus: Corpus,
    *,
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: Mapping[str, tuple[str, ...]] | None = None,
    method: str = PUBLISHED,
    parameters: Mapping[str, Any] | None = None,
    permutations: int = 20,
    seed: int = 0,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    exact: bool = False,
    workers: int = 0,
    moments: bool = False,
    until: float | None = None,
    top: int | None = None,
    out: str | Path | None = None,
    replace: bool = False,
    jobs: Mapping[str, Any] | None = None,
    progress: Progress = quietly,
) -> Identified:
    """Counts every domain of a corpus, selects its domain-specific neurons, and says what the selection proves.

    - fraction, percentile, kinds: the rule (section 3.2): the share of each module's neurons, the threshold on
      probabilities, and per site the kinds of token that count.
    - method, parameters: how neurons are ranked, docs/selectors.md; moments and attributions are taken where it needs
      them.
    - permutations, seed: of the false discovery rate.
    - batch_size, prompt, frames, prompt_form, exact: how questions are asked; see `experiments.count.plan_count`.
    - workers: processes that decode images ahead.
    - moments: also keep how strongly each neuron is active, from the same forwards (docs/moments.md).
    - until: count a domain only until its neurons from two halves of what was counted have this overlap, such as 0.9;
      see `neurons.enough`. Not on a server.
    - top: also keep in `out`, of every selected neuron, so many images on which it is most active, with thumbnails, and
      the words that it writes, as `mmneuron neurons --top` does: what `mm.neuron` shows.
    - out: a run's folder, in which a call that was stopped goes on, as `mmneuron count` and `select` do; nothing is
      kept without it; the table of neurons (`neurons.parquet`, `neurons.csv`) is written there too. replace: what lies
      there and was made otherwise is made again.
    - jobs: for a lens that runs on a server, settings of `batching.remote.Jobs`.
    - progress: wraps the batches that are gone through, such as in a bar; nothing is shown unless given.

    Returns `.counts`, `.selection`, `.wider` (at 5 %), `.controls` and `.moments`. Raises `InvalidValue` for fewer than
    two domains, or `top` without `out`, `StoreConflict` for a folder that holds something else.
    """
    if top is not None and out is None:
        raise InvalidValue(f"top is {top}, and examples are kept in a run's folder; give out= too.")
    store, domains = Store(out, replace=replace), _by_domain(corpus)
    if len(domains) < 2:
        raise InvalidValue(
            f"{corpus.name} has one domain, {', '.join(domains)}; neurons are specific to one of several."
        )
    asked: dict[str, Any] = {
        "corpus": corpus.name, "batch_size": batch_size, "prompt": prompt, "frames": frames, "prompt_form": prompt_form,
        "exact": exact, "workers": workers, "problems": corpus.problems, "progress": progress,
    }  # fmt: skip
    moments = moments or "moments" in selector_named(method).needs
    if moments and until is not None:
        raise InvalidValue(f"until is {until}, and moments are of the whole corpus; leave one of them out.")
    taken = moments_stage(lens, domains, store, jobs=jobs, **asked) if moments else {}
    if moments:
        counts = {domain: counts_from(one) for domain, one in taken.items() if one is not None}
    elif until is None:
        counts = count_stage(lens, domains, store, jobs=jobs, top=top, **asked)
    else:
        rule = EnoughRule(until, fraction, percentile, dict(kinds or {}), seed)
        counts = count_until(lens, domains, store, rule=rule, **asked)
    made = {domain: one for domain, one in counts.items() if one is not None}
    cited = {} if out is None else {name: content_hash(file_of(out, "counts", lens.name, name)) for name in made}
    put: dict[str, Any] = {"batch_size": batch_size, "frames": frames, "prompt_form": prompt_form, "workers": workers}
    put |= {"corpus": corpus.name, "problems": corpus.problems, "progress": progress}
    own = [one for one in taken.values() if one is not None]
    seen, measured = observed_on(lens, domains, list(made.values()), store, method, moments=own, **put)
    found = find(
        seen, fraction=fraction, percentile=percentile, kinds=dict(kinds or {}), method=method, parameters=parameters,
        permutations=permutations, seed=seed, store=store, cited=cited, measured=measured, progress=progress,
    )  # fmt: skip
    if top is not None:
        examples_stage(lens, found.selection, domains, store, k=top, jobs=jobs, **asked)
    if out is not None:
        write_neurons(out)
    return replace_fields(found, moments=tuple(own))


def ablate(
    lens: Lens,
    selection: Selection,
    corpus: Corpus,
    *,
    modules: Sequence[str] = ("All",),
    random_draws: int = 3,
    seed: int = 0,
    match: Match = "module",
    off: Off | None = None,
    cross: bool = False,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    out: str | Path | None = None,
    replace: bool = False,
    progress: Progress = quietly,
    **generation: Any,
) -> Ablation:
    """Answers a corpus' questions with nothing off, with each domain's neurons off, and with as many random ones off.

    - selection: whose neurons are switched off. corpus: what is asked, with answers.
    - modules: "All" at once, or modules of the paper ("LLM", "Vision Encoder", ...), each by itself.
    - random_draws, seed, match: draws of random neurons, never a selected one, as many in each module or layer.
    - off: how they are switched; held at zero unless given.
    - cross: ask each domain's questions with the neurons of every other domain off, too.
    - prompt, frames, prompt_form: how questions are asked: in the frame of the paper or of the checkpoint's own chat
      template ("paper", "chat"; "auto" is "chat" where the language model is not the paper's); of several images with
      as many as fit, or all as one ("fit", "strip").
    - batch_size: questions of a generation. out, replace, progress: as of `identify`.
    - generation: settings of `generate`, over greedy decoding of at most 16 new tokens.

    Raises `UnknownName` for a domain that the selection does not have, `InvalidValue` for a corpus without questions.
    """
    store, asked = Store(out, replace=replace), _by_domain(corpus)
    answers = answer_stage(
        lens, selection, asked, store, selection_id=_saved(out, selection), modules=modules, random_draws=random_draws,
        seed=seed, match=match, off=off, cross=cross, batch_size=batch_size, prompt=prompt, frames=frames,
        prompt_form=prompt_form, problems=corpus.problems, progress=progress, **generation,
    )  # fmt: skip
    if not corpus.official:
        return Ablation(answers)
    path = None if out is None else file_of(out, "answers", selection.model, suffix=".jsonl")
    answers_id = "" if path is None else content_hash(path)
    return Ablation(
        answers, score_stage(answers, asked, corpus.official, store, model=selection.model, answers_id=answers_id)
    )


def deviate(
    lens: Lens,
    selection: Selection,
    corpus: Corpus,
    *,
    random_draws: int = 5,
    seed: int = 0,
    off: Off | None = None,
    batch_size: int = 32,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    out: str | Path | None = None,
    replace: bool = False,
    progress: Progress = quietly,
) -> DeviationTable:
    """How far the last hidden state of a corpus' questions moves with neurons off (Table 3), domain by domain.

    - selection: whose neurons are switched off. corpus: what is asked.
    - random_draws, seed: draws of as many random neurons.
    - off: how they are switched; held at zero unless given.
    - batch_size: questions of a forward. frames, prompt_form: as of `ablate`.
    - out, replace, progress: as of `identify`.
    """
    found = deviate_stage(
        lens, selection, _by_domain(corpus), Store(out, replace=replace), selection_id=_saved(out, selection),
        random_draws=random_draws, seed=seed, off=off, batch_size=batch_size, frames=frames, prompt_form=prompt_form,
        problems=corpus.problems, progress=progress,
    )  # fmt: skip
    return DeviationTable(found)


@overload
def read_layers(
    lens: Lens,
    sample: Sample,
    *,
    prompt: Prompt = ...,
    frames: Frames = ...,
    prompt_form: PromptForm = ...,
    top_k: int = ...,
    positions: Sequence[Position] | Literal["paper"] | None = ...,
    fitted: JacobianLens | TunedLens | None = ...,
    neighbours: None = ...,
) -> LensTrace: ...
@overload
def read_layers(
    lens: Lens,
    sample: Sample,
    *,
    prompt: Prompt = ...,
    frames: Frames = ...,
    prompt_form: PromptForm = ...,
    top_k: int = ...,
    positions: Sequence[Position] | Literal["paper"] | None = ...,
    fitted: None = ...,
    neighbours: TextStates,
) -> Neighbours: ...
def read_layers(
    lens: Lens,
    sample: Sample,
    *,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    top_k: int = 5,
    positions: Sequence[Position] | Literal["paper"] | None = None,
    fitted: JacobianLens | TunedLens | None = None,
    neighbours: TextStates | None = None,
) -> LensTrace | Neighbours:
    """What every position of a question decodes to at every layer (Figure 6), by the logit lens or a fitted one.

    - sample: the question, with its images.
    - prompt, frames, prompt_form: as of `ablate`.
    - top_k: tokens at each position and layer.
    - positions: columns of the prompt, negative ones from its end, or names: "last", "image 8" (the eighth image
      token), "text -5" (the fifth text token from the end); "paper": those of the question's domain in the paper's
      Figures 6 and 10 to 13, which show `trace.rows(place, even=True)`. All of them unless given.
    - fitted: a `JacobianLens` or `TunedLens` of this model (docs/lenses.md); the logit lens unless given
    - neighbours: a bank of text states of this model; then the nearest words in context come back (docs/lenses.md)

    Raises `InvalidValue` for an image that cannot be read, a lens or bank of another model, or both at once,
    `OutOfRange` for a position that the prompt does not have.
    """
    put: dict[str, Any] = {"prompt": prompt, "frames": frames, "prompt_form": prompt_form}
    put |= {"top_k": top_k, "positions": positions}
    if neighbours is None:
        return trace_sample(lens, sample, fitted=fitted, **put)
    if fitted is not None:
        raise InvalidValue(f"A question is read by a {fitted.kind} or by its neighbours; give one of them.")
    return read_neighbours(lens, sample, neighbours, **put)


def read_entropy(
    lens: Lens,
    corpus: Corpus,
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    progress: Progress = quietly,
) -> dict[str, Entropies]:
    """The entropy of the next-token distribution by layer and kind of token (Figure 7), by domain, in nats.

    - corpus: what is asked. batch_size: questions of a forward.
    - prompt, frames, prompt_form: as of `ablate`. progress: as of `identify`.
    """
    put: dict[str, Any] = {"prompt": prompt, "frames": frames, "prompt_form": prompt_form}
    shared: dict[str, Any] = {"batch_size": batch_size, "problems": corpus.problems, "progress": progress, **put}
    return {domain: read_domain(lens, samples, **shared) for domain, samples in _by_domain(corpus).items()}


def _by_domain(corpus: Corpus) -> dict[str, list[Sample]]:
    if not corpus:
        raise InvalidValue(f"corpus {corpus.name} has no question here; give one with some.")
    return corpus.by_domain()


def _saved(out: str | Path | None, selection: Selection) -> str:
    """The sha256 of the run's own file of this very selection; "" where there is none."""
    file = None if out is None else selection_file(out, selection.model, selection.parameters.get("method", PUBLISHED))
    if file is None or not file.is_file():
        return ""
    saved = Selection.load(file)
    return content_hash(file) if selection_facts(saved, "") == selection_facts(selection, "") else ""
