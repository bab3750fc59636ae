"""What a page was made of: models, corpus, settings, what was skipped, and the command that makes it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmneuron_lens.paper.model_run import ModelRun

PROBLEMS = ("problems.txt", "problems_when_asked.txt")
MODEL = ("model id", "revision", "fingerprint", "dtype", "device", "attention", "packing", "batch size")
"""What the counts know of a model and how it was run."""


def facts_of(
    runs: Sequence[ModelRun], command: str, plan: Mapping[str, Any] | None = None
) -> tuple[tuple[str, str], ...]:
    """Name and value of everything that the artifacts do not say each by itself.

    - command: what makes the page again from the folder.
    - plan: of a run of the paper.
    """
    facts = [("the page again", command)]
    facts += [(run.model, _model(run)) for run in runs if run.counts]
    corpora = {(one.domain, _corpus(one.provenance.get("corpus"))) for run in runs for one in run.counts}
    facts += [(f"corpus, {domain}", said) for domain, said in sorted(corpora)]
    facts += [(f"selection, {run.model}", _text(run.selection.parameters)) for run in runs]
    facts += [("settings", _text(plan))] if plan else []
    facts.append(("skipped", _skipped(runs[0].out)))
    return tuple(facts)


def _model(run: ModelRun) -> str:
    known = run.counts[0].provenance
    return _text({name: known[name] for name in MODEL if known.get(name) is not None})


def _corpus(corpus: Any) -> str:
    return _text(corpus) if isinstance(corpus, dict) else str(corpus)


def _skipped(out: Path) -> str:
    lines = {name: len((out / name).read_text().splitlines()) for name in PROBLEMS if (out / name).is_file()}
    return ", ".join(f"{count:,} records, named in {name}" for name, count in lines.items()) or "no record"


def _text(values: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
    )
