"""How the embedded models are made: the shared forward equals the stock one, and a few steps train them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmneuron_lens import embedded
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus.draw import SPLITS, draw
from mmneuron_lens.embedded.train.batches import Encoder, choose, scenes_of
from mmneuron_lens.embedded.train.build import NAMES, PROMPTS, Name, build
from mmneuron_lens.embedded.train.checking import answers_right, shown
from mmneuron_lens.embedded.train.forward import forward
from mmneuron_lens.embedded.train.train import train

SMALL = dict(images=5, questions=1, check_images=1, seed=3)

UNREACHED = {
    "llava-next": ("vision_tower.encoder.layers.4.", "vision_tower.post_layernorm"),
    "instructblip": ("qformer.encoder.layer.3.intermediate.", "qformer.encoder.layer.3.output."),
    "idefics3": (),
}
"""What the stock forward computes and throws away: LLaVA-NeXT reads the vision tower's last layer but one, and of the
Q-Former's last layer only the query branch."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scrambled(name: Name) -> tuple[torch.nn.Module, Encoder]:
    """An untrained model with weights large enough that every part of its input matters."""
    model, processor = build(name, 0)
    for parameter in model.eval().parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.06)
    return model, Encoder(PROMPTS[name], processor)


@pytest.mark.parametrize("form", ["identification", "evaluation"])
@pytest.mark.parametrize("name", NAMES)
def test_shared_forward_equals_the_stock_model(name: Name, form: str) -> None:
    """Questions behind one prefix, or sharing one vision tower, predict as the stock processor and forward do."""
    model, encoder = scrambled(name)
    random = Random(0)
    scenes = scenes_of(random, 5, real_share=0.5)
    asked = [choose(scene, random, form, 2) for scene in scenes]
    texts = [encoder.prompt(s, q, form) for s, questions in zip(scenes, asked, strict=True) for q in questions]
    images = [s.image for s, questions in zip(scenes, asked, strict=True) for _ in questions]
    with torch.no_grad():
        ours = forward(model, encoder(scenes, asked, form)).logits[::2]
        stock = torch.stack([
            model(**encoder.processor(images=i, text=t, return_tensors="pt")).logits[0, -1]
            for i, t in zip(images, texts, strict=True)
        ])  # fmt: skip
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss_and_leave_a_whole_folder(name: Name, tmp_path: Path) -> None:
    before, _ = build(name, SMALL["seed"])
    model = train(name, tmp_path, steps=10, facts_share=0.0, rate=1e-2, log_every=9, **SMALL)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 1.0
    checks = [line["check"] for line in lines if "check" in line]
    assert {"identification image", "identification blank", "evaluation swapped", *DOMAINS, "count"} <= set(checks[-1])
    old, new = before.state_dict(), model.state_dict()
    still = [key for key in new if "position_ids" not in key and torch.equal(old[key], new[key])]
    assert [key for key in still if not any(part in key for part in UNREACHED[name])] == []
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert all(torch.equal(new[key], value) for key, value in again.state_dict().items())
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == type(build(name, 0)[1]).__name__


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_reproduces_and_another_does_not(name: Name, tmp_path: Path) -> None:
    runs = {}
    for run, seed in (("one", 3), ("again", 3), ("other", 4)):
        train(name, tmp_path / run, steps=2, facts_share=0.5, images=5, questions=1, check_images=1, seed=seed)
        runs[run] = (tmp_path / run / "model.safetensors").read_bytes()
    assert runs["one"] == runs["again"] != runs["other"]


def test_controls_keep_the_questions_and_change_the_image() -> None:
    scenes = [draw(domain, seed) for domain in DOMAINS for seed in range(3)]
    for condition in ("blank", "swapped"):
        changed = shown(scenes, condition)
        for old, new in zip(scenes, changed, strict=True):
            assert new.questions == old.questions
            assert new.domain == old.domain
            assert new.image.tobytes() != old.image.tobytes()
    swapped = shown(scenes, "swapped")
    assert swapped[0].image.tobytes() == scenes[1].image.tobytes()
    assert swapped[2].image.tobytes() == scenes[0].image.tobytes()


def test_an_untrained_model_is_right_about_nothing() -> None:
    model, encoder = scrambled("llava-next")
    scenes = [draw("common", seed) for seed in range(6)]
    right = answers_right(model, encoder, scenes, [scene.questions for scene in scenes], "identification")
    assert len(right) == sum(len(scene.questions) for scene in scenes)
    assert sum(right) <= 2


def test_options_are_added_in_the_evaluation_form_alone() -> None:
    random = Random(1)
    for domain in DOMAINS:
        for seed in range(10):
            scene = draw(domain, seed)
            assert not any(q.options for q in choose(scene, random, "identification", 5, option_share=1.0))
            for question in choose(scene, random, "evaluation", 7, option_share=1.0):
                assert (question.kind == "option") == bool(question.options)
                if question.options:
                    asked = {q.question: q for q in scene.questions}[question.question]
                    truth = asked.options[ord(asked.answer) - 65] if asked.options else asked.answer
                    assert question.options[ord(question.answer) - 65] == truth
                    assert len(set(question.options)) <= 4


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_model_looks_at_its_image_and_stops(name: Name) -> None:
    """Two held-out images a domain, stock processor and `generate`: most answers right, the end after each."""
    folder = Path(embedded.__file__).parent / name
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    encoder, right, count = Encoder(PROMPTS[name], processor), 0, 0
    for domain in DOMAINS:
        for seed in SPLITS["held_out"][:2]:
            scene = draw(domain, seed)
            for question in scene.questions[:4]:
                text = encoder.prompt(scene, question, "evaluation")
                inputs = processor(images=scene.image, text=text, return_tensors="pt")
                answer, *rest = model.generate(**inputs, max_new_tokens=4, do_sample=False)[
                    0, inputs["input_ids"].shape[1] :
                ]
                assert [int(token) for token in rest] == [processor.tokenizer.eos_token_id]
                right += processor.tokenizer.decode(answer).strip() == question.answer
                count += 1
    assert right / count > 0.7
    card = json.loads((folder / "card.json").read_text())
    assert {row["group"] for row in card["rows"]} == {*DOMAINS, "real"}
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == card["weights_sha256"]
