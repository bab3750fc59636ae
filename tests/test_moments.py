"""Moments equal plain hooks in float64, however questions are packed, cut and merged; counts stay the same bytes."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import mixed_batch, pictures, tiny_lens
from drawn_corpus import files_of, write_corpus
from fake_ndif import FakeNdif, served_model
from hooks import neuron_paths, outputs
from typer.testing import CliRunner

import mmneuron_lens as mm
from interventions import keep, moments
from interventions.moments import added
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.batching.gather import Piece, Shard
from mmneuron_lens.cli import app
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.count_checks import refuse_impossible
from mmneuron_lens.experiments.moments import added as steps_added
from mmneuron_lens.experiments.moments import counts_from, gated, moment_sites, moments_domain
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.merging import merge_runs
from mmneuron_lens.runs.moments import moments_stage
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime.jobs.watch import Clock, Limits

NAMES = ("tokens", "positive", "above", "sums", "squares", "maximum")
INTEGERS = ("tokens", "positive", "above", "maximum")


def expected(values: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of values [position, neuron] that count so often [position], in float64, one loop a position."""
    found = {name: torch.zeros(values.shape[1], dtype=torch.float64) for name in ("positive", "above", "sum", "square")}
    found |= {"size": torch.zeros(values.shape[1], dtype=torch.float64)}
    largest = torch.full((values.shape[1],), -torch.inf, dtype=torch.float64)
    for value, weight in zip(values.double(), weights.tolist(), strict=True):
        if not weight:
            continue
        found["positive"] += weight * (value > 0)
        found["above"] += weight * (value > float(torch.tensor(0.1)))
        found["sum"] += weight * value
        found["square"] += weight * value**2
        found["size"] += weight * value.abs()
        largest = torch.maximum(largest, value)
    return {**found, "maximum": largest}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """One kind's. Sums to a millionth of what their terms come to without signs."""
    for name in ("positive", "above", "maximum"):
        assert torch.equal(found[name].double(), wanted[name]), name
    assert (found["sum"] - wanted["sum"]).abs().le(1e-6 * wanted["size"]).all()
    assert (found["square"] - wanted["square"]).abs().le(1e-6 * wanted["square"]).all()
    assert found["sum"].dtype == found["square"].dtype == torch.float64
    assert found["positive"].dtype == found["above"].dtype == torch.int64


def hooked(lens: Lens, batch: Any, site: str) -> list[torch.Tensor]:
    """What plain hooks see at a site, layer by layer: [position, neuron]."""
    act = f"{site.rpartition('.')[0]}.act"
    paths = neuron_paths(lens)[act]
    if site.endswith(".act"):
        seen = outputs(lens.module, paths, lambda: lens.module(**batch.inputs))
        return [seen[path][0].flatten(0, -2) for path in paths]
    seen, handles = [], []
    for path in paths:
        down = lens.module.get_submodule(f"{path.rpartition('.')[0]}.down_proj")
        handles.append(down.register_forward_pre_hook(lambda _module, given: seen.append(given[0].flatten(0, -2))))
    with torch.no_grad():
        lens.module(**batch.inputs)
    for handle in handles:
        handle.remove()
    return seen


def kinds_by_hand(lens: Lens, batch: Any, site: str, positions: int) -> list[torch.Tensor]:
    """How often each position counts, for each kind."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    image = ids == lens.module.config.image_token_index
    if site.startswith("llm"):
        return [(image & mask).flatten(), (~image & mask).flatten(), torch.zeros(positions, dtype=torch.bool)]
    if site.startswith("vision"):
        cls = torch.arange(positions) % 17 == 0
        return [cls, ~cls]
    if site == "qformer.text.act":
        return [batch.inputs["qformer_attention_mask"].bool().flatten()]
    return [torch.ones(positions, dtype=torch.bool)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_equal_hooks_at_every_site(lens, dtype):
    if dtype != torch.float32:
        lens = Lens.wrap(copy.deepcopy(lens.module).to(dtype), lens.processor)
    batch = mixed_batch(lens)
    sites = moment_sites(lens)
    assert {site for site in lens.sites if site.endswith(".act")} | {"llm.mlp.post"} == set(sites)
    out = lens.run(moments.at(sites), batch)
    for site in sites:
        found = out["moments", site]
        assert not found["not finite"].any()
        for layer, values in enumerate(hooked(lens, batch, site)):
            here = {name: value[layer] for name, value in found.items()} if found["sum"].ndim == 3 else found
            for number, kind in enumerate(kinds_by_hand(lens, batch, site, len(values))):
                assert int(here["positions"][number]) == int(kind.sum())
                assert_equal({name: here[name][number] for name in ("positive", "above", "sum", "square", "maximum")},
                             expected(values, kind.long()))  # fmt: skip


def test_packed_questions_count_as_often_as_they_share_a_position():
    lens = tiny_lens("llava_next")
    rows = [(pictures((40, 56), seed=1), ["is it red?", "why", "how many cars?"]), (pictures((64, 30)), ["what?"])]
    batch = lens.pack(rows)
    sites = moment_sites(lens)
    out = lens.run(moments.at(sites) | keep.at(sites), batch)
    for site in sites:
        fields = batch.fields[site.partition(".")[0]]
        held, found = out["keep", site], out["moments", site]
        values = held[0] if isinstance(held, list) else held
        values = values if found["sum"].ndim == 3 else values[None]
        for layer in range(len(values)):
            for number in range(fields["kind"].shape[-1]):
                weights = (fields["weight"] * fields["kind"][..., number]).flatten()
                here = {name: value[layer] for name, value in found.items()} if found["sum"].ndim == 3 else found
                assert_equal({name: here[name][number] for name in ("positive", "above", "sum", "square", "maximum")},
                             expected(values[layer].flatten(0, -2), weights))  # fmt: skip
    assert batch.fields["llm"]["weight"].max() == 3
    alone = lens.run(moments, [lens.encode([some], [prompt]) for some, prompts in rows for prompt in prompts])
    for name in ("sum", "square", "maximum"):
        torch.testing.assert_close(out["moments", "llm.mlp.act"][name], alone["moments"][name], rtol=1e-3, atol=1e-3)


def drawn(positions: int, neurons: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    act = torch.randn(1, positions, neurons, generator=generator)
    weight = torch.randint(0, 4, (1, positions), generator=generator)
    kind = torch.nn.functional.one_hot(torch.randint(0, 3, (1, positions), generator=generator), 3).bool()
    return act, weight, kind


@pytest.mark.parametrize(("positions", "neurons"), [(0, 5), (1, 5), (255, 5), (600, 5), (40, 20_000)])
def test_padding_may_hold_anything(positions, neurons):
    act, weight, kind = drawn(positions, neurons)
    act[weight == 0] = torch.nan
    found = moments(act, weight, kind)
    assert int(found["not finite"]) == 0
    for number in range(3):
        weights = (weight * kind[..., number]).flatten()
        assert int(found["positions"][number]) == int(weights.sum())
        assert_equal({name: found[name][number] for name in ("positive", "above", "sum", "square", "maximum")},
                     expected(act[0], weights))  # fmt: skip


@pytest.mark.parametrize("positions", [1, 127, 300, 1000])
def test_many_positions_at_once_as_on_an_accelerator(positions, monkeypatch):
    act, weight, kind = drawn(positions)
    act[weight == 0] = torch.nan
    apart = moments(act, weight, kind)
    monkeypatch.setattr(sys.modules["interventions.moments"], "_at_once", lambda act: 512)
    together = moments(act, weight, kind)
    for name, value in apart.items():
        torch.testing.assert_close(together[name], value, rtol=1e-6 if name in ("sum", "square") else 0, atol=1e-5)


def test_large_weights_stay_exact():
    act, weight = torch.ones(1, 700, 3), torch.full((1, 700), 65_535)
    found = moments(act, weight, torch.ones(1, 700, 1, dtype=torch.bool))
    for name in ("positive", "above", "sum", "square"):
        assert found[name].tolist() == [[700 * 65_535] * 3]


def test_what_is_not_finite_at_a_real_position_is_counted_and_ends_the_run(tmp_path):
    act, weight, kind = drawn(9)
    act[weight == 0] = torch.inf
    real = (weight[0] > 0).nonzero()[:2, 0]
    act[0, real[0], 1], act[0, real[1], 3] = torch.nan, torch.inf
    assert int(moments(act, weight, kind)["not finite"]) == 2
    lens = Lens.wrap(*copy.deepcopy(tiny_models.llava_next()))
    lens.module.get_submodule("model.language_model.layers.1.mlp.up_proj").weight.data[3] = torch.inf
    samples, _ = read_folder(write_corpus(tmp_path, ("common",), 1))
    with pytest.raises(mm.MMNeuronError, match=r"llm.mlp.*layer . *: activations at .* infinite or NaN|layer"):
        moments_domain(lens, samples)


def test_positions_may_be_split_in_any_way():
    act, weight, kind = drawn(500)
    whole = moments(act, weight, kind)
    for cut in (1, 123, 499):
        parts = [moments(act[:, some], weight[:, some], kind[:, some]) for some in (slice(cut), slice(cut, None))]
        for one, other in (parts, parts[::-1]):
            both = added(one, other)
            for name in ("positive", "above", "maximum", "positions"):
                assert torch.equal(both[name], whole[name]), name
            for name in ("sum", "square"):
                torch.testing.assert_close(both[name], whole[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "idefics3", "pixtral", "internvl"])
def test_post_is_read_where_it_differs_from_act(name):
    lens = Lens.wrap(*getattr(newer_models, name)())
    batch = lens.encode(pictures((56, 56)), ["what is it?"])
    for site in (site for site in lens.sites if site.endswith(".post")):
        act = site.replace(".post", ".act")
        out = lens.run(keep.at([act, site]), batch)
        one, other = out["keep", act], out["keep", site]
        differ = any(not torch.equal(left, right) for left, right in zip(one, other, strict=True))
        assert gated(lens, site) == differ, site


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    samples, _ = read_folder(write_corpus(tmp_path_factory.mktemp("corpus"), ("common", "medical"), 4))
    return {domain: [one for one in samples if one.domain == domain] for domain in ("common", "medical")}


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory) -> Path:
    """A run with counts alone, and one with moments."""
    folder = tmp_path_factory.mktemp("runs")
    count_stage(tiny_lens("llava_next"), corpus, Store(folder / "counts"), batch_size=2)
    moments_stage(tiny_lens("llava_next"), corpus, Store(folder / "moments"), batch_size=2)
    return folder


def assert_same_moments(one: Moments, other: Moments) -> None:
    assert (one.kinds, one.samples, one.provenance) == (other.kinds, other.samples, other.provenance)
    for name in NAMES:
        for site, value in getattr(one, name).items():
            if name in INTEGERS:
                assert torch.equal(value.nan_to_num(-7), getattr(other, name)[site].nan_to_num(-7)), (name, site)
            else:
                torch.testing.assert_close(getattr(other, name)[site], value, rtol=1e-5, atol=1e-6)


def test_counts_have_the_same_bytes_with_moments_and_without(made, corpus):
    alone, both = files_of(made / "counts"), files_of(made / "moments")
    assert len(alone) == 2
    assert {name: both[name] for name in alone} == alone
    assert sorted(set(both) - set(alone)) == sorted(name.replace("counts/", "moments/") for name in alone)
    (file,) = (made / "moments").glob("moments/*/common.safetensors")
    found = Moments.load(file)
    assert found.samples == 8
    plain = count_domain(tiny_lens("llava_next"), corpus["common"], batch_size=2)
    assert torch.equal(counts_from(found).active["llm.mlp.act"], plain.active["llm.mlp.act"])


def test_moments_are_made_alone_where_counts_are_there_and_counts_from_moments(made, corpus, tmp_path, monkeypatch):
    lens = tiny_lens("llava_next")
    for name, data in files_of(made / "counts").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    moments_stage(lens, corpus, Store(tmp_path), batch_size=2)
    assert files_of(tmp_path) == files_of(made / "moments")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for file in before:
        file.unlink()
    # Counts come from what is there: nothing is run.
    monkeypatch.setattr(Lens, "run", None)
    moments_stage(lens, corpus, Store(tmp_path), batch_size=2)
    assert files_of(tmp_path) == files_of(made / "moments")


def test_shards_merge_to_the_whole(made, corpus, tmp_path):
    lens, runs = tiny_lens("llava_next"), [tmp_path / "one", tmp_path / "two"]
    for number, run in enumerate(runs, 1):
        found = moments_stage(lens, corpus, Store(run), shard=Shard(number, 2), batch_size=2)
        assert set(found.values()) == {None}
    files = merge_runs(runs[::-1], tmp_path / "both")
    assert sorted(file.parts[-3] for file in files) == ["counts", "counts", "moments", "moments"]
    whole, merged = files_of(made / "moments"), files_of(tmp_path / "both")
    assert {name: merged[name] for name in merged if name.startswith("counts/")} == files_of(made / "counts")
    assert merged.keys() == whole.keys()
    for name in (name for name in whole if name.startswith("moments/")):
        assert_same_moments(Moments.load(made / "moments" / name), Moments.load(tmp_path / "both" / name))
    # In one folder, the last shard makes the whole.
    for number in (2, 1):
        found = moments_stage(lens, corpus, Store(tmp_path / "one folder"), shard=Shard(number, 2), batch_size=2)
    assert all(one is not None for one in found.values())
    counts = files_of(made / "counts")
    assert {name: data for name, data in files_of(tmp_path / "one folder").items() if name in counts} == counts
    with pytest.raises(ValueError, match=r"cannot merge moments/.* steps are missing, of shards 1/2"):
        merge_runs(runs[1:], tmp_path / "half")


def test_a_kind_of_token_may_be_in_one_step_of_a_bucket_only():
    def step(tokens: int) -> dict[str, torch.Tensor]:
        value = torch.full((1, 1, 2), -3.0 if tokens else torch.nan)
        return {"tokens/s": torch.tensor([tokens]), "maximum/s": value, "sums/s": value.nan_to_num(0).double() * tokens}

    for one, other in ((step(0), step(2)), (step(2), step(0)), (step(1), step(1))):
        both = steps_added(one, other)
        assert both["tokens/s"].tolist() == [2]
        assert both["maximum/s"].tolist() == [[[-3.0, -3.0]]]
        assert both["sums/s"].tolist() == [[[-6.0, -6.0]]]
    with pytest.raises(mm.MMNeuronError, match=r"maximum/s is .* and None"):
        steps_added({"maximum/s": torch.zeros(2)}, {})


def test_a_server_that_lies_is_refused():
    held = {f"{name}/llm.mlp.act": getattr(moments_like(), name)["llm.mlp.act"][2] for name in NAMES}
    held["active/llm.mlp.act"] = held.pop("positive/llm.mlp.act")
    asked = {"llm": [3, 0, 0]}
    refuse_impossible(Piece(2, held), asked, "the server")
    for name, change in {"squares": -1.0, "sums": 1e9, "maximum": torch.nan}.items():
        lied = {**held, f"{name}/llm.mlp.act": held[f"{name}/llm.mlp.act"] + change * 3}
        with pytest.raises(mm.MMNeuronError, match=r"the server: what was read cannot be: .*llm\.mlp\.act"):
            refuse_impossible(Piece(2, lied), asked, "the server")


class Hand(Clock):
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


def test_moments_from_a_server_equal_those_made_here(corpus, tmp_path):
    own = tiny_lens("llava_next")
    own.module.save_pretrained(tmp_path / "tiny")
    own.processor.save_pretrained(tmp_path / "tiny")
    client = Lens.weightless(tmp_path / "tiny")
    client.nnsight.to_model_key()
    asked = {"common": corpus["common"]}
    with FakeNdif(served_model(tmp_path / "tiny")) as server:
        lens = Lens._of(replace(client.model, served=None))
        lens._remote = server.url
        jobs = {"limits": Limits(in_flight=3, grace_seconds=30.0, poll_seconds=10.0), "clock": Hand()}
        there = moments_stage(lens, asked, Store(tmp_path / "there"), batch_size=2, jobs=jobs)["common"]
    here = moments_stage(Lens(tmp_path / "tiny"), asked, Store(None), batch_size=2)["common"]
    assert there is not None
    assert here is not None
    for name in NAMES:
        for site, value in getattr(here, name).items():
            close = {"rtol": 0, "atol": 0} if name in INTEGERS else {"rtol": 1e-5, "atol": 1e-6}
            torch.testing.assert_close(getattr(there, name)[site], value, equal_nan=True, **close)


def test_identify_finds_the_same_and_gives_moments(tmp_path):
    lens, corpus = tiny_lens("llava_next"), mm.load_corpus(write_corpus(tmp_path / "corpus"))
    rule: dict[str, Any] = {"fraction": 0.2, "percentile": 0.6, "permutations": 2}
    plain, nowhere = mm.identify(lens, corpus, **rule), mm.identify(lens, corpus, moments=True, **rule)
    kept = mm.identify(lens, corpus, moments=True, out=tmp_path / "run", **rule)
    assert plain.moments == ()
    for found in (nowhere, kept):
        assert [one.domain for one in found.moments] == [one.domain for one in plain.counts]
        for site, mask in plain.selection.masks.items():
            assert torch.equal(found.selection.masks[site], mask)
    assert len(files_of(tmp_path / "run" / "moments")) == 2


def test_the_command_writes_both(tmp_path):
    write_corpus(tmp_path / "corpus", ("common",), 2)
    words = [
        "count",
        "--model",
        "embedded/llava-next",
        "--corpus",
        str(tmp_path / "corpus"),
        "--out",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(app, [*words, "--moments"])
    assert result.exit_code == 0, result.output
    kinds = [Path(line).parts[-3] for line in result.output.split() if line.endswith(".safetensors")]
    assert kinds == ["counts", "moments"]


def moments_like(tokens: int = 3) -> Moments:
    site, seen = "llm.mlp.act", torch.zeros(BUCKETS, 2, dtype=torch.int64)
    seen[2, 0] = tokens
    there = torch.zeros(BUCKETS, 1, 2, 3, dtype=torch.float64)
    there[2, 0, 0] = torch.tensor([1.0, -1.0, 0.05])
    maximum = torch.full((BUCKETS, 1, 2, 3), torch.nan)
    maximum[2, 0, 0] = torch.tensor([1.0, -1.0, 0.05])
    by_name = {"positive": (there > 0) * tokens, "above": (there > 0.1) * tokens, "sums": there * tokens}
    by_name |= {"squares": there**2 * tokens, "maximum": maximum, "tokens": seen}
    made: dict[str, Any] = {name: {site: value} for name, value in by_name.items()}
    return Moments("m", "common", kinds={site: ("image", "text")}, samples=1, **made)


WRONG = {
    "positive above tokens": ("positive", lambda one: one + 9, "do not rise"),
    "above over positive": ("above", lambda one: one + (one == 0) * 1, "do not rise"),
    "negative": ("above", lambda one: one - 1, "do not rise"),
    "floats": ("positive", lambda one: one.double(), "positive/llm.mlp.act is torch.float64"),
    "single sums": ("sums", lambda one: one.float(), "sums/llm.mlp.act is torch.float32"),
    "a layer too many": ("squares", lambda one: one.repeat(1, 2, 1, 1), "squares/llm.mlp.act is"),
    "too few buckets": ("tokens", lambda one: one[:4], "is not of 16 buckets"),
    "negative squares": ("squares", lambda one: -one, "has values below 0"),
    "squares too small": ("squares", lambda one: one * 0.5, "are below what sums and maximum allow"),
    "sums too large": ("sums", lambda one: one * 2, "are below what sums and maximum allow"),
    "a maximum without tokens": ("maximum", lambda one: one.nan_to_num(0), "has a value where there is no token"),
    "no maximum": ("maximum", lambda one: one * torch.nan, "has a value where there is no token, or none"),
    "a maximum that is not positive": ("maximum", lambda one: -one, "do not say the same of 0"),
    "a maximum above 0.1": ("maximum", lambda one: one + 0.3 * (one == 0.05), "do not say the same of 0.1"),
    "infinite": ("sums", lambda one: one / 0, "infinite values or NaN"),
}


def saved_and_loaded(moments: Moments, file: Path) -> Moments:
    moments.save(file)
    return Moments.load(file)


@pytest.mark.parametrize("name", WRONG)
def test_moments_that_cannot_be_are_refused(name, tmp_path):
    which, change, said = WRONG[name]
    good = moments_like()
    good.check()
    wrong = replace(good, **{which: {site: change(value) for site, value in getattr(good, which).items()}})
    with pytest.raises(mm.MMNeuronError, match=said):
        wrong.check()
    with pytest.raises(mm.MMNeuronError):
        saved_and_loaded(wrong, tmp_path / "wrong.safetensors")


def test_files_are_exact_and_the_frame_says_what_they_hold(tmp_path):
    one = moments_like()
    one.save(tmp_path / "one.safetensors")
    back = Moments.load(tmp_path / "one.safetensors")
    assert_same_moments(one, back)
    assert back.positive["llm.mlp.act"].dtype == torch.int64
    frame = back.to_frame()
    assert frame.rows() == [
        ("m", "common", "llm.mlp.act", 1, 3, "image", 3, 2 / 3, 1 / 3, pytest.approx(0.05 / 3),
         pytest.approx((2.0025 / 3 - (0.05 / 3) ** 2) ** 0.5), 1.0),
        ("m", "common", "llm.mlp.act", 1, 3, "text", 0, None, None, None, None, None),
    ]  # fmt: skip
    assert "deviation" in back._repr_html_()
    with pytest.raises(ArtifactError):
        Counts.load(tmp_path / "one.safetensors")
