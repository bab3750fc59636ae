"""Drawing sample lists: which questions of a corpus every model is asked, drawn once with a seed.

Identification takes as many LLaVA-NeXT tokens from every domain ("around 20 million ... nearly the same"), evaluation
as many questions as LingoQA's validation set has. A question's place in the draw is a hash of seed, purpose, domain and
its id alone: a list depends neither on the order of the files nor on what else was drawn, and a larger one begins with
the smaller one.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.folder import Problems, image_sizes
from mmneuron_lens.corpora.published import read_corpora
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.sample_list import DrawParameters, SampleList
from mmneuron_lens.corpora.token_count import TokenCount

BUDGET = 20_000_000
"""LLaVA-NeXT tokens a domain, for identification (section 4 of the paper)."""

QUESTIONS = 500
"""Questions a domain, for evaluation: as many as LingoQA's validation set has."""


def identification_list(
    samples: Iterable[Sample],
    count: TokenCount,
    *,
    domain: str,
    corpus: str = "",
    split: str = "train",
    budget: int = BUDGET,
    seed: int = 0,
    problems: Problems | None = None,
) -> SampleList:
    """Samples in drawn order until their tokens reach the budget; all of them where a corpus has fewer.

    Memory grows with the budget, not with the corpus: an image's header is read only where its sample may still be
    chosen.

    - count: the tokens of a sample.
    - domain, corpus, split: what the list is of; the domain decides the draw.
    - budget: tokens.
    - seed: of the draw.
    - problems: where a sample whose image header cannot be read is named; it is left out.

    Raises `InvalidValue` for a budget below 1.
    """
    if budget < 1:
        raise InvalidValue(f"budget is {budget} tokens; it must be 1 or more.")
    # The chosen ones so far, the last drawn on top.
    chosen: list[tuple[int, str, int]] = []
    total = 0
    for sample in samples:
        place = _place(seed, "identification", domain, sample.id)
        if total >= budget and -place < chosen[0][0]:
            continue
        sizes = image_sizes(sample, problems)
        if sizes is None:
            continue
        tokens = count(sample, sizes)
        heapq.heappush(chosen, (-place, sample.id, tokens))
        total += tokens
        while total - chosen[0][2] >= budget:
            total -= heapq.heappop(chosen)[2]
    chosen.sort(reverse=True)
    short = max(0, budget - total)
    parameters: DrawParameters = {"seed": seed, "budget": budget, "short": short, "count": count.parameters()}
    ids, tokens = tuple(one[1] for one in chosen), tuple(one[2] for one in chosen)
    return SampleList(domain, corpus, split, "identification", ids, tokens, parameters)


def balanced(lists: Mapping[str, SampleList]) -> dict[str, SampleList]:
    """Lists cut to the tokens of the smallest that has any: each to the first sample that reaches them ("cut to")."""
    least = min((one.total for one in lists.values() if one.ids), default=0)
    cut = {}
    for domain, one in lists.items():
        kept, total = 0, 0
        while kept < len(one.ids) and total < least:
            total, kept = total + one.tokens[kept], kept + 1
        parameters: DrawParameters = {**one.parameters, "cut to": least}
        cut[domain] = replace(one, ids=one.ids[:kept], tokens=one.tokens[:kept], parameters=parameters)
    return cut


def evaluation_list(
    samples: Iterable[Sample],
    *,
    domain: str,
    corpus: str = "",
    split: str = "val",
    questions: int = QUESTIONS,
    seed: int = 0,
    problems: Problems | None = None,
) -> SampleList:
    """So many questions, in drawn order; all where a corpus has fewer. Tokens are not counted.

    - domain, corpus, split, seed, problems: as of `identification_list`.
    - questions: how many.

    Raises `InvalidValue` for fewer than 1.
    """
    if questions < 1:
        raise InvalidValue(f"{questions} questions; give 1 or more.")
    chosen: list[tuple[int, str]] = []
    for sample in samples:
        place = _place(seed, "evaluation", domain, sample.id)
        full = len(chosen) == questions
        if (full and -place < chosen[0][0]) or image_sizes(sample, problems) is None:
            continue
        (heapq.heappushpop if full else heapq.heappush)(chosen, (-place, sample.id))
    ids = tuple(one[1] for one in sorted(chosen, reverse=True))
    parameters: DrawParameters = {"seed": seed, "questions": questions, "short": questions - len(ids)}
    return SampleList(domain, corpus, split, "evaluation", ids, (), parameters)


def draw_lists(
    folder: str | Path, count: TokenCount, *, budget: int = BUDGET, questions: int = QUESTIONS, seed: int = 0
) -> Iterator[tuple[SampleList, RecordProblems]]:
    """All lists of a folder of corpora (see `published`), each with what was skipped: identification, then evaluation.

    Those of identification are balanced.
    """
    drawn: dict[str, SampleList] = {}
    found: dict[str, RecordProblems] = {}
    for domain, one in read_corpora(folder, "train").items():
        found[domain] = problems = RecordProblems(one.folder)
        drawn[domain] = identification_list(
            one.read(problems), count, domain=domain, corpus=one.name, split=one.split, budget=budget, seed=seed,
            problems=problems,
        )  # fmt: skip
    for domain, cut in balanced(drawn).items():
        yield cut, found[domain]
    for domain, one in read_corpora(folder, "evaluation").items():
        problems = RecordProblems(one.folder)
        asked = evaluation_list(
            one.read(problems), domain=domain, corpus=one.name, split=one.split, questions=questions, seed=seed,
            problems=problems,
        )  # fmt: skip
        yield asked, problems


def save_lists(lists: Iterable[SampleList], folder: str | Path) -> list[Path]:
    """Writes each list as `<purpose>/<domain>.json`; returns the files."""
    files = []
    for one in lists:
        files.append(Path(folder) / one.purpose / f"{one.domain}.json")
        one.save(files[-1])
    return files


def _place(seed: int, purpose: str, domain: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}:{domain}:{name}".encode()).digest())
