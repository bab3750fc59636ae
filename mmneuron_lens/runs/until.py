"""Until: counts of a corpus in rounds, up to where more of it would hardly change the selection (`neurons.enough`).

Each round's counts of each domain are kept in the run (`rounds/NUMBER/MODEL/DOMAIN.safetensors`) until all domains are
done, so that a process that was stopped counts nothing twice and comes to the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.counts_sum import counts_together
from mmneuron_lens.batching.gather import WHOLE, Shard
from mmneuron_lens.batching.left_out import NoneLeft
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.content import image_digest
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count import name_again, plan_count
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.enough import EnoughRule, OverlapInterval, is_enough, overlaps, rounds
from mmneuron_lens.runs.count import count_stage, counts_key
from mmneuron_lens.runs.keys import Key
from mmneuron_lens.runs.store import Store

UNTIL, COUNTED = "until", "counted"
"""Provenance, in "corpus": the rule and the domains it looked at; what was counted by it, of how much."""

PAPER_TOKENS = 20_000_000
"""LLM tokens a domain that the paper counts in LLaVA-NeXT, about."""

LLM = "llm.mlp.act"


@dataclass
class _Domain:
    """What is known of a domain on the way."""

    key: Key
    images: list[list[Sample]]
    counted: Counts | None = None
    looks: list[OverlapInterval | None] = field(default_factory=list[OverlapInterval | None])
    asked: int = 0
    seen: int = 0
    left: list[str] = field(default_factory=list[str])
    enough: bool = False
    nothing: NoneLeft | None = None

    @property
    def counts(self) -> Counts:
        """Of all rounds so far. Raises `NoneLeft` where no sample of any could be read."""
        if self.counted is None:
            raise self.nothing or NoneLeft("nothing was counted.")
        return self.counted


def count_until(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    rule: EnoughRule,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
    **planned: Any,
) -> dict[str, Counts]:
    """The counts of every domain, up to where they are enough or all of the domain is counted.

    - store: where they are kept. A folder that holds other counts of a domain is refused, as by `count_stage`.
    - rule: when a domain is enough.
    - workers, problems, progress, planned: as of `count_stage`.

    Raises `InvalidValue` for one domain, and for a lens that runs on a server.
    """
    _refuse(lens, samples_by_domain)
    plans = {
        domain: plan_count(lens, samples, problems=problems, **planned) for domain, samples in samples_by_domain.items()
    }
    of = {domain: plan.facts["corpus"] for domain, plan in plans.items()}
    until = {**rule.facts(), "domains": {domain: corpus["sha256"] for domain, corpus in of.items()}}
    domains: dict[str, _Domain] = {}
    for domain, plan in plans.items():
        key = counts_key(replace(plan, facts={**plan.facts, "corpus": {**of[domain], UNTIL: until}}))
        readable = {sample.id for step in plan.steps for sample in step.samples}
        domains[domain] = _Domain(key, _images(samples_by_domain[domain], readable, rule))
    with ExitStack() as held:
        made: dict[str, Counts | None] = dict.fromkeys(domains)
        if store.folder is not None:
            for domain, one in domains.items():
                held.enter_context(store.writing(one.key))
                made[domain] = store.get(one.key, Counts)
        if not all(made.values()):
            shared: dict[str, Any] = {"workers": workers, "problems": problems, "progress": progress, **planned}
            _count(lens, domains, store, rule, shared)
            made = {domain: _finished(one, of[domain], until) for domain, one in domains.items()}
            _save(store, domains, made)
        _clear(store, lens, domains)
    found = {domain: one for domain, one in made.items() if one is not None}
    for domain, counts in found.items():
        name_again(plans[domain], counts, problems)
    return found


def _images(samples: Sequence[Sample], readable: Set[str], rule: EnoughRule) -> list[list[Sample]]:
    return shuffled([sample for sample in samples if sample.id in readable], rule.seed)


def shuffled(samples: Sequence[Sample], seed: int = 0) -> list[list[Sample]]:
    """Samples image by image, in an order that the bytes of the images and the seed decide alone."""
    by_image: dict[tuple[Path, ...], list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.images, []).append(sample)

    def place(images: tuple[Path, ...]) -> tuple[str, str]:
        drawn = hashlib.sha256(f"{seed} {image_digest(images[0])}".encode()).hexdigest()
        return drawn, min(sample.id for sample in by_image[images])

    return [by_image[images] for images in sorted(by_image, key=place)]


def rule_of(until: float | None, shard: Shard = WHOLE) -> EnoughRule | None:
    """The rule of `mmneuron count --until`; None without it. Raises `InvalidValue` beside `--shard`."""
    if until is not None and shard != WHOLE:
        raise InvalidValue(
            f"--until {until:g} looks at all that was counted so far, and --shard {shard} counts a part of it; leave "
            "one of the two out."
        )
    return None if until is None else EnoughRule(until)


def enough_line(counts: Counts) -> str:
    """What was counted of a domain, of how much, and whether it was enough; "" for counts of everything."""
    corpus = counts.provenance["corpus"]
    if COUNTED not in corpus:
        return ""
    told = corpus[COUNTED]
    interval = OverlapInterval(*told["overlap"]) if told["overlap"] else None
    asked = f"{told['questions']:,} of {corpus['questions']:,} questions"
    tokens = f"{told['tokens']:,} tokens of {PAPER_TOKENS:,} (the paper's)"
    overlap = "overlap not known: too few images, or no neurons" if interval is None else f"overlap {interval}"
    if told["enough"]:
        return f"{counts.domain}: enough after {tokens}, {asked}, {overlap}"
    wanted = corpus[UNTIL]["overlap"]
    return f"{counts.domain}: all was counted and {wanted:g} not reached: {tokens}, {asked}, {overlap}"


def _refuse(lens: Lens, domains: Mapping[str, Sequence[Sample]]) -> None:
    if lens.remote:
        raise InvalidValue("until: counting on a server goes through the whole corpus; leave --until or --remote out.")
    if len(domains) < 2:
        raise InvalidValue(
            f"until: one domain, {', '.join(domains)}; a selection is of two or more, so nothing can be enough. Name "
            "several, or leave --until out."
        )


def _count(
    lens: Lens, domains: Mapping[str, _Domain], store: Store, rule: EnoughRule, shared: Mapping[str, Any]
) -> None:
    """Rounds, each with a look after it, until no domain is left that is not enough."""
    sizes = rounds({domain: len(one.images) for domain, one in domains.items()})
    for number, upto in enumerate(sizes, 1):
        growing = {domain: one for domain, one in domains.items() if not one.enough}
        for domain, one in growing.items():
            _grow(lens, domain, one, upto[domain], store, number, shared)
        there = number == len(sizes) or all(one.counted is not None for one in domains.values())
        found = overlaps([one.counts for one in domains.values()], rule) if there else {}
        for domain, one in growing.items():
            one.looks.append(found.get(domain))
            one.enough = is_enough(one.looks, rule.overlap)
        told = ", ".join(f"{domain} {found[domain] or 'not known'}" for domain in growing if domain in found)
        store.say(f"look {number}, after {_share(growing)} of the images; overlap of halves: {told}")
        if all(one.enough for one in domains.values()):
            break


def _share(growing: Mapping[str, _Domain]) -> str:
    done, whole = (sum(count) for count in zip(*((one.seen, len(one.images)) for one in growing.values()), strict=True))
    return f"{100 * done / whole:.0f} %"


def _grow(
    lens: Lens, domain: str, one: _Domain, upto: int, store: Store, number: int, shared: Mapping[str, Any]
) -> None:
    """Counts the images of a domain between those that were counted and `upto`."""
    new = [sample for image in one.images[one.seen : upto] for sample in image]
    one.seen, one.asked = upto, one.asked + len(new)
    if not new:
        return
    try:
        found = count_stage(lens, {domain: new}, store, kind=_kind(number), **shared)[domain]
    except NoneLeft as error:
        one.nothing, one.left = error, [*one.left, *(sample.id for sample in new)]
        return
    assert found is not None
    one.counted = found if one.counted is None else counts_together([one.counted, found])


def _kind(number: int) -> str:
    return f"rounds/{number}"


def _finished(one: _Domain, corpus: Mapping[str, Any], until: Mapping[str, Any]) -> Counts:
    """The counts with what was counted, of how much, and how sure it is."""
    counts, last = counts_together([one.counts], one.left), one.looks[-1] if one.looks else None
    tokens = counts.tokens.get(LLM, next(iter(counts.tokens.values())))
    told = {
        "images": one.seen,
        "of images": len(one.images),
        "questions": one.asked,
        "tokens": int(tokens.sum()),
        "looks": len(one.looks),
        "overlap": None if last is None else [last.mean, last.low, last.high],
        "enough": one.enough,
    }
    facts = {**counts.provenance, "corpus": {**corpus, UNTIL: dict(until), COUNTED: told}}
    return replace(counts, provenance=facts)


def _save(store: Store, domains: Mapping[str, _Domain], made: Mapping[str, Counts | None]) -> None:
    if store.folder is None:
        return
    store.refuse_lost()
    for domain, one in domains.items():
        counts = made[domain]
        if counts is not None and store.get(one.key, Counts) is None:
            counts.save(store.path(one.key), one.key.facts)


def _clear(store: Store, lens: Lens, domains: Mapping[str, _Domain]) -> None:
    """Removes the counts of the rounds, which are part of finished ones now; files that are not ours stay."""
    if store.folder is None:
        return
    sizes = rounds({domain: len(one.images) for domain, one in domains.items()})
    for number in range(1, len(sizes) + 1):
        for one in domains.values():
            file = store.path(Key(one.key.path.replace("counts/", f"{_kind(number)}/", 1), {}))
            file.unlink(missing_ok=True)
            for folder in (file.parent, file.parents[1], file.parents[2]):
                with suppress(OSError):
                    folder.rmdir()
