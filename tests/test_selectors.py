"""Selectors: each equals a second writing of its formula in plain loops; own ones, membership, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import mmneuron_lens as mm
from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.cli import app
from mmneuron_lens.neurons.halves import method_overlap, on_buckets
from mmneuron_lens.neurons.membership import members
from mmneuron_lens.neurons.observed import Observed, observed
from mmneuron_lens.neurons.selection import select, select_module
from mmneuron_lens.neurons.selectors.registry import SELECTORS, selector, selector_named
from mmneuron_lens.neurons.selectors.settings import settings_of
from mmneuron_lens.runs.folder import selection_file

SITES = {"vision.mlp.act": 2, "llm.mlp.act": 3}
DOMAINS = ("common", "medical", "document")


def drawn_observed(seed: int, neurons: int = 12, domains: tuple[str, ...] = DOMAINS) -> Observed:
    """Counts and attributions whose values are multiples of 1/8, so that ties and exact zeros are frequent."""
    rng = np.random.default_rng(seed)
    counts, attributions = [], []
    for domain in domains:
        questions = torch.tensor(rng.integers(0, 3, BUCKETS))
        questions[0] = 1
        active, tokens, sums, strength = {}, {}, {}, {}
        for site, layers in SITES.items():
            total = torch.tensor(rng.integers(1, 9, (BUCKETS, 2)))
            share = torch.tensor(rng.random((BUCKETS, layers, 2, neurons)) * rng.random((1, layers, 1, neurons)))
            tokens[site], active[site] = total, (share * (total[:, None, :, None] + 1)).long()
            own = rng.integers(-4, 5, (1, layers, neurons))
            sums[site] = torch.tensor((own + rng.integers(-4, 5, (BUCKETS, layers, neurons))) / 8)
            strength[site] = torch.tensor((own > -3) * rng.integers(0, 3, (BUCKETS, layers, neurons)) / 8)
        kinds = dict.fromkeys(SITES, ("image", "text"))
        counts.append(Counts("m", domain, active, tokens, kinds, 3))
        positions = {site: total.sum(1) for site, total in tokens.items()}
        facts: Any = ({"alpha": 1.0}, int(questions.sum()))
        attributions.append(Attributions("m", domain, questions, positions, sums, strength, *facts))
    return observed(counts, attributions=attributions)


def ranked(values: np.ndarray, fraction: float) -> np.ndarray:
    """Membership from scores [layer, neuron, domain], by going down all domains' lists in step."""
    layers, neurons, domains = values.shape
    lists = []
    for domain in range(domains):
        places = [(-values[layer, n, domain], layer, n) for layer in range(layers) for n in range(neurons)]
        lists.append([place[1:] for place in sorted(places) if place[0] < math.inf])
    mask, taken = np.zeros(values.shape, dtype=bool), set()
    wanted = round(fraction * (layers * neurons))
    for rank in range(layers * neurons):
        for place in sorted({some[rank] for some in lists if rank < len(some)}):
            if len(taken) < wanted:
                taken.add(place)
        for domain, some in enumerate(lists):
            if rank < len(some) and some[rank] in taken:
                mask[(*some[rank], domain)] = True
        if len(taken) >= wanted:
            break
    return mask


def by_hand(name: str, seen: Observed, site: str, **given: Any) -> np.ndarray:
    """The formula of a method at one site in plain loops."""
    layers, neurons = seen.counts[0].active[site].shape[1], seen.counts[0].active[site].shape[3]
    values = np.full((layers, neurons, len(seen.domains)), -math.inf)
    for layer in range(layers):
        for neuron in range(neurons):
            own = [float(one.attribution[site][:, layer, neuron].sum()) for one in seen.attributions]
            each = [total / int(one.questions.sum()) for total, one in zip(own, seen.attributions, strict=True)]
            if not given.get("signed", True):
                each = [abs(one) for one in each]
            for domain, one in enumerate(seen.attributions):
                if name == "can":
                    score = float(one.strength[site][:, layer, neuron].sum()) / int(one.tokens[site].sum())
                else:
                    rest = [value for place, value in enumerate(each) if place != domain]
                    score = each[domain] - (sum(rest) / len(rest) if given.get("contrast") else 0)
                if score > 1e-12:
                    values[layer, neuron, domain] = score
    return values


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("attribution", {}),
        ("attribution", {"signed": False}),
        ("attribution", {"contrast": True}),
        ("can", {}),
    ],
)
def test_it_is_its_formula_written_again(name, given):
    nothing = 0
    for seed in range(200):
        seen = drawn_observed(seed, neurons=4, domains=DOMAINS[: 2 + seed % 2])
        found = selector_named(name).scores(seen, **given)
        assert list(found) == sorted(SITES)
        for site in ("llm.mlp.act",):
            expected = by_hand(name, seen, site, **given)
            shown = found[site].numpy()
            # Differences of means may be rounding where they are 0; a score of 0 itself is none.
            shown = np.where((np.abs(shown) < 1e-12) & (shown != 0), -math.inf, shown)
            assert np.array_equal(np.isinf(shown), np.isinf(expected)), seed
            np.testing.assert_allclose(shown[shown > -math.inf], expected[expected > -math.inf], rtol=1e-9)
            nothing += int(np.isinf(expected).sum())
    assert nothing > 20


def test_dape_is_the_published_rule():
    for seed in range(200):
        seen, percentile = drawn_observed(seed, neurons=3), (0.95, 0.6)[seed % 2]
        found = selector_named("dape").scores(seen, percentile=percentile)
        chosen = select(seen, 0.2, percentile)
        for site in SITES:
            columns = [one.active[site].sum((0, 2)).double() / int(one.tokens[site].sum()) for one in seen.counts]
            p = torch.stack(columns, -1)
            threshold = sorted(p.flatten().tolist())[round(percentile * p.numel()) - 1]
            for (layer, neuron, domain), value in np.ndenumerate(p.numpy()):
                shares = [float(one) / float(p[layer, neuron].sum()) for one in p[layer, neuron] if one > 0]
                entropy = -sum(share * math.log(share) for share in shares)
                expected = -entropy if value > threshold else -math.inf
                shown = float(found[site][layer, neuron, domain])
                assert shown == expected or abs(shown - expected) < 1e-9
            assert torch.equal(chosen.masks[site], select_module(chosen.probability[site], 0.2, percentile).mask)


def test_random_neurons_are_drawn_evenly_by_seed():
    seen = drawn_observed(0, neurons=40)
    times = torch.zeros(3, 40, 3)
    for seed in range(200):
        found = select(seen, 0.1, method="random", seed=seed)
        assert found.selected("llm.mlp.act") == found.requested["llm.mlp.act"] == 12
        times += found.masks["llm.mlp.act"]
    again = select(seen, 0.1, method="random", seed=199)
    assert torch.equal(again.masks["llm.mlp.act"], found.masks["llm.mlp.act"])
    # Of 200 draws of about 4 in 120 a neuron is in 7.3 on average; the spread is that of chance.
    assert 5.5 < float(times.mean()) < 9
    assert float(times.std()) == pytest.approx(math.sqrt(float(times.mean())), rel=0.25)
    assert float(times.max()) < 22


def test_members_are_as_many_best_of_every_domain_as_name_the_share():
    seen = {"several domains": 0, "shortfall": 0, "a tie": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shape = (int(rng.integers(1, 4)), int(rng.integers(4, 20)), int(rng.integers(2, 5)))
        values = rng.integers(0, 6 if seed % 2 else 1000, shape).astype(float)
        values[rng.random(shape) < [0.1, 0.9][seed // 2 % 2]] = -math.inf
        fraction = float(rng.choice([0.01, 0.1, 0.3, 1.0]))
        found = members(torch.tensor(values), fraction).numpy()
        assert np.array_equal(found, ranked(values, fraction)), seed
        wanted, finite = round(fraction * (shape[0] * shape[1])), (values > -math.inf).any(-1).sum()
        assert found.any(-1).sum() == min(wanted, finite)
        seen["several domains"] += bool((found.sum(-1) > 1).any())
        seen["shortfall"] += finite < wanted
        seen["a tie"] += seed % 2
    assert min(seen.values()) >= 10, seen


def test_a_selection_by_a_method_is_kept_with_its_scores(tmp_path):
    seen = drawn_observed(3)
    found = select(Observed(seen.counts[::-1], (), seen.attributions[::-1]), 0.1, method="attribution", contrast=True)
    assert found.domains == DOMAINS
    assert found.parameters["parameters"] == {"signed": True, "contrast": True}
    published = select(list(seen.counts), 0.1)
    for site in SITES:
        assert torch.equal(found.probability[site], published.probability[site])
        assert torch.equal(found.entropy[site].nan_to_num(), published.entropy[site].nan_to_num())
        assert found.requested[site] == published.requested[site] == found.selected(site)
        scores = selector_named("attribution").scores(seen, contrast=True)[site]
        assert torch.equal(found.scores[site].isnan(), scores == -math.inf)
        assert bool(found.masks[site].any())
        assert not bool((found.masks[site] & found.scores[site].isnan()).any())
    found.save(tmp_path / "a")
    again = Selection.load(tmp_path / "a")
    assert all(torch.equal(again.scores[site].nan_to_num(), found.scores[site].nan_to_num()) for site in SITES)
    assert published.scores == {}
    published.save(tmp_path / "b")
    assert Selection.load(tmp_path / "b").scores == {}
    for wrong, says in ((math.inf, "has infinite values"), (None, r"is torch.float32")):
        broken = found.scores["llm.mlp.act"].clone() if wrong else found.scores["llm.mlp.act"].float()
        broken[0, 0, 0] = wrong or 0
        with pytest.raises(ValueError, match=f"scores/llm.mlp.act {says}"):
            replace(found, scores={"llm.mlp.act": broken}).check()


def test_halves_are_of_the_buckets_and_a_method_of_no_data_has_none():
    seen = drawn_observed(5, neurons=40)
    kept = torch.zeros(3, BUCKETS, dtype=torch.bool)
    kept[:, ::2] = True
    half = on_buckets(seen, kept)
    assert torch.equal(half.counts[1].total("llm.mlp.act")[0], seen.counts[1].active["llm.mlp.act"][::2].sum((0, 2)))
    assert half.attributions[0].samples == int(seen.attributions[0].questions[::2].sum())
    half.attributions[0].check()
    found = method_overlap(seen, "attribution", splits=2, fraction=0.1)
    assert 0 < found.shared["llm.mlp.act"][0] < found.either["llm.mlp.act"][0] <= 24
    same = replace(seen, attributions=tuple(map(alike, seen.attributions)))
    assert method_overlap(same, "attribution", splits=2, fraction=0.1).shared["llm.mlp.act"] == (12, 12)
    with pytest.raises(ValueError, match="random looks at no data"):
        method_overlap(seen, "random")


def alike(one: Attributions) -> Attributions:
    """The same attribution on every question, so that each half gives the same mean."""
    first = {site: sums[:1] * one.questions[:, None, None] for site, sums in one.attribution.items()}
    return replace(one, attribution=first)


@pytest.fixture
def registered():
    """What a test registers is gone after it."""
    before = dict(SELECTORS)
    yield
    SELECTORS.clear()
    SELECTORS.update(before)


def mean_activity(observed, top):
    return {
        site: torch.stack([one.total(site)[0] / one.total(site)[1] for one in observed.counts], -1).double() * top
        for site in observed.counts[0].active
    }


@pytest.mark.usefixtures("registered")
def test_a_method_of_ones_own(tmp_path):
    selector("mine", top=3)(mean_activity)
    seen = drawn_observed(1)
    found = select(list(seen.counts), 0.1, method="mine")
    active, tokens = seen.counts[1].total("llm.mlp.act")
    torch.testing.assert_close(found.scores["llm.mlp.act"][..., 1], 3 * active / tokens, check_dtype=False)
    assert select(list(seen.counts), 0.1, method="mine", top=-1).parameters["parameters"] == {"top": -1}
    narrow = select(list(seen.counts), 0.1, kinds={"llm.mlp.act": ("image",)}, method="mine")
    active, tokens = seen.counts[1].total("llm.mlp.act", ("image",))
    torch.testing.assert_close(narrow.scores["llm.mlp.act"][..., 1], 3 * active / tokens, check_dtype=False)
    assert torch.equal(narrow.scores["vision.mlp.act"], found.scores["vision.mlp.act"])
    with pytest.raises(KeyError, match=r"Unknown parameter of mine 'to'\. Did you mean 'top'"):
        select(list(seen.counts), method="mine", to=1)
    # A cell that is run again after a change takes its own place; the key knows another function of the same name.
    before = SELECTORS["mine"].described

    @selector("mine", top=3)
    def changed(observed, top):
        return mean_activity(observed, -top)

    assert SELECTORS["mine"].described != before
    assert select(list(seen.counts), 0.1, method="mine").parameters["selector sha256"] != before["selector sha256"]
    other = dict(__name__="elsewhere")
    exec("def theirs(observed):\n    return {}", other)
    for name, whose in (("dape", "this package"), ("mine", "test_selectors")):
        with pytest.raises(ValueError, match=f"'{name}' is a method of {whose} already; give yours another name"):
            selector(name)(other["theirs"])
    with pytest.raises(ValueError, match=r"mine: the function takes other parameters than are registered \(tip\)"):
        selector("mine", tip=3)(mean_activity)
    with pytest.raises(KeyError, match="Unknown need of mine 'moment'"):
        selector("mine", needs="moment")
    with pytest.raises(TypeError, match="a method has a name"):
        selector("")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "mine returned None; a method returns a dict of scores by site"),
        ({}, "mine returned {}"),
        ({"llm.act": torch.zeros(3, 12, 3).double()}, "mine scored 'llm.act', where nothing was counted"),
        ({"llm.mlp.act": torch.zeros(3, 12, 3)}, "scores are a float64 tensor, not torch.float32"),
        ({"llm.mlp.act": np.zeros((3, 12, 3))}, "scores are a float64 tensor, not ndarray"),
        ({"llm.mlp.act": torch.zeros(3, 12, 2).double()}, r"shape \(3, 12, 2\), not \(3, 12, 3\) \[layer, neuron, dom"),
        ({"llm.mlp.act": torch.full((3, 12, 3), math.nan).double()}, "108 scores are NaN or "),
        ({"llm.mlp.act": torch.full((3, 12, 3), math.inf).double()}, "108 scores are NaN or "),
    ],
)
def test_what_are_no_scores_is_refused_in_a_line(given, says):
    selector("mine")(lambda observed: given)
    with pytest.raises((ValueError, TypeError), match=says):
        select(list(drawn_observed(1).counts), method="mine")


@pytest.mark.usefixtures("registered")
def test_a_site_without_scores_has_no_neurons():
    selector("mine")(lambda observed: {"llm.mlp.act": torch.ones(3, 12, 3).double()})
    found = select(list(drawn_observed(1).counts), 0.1, method="mine")
    assert (found.selected("vision.mlp.act"), found.requested["vision.mlp.act"]) == (0, 0)
    assert (found.selected("llm.mlp.act"), found.requested["llm.mlp.act"]) == (4, 4)
    found.check()


def test_what_a_method_lacks_is_named():
    seen = drawn_observed(1)
    with pytest.raises(
        ValueError, match="attribution needs attributions, and there are none; make them with `mmneuron "
    ):
        select(list(seen.counts), method="attribution")
    wrong = (replace(seen.attributions[0], model="n"), *seen.attributions[1:])
    with pytest.raises(ValueError, match=r"attributions are of m, n, and counts of m"):
        select(replace(seen, attributions=wrong), method="can")
    with pytest.raises(ValueError, match="kinds narrow counts, and can is made of attributions"):
        select(seen, method="can", kinds={"llm.mlp.act": ("image",)})
    with pytest.raises(KeyError, match="Unknown parameter of dape 'alpha'"):
        select(seen, alpha=2)
    with pytest.raises(ValueError, match="attributions of medical have no counts beside them"):
        observed([seen.counts[0], seen.counts[2]], attributions=seen.attributions)


def test_parameters_as_they_are_written():
    method = selector_named("attribution")
    assert settings_of(method, ["signed=False", " contrast = true"]) == {"signed": False, "contrast": True}
    assert settings_of(selector_named("random"), ["seed=7"]) == {"seed": 7}
    assert settings_of(selector_named("dape"), ["percentile=1"]) == {"percentile": 1.0}
    for text, says in (("seed", "sets nothing"), ("seed=a", "is no int"), ("seed=true", "is no int")):
        with pytest.raises(ValueError, match=says):
            settings_of(selector_named("random"), [text])
    with pytest.raises(KeyError, match="Unknown parameter of random 'sed'"):
        settings_of(selector_named("random"), ["sed=1"])


@pytest.fixture(scope="module")
def lens():
    torch.set_num_threads(1)
    return mm.Lens("embedded/llava-next")


@pytest.fixture(scope="module")
def corpus():
    return mm.load_corpus("drawn", images=2, questions_per_image=1).only(["common", "medical"])


@pytest.fixture(scope="module")
def run(lens, corpus, tmp_path_factory):
    """A run with the selections of three methods."""
    out = tmp_path_factory.mktemp("run")
    found = {name: mm.identify(lens, corpus, method=name, out=out) for name in ("attribution", "random")}
    return out, found


def test_identify_by_another_method_leaves_the_published_one_its_place(run, lens, corpus):
    out, found = run
    assert not (out / "selection").exists()
    for name, one in found.items():
        file = selection_file(out, lens.name, name)
        assert file == out / "selections" / name / "embedded+llava-next.safetensors"
        kept = Selection.load(file)
        assert kept.parameters["method"] == name
        again = mm.identify(lens, corpus, method=name, out=out).selection
        for site, mask in one.selection.masks.items():
            assert torch.equal(kept.masks[site], mask)
            assert torch.equal(again.masks[site], mask)
        assert one.controls.discovery is None
        assert one.controls.effects is not None
        assert one.controls.effects.effect()["held_out"]["value"] is None
    assert found["random"].controls.overlap is None
    assert found["attribution"].wider.selected("llm.mlp.act") == 102
    with pytest.raises(mm.MMNeuronError, match="parameters seed is 0 there and 1 here"):
        mm.identify(lens, corpus, method="random", parameters={"seed": 1}, out=out)


def test_its_neurons_are_switched_off_like_all_others(run, lens, corpus):
    _, found = run
    selection = found["attribution"].selection
    sample = corpus.only("medical")[0]
    batch = lens.encode([sample.images], [sample.question])
    active = lens.run(selection.off("medical", "LLM") | mm.count_active, batch)["count_active", "llm.mlp.act"]
    mask = selection.neurons("medical", "LLM")["llm.mlp.act"]
    assert bool(mask.any())
    assert not bool(active[mask].any())
    table = mm.deviate(lens, selection, corpus, random_draws=1).to_frame()
    assert table.filter(pl.col("domain") == "medical").height
    assert mm.ablate(lens, selection, corpus, random_draws=1, max_new_tokens=1).to_frame().height


def test_the_command_names_what_is_missing_and_writes_what_is_there(run, lens, corpus, tmp_path):
    out, _ = run

    def mmneuron(*given: Any):
        return CliRunner().invoke(app, [str(one) for one in given], env={"COLUMNS": "160"})

    done = mmneuron("select", out, "--method", "can", "--write-masks", tmp_path / "m.pt")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(selection_file(out, lens.name, "can"))
    assert (tmp_path / "m.pt").is_file()
    masks = mmneuron("select", out, "--masks", tmp_path / "m.pt")
    assert masks.stdout.split() == [str(selection_file(out, lens.name, "masks"))]
    kept, can = (Selection.load(selection_file(out, lens.name, name)) for name in ("masks", "can"))
    assert torch.equal(kept.masks["llm.mlp.act"], can.masks["llm.mlp.act"])
    for file in (out / "attributions").rglob("medical.safetensors"):
        file.rename(tmp_path / "kept")
    try:
        for given, says in (
            (("--method", "can"), f"can needs attributions, and {out} has none of embedded/llava-next in medical"),
            (("--method", "none"), "Unknown selection method 'none'"),
            (("--method", "random", "--parameter", "seed"), "--parameter 'seed' sets nothing"),
            (
                ("--method", "random", "--corpus", corpus[0].images[0].parents[1]),
                "random needs no attributions, so no corpus",
            ),
            (("--method", "random", "--alpha", 1), "--alpha or --gradient-steps means nothing with attributions that"),
            (("--method", "random", "--stability"), "--stability means nothing with --method random"),
            (("--masks", tmp_path / "m.pt", "--method", "can"), "--method means nothing with --masks"),
            (("--method", "random", "--model", "x"), "has no counts of x; choose from embedded/llava-next"),
            (("--masks", tmp_path / "none.pt"), "none.pt: no such file"),
        ):
            refused = mmneuron("select", out, *given)
            assert refused.exit_code == 1
            (line,) = refused.stderr.strip().splitlines()[-1:]
            assert says in line, (given, refused.stderr)
    finally:
        (tmp_path / "kept").rename(out / "attributions" / "embedded+llava-next" / "medical.safetensors")
