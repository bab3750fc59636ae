"""Claims: the paper's eight statements as numbers with intervals, from a run's artifacts; needs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.evaluation.ablation_claim import much_and_little
from mmneuron_lens.evaluation.findings import RESAMPLES, Claim, Evidence, Finding
from mmneuron_lens.evaluation.layer_claims import final_rise, image_above_text, image_confidence, middle_fall
from mmneuron_lens.evaluation.neuron_claims import (
    document_depth,
    largest_share,
    ranking_agreement,
    resampled_selections,
    silent_in_vision,
    turning_points,
)

STATEMENTS = (
    ("1", "Domain-specific neurons per layer of the language model have two turning points: three stages."),
    ("2", "Document neurons of the vision encoder lie in shallower layers than those of other domains."),
    ("3", "Fewer than 1 % of a module’s neurons are specific to any one domain."),
    ("4a", "The next-token distribution of image tokens has more entropy than that of text tokens at every layer."),
    ("4b", "The entropy falls in the middle layers."),
    ("4c", "The entropy rises slightly at the end."),
    ("5", "At the output, the most likely next token of an image token stays under 40 %."),
    ("6", "Switching domain-specific neurons off moves the last hidden state much and accuracy little."),
    ("7", "The ranking of domains by number of neurons differs between modules."),
    ("8", "Some neurons of the vision encoder are silent for every input."),
)


def claims(evidence: Sequence[Evidence], resamples: int = RESAMPLES, seed: int = 0) -> tuple[Claim, ...]:
    """All statements, each with what was found on every model.

    - evidence: what was run, a model each.
    - resamples: of every interval that resamples images.
    - seed: of the resampling.
    """
    drawn = [resampled_selections(one, resamples, seed) for one in evidence]
    tests: dict[str, Callable[[Evidence, list[Selection]], Finding]] = {
        "1": turning_points,
        "2": document_depth,
        "3": largest_share,
        "4a": lambda one, _: image_above_text(one, resamples, seed),
        "4b": lambda one, _: middle_fall(one, resamples, seed),
        "4c": lambda one, _: final_rise(one, resamples, seed),
        "5": lambda one, _: image_confidence(one, resamples, seed),
        "6": lambda one, _: much_and_little(one, resamples, seed),
        "7": ranking_agreement,
        "8": lambda one, _: silent_in_vision(one, resamples, seed),
    }
    return tuple(
        Claim(number, statement, tuple(tests[number](one, some) for one, some in zip(evidence, drawn, strict=True)))
        for number, statement in STATEMENTS
    )
