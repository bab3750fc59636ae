"""Marking: each benchmark's official score of every answer, kept beside the answers; needs no model but a judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmneuron_lens import metrics
from mmneuron_lens.artifacts.answers import Answer, Key, exact_match, key_of
from mmneuron_lens.artifacts.files import file_name
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.corpora.sample import Sample

KIND, VERSION = "marks", 1
EXACT = "top-1 accuracy (equal to an accepted answer but for case and space)"


@dataclass(frozen=True)
class Marks:
    """`values`: a mark in [0, 1] for every answer that can be scored; `metrics`: the score's name by domain."""

    values: dict[Key, float]
    metrics: dict[str, str]
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Writes JSON; the same marks give the same bytes."""
        rows = [[*key, value] for key, value in self.values.items()]
        document = {"kind": KIND, "version": VERSION, "metrics": self.metrics, "notes": self.notes, "marks": rows}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Marks:
        """Reads what `save` wrote; `ArtifactError` for another thing or a newer version."""
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if document.get("kind") != KIND or document.get("version", 0) > VERSION:
            raise ArtifactError(f"{path}: not marks of version {VERSION} or older; run the paper again.")
        values: dict[Key, float] = {}
        for module, condition, neurons_of, domain, name, value in document["marks"]:
            values[module, condition, neurons_of, domain, name] = value
        return cls(values, document["metrics"], tuple(document["notes"]))


def mark_answers(
    answers: Sequence[Answer],
    samples_by_domain: Mapping[str, Sequence[Sample]],
    corpora: Mapping[str, str],
    judge: Any = None,
) -> Marks:
    """Every answer's mark: by the official score of its domain's corpus, or exactly where the domain has none.

    corpora: the corpus's name by domain, as `metrics.score` knows it. judge: a `metrics.LingoJudge`, without which
    LingoQA is marked exactly and a note says so.
    """
    values: dict[Key, float] = {}
    names: dict[str, str] = {}
    notes = []
    groups: dict[tuple[str, ...], list[Answer]] = {}
    for one in answers:
        groups.setdefault((one.domain, one.module, one.condition, one.neurons_of), []).append(one)
    for (domain, *_), some in groups.items():
        corpus = corpora.get(domain, "")
        if not corpus or (corpus == "LingoQA" and judge is None):
            if corpus and domain not in names:
                notes.append(f"{corpus} was not scored by Lingo-Judge, whose weights were not given (--judge).")
            names[domain] = EXACT
            values |= {key_of(one): float(exact_match(one.answer, one.answers)) for one in some}
            continue
        parameters: dict[str, Any] = {"judge": judge} if corpus == "LingoQA" else {}
        said = {one.id: one.answer for one in some}
        samples = [sample for sample in samples_by_domain[domain] if sample.id in said]
        scored = metrics.score(corpus, samples, said, **parameters)
        names[domain] = scored.metric
        keys = {one.id: key_of(one) for one in some}
        values |= {keys[name]: float(value) for name, value in zip(scored.ids, scored.scores, strict=True)}
        notes += [f"{corpus}: {reason}" for reason in scored.skipped if f"{corpus}: {reason}" not in notes]
    return Marks(values, names, tuple(notes))


def marks_file(out: str | Path, model: str) -> Path:
    """Where the marks of a model's answers lie in a run."""
    return Path(out) / "answers" / f"{file_name(model)}.marks.json"
