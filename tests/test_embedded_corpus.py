"""The drawn corpus: the same from the same seed, splits apart, answers balanced, every answer one token."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoTokenizer

from mmneuron_lens.corpora import prompts
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus import draw as drawing
from mmneuron_lens.embedded.corpus import real
from mmneuron_lens.embedded.corpus.draw import PAINTERS, SPLITS, draw, draw_real, drawn_folder, write_folder
from mmneuron_lens.embedded.train.build import NAMES, PROMPTS, Name

EMBEDDED = Path(real.__file__).parent.parent
KINDS = {"yes/no", "count", "name", "place", "option"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_seed_names_one_scene(domain: str) -> None:
    first, again, other = draw(domain, 7), draw(domain, 7), draw(domain, 8)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.questions == again.questions
    assert first.image.tobytes() != other.image.tobytes()
    assert first.image.mode == "RGB"
    assert min(first.image.size) >= 80
    assert max(first.image.size) <= 160


def test_sizes_vary_within_every_domain() -> None:
    for domain in DOMAINS:
        assert len({draw(domain, seed).image.size for seed in range(40)}) >= 3


def test_splits_are_disjoint() -> None:
    ranges = list(SPLITS.values())
    assert {"train", "validation", "demo", "held_out"} <= set(SPLITS)
    for i, one in enumerate(ranges):
        for other in ranges[i + 1 :]:
            assert one.stop <= other.start or other.stop <= one.start


def test_real_crops_of_held_out_come_from_the_right_third(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = Image.linear_gradient("L").rotate(90).resize((100, 60)).convert("RGB")  # its grey tells the column
    monkeypatch.setattr(real, "_open", lambda name: ramp)
    shade = [p[0] for p in ramp.crop((0, 0, 100, 1)).get_flattened_data()]
    limits = shade[64], shade[67]
    for i in range(60):
        trained = draw_real("common", SPLITS["train"][i]).image.getextrema()[0]
        held_out = draw_real("common", SPLITS["held_out"][i]).image.getextrema()[0]
        if shade[0] < shade[-1]:
            assert trained[1] <= limits[0] + 3
            assert held_out[0] >= limits[1] - 3
        else:
            assert trained[0] >= limits[0] - 3
            assert held_out[1] <= limits[1] + 3


def test_every_real_image_has_its_licence() -> None:
    told = {entry["file"]: entry for entry in json.loads((real.FOLDER / "LICENSES.json").read_text())}
    files = {p.name for p in real.FOLDER.iterdir() if p.suffix in (".jpg", ".png")}
    assert files == set(told) == {name for images in real.SHOWN.values() for name in images}
    assert all(entry["licence"] and len(entry["sha256_of_original"]) == 64 for entry in told.values())
    assert sum(p.stat().st_size for p in real.FOLDER.iterdir()) < 400_000


@pytest.mark.parametrize("domain", DOMAINS)
def test_answers_are_balanced(domain: str) -> None:
    """Over many seeds no answer to a question is much more frequent than one over the number of answers."""
    facts, answers, options = defaultdict(Counter), defaultdict(Counter), Counter()
    for seed in range(1200):
        scene = draw(domain, seed)
        for name, value in scene.facts.items():
            facts[name][value] += 1
        for place, question in enumerate(scene.questions):
            answers[place, question.kind][question.answer] += 1
            if question.options:
                options[
                    question.options.index(scene.facts["marked"]) if scene.facts["marked"] in question.options else -1
                ] += 1
    for name, values in PAINTERS[domain].FACTS.items():
        assert max(facts[name].values()) / 1200 < 1 / len(values) + 0.05, name
    for place, counter in answers.items():
        assert max(counter.values()) / 1200 < 1 / len(counter) + 0.05, place
    assert {kind for _, kind in answers} >= {"yes/no", "count", "name", "place"}
    if domain == "medical":
        assert {kind for _, kind in answers} == KINDS
        assert max(options[i] for i in range(4)) / 1200 < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_one_token_after_every_prompt(name: Name) -> None:
    tokenizer, model_kind = AutoTokenizer.from_pretrained(EMBEDDED / name), PROMPTS[name]
    scenes = [draw(domain, seed) for domain in DOMAINS for seed in range(25)]
    scenes += [draw_real(domain, seed) for domain in real.DOMAINS_WITH_IMAGES for seed in range(40)]
    for scene in scenes:
        for question in scene.questions:
            for prompt in (
                prompts.identification(model_kind, question.question),
                prompts.evaluation(model_kind, question.question, question.options, scene.domain),
            ):
                before, after = tokenizer(prompt).input_ids, tokenizer(f"{prompt} {question.answer}").input_ids
                assert after[:-1] == before, (prompt, question.answer)
                assert tokenizer.decode(after[-1]).strip() == question.answer
                assert before[0] == tokenizer.bos_token_id
                assert before.count(tokenizer.bos_token_id) == 1


def test_the_tokenizer_encodes_any_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "llava-next")
    text = "Où est le café? 漢字 🙂 \t{}"
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_folder_is_written_as_users_bring_theirs(tmp_path: Path) -> None:
    write_folder(tmp_path, "demo", images_per_domain=4, real_share=0.5)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["domain"] for row in rows} == set(DOMAINS)
    assert {row["kind"] for row in rows} == KINDS
    assert len(list((tmp_path / "images").glob("*.png"))) == 20
    for row in rows:
        assert set(row) - {"options"} == {"id", "domain", "image", "question", "answer", "kind"}
        assert (tmp_path / row["image"]).is_file()
        assert ("options" in row) == (row["kind"] == "option")
        if "options" in row:
            assert ord(row["answer"]) - 65 in range(len(row["options"]))


def test_what_is_unknown_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown domain 'street': choose one of common, remote_sensing"):
        draw("street", 0)
    with pytest.raises(ValueError, match="no real image of 'auto_driving'"):
        draw_real("auto_driving", 0)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        write_folder("nowhere", "test")
    with pytest.raises(ValueError, match="unknown domain 'street': choose one of common, remote_sensing"):
        drawn_folder(1, ["common", "street"])
    with pytest.raises(ValueError, match="no domain to draw: give some of common"):
        drawn_folder(1, [])
    with pytest.raises(ValueError, match="0 images of each domain cannot be drawn: give 1 to 100000"):
        drawn_folder(0)
    with pytest.raises(ValueError, match="seed is 10000: give 0 to 9999"):
        write_folder("nowhere", seed=10_000)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMNEURON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "drawn"


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_drawn_folder_is_what_is_written_and_is_drawn_once(cache, tmp_path, monkeypatch) -> None:
    folder = drawn_folder(3, ["medical", "common"])
    domains = ("common", "medical")
    assert content(folder) == content(write_folder(tmp_path / "mine", images_per_domain=3, domains=domains))
    assert folder.parent == cache
    monkeypatch.setattr(drawing, "write_folder", lambda *given, **settings: pytest.fail("drawn again"))
    assert drawn_folder(3, domains) == folder
    assert list(cache.iterdir()) == [folder]


def test_other_arguments_have_another_folder_and_another_seed_other_scenes(cache) -> None:
    kept = [drawn_folder(2, ["document"], seed) for seed in (0, 1)]
    kept += [drawn_folder(1, ["document"]), drawn_folder(2, ["common"])]
    assert len(set(kept)) == 4
    assert sorted(kept) == sorted(cache.iterdir())
    pictures = [file.read_bytes() for folder in kept[:2] for file in (folder / "images").iterdir()]
    assert len(set(pictures)) == len(pictures) == 4


def test_a_drawing_that_is_stopped_leaves_no_corpus(cache, monkeypatch) -> None:
    drawn: list[int] = []

    def stopped(domain: str, seed: int) -> drawing.Scene:
        drawn.append(seed)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(domain, seed)

    monkeypatch.setattr(drawing, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        drawn_folder(4, ["common"])
    assert list(cache.iterdir()) == []
    assert len(content(drawn_folder(4, ["common"]))) == 5


def test_two_that_draw_at_once_both_get_the_corpus(cache, monkeypatch) -> None:
    def both(folder: Path, **settings) -> Path:
        if not list(cache.glob("2-*")):
            monkeypatch.setattr(drawing, "write_folder", write_folder)
            other.append(drawn_folder(2, ["common"]))
        return write_folder(folder, **settings)

    other: list[Path] = []
    monkeypatch.setattr(drawing, "write_folder", both)
    assert [drawn_folder(2, ["common"])] == other == list(cache.iterdir())
