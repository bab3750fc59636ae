"""Stages on disk: a run is a folder in which each stage finds what the one before it wrote.

shards/<model>/<domain>.*.safetensors    counts/<model>/<domain>.safetensors    selection/<model>.safetensors
controls/<model>/*.safetensors    answers/<model>.jsonl    tables/*.csv    figures/*.png    index.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.architectures.loading import embedded_folder
from mmneuron_lens.artifacts.answers import AnswerLog, key_of, load_answers, save_answers
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.files import file_name
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.batches import Progress, model_facts, model_name, quietly
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.ablate import Off, ablate, generation_settings, questions_digest
from mmneuron_lens.experiments.identify import Identified, count_domain, find
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.checkpoint import SECONDS, Checkpoint
from mmneuron_lens.runs.merging import WHOLE, Shard, shard_file, unfinished
from mmneuron_lens.runtime.remote import ask_served

DTYPES = ("float32", "bfloat16", "float16")


class RunError(InvalidValue):
    """A run's folder lacks what a stage needs; the message says which stage writes it."""


def open_lens(model: str, remote: bool | str | None = None, **settings: Any) -> Lens:
    """A lens on `embedded/<name>`, a local folder or a hub id. settings: as of `Lens`, those that are None left out.

    remote: True or an NDIF server's URL for a lens without weights that runs there; dtype and device are the server's,
    and `ValueError` is raised for one given here.
    Without a device, a process of several (`accelerate launch`, `torchrun`) takes the GPU of its LOCAL_RANK.
    Raises `OSError` when it is not found, `KeyError` or `ValueError` with the choices for an unknown name, type of
    model, dtype or device.
    """
    dtype, device = settings.get("dtype"), settings.get("device")
    if remote:
        if dtype is not None or device is not None:
            raise InvalidValue("dtype and device are the server's; leave them out where the model runs remotely.")
        name = model.removeprefix("embedded/")
        given = {name: value for name, value in settings.items() if value is not None}
        lens = Lens.weightless(embedded_folder(name) if name != model else model, **given)
        lens.name, lens.remote = model, remote
        lens.served = ask_served(lens, remote)
        return lens
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise InvalidValue(unknown("dtype", dtype, DTYPES))
    if device is None and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        device = settings["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
    devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if isinstance(device, str) and device not in (*devices, *(("cuda",) if len(devices) > 1 else ())):
        raise InvalidValue(unknown("device", device, devices))
    given = {name: value for name, value in settings.items() if value is not None}
    if model.startswith("embedded/"):
        return Lens.embedded(model.removeprefix("embedded/"), **given)
    return Lens(model, **given)


def count_stage(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    out: str | Path,
    *,
    shard: Shard = WHOLE,
    seconds: float = SECONDS,
    **settings: Any,
) -> list[Path]:
    """Counts every domain and writes `counts/<model>/<domain>.safetensors` after each; returns the files.

    A shard goes to `shards/<model>/<domain>.2-of-4.safetensors` instead, for `mmneuron merge`. The counts under way lie
    in `shards/`, at most `seconds` old: the same call goes on where it was stopped, and counts nothing again that is
    finished. settings: those of `count_domain`.
    """
    files = []
    model = file_name(model_name(lens))
    for domain, samples in samples_by_domain.items():
        part = shard_file(out, model, file_name(domain), shard)
        file = Path(out) / "counts" / model / part.name.replace(".1-of-1", "") if shard == WHOLE else part
        checkpoint = Checkpoint(unfinished(part), file, seconds)
        counts = count_domain(lens, samples, shard=shard, checkpoint=checkpoint, **settings)
        checkpoint.finish(counts)
        files.append(file)
    return files


def counted(out: str | Path) -> list[list[Counts]]:
    """The counts of every model in a run. Raises `RunError` when there are none."""
    folders = sorted(path for path in (Path(out) / "counts").glob("*") if path.is_dir())
    found = [[Counts.load(path) for path in sorted(folder.glob("*.safetensors"))] for folder in folders]
    found = [counts for counts in found if counts]
    if not found:
        raise RunError(f"{out} holds no counts; write them with `mmneuron count --model ... --corpus ... --out {out}`.")
    return found


def kinds_by_site(counts: Counts, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The named kinds of token at each site that has any of them; a site that has none keeps all of its own.

    Raises `ValueError` naming the choices for a kind that no site has.
    """
    choices = dict.fromkeys(kind for kinds in counts.kinds.values() for kind in kinds)
    for name in names:
        if name not in choices:
            raise InvalidValue(f"no kind of token {name!r} was counted; choose from {', '.join(choices)}.")
    chosen = {site: tuple(kind for kind in kinds if kind in names) for site, kinds in counts.kinds.items()}
    return {site: kinds for site, kinds in chosen.items() if kinds}


def select_stage(
    run: str | Path,
    out: str | Path | None = None,
    *,
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: Sequence[str] = (),
    permutations: int = 20,
    seed: int = 0,
    progress: Progress = quietly,
) -> list[Identified]:
    """Selects from the counts of every model in a run, and writes selection and controls; raises as `select` does.

    out: the folder to write to, if not the run's own.
    """
    out, results = run if out is None else out, []
    for counts in counted(run):
        found = find(
            counts,
            fraction=fraction,
            percentile=percentile,
            kinds=kinds_by_site(counts[0], kinds),
            permutations=permutations,
            seed=seed,
            progress=progress,
        )
        found.selection.save(selection_file(out, found.selection.model))
        found.wider.save(Path(out) / "selection_wider" / selection_file(out, found.selection.model).name)
        controls = Path(out) / "controls" / file_name(found.selection.model)
        if found.discovery is not None and found.overlap is not None:
            found.discovery.save(controls / "false_discovery.safetensors")
            found.overlap.save(controls / "halves_overlap.safetensors")
        results.append(found)
    return results


def ablate_stage(
    lens: Lens, samples_by_domain: Mapping[str, Sequence[Sample]], out: str | Path, **settings: Any
) -> Path:
    """Answers questions with the run's neurons off and writes `answers/<model>.jsonl`. settings: those of `ablate`.

    Answers lie in `answers/<model>.partial.jsonl` while they are given: the same call goes on where it was stopped. An
    answer that is there already, to the same question under the same settings, is not generated again.
    """
    file = selection_file(out, model_name(lens))
    selection = Selection.load(file)
    path = answers_file(out, selection.model)
    facts = _answer_facts(lens, content_hash(file), samples_by_domain, settings)
    log = AnswerLog(path.with_suffix(".partial.jsonl"), facts)
    kept = path.with_suffix(".json")
    if path.is_file() and kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) == log.settings:
        log.add(one for one in load_answers(path) if key_of(one) not in log.answers)
    answers = ablate(lens, selection, samples_by_domain, selection_id=content_hash(file), log=log, **settings)
    kept.unlink(missing_ok=True)
    save_answers(answers, path)
    kept.write_text(json.dumps(log.settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if log.path is not None:
        log.path.unlink()
    return path


def _answer_facts(
    lens: Lens, selection: str, samples_by_domain: Mapping[str, Sequence[Sample]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that an answer depends on, besides its question and its condition."""
    other = ("modules", "random_draws", "cross", "controls", "problems", "progress", "off")
    given = {name: value for name, value in settings.items() if name not in (*other, "seed", "match", "prompt")}
    size = given.pop("batch_size", 32)
    return {
        **model_facts(lens),
        "selection": selection,
        "questions": questions_digest(samples_by_domain),
        "prompt": settings.get("prompt", "evaluation"),
        "batch size": size,
        "seed": settings.get("seed", 0),
        "match": settings.get("match", "module"),
        "off": (settings.get("off") or Off()).described,
        "generation": generation_settings(**given),
    }


def selection_file(out: str | Path, model: str) -> Path:
    """Where the selection of a model lies in a run."""
    return Path(out) / "selection" / f"{file_name(model)}.safetensors"


def answers_file(out: str | Path, model: str) -> Path:
    """Where the answers of a model lie in a run."""
    return Path(out) / "answers" / f"{file_name(model)}.jsonl"
