"""Counts of parts of one domain as one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmneuron_lens.artifacts.counts import (
    CORPUS_FIELDS,
    FRAMES_SHOWN,
    LEFT_OUT,
    REASONS,
    Counts,
    refuse_differences,
)


def counts_together(parts: Sequence[Counts], left: Sequence[str] = ()) -> Counts:
    """The counts of parts of one domain that share no sample, added up; their order does not matter.

    - parts: at least one. left: ids of further samples that were left out.

    Raises `InvalidValue` naming what differs, as `refuse_differences`.
    """
    refuse_differences(parts, action="add up")
    first = parts[0]
    facts: dict[str, Any] = {name: value for name, value in first.provenance.items() if name not in CORPUS_FIELDS}
    if "corpus" in first.provenance:
        facts["corpus"] = first.provenance["corpus"]
    gone = {name for one in parts for name in one.provenance.get(LEFT_OUT, ())} | {*left}
    reasons = {name: why for one in parts for name, why in one.provenance.get(REASONS, {}).items()}
    shown = Counter[str]()
    for one in parts:
        shown.update(one.provenance.get(FRAMES_SHOWN, {}))
    facts |= {LEFT_OUT: sorted(gone, key=json.dumps)}
    facts |= {REASONS: {name: reasons[name] for name in sorted(reasons, key=json.dumps)}} if reasons else {}
    facts |= {FRAMES_SHOWN: {name: shown[name] for name in sorted(shown, key=int)}} if shown else {}
    active = {site: sum((one.active[site] for one in parts[1:]), first.active[site]) for site in first.active}
    tokens = {site: sum((one.tokens[site] for one in parts[1:]), first.tokens[site]) for site in first.tokens}
    samples = sum(one.samples for one in parts)
    return Counts(first.model, first.domain, active, tokens, first.kinds, samples, facts)
