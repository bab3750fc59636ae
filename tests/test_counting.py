"""Counts equal plain torch hooks to the last integer, at every site of both architectures."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import mixed_batch
from hooks import neuron_paths, outputs

from interventions import (
    batch_field,
    count_active,
    count_active_by_kind,
    count_checked,
    count_positions,
    mean_activation,
    moments,
    reads,
    sum_activations,
)


def hooked_counts(lens, batch):
    """`{site: (int64 [layer, kind, neuron], int64 [kind])}` from hooks, the positions written out by hand."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    image = ids == lens.module.config.image_token_index
    found = {}
    for site, paths in neuron_paths(lens).items():
        seen = outputs(lens.module, paths, lambda: lens.module(**batch.inputs))
        acts = torch.stack([seen[path][0] for path in paths])
        if site == "llm.mlp.act":
            kinds = [image & mask, ~image & mask, torch.zeros_like(mask)]
        elif site == "vision.mlp.act":
            cls = torch.zeros(acts.shape[1:3], dtype=torch.bool)
            cls[:, 0] = True
            kinds = [cls, ~cls]
        elif site == "qformer.text.act":
            kinds = [batch.inputs["qformer_attention_mask"].bool()]
        else:
            kinds = [torch.ones(acts.shape[1:3], dtype=torch.bool)]
        by_kind = torch.stack([(acts[:, kind] > 0).sum(1) for kind in kinds], dim=1)
        found[site] = (by_kind, torch.tensor([int(kind.sum()) for kind in kinds]))
    return found


def test_counts_equal_hooks_at_every_site(lens):
    batch = mixed_batch(lens)
    out = lens.run(count_active.at("*.act") | count_active_by_kind.at("*.act") | count_positions.at("*.act"), batch)
    expected = hooked_counts(lens, batch)
    assert {site for _, site in out} == set(expected)
    for site, (by_kind, positions) in expected.items():
        layered = lens.architecture.place(site).layers is not None
        by_kind = by_kind if layered else by_kind[0]
        assert out["count_active_by_kind", site].dtype == torch.int64
        assert torch.equal(out["count_active_by_kind", site], by_kind), site
        assert torch.equal(out["count_active", site], by_kind.sum(-2)), site
        assert torch.equal(out["count_positions", site], positions.expand(by_kind.shape[:-1])), site


def test_batches_add_up_exactly(lens):
    batches = [mixed_batch(lens), mixed_batch(lens)]
    once = lens.run(count_active, batches[0])["count_active", "llm.mlp.act"]
    assert torch.equal(lens.run(count_active, batches)["count_active", "llm.mlp.act"], 2 * once)


def test_weights_multiply_and_padding_counts_nothing():
    act = torch.tensor([[[1.0, -1.0], [2.0, 3.0]], [[0.0, 1.0], [5.0, 5.0]]])
    weight = torch.tensor([[1, 90], [7, 0]])
    assert count_active(act, weight).tolist() == [91, 97]
    assert sum_activations(act, weight).tolist() == [1 + 180, -1 + 270 + 7]


def test_large_weights_stay_exact():
    act = torch.ones(700, 3)
    weight = torch.full((700,), 65_535, dtype=torch.int64)
    assert count_active(act, weight).tolist() == [700 * 65_535] * 3


@pytest.mark.parametrize("at_once", [None, 2048], ids=["processor", "accelerator"])
@pytest.mark.parametrize("read", [count_active, count_active_by_kind, count_checked, moments])
def test_a_server_that_computes_under_autocast_counts_exactly(read, at_once, monkeypatch):
    """Products of matrices in bfloat16 hold integers up to 256 alone."""
    if at_once:
        monkeypatch.setattr(sys.modules["interventions.moments"], "_at_once", lambda act: at_once)
    act = torch.randn(3, 500, 7, generator=torch.Generator().manual_seed(0))
    weight = torch.randint(0, 91, (3, 500), generator=torch.Generator().manual_seed(1))
    kind = torch.nn.functional.one_hot(torch.arange(500) % 3, 3).bool().expand(3, -1, -1)
    given = {"weight": weight} if read is count_active else {"weight": weight, "kind": kind}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = read(act, **given)
    found = found if isinstance(found, dict) else {"active": found}
    by_kind = ((act > 0)[:, :, None] * kind[..., None] * weight[..., None, None]).sum((0, 1))
    expected = by_kind.sum(0) if read is count_active else by_kind
    assert torch.equal(found["positive" if read is moments else "active"], expected)
    if read is moments:
        weighted = act.double()[:, :, None] * kind[..., None] * weight[..., None, None]
        assert torch.allclose(found["sum"], weighted.sum((0, 1)), rtol=1e-5, atol=1e-3)


def test_mean_is_divided_once(lens):
    batches = [
        mixed_batch(lens),
        lens.encode([None], ["only text"]) if lens.architecture.facts["text_only"] else mixed_batch(lens),
    ]
    mean = lens.run(mean_activation, batches)["mean_activation", "llm.mlp.act"]
    total = torch.zeros(3, 48, dtype=torch.float64)
    positions = 0
    for batch in batches:
        paths = neuron_paths(lens)["llm.mlp.act"]
        seen = outputs(lens.module, paths, lambda batch=batch: lens.module(**batch.inputs))
        real = batch.inputs["attention_mask"].bool()
        total += torch.stack([seen[path][0][real].double().sum(0) for path in paths])
        positions += int(real.sum())
    torch.testing.assert_close(mean, total / positions, rtol=1e-12, atol=1e-12)


def test_a_summing_read_without_weight_is_refused_where_padding_would_count(lens):
    @reads("llm.mlp.act", over="sum")
    def active(act):
        return (act > 0).flatten(0, -2).sum(0)

    with pytest.raises(
        ValueError, match=r"active at llm\.mlp\.act adds over positions but binds no weight.*batch_field"
    ):
        lens.run(active, mixed_batch(lens))
    single = lens.encode([mixed_image()], ["no padding"])
    assert torch.equal(
        lens.run(active, single)["active", "llm.mlp.act"], lens.run(count_active, single)["count_active", "llm.mlp.act"]
    )


def mixed_image():
    from conftest import pictures

    return pictures((32, 48))[0]


def test_positions_by_kind_add_up(lens):
    batch = mixed_batch(lens)
    image = count_active.at(positions="image").named("image")
    text = count_active.at(positions="text").named("text")
    out = lens.run(image | text | count_active_by_kind, batch)
    by_kind = out["count_active_by_kind", "llm.mlp.act"]
    assert torch.equal(out["image", "llm.mlp.act"], by_kind[:, 0])
    assert torch.equal(out["text", "llm.mlp.act"], by_kind[:, 1])


def test_columns_are_chosen_from_both_ends(lens):
    batch = mixed_batch(lens)
    paths = neuron_paths(lens)["llm.mlp.act"]
    seen = outputs(lens.module, paths, lambda: lens.module(**batch.inputs))
    last = torch.stack([(seen[path][0][:, -2:] > 0).sum((0, 1)) for path in paths])
    out = lens.run(
        count_active.at(positions=[-1, -2]) | count_active.at(positions=slice(-2, None)).named("sliced"), batch
    )
    assert torch.equal(out["count_active", "llm.mlp.act"], last)
    assert torch.equal(out["sliced", "llm.mlp.act"], last)


def test_own_field_reaches_the_function(lens):
    batch = mixed_batch(lens)
    marked = torch.zeros(batch.inputs["input_ids"].shape, dtype=torch.int64)
    marked[:, -1] = 2
    batch = batch.with_fields(mark=marked)
    out = lens.run(count_active.bind(weight=batch_field("mark")).named("last") | count_active.at(positions=-1), batch)
    assert torch.equal(out["last", "llm.mlp.act"], 2 * out["count_active", "llm.mlp.act"])
    with pytest.raises(KeyError, match=r"the batch has no field 'marc' there\. Choices: weight, kind, mark"):
        lens.run(count_active.bind(weight=batch_field("marc")), batch)
