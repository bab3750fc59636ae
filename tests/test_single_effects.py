"""Single neurons off: against plain hooks, one question at a time; and what the table of neurons says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import polars as pl
import pytest
import torch
from PIL import Image

import mmneuron_lens as mm
from mmneuron_lens.artifacts.neuron_effects import NeuronEffects
from mmneuron_lens.batching.gather import Memory
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.evaluation.single_effects import with_effects
from mmneuron_lens.experiments.single_effects import measure_effects
from mmneuron_lens.runs.neuron_effects import effects_stage
from mmneuron_lens.runs.neuron_tables import write_neurons
from mmneuron_lens.runs.store import Store


@pytest.fixture(scope="module")
def lens() -> mm.Lens:
    return mm.Lens("embedded/llava-next")


@pytest.fixture(scope="module")
def samples() -> list[mm.Sample]:
    return list(mm.load_corpus("drawn", images=4, questions_per_image=1).only("medical"))


@pytest.fixture(scope="module")
def masks(lens) -> dict[str, torch.Tensor]:
    """Two neurons of the vision encoder and two of the language model."""
    found = {}
    for site in ("vision.mlp.act", "llm.mlp.act"):
        place = lens.architecture.place(site)
        found[site] = torch.zeros(place.layers, sizes(lens, site), dtype=torch.bool)
        found[site][0, 3] = found[site][1, 17] = True
    return found


def sizes(lens: mm.Lens, site: str) -> int:
    config = lens.module.config
    return (config.vision_config if site.startswith("vision") else config.text_config).intermediate_size


@pytest.fixture(scope="module")
def effects(lens, samples, masks) -> NeuronEffects:
    return measure_effects(lens, samples, masks, random_neurons=3, batch_size=3)


def log_probability(lens: mm.Lens, sample: mm.Sample, path: str = "", neuron: int = 0) -> float:
    """Of the first answer behind the prompt, in a plain forward, with one neuron of a module held at zero by a hook."""
    prompt = prompt_of(lens, sample, "evaluation", 1)
    image = Image.open(sample.images[0])
    before, whole = (
        lens.processor(images=image, text=text, return_tensors="pt")
        for text in (prompt, f"{prompt} {sample.answers[0]}")
    )
    start = before["input_ids"].shape[1]

    def off(module, given, made):
        made = made.clone()
        made[..., neuron] = 0
        return made

    hook = lens.module.get_submodule(path).register_forward_hook(off) if path else None
    with torch.no_grad():
        logits = lens.module(**whole).logits[0]
    if hook:
        hook.remove()
    tokens = whole["input_ids"][0, start:]
    return float(logits[start - 1 : -1].log_softmax(-1).gather(1, tokens[:, None]).sum())


def test_every_change_is_that_of_a_plain_hook(lens, samples, effects):
    assert effects.samples == tuple(sorted(one.id for one in samples))
    assert effects.drawn.tolist() == [False] * 4 + [True] * 6
    by_id = {one.id: one for one in samples}
    plain = [log_probability(lens, by_id[name]) for name in effects.samples]
    assert numpy.allclose(effects.plain.numpy(), plain, atol=1e-4)
    for (site, layer, neuron), change in zip(effects.members.tolist(), effects.change.tolist(), strict=True):
        path = dict(lens.architecture.place(effects.sites[site]).paths())[layer]
        off = [log_probability(lens, by_id[name], path, neuron) for name in effects.samples]
        assert numpy.allclose(change, numpy.array(off) - plain, atol=1e-4)
    assert float(effects.change.abs().max()) > 2e-4


def test_random_neurons_are_none_of_those_that_are_measured(lens, samples, masks):
    never = {site: torch.ones_like(mask) for site, mask in masks.items()}
    never["llm.mlp.act"][2, :2] = False
    found = measure_effects(lens, samples[:2], masks, never=never, random_neurons=5)
    assert sorted(found.members[found.drawn].tolist()) == [[1, 2, 0], [1, 2, 1]]


def test_what_was_kept_is_not_run_again(lens, samples, masks, effects, monkeypatch):
    keeper = Memory()
    run, ran = mm.Lens.run, []

    def stopped(self, graphs, batch):
        ran.append(batch.rows)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run(self, graphs, batch)

    monkeypatch.setattr(mm.Lens, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure_effects(lens, samples, masks, random_neurons=3, batch_size=3, keeper=keeper)
    again = measure_effects(lens, samples, masks, random_neurons=3, batch_size=3, keeper=keeper)
    assert ran == [3, 3, 1, 1, 1]
    assert again.samples == effects.samples
    assert torch.allclose(again.change, effects.change, atol=1e-5)


def test_neurons_of_one_module_alone_are_measured_too(lens, samples, masks, effects):
    for site in masks:
        alone = measure_effects(lens, samples[:2], {site: masks[site]}, random_neurons=0)
        whole = [place for place, one in enumerate(effects.members.tolist()) if effects.sites[one[0]] == site][:2]
        columns = [effects.samples.index(one) for one in alone.samples]
        assert torch.allclose(alone.change, effects.change[whole][:, columns], atol=1e-5)


def test_questions_without_an_answer_are_named(lens, samples, masks):
    problems = Problems(Path("questions.jsonl"), lines={one.id: place for place, one in enumerate(samples)})
    mute = replace(samples[0], answers=())
    found = measure_effects(lens, [mute, *samples[1:]], masks, random_neurons=0, problems=problems)
    assert found.samples == tuple(sorted(one.id for one in samples[1:]))
    assert "it has no answer" in str(problems)
    with pytest.raises(ValueError, match="no neuron to switch off"):
        measure_effects(lens, samples, {site: mask & False for site, mask in masks.items()})


def test_the_table_says_what_was_measured(effects):
    # Random neurons of the other site all have larger effects than this one, and those of its own are smaller.
    change = effects.change.clone()
    change[effects.drawn & (effects.members[:, 0] == 0)] = 1.0
    change[effects.drawn & (effects.members[:, 0] == 1)] *= 1e-6
    effects = replace(effects, change=change)
    site, layer, neuron = effects.members[2].tolist()
    keys = [
        (effects.model, effects.sites[site], layer, neuron, "medical"),
        (effects.model, "llm.mlp.act", 0, 4, "medical"),
    ]
    table = pl.DataFrame(keys, schema=["model", "site", "layer", "neuron", "domain"], orient="row")
    first, second = with_effects(table, [effects]).iter_rows(named=True)
    change = effects.change[2].numpy()
    assert first["effect"] == pytest.approx(change.mean())
    assert first["effect_low"] <= change.mean() <= first["effect_high"]
    assert first["effect_low"] >= change.min()
    own = [
        abs(float(mean))
        for (place, *_), drawn, mean in zip(effects.members, effects.drawn, effects.change.mean(1), strict=True)
        if drawn and int(place) == site
    ]
    assert first["effect_rank"] == pytest.approx(sum(one < abs(change.mean()) for one in own) / 3)
    assert [second[name] for name in ("effect", "effect_low", "effect_high", "effect_rank")] == [None] * 4
    assert with_effects(table, []).columns == with_effects(table, [effects]).columns


def test_a_run_keeps_the_effects_and_shows_them(lens, tmp_path):
    corpus = mm.load_corpus("drawn", images=6, questions_per_image=1)
    found = mm.identify(lens, corpus, fraction=0.004, out=tmp_path)
    asked = {domain: some[:2] for domain, some in corpus.only(["medical", "document"]).by_domain().items()}
    made = effects_stage(lens, found.selection, asked, Store(tmp_path), most=1, random_neurons=2)
    write_neurons(tmp_path)
    table = pl.read_parquet(tmp_path / "neurons.parquet")
    measured = table.filter(pl.col("effect").is_not_null())
    assert 0 < len(measured) <= sum(int((~one.drawn).sum()) for one in made.values())
    assert set(measured["domain"]) <= set(asked)
    for row in measured.iter_rows(named=True):
        entropy = table.filter(pl.col("site") == row["site"], pl.col("domains").list.contains(row["domain"]))["entropy"]
        assert row["entropy"] == entropy.min()
    said: list[str] = []
    effects_stage(lens, found.selection, asked, Store(tmp_path, say=said.append), most=1, random_neurons=2)
    assert [line for line in said if not line.startswith("already done") and "no neuron was selected" not in line] == []
    with pytest.raises(ValueError, match="random neurons is 2 there and 3 here"):
        effects_stage(lens, found.selection, asked, Store(tmp_path), most=1, random_neurons=3)
