"""The table of neurons: every number of a row against the formula in plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy
import polars as pl
import pytest
import torch

from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.artifacts.reachability import UNREACHABLE
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.neurons.effects import effect_sizes
from mmneuron_lens.neurons.observed import observed
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.neurons.table import neuron_table
from mmneuron_lens.report.csv_files import read_csv
from mmneuron_lens.runs.folder import key_of
from mmneuron_lens.runs.neuron_tables import write_neurons

DOMAINS = ("common", "medical", "document")
SITES = {"vision.mlp.act": (3, ("cls", "patch")), "llm.mlp.act": (2, ("image", "text"))}
NEURONS = 25


def counts_of(domain: str, seed: int, silent: tuple[int, ...] = ()) -> Counts:
    generator = numpy.random.default_rng(seed)
    active, tokens, kinds = {}, {}, {}
    for site, (layers, names) in SITES.items():
        size = generator.integers(20, 60, (BUCKETS, len(names)))
        size[3] = 0
        size[5, 1] = 0
        share = generator.uniform(0, 0.6, (layers, 1, NEURONS))
        drawn = generator.binomial(
            numpy.broadcast_to(size[:, None, :, None], (BUCKETS, layers, len(names), NEURONS)), share
        )
        drawn[:, 0, :, list(silent)] = 0
        active[site], tokens[site] = torch.from_numpy(drawn.astype("int64")), torch.from_numpy(size.astype("int64"))
        kinds[site] = names
    facts = {UNREACHABLE: {"vision.mlp.act": {"layers": [2], "why": "nothing reads it"}}}
    return Counts("m", domain, active, tokens, kinds, 10, facts)


def attributions_of(domain: str, seed: int) -> Attributions:
    generator = numpy.random.default_rng(seed)
    shapes = {site: (BUCKETS, layers, NEURONS) for site, (layers, _) in SITES.items()}
    values = {site: torch.from_numpy(generator.normal(size=shape)) for site, shape in shapes.items()}
    questions = torch.from_numpy(generator.integers(0, 4, BUCKETS))
    tokens = {site: torch.ones(BUCKETS, dtype=torch.int64) for site in SITES}
    strength = {site: one.abs() for site, one in values.items()}
    return Attributions("m", domain, questions, tokens, values, strength, {"alpha": 1.0}, 10)


@pytest.fixture(scope="module")
def counts() -> list[Counts]:
    return [counts_of(domain, number, (0, 7)) for number, domain in enumerate(DOMAINS)]


@pytest.fixture(scope="module")
def selection(counts: list[Counts]) -> Selection:
    """Its neurons belong to other domains than those in which they are most active: a table has to go by the masks."""
    found = select(counts, fraction=0.2)
    return replace(found, masks={site: mask.roll(1, -1) for site, mask in found.masks.items()})


@pytest.fixture(scope="module")
def attributions() -> list[Attributions]:
    return [attributions_of(domain, 50 + number) for number, domain in enumerate(DOMAINS)]


@pytest.fixture(scope="module")
def table(counts: list[Counts], selection: Selection, attributions: list[Attributions]) -> pl.DataFrame:
    # Given in another order: by domain, and not by place, they belong together.
    return neuron_table(observed(counts[::-1], attributions=attributions), selection, "all")


def odds(a: float, n: float, b: float, m: float) -> float:
    return math.log((a + 0.5) / (n - a + 0.5)) - math.log((b + 0.5) / (m - b + 0.5))


def totals(one: Counts, site: str, layer: int, neuron: int, kind: int | None = None) -> tuple[int, int]:
    kinds = range(2) if kind is None else [kind]
    active = sum(int(one.active[site][bucket, layer, k, neuron]) for bucket in range(BUCKETS) for k in kinds)
    return active, sum(int(one.tokens[site][bucket, k]) for bucket in range(BUCKETS) for k in kinds)


def test_every_number_is_that_of_the_formula(table, counts, selection, attributions):
    assert len(table) == NEURONS * sum(layers for layers, _ in SITES.values())
    for row in table.iter_rows(named=True):
        site, layer, neuron = row["site"], row["layer"], row["neuron"]
        found = [totals(one, site, layer, neuron) for one in counts]
        shares = [active / tokens for active, tokens in found]
        for number, one in enumerate(counts):
            assert row[f"p_{one.domain}"] == pytest.approx(shares[number], rel=1e-12)
            for place, kind in enumerate(SITES[site][1]):
                active, tokens = totals(one, site, layer, neuron, place)
                assert row[f"p_{one.domain}_{kind}"] == pytest.approx(active / tokens, rel=1e-12)
        whole = sum(shares)
        entropy = -sum(p / whole * math.log(p / whole) for p in shares if p) if whole else None
        assert row["entropy"] == (None if entropy is None else pytest.approx(entropy, abs=1e-12))
        belongs = [one for number, one in enumerate(DOMAINS) if selection.masks[site][layer, neuron, number]]
        assert row["domains"] == belongs
        assert row["selected"] == bool(belongs)
        all_active, all_tokens = (sum(one) for one in zip(*found, strict=True))
        each = {
            one: odds(active, tokens, all_active - active, all_tokens - tokens)
            for one, (active, tokens) in zip(DOMAINS, found, strict=True)
        }
        assert row["domain"] == max(belongs or DOMAINS, key=lambda one: each[one])
        assert row["log_odds"] == pytest.approx(each[row["domain"]], rel=1e-10)
        active, tokens = found[DOMAINS.index(row["domain"])]
        rest = (all_active - active) / (all_tokens - tokens)
        assert row["difference"] == pytest.approx(active / tokens - rest, abs=1e-12)
        assert row["log_odds_low"] <= row["log_odds_high"]
        assert row["reaches_logits"] == ((site, layer) != ("vision.mlp.act", 2))
        own = attributions[DOMAINS.index(row["domain"])]
        mean = float(own.attribution[site][:, layer, neuron].sum()) / int(own.questions.sum())
        assert row["attribution"] == pytest.approx(mean, rel=1e-10)
        all_means = (own.attribution[site].sum(0) / own.questions.sum()).abs().flatten()
        assert row["attribution_rank"] == pytest.approx(
            sum(abs(mean) - 1e-12 > one for one in all_means) / len(all_means)
        )
        assert row["f"] == (None if not whole else pytest.approx(f_of(counts, site, layer, neuron), rel=1e-9))


def f_of(counts: list[Counts], site: str, layer: int, neuron: int) -> float:
    cells = [
        (number, int(one.active[site][bucket, layer, :, neuron].sum()), int(one.tokens[site][bucket].sum()))
        for number, one in enumerate(counts)
        for bucket in range(BUCKETS)
        if int(one.tokens[site][bucket].sum())
    ]
    whole = sum(active for _, active, _ in cells) / sum(tokens for *_, tokens in cells)
    between = within = 0.0
    for number in range(len(counts)):
        own = [(active, tokens) for place, active, tokens in cells if place == number]
        n = sum(tokens for _, tokens in own)
        p = sum(active for active, _ in own) / n
        between += n * (p - whole) ** 2
        within += sum(tokens * (active / tokens - p) ** 2 for active, tokens in own)
    return (between / (len(counts) - 1)) / (within / (len(cells) - len(counts)))


def test_selected_neurons_have_the_intervals_of_the_effect_sizes(table, counts, selection):
    frame = neuron_table(observed(counts), selection)
    assert frame["attribution"].null_count() == len(frame)
    shared = [name for name in frame.columns if not name.startswith("attribution")]
    assert frame.select(shared).equals(table.filter(pl.col("selected")).select(shared))
    effects = effect_sizes(counts, selection).to_frame()
    joined = frame.join(effects, on=["site", "layer", "neuron", "domain"], suffix="_there")
    assert len(joined) == len(frame)
    for one, other in (("log_odds", "log_odds_there"), ("log_odds_low", "low"), ("log_odds_high", "high")):
        assert numpy.allclose(joined[one].to_numpy(), joined[other].to_numpy(), rtol=1e-12)


def test_the_selection_alone_says_which_neurons(table, selection):
    frame = selection.to_frame()
    assert frame.equals(table.filter(pl.col("selected")).select(frame.columns))
    assert not len(replace(selection, masks={site: mask & False for site, mask in selection.masks.items()}).to_frame())


def test_other_counts_and_other_words_are_refused(counts, selection):
    with pytest.raises(ValueError, match=r"the selection at vision\.mlp\.act was not made from these counts"):
        neuron_table(observed([counts_of(domain, 9) for domain in DOMAINS]), selection)
    with pytest.raises(ValueError, match=r"'each'.*selected, all"):
        neuron_table(observed(counts), selection, "each")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"attributions are of \('common',\), and the counts of"):
        observed(counts, attributions=[attributions_of("common", 1)])


def test_domains_that_are_called_like_a_kind_keep_their_columns(counts):
    named = [replace(one, domain=name) for one, name in zip(counts, ("a", "a_patch", "a_image"), strict=True)]
    frame = neuron_table(observed(named), select(named, fraction=0.2))
    assert {"p_a", "p_a_patch", "p_a_image", "p_a_patch_", "p_a_image_", "p_a_text"} <= set(frame.columns)


def test_a_run_holds_the_table_of_all_its_models(counts, selection, tmp_path):
    for model in ("m", "embedded/other-v1.6"):
        for one in counts:
            own = replace(one, model=model)
            own.save(tmp_path / key_of("counts", model, one.domain, facts={}).path)
        replace(selection, model=model).save(tmp_path / key_of("selection", model, facts={}).path)
    parquet, text = write_neurons(tmp_path)
    frame = pl.read_parquet(parquet)
    assert frame["model"].value_counts().sort("model")["count"].to_list() == [len(selection.to_frame())] * 2
    own = neuron_table(observed(counts), selection)
    assert frame.filter(pl.col("model") == "m").select(own.columns).equals(own)
    read = read_csv(text)
    assert read["domains"].to_list() == ["; ".join(some) for some in frame["domains"]]
    assert numpy.array_equal(read["log_odds"].to_numpy(), frame["log_odds"].to_numpy())
    write_neurons(tmp_path, of="all")
    assert len(pl.read_parquet(parquet)) == 2 * NEURONS * sum(layers for layers, _ in SITES.values())


def test_a_selection_without_its_counts_has_a_table_too(selection, tmp_path):
    selection.save(tmp_path / key_of("selection", "m", facts={}).path)
    frame = pl.read_parquet(write_neurons(tmp_path)[0])
    assert frame.drop("selected", "domain").equals(selection.to_frame())
    assert frame["selected"].all()
    for row in frame.iter_rows(named=True):
        assert row["domain"] == max(row["domains"], key=lambda one: row[f"p_{one}"])


def moments_of(domain: str, seed: int) -> Moments:
    generator = numpy.random.default_rng(seed)
    kinds = {"llm.mlp.act": ("image", "text"), "llm.mlp.post": ("image", "text"), "vision.mlp.act": ("cls", "patch")}
    sizes = {site: (BUCKETS, SITES[site.replace("post", "act")][0], 2, NEURONS) for site in kinds}
    tokens = {site: torch.full((BUCKETS, 2), 9) for site in kinds}
    few = {site: torch.from_numpy(generator.integers(0, 9, size)) for site, size in sizes.items()}
    sums = {site: torch.from_numpy(generator.uniform(-1, 1, size)) for site, size in sizes.items()}
    squares = {site: one**2 + 1 for site, one in sums.items()}
    maximum = {site: torch.from_numpy(generator.uniform(1, 2, size)).float() for site, size in sizes.items()}
    return Moments("m", domain, tokens, few, few, sums, squares, maximum, kinds, 10)


def test_means_and_maxima_are_those_of_the_neurons_domain(counts, selection):
    moments = [moments_of(domain, number) for number, domain in enumerate(DOMAINS)]
    for row in neuron_table(observed(counts, moments=moments), selection, "all").iter_rows(named=True):
        own = moments[DOMAINS.index(row["domain"])]
        for value in ("act", "post"):
            site = row["site"].replace("act", value) if row["site"] == "llm.mlp.act" else row["site"]
            summed = own.sums[site][:, row["layer"], :, row["neuron"]].sum()
            assert row[f"mean_{value}"] == pytest.approx(float(summed) / int(own.tokens[site].sum()))
            assert row[f"max_{value}"] == pytest.approx(
                float(own.maximum[site][:, row["layer"], :, row["neuron"]].max())
            )
