"""LAPE's masks: read from what plain torch writes, written for what plain torch reads, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_selectors import DOMAINS, drawn_observed

from mmneuron_lens.artifacts.lape_masks import read_masks, write_masks
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.neurons.selection import select

SITE = "llm.mlp.act"
LISTS = [[[0, 5], [], [11]], [[2], [2, 3], []], [[], [], []]]
"""Of 3 domains, 3 layers of 12 neurons."""


@pytest.fixture
def like() -> Selection:
    return select(list(drawn_observed(2).counts), 0.1)


def tensors(lists: Any) -> Any:
    return [[torch.tensor(some, dtype=torch.int64) for some in by_layer] for by_layer in lists]


def test_what_plain_torch_wrote_is_read(like, tmp_path):
    torch.save(tensors(LISTS), tmp_path / "masks.pt")
    found = read_masks(tmp_path / "masks.pt", like)
    found.check()
    for domain, by_layer in zip(DOMAINS, LISTS, strict=True):
        for layer, indices in enumerate(by_layer):
            assert found.neurons(domain, SITE)[SITE][layer].nonzero().flatten().tolist() == indices
    assert not bool(found.masks["vision.mlp.act"].any())
    assert found.requested == {"vision.mlp.act": 0, SITE: 6}
    assert found.parameters["method"] == "masks"
    assert torch.equal(found.probability[SITE], like.probability[SITE])
    found.save(tmp_path / "a")
    assert torch.equal(Selection.load(tmp_path / "a").masks[SITE], found.masks[SITE])
    turned = read_masks(tmp_path / "masks.pt", like, domains=("document", "common", "medical"))
    assert turned.neurons("document", "LLM")[SITE][1].nonzero().flatten().tolist() == []
    assert turned.neurons("document", "LLM")[SITE][0].nonzero().flatten().tolist() == [0, 5]
    # A table of older files, which torch wrote in another container.
    torch.save(tensors(LISTS), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_masks(tmp_path / "old.pt", like).masks[SITE], found.masks[SITE])


def test_what_is_written_plain_torch_reads(like, tmp_path):
    write_masks(like, tmp_path / "masks.pt")
    lists = torch.load(tmp_path / "masks.pt", weights_only=True)
    assert [len(by_layer) for by_layer in lists] == [3, 3, 3]
    assert {one.dtype for by_layer in lists for one in by_layer} == {torch.int64}
    mask = torch.zeros(3, 12, 3, dtype=torch.bool)
    for domain, by_layer in enumerate(lists):
        for layer, indices in enumerate(by_layer):
            for neuron in indices.tolist():
                mask[layer, neuron, domain] = True
    assert bool(mask.any())
    assert torch.equal(mask, like.masks[SITE])
    again = read_masks(tmp_path / "masks.pt", like)
    assert torch.equal(again.masks[SITE], like.masks[SITE])
    write_masks(like, tmp_path / "vision.pt", site="vision.mlp.act")
    assert len(torch.load(tmp_path / "vision.pt", weights_only=True)[0]) == 2
    at_vision = read_masks(tmp_path / "vision.pt", like, site="vision.mlp.act")
    assert torch.equal(at_vision.masks["vision.mlp.act"], like.masks["vision.mlp.act"])
    with pytest.raises(KeyError, match="no site or module 'llm'; choose from"):
        write_masks(like, tmp_path / "x.pt", site="llm")


def changed(domain: int, layer: int, to: Any) -> Any:
    lists = tensors(LISTS)
    lists[domain][layer] = to
    return lists


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (tensors(LISTS)[:2], "has 2 lists for the domains common, medical, document; 3 are expected"),
        ([by_layer[:2] for by_layer in tensors(LISTS)], "has 2 lists for the layers of common; 3 are expected"),
        (torch.zeros(3, 3), "Tensor stands where a list of the domains common, medical, document is expected"),
        ({"a": 1}, "dict stands where a list of the domains"),
        ([torch.zeros(3)] * 3, "Tensor stands where a list of the layers of common is expected"),
        (changed(1, 2, torch.tensor([12])), "medical, layer 2: neuron 12 is not there; they go from 0 to 11"),
        (changed(1, 2, torch.tensor([3, -1])), "medical, layer 2: neuron -1 is not there"),
        (changed(0, 0, torch.tensor([3, 3])), "common, layer 0: 2 indices of 12 neurons; each is named once"),
        (changed(0, 0, torch.arange(10**6).repeat(2)), "2000000 indices of 12 neurons"),
        (changed(0, 0, torch.tensor([True])), "common, layer 0: indices are torch.bool; int64 is expected"),
        (changed(0, 0, torch.tensor([1.0])), "indices are torch.float32"),
        (changed(0, 0, torch.tensor(3)), "a tensor of 0 axes stands where a list of indices is expected"),
        (changed(0, 0, [1, 2]), "common, layer 0: list stands where a list of indices is expected"),
        (changed(0, 0, "1"), "common, layer 0: str stands where"),
    ],
)
def test_what_are_no_masks_is_refused_in_a_line(held, says, like, tmp_path):
    torch.save(held, tmp_path / "masks.pt")
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the line is looked at)
        read_masks(tmp_path / "masks.pt", like)
    text = str(caught.value)
    assert says in text
    assert text.startswith(f"{tmp_path / 'masks.pt'}: ")
    assert "\n" not in text


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(MARK),)


MARK: Any = None


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(like, tmp_path):
    global MARK
    MARK = tmp_path / "ran"
    torch.save([Hostile()], tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps([Hostile()]))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "zip.pt").read_bytes()[:100])
    (tmp_path / "text.pt").write_text("no masks")
    for name in ("zip.pt", "bare.pt", "cut.pt", "text.pt"):
        with pytest.raises(ValueError, match=f"{name}: cannot be opened as lists of tensors"):
            read_masks(tmp_path / name, like)
    assert not MARK.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert MARK.exists(), "the file would have run something"
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file"):
        read_masks(tmp_path / "none.pt", like)
    with pytest.raises(ValueError, match="lists of common are no selection of common, medical, document"):
        read_masks(tmp_path / "zip.pt", like, domains=("common",))
    with pytest.raises(KeyError, match="no site or module 'x'"):
        read_masks(tmp_path / "zip.pt", replace(like), site="x")
