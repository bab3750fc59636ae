"""The models that ship with the package: whole, small, loaded by stock classes, known by name, and proved."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from drawn_corpus import write_corpus
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from interventions import count_active_by_kind, count_positions
from mmneuron_lens import Lens
from mmneuron_lens.batching.encoding import encode, encode_packed
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.embedded import checkpoints
from mmneuron_lens.paper.demo import SMALL_MODELS

FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "CARD.md", "card.json", "train.jsonl"),
}
LARGEST = {"llava-next": 10, "instructblip": 14, "idefics3": 8}
"""Megabytes of a folder."""


@pytest.mark.parametrize("name", checkpoints.EMBEDDED)
def test_its_folder_is_whole_and_small(name: str) -> None:
    folder = getattr(checkpoints, name.replace("-", "_"))()
    assert folder.name == name
    assert {file.name for file in folder.iterdir() if file.is_file()} == FILES
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= LARGEST[name] * 10**6
    about = (folder / "CARD.md").read_text(encoding="utf-8")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert about.startswith(f"# {name}\n")
    assert f"`{card['class']}`" in about
    assert f"{card['parameters']:,} parameters" in about
    assert card["weights_sha256"] in about
    for form in ("identification", "evaluation"):
        assert f"| mean of the five domains |  | {100 * card['summary'][form]['mean']['image']:.1f} |" in about
    assert not any(part in about + json.dumps(card) for part in ("/tmp/", "/home/", "/work/", "/root/"))


@pytest.mark.parametrize("name", checkpoints.EMBEDDED)
def test_stock_classes_load_every_weight_and_the_processor(name: str) -> None:
    folder = getattr(checkpoints, name.replace("-", "_"))()
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]
    assert all(bool(value.isfinite().all()) for value in model.parameters())
    card = json.loads((folder / "card.json").read_text())
    assert sum(value.numel() for value in model.parameters()) == card["parameters"]
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__module__.startswith("transformers.")
    assert len(processor.tokenizer) == model.get_input_embeddings().weight.shape[0]
    # Nothing that is fetched, or run, from elsewhere.
    assert "auto_map" not in AutoConfig.from_pretrained(folder).to_dict()


def test_every_one_has_a_name_and_is_in_the_demo() -> None:
    declared = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    points = declared["project"]["entry-points"]["mmneuron_lens.checkpoints"]
    for name in checkpoints.EMBEDDED:
        assert points[f"embedded/{name}"] == f"mmneuron_lens.embedded.checkpoints:{name.replace('-', '_')}"
    assert sorted(SMALL_MODELS) == sorted(f"embedded/{name}" for name in checkpoints.EMBEDDED)


def test_idefics3_is_proved_by_name() -> None:
    """Every site of the model changes its logits; its tiles and its merged patches are where they belong."""
    lens = Lens("embedded/idefics3")
    assert lens.name == "embedded/idefics3"
    assert lens.architecture.name == "Idefics3"
    proofs = lens.prove()
    assert {proof.site for proof in proofs} == set(lens.sites) - {"vision.attention.pattern", "llm.attention.pattern"}
    assert all(proof.moved and not proof.dead for proof in proofs)


def test_idefics3_counts_the_same_packed_and_one_by_one(tmp_path: Path) -> None:
    """Questions that share an image's row come to the counts of each alone, on images of one, two and four tiles."""
    lens = Lens("embedded/idefics3")
    samples = [one for some in by_domain(read_folder(write_corpus(tmp_path, images=3))[0]).values() for one in some]
    graph = count_active_by_kind.at("*.act") | count_positions.at("*.act")
    together, kept = encode_packed(lens, samples, "identification", 8)
    assert together is not None
    assert len(kept) == len(samples)
    assert together.rows < len(samples)
    packed = lens.run(graph, together)
    alone: dict[object, torch.Tensor] = {}
    for sample in samples:
        batch, _ = encode(lens, [sample], "identification")
        assert batch is not None
        for key, value in lens.run(graph, batch).items():
            alone[key] = alone[key] + value if key in alone else value
    assert set(packed.keys()) == set(alone)
    for key, value in alone.items():
        assert torch.equal(packed[key], value), key
