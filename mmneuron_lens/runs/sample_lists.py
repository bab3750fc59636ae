"""Sample lists of published corpora in a run: drawn once, shared by all models."""

from __future__ import annotations

from pathlib import Path

from mmneuron_lens.batching.frames import token_count
from mmneuron_lens.corpora.published import PUBLISHED, read_corpora
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.rows import CorpusError
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.sample_list import SampleList
from mmneuron_lens.corpora.sampling import draw_lists, save_lists
from mmneuron_lens.corpora.token_count import TokenCount
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.keys import StoreConflict, differences, refusal
from mmneuron_lens.runs.plan import Plan

NAMES = {domain: one.name for domain, one in PUBLISHED.items()}
"""The corpus of each domain, as its official score is known by."""


def draw_samples(
    folder: str | Path, out: str | Path, lens: Lens, plan: Plan
) -> tuple[list[Path], list[RecordProblems]]:
    """Draws the lists of every corpus in a folder and writes `out/samples/<purpose>/<domain>.json`."""
    amounts = {"budget": plan.budget, "questions": plan.questions, "seed": plan.seed}
    drawn = list(draw_lists(folder, token_count(lens, plan.frames), **amounts))
    return save_lists((one for one, _ in drawn), Path(out) / "samples"), [problems for _, problems in drawn]


def listed_samples(
    folder: str | Path, out: str | Path, count: TokenCount, plan: Plan
) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]], list[str]]:
    """The samples of the lists in `out/samples`: those that identify neurons, those that are answered; by domain.

    The third are notes: which lists hold less than was asked for, since the corpus has no more, a line each.

    Raises `StoreConflict` for a list that was drawn with another budget, seed, or way to count tokens, and
    `CorpusError` for a corpus of which not one question was good.
    """
    wanted = {
        "identification": {"budget": plan.budget, "seed": plan.seed, "count": count.parameters()},
        "evaluation": {"seed": plan.seed, "questions": plan.questions},
    }
    found: list[dict[str, list[Sample]]] = []
    notes: list[str] = []
    for purpose, split in (("identification", "train"), ("evaluation", "evaluation")):
        corpora = read_corpora(folder, split)
        files = [Path(out) / "samples" / purpose / f"{domain}.json" for domain in corpora]
        lists = {file.stem: SampleList.load(file) for file in files if file.is_file()}
        for file, one in ((file, lists[file.stem]) for file in files if file.stem in lists):
            held = {name: one.parameters.get(name) for name in wanted[purpose]}
            if differing := differences(held, wanted[purpose]):
                raise StoreConflict(refusal(file, differing))
        if empty := [one for one in lists.values() if not one.ids]:
            named = ", ".join(f"{one.corpus} {one.split} ({one.domain})" for one in empty)
            raise CorpusError(
                f"{folder} has no good question of {named}; see `mmneuron corpora check`, mend them or take the folder "
                f"away, and draw again without {Path(out) / 'samples'}."
            )
        found.append({domain: lists[domain].pick(corpora[domain]) for domain in lists})
        notes += [_short(one) for one in lists.values() if one.parameters["short"]]
    return found[0], found[1], notes


def _short(one: SampleList) -> str:
    parameters, what = one.parameters, f"{one.corpus} {one.split} ({one.domain})"
    if one.purpose == "evaluation":
        wanted = parameters.get("questions", 0)
        return f"{what} has {len(one.ids)} questions to be answered, where {wanted:,} were asked for."
    budget, cut = parameters.get("budget", 0), parameters.get("cut to", 0)
    return (
        f"{what} has {budget - parameters['short']:,} tokens to identify neurons, where {budget:,} were asked for; "
        f"every domain is cut to {cut:,}."
    )
