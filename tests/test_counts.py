"""Counts: exact sums, exact files, and refusals that name the difference."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from mmneuron_lens.artifacts.counts import BUCKETS, Counts, bucket_of
from mmneuron_lens.artifacts.format import content_hash, read_artifact
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.neurons.silent import silent_neurons

KINDS = {"llm.mlp.act": ("image", "text"), "vision.mlp.act": ("cls", "patch")}
SHAPES = {"llm.mlp.act": (2, 5), "vision.mlp.act": (3, 4)}


def random_counts(seed: int, domain: str = "medical", high: int = 50, **provenance: Any) -> Counts:
    generator = torch.Generator().manual_seed(seed)
    active, tokens = {}, {}
    for site, (layers, neurons) in SHAPES.items():
        tokens[site] = torch.randint(0, high, (BUCKETS, 2), generator=generator)
        share = torch.rand(BUCKETS, layers, 2, neurons, generator=generator, dtype=torch.float64)
        active[site] = (
            (share * (tokens[site][:, None, :, None] + 1)).floor().long().minimum(tokens[site][:, None, :, None])
        )
    facts = {"model id": "m", "revision": "r", "dtype": "float32", "batch size": 8, **provenance}
    return Counts("m", domain, active, tokens, KINDS, 7 + seed % 5, facts)


@pytest.mark.parametrize(("high", "stored"), [(50, torch.int32), (2**40, torch.int64)])
def test_files_are_exact(tmp_path: Path, high: int, stored: torch.dtype) -> None:
    counts = random_counts(1, high=high)
    counts.save(tmp_path / "a")
    tensors, _ = read_artifact(tmp_path / "a", "counts")
    assert {tensors[f"active/{site}"].dtype for site in KINDS} == {stored}
    back = Counts.load(tmp_path / "a")
    assert (back.model, back.domain, back.kinds, back.samples) == (counts.model, counts.domain, counts.kinds, 8)
    assert back.provenance == counts.provenance
    for site in KINDS:
        assert torch.equal(back.active[site], counts.active[site])
        assert torch.equal(back.tokens[site], counts.tokens[site])
    back.save(tmp_path / "b")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")


def test_the_largest_count_that_fits_in_32_bits(tmp_path: Path) -> None:
    for value, dtype in ((2**31 - 1, torch.int32), (2**31, torch.int64)):
        tokens = torch.full((BUCKETS, 1), value)
        counts = Counts("m", "medical", {"s": tokens.view(BUCKETS, 1, 1, 1)}, {"s": tokens}, {"s": ("text",)}, 1)
        counts.save(tmp_path / "a")
        assert read_artifact(tmp_path / "a", "counts")[0]["active/s"].dtype == dtype
        assert int(Counts.load(tmp_path / "a").active["s"].max()) == value


def test_total_sums_buckets_and_the_named_kinds() -> None:
    counts = random_counts(3)
    active, tokens = counts.total("llm.mlp.act")
    assert active.dtype == torch.int64
    assert active.shape == (2, 5)
    assert tokens == sum(sum(row) for row in counts.tokens["llm.mlp.act"].tolist())
    image, text = (counts.total("llm.mlp.act", (kind,)) for kind in ("image", "text"))
    assert torch.equal(image[0], counts.active["llm.mlp.act"][:, :, 0].sum(0))
    assert torch.equal(image[0] + text[0], active)
    assert image[1] + text[1] == tokens
    assert torch.equal(counts.total("llm.mlp.act", ("text", "image"))[0], active)


def test_total_of_unknown_names() -> None:
    with pytest.raises(KeyError, match=r"no counts at site 'llm.act'; choose from llm.mlp.act, vision.mlp.act"):
        random_counts(0).total("llm.act")
    with pytest.raises(KeyError, match=r"llm.mlp.act: no kind 'patch'; choose from image, text"):
        random_counts(0).total("llm.mlp.act", ("patch",))
    with pytest.raises(KeyError, match=r"no kind \(\)"):
        random_counts(0).total("llm.mlp.act", ())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "n"}, "model is 'm' and 'n'"),
        ({"kinds": {**KINDS, "llm.mlp.act": ("text", "image")}}, "kinds is"),
        (
            {"provenance": {**random_counts(0).provenance, "dtype": "float16"}},
            "provenance dtype is 'float32' and 'float16'",
        ),
        ({"provenance": {**random_counts(0).provenance, "prompt": "p"}}, "provenance prompt is None and 'p'"),
    ],
)
def test_counts_that_were_made_differently_are_not_compared(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot compare counts: .*count both in the same way") as caught:
        silent_neurons([random_counts(0), replace(random_counts(0, "common"), **change)], "llm.mlp.act")
    assert text in str(caught.value)


def test_counts_of_other_shapes_are_not_compared() -> None:
    one, site = random_counts(0), "vision.mlp.act"
    other = replace(one, active={**one.active, site: one.active[site][:, :1]})
    with pytest.raises(ValueError, match=r"the shape at vision.mlp.act is \(16, 3, 2, 4\) and \(16, 1, 2, 4\)"):
        silent_neurons([one, random_counts(1), other], site)


def test_counts_of_other_questions_are_compared() -> None:
    """Domains have questions, and images that cannot be read, of their own."""
    silent_neurons([random_counts(0, corpus="a"), random_counts(1, "common", **{"left out": ["7"]})], "llm.mlp.act")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"active": {"s": torch.zeros(16, 1, 2, 3)}}, "s: counts are torch.float32"),
        ({"active": {"s": torch.zeros(15, 1, 2, 3).long()}}, r"s: counts have shape \(15, 1, 2, 3\)"),
        ({"active": {"s": torch.zeros(16, 1, 3, 3).long()}}, r"expected \[bucket 16, layer, kind 2, neuron\]"),
        ({"tokens": {"s": torch.zeros(16, 3).long()}}, r"s: tokens have shape \(16, 3\)"),
        ({"active": {"s": torch.ones(16, 1, 2, 3).long()}}, "s: a count is negative or above the number of tokens"),
        ({"active": {"s": -torch.ones(16, 1, 2, 3).long()}}, "s: a count is negative"),
        ({"kinds": {"s": ("text", "text")}}, "repeat a name"),
        ({"kinds": {"t": ("image", "text")}}, "name different sites"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], text: str) -> None:
    parts: dict[str, Any] = {
        "active": {"s": torch.zeros(16, 1, 2, 3).long()},
        "tokens": {"s": torch.zeros(16, 2).long()},
    }
    Counts("m", "medical", **parts, kinds={"s": ("image", "text")}, samples=0)
    with pytest.raises(ValueError, match=text):
        Counts("m", "medical", **{**parts, "kinds": {"s": ("image", "text")}, **change}, samples=0)


def test_buckets() -> None:
    digests = [hashlib.sha256(str(number).encode()) for number in range(2000)]
    buckets = [bucket_of(digest.hexdigest()) for digest in digests]
    assert buckets == [bucket_of(digest.digest()) for digest in digests]
    assert all(buckets.count(bucket) > 80 for bucket in range(BUCKETS))
    assert bucket_of("0" * 63 + "b") == 11
    for wrong in (b"the image itself", "abc", "g" * 64):
        with pytest.raises(ValueError, match=r"is no sha256; give hashlib.sha256"):
            bucket_of(wrong)


def test_silent_neurons_are_silent_in_every_domain() -> None:
    counts = [random_counts(seed, domain) for seed, domain in enumerate(("common", "medical"))]
    for one in counts:
        one.active["vision.mlp.act"][:, 1, :, 2:] = 0
    counts[1].active["vision.mlp.act"][:, 0, :, 0] = 0
    silent = silent_neurons(counts, "vision.mlp.act")
    assert silent.sum(1).tolist() == [0, 2, 0]
    assert silent[1].tolist() == [False, False, True, True]
    assert not silent_neurons(counts, "llm.mlp.act").any()
    with pytest.raises(ValueError, match="no counts"):
        silent_neurons([], "llm.mlp.act")


def test_html_is_short_and_escaped() -> None:
    html = replace(random_counts(0), model="<m>")._repr_html_()
    assert "&lt;m&gt;" in html
    assert "vision.mlp.act" in html
    assert "<m>" not in html
    assert len(html) < 4000


@pytest.mark.parametrize("rows", [11, 26, 200])
def test_html_shows_every_row_and_column(rows: int) -> None:
    html = table_html(pl.DataFrame({f"column {number}": range(rows) for number in range(12)}))
    assert [html.count(f">{value}</td>") for value in range(rows)] == [12] * rows
    assert "column 11" in html
