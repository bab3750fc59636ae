"""Published corpora as the paper asks them: a seeded sample list each, shared by all models, and frames that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmneuron_lens.batching.batches import Prompt, model_kind, prompt_of
from mmneuron_lens.corpora.folder import Problems, image_sizes
from mmneuron_lens.corpora.frames import that_fit
from mmneuron_lens.corpora.published import PUBLISHED, read_corpora
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.sample_list import SampleList
from mmneuron_lens.corpora.sampling import draw_lists, save_lists
from mmneuron_lens.corpora.token_count import LLAVA_NEXT, TokenCount
from mmneuron_lens.lens import Lens

NAMES = {domain: one.name for domain, one in PUBLISHED.items()}
"""The corpus of each domain, as its official score is known by."""


def token_count(lens: Lens) -> TokenCount:
    """How samples are counted in LLaVA-NeXT tokens: with this model's tokenizer, and its tiles where it has any."""
    facts = lens.architecture.facts if lens.architecture.facts.get("grid_pinpoints") else LLAVA_NEXT
    return TokenCount(lens.processor.tokenizer, facts)


def draw_samples(
    folder: str | Path, out: str | Path, lens: Lens, budget: int, questions: int, seed: int
) -> tuple[list[Path], list[Problems]]:
    """Draws the lists of every corpus in a folder and writes `out/samples/<purpose>/<domain>.json`."""
    drawn = list(draw_lists(folder, token_count(lens), budget=budget, questions=questions, seed=seed))
    return save_lists((one for one, _ in drawn), Path(out) / "samples"), [problems for _, problems in drawn]


def listed_samples(folder: str | Path, out: str | Path) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """The samples of the lists in `out/samples`: those that identify neurons, those that are answered; by domain."""
    found: list[dict[str, list[Sample]]] = []
    for purpose, split in (("identification", "train"), ("evaluation", "evaluation")):
        corpora = read_corpora(folder, split)
        files = [Path(out) / "samples" / purpose / f"{domain}.json" for domain in corpora]
        lists = {file.stem: SampleList.load(file) for file in files if file.is_file()}
        found.append({domain: lists[domain].pick(corpora[domain]) for domain in lists if lists[domain].ids})
    return found[0], found[1]


def with_frames_that_fit(
    lens: Lens, samples_by_domain: Mapping[str, Sequence[Sample]], prompt: Prompt, new_tokens: int
) -> dict[str, list[Sample]]:
    """Samples of several images with as many evenly spaced ones as fit into the model beside prompt and answer.

    A model of one image is given the middle one of all when it is asked, so its samples stay as they are.
    """
    if model_kind(lens) != "llava-next":
        return {domain: list(some) for domain, some in samples_by_domain.items()}
    count = token_count(lens)
    text: Any = lens.module.config.get_text_config()
    room = text.max_position_embeddings - new_tokens

    def fitted(sample: Sample) -> Sample:
        sizes = image_sizes(sample, RecordProblems(sample.images[0])) if len(sample.images) > 1 else None
        if sizes is None:
            return sample
        words = len(lens.processor.tokenizer(prompt_of(lens, sample, prompt).replace("<image>", ""))["input_ids"])
        places = that_fit(sizes, room - words, count.image)
        return replace(sample, images=tuple(sample.images[place] for place in places))

    return {domain: [fitted(sample) for sample in some] for domain, some in samples_by_domain.items()}
