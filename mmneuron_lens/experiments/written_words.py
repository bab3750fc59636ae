"""Written words: what chosen neurons of the language model write, and what they add to the right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions import keep, root_mean_square
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.neuron_words import NeuronTokens, WrittenWords
from mmneuron_lens.batching.batches import Step, ids_of, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, by_group, concatenate, gather
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.token_directions import (
    down_projection,
    final_norm,
    refuse_norm_behind,
    unembedding_direction,
)
from mmneuron_lens.experiments.vocabulary import neuron_vocabulary
from mmneuron_lens.lens import Lens

WORDS = 8
"""Tokens at either end that are kept."""

SITES_OF_WORDS = ("llm.mlp.act", "llm.mlp.post")
"""Whose neurons write into the stream that is unembedded."""


def written_words(
    lens: Lens,
    examples: NeuronExamples,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    batch_size: int = 32,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> WrittenWords:
    """The words of the neurons of the language model among examples, and their contributions to right answers.

    - examples: of this model. samples_by_domain: their questions.
    - batch_size, prompt, frames, prompt_form: as the examples were read.
    - keeper: where the batches that are done are kept; memory unless given.

    Words are the tokens with the highest and lowest <W_down[:, i], W_U[y]>. The contribution of neuron i to a question
    is c_i = z_i <W_down[:, i], u> / root_mean_square(last residual) at the last position of its prompt, u being the row
    of the unembedding of the first token of the first right answer, times the final norm's weight; the mean is over
    its examples that have an answer. Source: MM_Neurons (arXiv 2311.07470), HONES (arXiv 2604.17941).

    What a model cannot have is not there, and `missing` says why: without weights (on a server), with quantized ones,
    with a norm behind the MLP; contributions alone where the last norm is no RMS norm.
    """
    chosen = {site: one for site, one in examples.neurons.items() if site in SITES_OF_WORDS}
    facts: dict[str, Any] = {"words": WORDS, "prompt": prompt, "position": -1}
    shared: dict[str, Any] = {"parameters": facts, "provenance": provenance(**lens.model.facts())}
    if not chosen:
        return WrittenWords(examples.model, (), "no neuron of the language model is among the examples.", **shared)
    try:
        words = {site: _words(lens, site, neurons) for site, neurons in chosen.items()}
    except InvalidValue as error:
        bare = tuple(
            NeuronTokens(site, layer, neuron, (), ())
            for site, neurons in chosen.items()
            for layer, neuron in neurons.tolist()
        )
        return WrittenWords(examples.model, bare, str(error), **shared)
    missing = ""
    sums = {site: torch.zeros(2, len(neurons), dtype=torch.float64) for site, neurons in chosen.items()}
    try:
        final_norm(lens)
    except InvalidValue as error:
        missing = str(error)
    else:
        read = _Contributions(lens, examples, chosen)
        by_id = {(domain, one.id): one for domain, some in samples_by_domain.items() for one in some}
        asked = [by_id[one.domain, one.id] for one in examples.samples]
        left = LeftOut(problems)

        def run(step: Step, opened: Opener) -> Piece:
            batch, kept = encode(lens, step.samples, prompt, left, opened, frames, prompt_form)
            return Piece(step.group, {} if batch is None else read.of(batch, kept), ids_of(kept))

        asked = [one for one in asked if one.answers]
        steps = steps_of(sized(asked, problems), batch_size, buckets=False) if asked else []
        title = "contributions to right answers"
        held = gather(steps, run, concatenate, keeper=keeper or Memory(), left=left, title=title, progress=progress)
        for piece in by_group(held, concatenate).values():
            for site in chosen if piece.tensors else ():
                place, value = piece.tensors[f"neuron/{site}"], piece.tensors[f"contribution/{site}"]
                sums[site][0].index_add_(0, place, value.double())
                sums[site][1].index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
        if not asked:
            missing = "no question among the examples has an answer, so that there are no contributions."
    made = [
        NeuronTokens(site, layer, neuron, *words[site][layer, neuron], total / count if count else None, int(count))
        for site, neurons in chosen.items()
        for (layer, neuron), (total, count) in zip(neurons.tolist(), sums[site].T.tolist(), strict=True)
    ]
    return WrittenWords(examples.model, tuple(made), missing, **shared)


Words = tuple[tuple[str, float], ...]


def _words(lens: Lens, site: str, neurons: Int[Tensor, "neuron 2"]) -> dict[tuple[int, int], tuple[Words, Words]]:
    """Top and bottom of each neuron. Raises `InvalidValue` as `neuron_vocabulary`."""
    found: dict[tuple[int, int], tuple[Words, Words]] = {}
    for layer in neurons[:, 0].unique().tolist():
        own = neurons[neurons[:, 0] == layer, 1].tolist()
        for one in neuron_vocabulary(lens, layer, own, WORDS, site=site):
            found[layer, one.neuron] = one.top, one.bottom
    return found


class _Contributions:
    """c_i of the neurons of each question that are examples in it."""

    def __init__(self, lens: Lens, examples: NeuronExamples, chosen: Mapping[str, Tensor]) -> None:
        refuse_norm_behind(lens)
        self.lens, self.examples, self.chosen = lens, examples, chosen
        self.numbers = {(one.domain, one.id): number for number, one in enumerate(examples.samples)}
        self.directions: dict[int, Float[Tensor, " hidden"]] = {}
        scale = root_mean_square.bind(epsilon=final_norm(lens).epsilon)
        self.graph = keep.at("llm.mlp.post", positions=-1) | scale.at("llm.residual", layers=-1, positions=-1)

    def of(self, batch: Any, kept: Sequence[Sample]) -> dict[str, Tensor]:
        """`neuron/SITE` int64 [pair], a row of the site's neurons; `contribution/SITE` float32 [pair]."""
        out = self.lens.run(self.graph, batch)
        post = out["keep", "llm.mlp.post"][0][:, :, 0].float().cpu()
        scale = out["root_mean_square", "llm.residual"][0][0][:, 0].float().cpu()
        made: dict[str, Tensor] = {}
        for site, neurons in self.chosen.items():
            rows, values = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.float32)]
            for place, sample in enumerate(kept):
                here = (self.examples.sample[site] == self.numbers[sample.domain, sample.id]).any(1).nonzero()[:, 0]
                layer, neuron = neurons[here].unbind(1)
                rows.append(here)
                values.append(post[layer, place, neuron] * self._weights(sample, layer, neuron) / scale[place])
            made[f"neuron/{site}"], made[f"contribution/{site}"] = torch.cat(rows), torch.cat(values)
        return made

    def _weights(self, sample: Sample, layer: Tensor, neuron: Tensor) -> Float[Tensor, " pair"]:
        """<W_down[:, i], u> for the first token of a question's right answer."""
        token = int(self.lens.processor.tokenizer(sample.answers[0], add_special_tokens=False)["input_ids"][0])
        if token not in self.directions:
            self.directions[token] = unembedding_direction(self.lens, token)
        found = torch.zeros(len(layer), dtype=torch.float32)
        for one in layer.unique().tolist():
            down, here = down_projection(self.lens, one), layer == one
            columns = down[:, neuron[here].to(down.device)].float().cpu()
            found[here] = self.directions[token] @ columns
        return found
