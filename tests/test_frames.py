"""Of several images a question: as many as fit, or all in one strip, in every stage, as the images pasted by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from conftest import tiny_lens
from drawn_corpus import row, write_images, write_rows
from PIL import Image
from test_cli import mmneuron
from tiny_models import checkpoint

from mmneuron_lens import Lens, ablate, deviate, identify, load_corpus, read_entropy, read_layers
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.experiments.count import count_domain, plan_count
from mmneuron_lens.experiments.embed import embed_images
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.runs.answer import off_stage
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.store import Store

SHOWN = {"frames": "strip", "frames shown": {"3": 3}}


def segments(folder: Path, frames: int = 3, questions: int = 3) -> Corpus:
    """Two domains; in each, questions about as many segments of so many frames of one size."""
    rows = []
    for seed, domain in enumerate(("document", "common")):
        write_images(folder, domain, 4 * frames * questions, seed)
        names = [f"images/{domain}{4 * number}.png" for number in range(frames * questions)]
        for number in range(questions):
            some = names[frames * number : frames * (number + 1)]
            rows.append(row(domain, 0, f"Is it red, {number}?", image=None, images=some))
    return load_corpus(write_rows(folder, rows))


def by_hand(corpus: Corpus, folder: Path) -> Corpus:
    """The same questions about one image: the frames pasted side by side with Pillow alone."""
    folder.mkdir()
    samples = []
    for sample in corpus:
        pictures = [Image.open(file) for file in sample.images]
        pasted = Image.new("RGB", (sum(one.width for one in pictures), pictures[0].height))
        for number, one in enumerate(pictures):
            pasted.paste(one, (number * one.width, 0))
        pasted.save(folder / f"{sample.domain}{sample.id}.png")
        samples.append(replace(sample, images=(folder / f"{sample.domain}{sample.id}.png",)))
    return replace(corpus, samples=tuple(samples))


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def both(tmp_path) -> tuple[Corpus, Corpus]:
    corpus = segments(tmp_path / "corpus")
    return corpus, by_hand(corpus, tmp_path / "pasted")


def test_a_strip_reaches_every_stage(lens, both):
    corpus, pasted = both
    strip: Any = {"frames": "strip"}
    own, other = corpus.by_domain()["common"], pasted.by_domain()["common"]
    first, second = (
        count_domain(lens, some, batch_size=1, exact=True, **put) for some, put in ((own, strip), (other, {}))
    )
    # Buckets are of the first frame's file, so counts are compared over all of them.
    assert {site: first.total(site)[0].tolist() for site in first.active} == {
        site: second.total(site)[0].tolist() for site in second.active
    }
    assert {name: first.provenance[name] for name in SHOWN} == SHOWN
    selection = identify(lens, corpus, permutations=2, fraction=0.3, percentile=0.6, **strip).selection
    shared: Any = {"random_draws": 1, "batch_size": 1}
    answers, hand = (
        ablate(lens, selection, some, max_new_tokens=4, **put, **shared).answers
        for some, put in ((corpus, strip), (pasted, {}))
    )
    assert {one.key: one.answer for one in answers} == {one.key: one.answer for one in hand}
    assert answers.settings["asked"] == {"common": SHOWN, "document": SHOWN}  # type: ignore[attr-defined]
    moved, hand = (deviate(lens, selection, some, **put, **shared) for some, put in ((corpus, strip), (pasted, {})))
    assert moved.to_frame().equals(hand.to_frame())
    entropies, hand = (
        read_entropy(lens, some, batch_size=1, **put)["common"] for some, put in ((corpus, strip), (pasted, {}))
    )
    assert torch.allclose(entropies.mean(), hand.mean())
    assert {name: entropies.parameters[name] for name in SHOWN} == SHOWN
    means, hand = (
        mean_activations(lens, {"common": some}, batch_size=1, **put) for some, put in ((own, strip), (other, {}))
    )
    assert all(torch.allclose(means.values[site], hand.values[site], atol=1e-6) for site in means.values)
    traces = [read_layers(lens, some, **put) for some, put in ((own[0], strip), (other[0], {}))]
    assert torch.equal(traces[0].tokens, traces[1].tokens)
    assert torch.equal(traces[0].pictures[0], traces[1].pictures[0])
    assert traces[0].parameters["frames shown"] == {"3": 1}
    assert traces[0].prompt == traces[1].prompt
    images = [
        embed_images(lens, {"common": some}, batch_size=1, **put).vectors for some, put in ((own, strip), (other, {}))
    ]
    # In whatever order the files come.
    assert sorted(images[0].tolist()) == sorted(images[1].tolist())


def test_means_of_a_run_are_of_the_frames_that_are_shown(lens, both):
    corpus, pasted = both
    found = [
        off_stage(lens, "mean", 0.0, some.by_domain(), Store(None), batch_size=1, frames=frames).means  # type: ignore[arg-type]
        for some, frames in ((corpus, "strip"), (pasted, "fit"))
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert all(torch.allclose(found[0][site], found[1][site], atol=1e-6) for site in found[0])


def roomy(positions: int) -> Lens:
    """The tiny LLaVA-NeXT with so many positions."""
    module, processor = tiny_models.llava_next()
    module = copy.deepcopy(module)
    module.config.get_text_config().max_position_embeddings = positions
    return Lens.wrap(module, processor, name="roomy")


def test_every_stage_shows_as_many_as_fit_beside_512_new_tokens(tmp_path):
    corpus = segments(tmp_path, frames=9, questions=1)
    lens, samples = roomy(1024), corpus.by_domain()["common"]
    shown = {}
    for prompt in ("identification", "evaluation"):
        for number in range(9, 1, -1):
            places = [round(place * 8 / (number - 1)) for place in range(number)]
            some = replace(samples[0], images=tuple(samples[0].images[place] for place in places))
            text = lens.processor.tokenizer
            (fitted,), told = asked_as(lens, [some], prompt)  # type: ignore[arg-type]
            tokens = lens.encode([[*some.images]], [_text(lens, some, prompt)]).prompt_length
            if tokens <= 1024 - 512:
                assert fitted.images == some.images
                shown[prompt] = number
                break
            assert len(fitted.images) < number
        assert text is not None
        assert 1 < shown[prompt] < 9
        assert asked_as(lens, samples, prompt)[1] == {"frames": "fit", "frames shown": {str(shown[prompt]): 1}}  # type: ignore[arg-type]
    told = {prompt: {"frames": "fit", "frames shown": {str(number): 1}} for prompt, number in shown.items()}
    assert plan_count(lens, samples).facts.items() >= told["identification"].items()
    selection = identify(lens, corpus, permutations=1, fraction=0.3, percentile=0.6).selection
    answers = ablate(lens, selection, corpus, random_draws=0, max_new_tokens=2).answers
    assert answers.settings["asked"]["common"] == told["evaluation"]  # type: ignore[attr-defined]
    trace = read_layers(lens, samples[0])
    assert len(trace.pictures) == shown["evaluation"]
    assert trace.parameters.items() >= told["evaluation"].items()
    entropy = read_entropy(lens, corpus)["common"]
    assert entropy.parameters.items() >= told["identification"].items()
    # A longer answer takes room from the images; a model of 512 positions has none to leave.
    longer = asked_as(lens, samples, "evaluation", new_tokens=700)[1]
    assert int(next(iter(longer["frames shown"]))) < shown["evaluation"]
    assert asked_as(roomy(512), samples, "evaluation", new_tokens=2)[1]["frames shown"] != {"1": 1}


def _text(lens: Lens, sample: Any, prompt: str) -> str:
    from mmneuron_lens.batching.prompting import prompt_of

    return prompt_of(lens, sample, prompt)  # type: ignore[arg-type]


def test_a_model_of_one_image_says_that_it_saw_one(tmp_path):
    corpus = segments(tmp_path)
    lens = tiny_lens("instructblip")
    assert asked_as(lens, list(corpus), "evaluation")[1] == {"frames": "fit", "frames shown": {"1": 6}}
    assert asked_as(lens, list(corpus), "evaluation", "strip")[1] == {"frames": "strip", "frames shown": {"3": 6}}
    single = [replace(one, images=one.images[:1]) for one in corpus]
    assert asked_as(lens, single, "evaluation", "strip")[1] == {}


@pytest.mark.parametrize("stage", ["identify", "ablate", "deviate", "read_layers", "read_entropy"])
def test_unknown_frames_are_refused_with_the_choices(stage, tmp_path):
    import mmneuron_lens

    corpus, lens = segments(tmp_path), tiny_lens("llava_next")
    selection = identify(lens, corpus, permutations=1, fraction=0.3, percentile=0.6).selection
    given = {"identify": (lens, corpus), "read_entropy": (lens, corpus), "read_layers": (lens, corpus[0])}
    with pytest.raises(ValueError, match=r"frames 'film'.*fit, strip"):
        getattr(mmneuron_lens, stage)(*given.get(stage, (lens, selection, corpus)), frames="film")
    with pytest.raises(ValueError, match=r"frames 'film'.*fit, strip"):
        Plan(frames="film")  # type: ignore[arg-type]


def test_the_commands_have_the_option(tmp_path):
    segments(tmp_path / "corpus")
    folder = checkpoint("llava_next", tmp_path / "tiny")
    words = ["--model", str(folder), "--corpus", str(tmp_path / "corpus")]
    run = tmp_path / "run"
    assert mmneuron("count", *words, "--out", run, "--frames", "strip").exit_code == 0
    counts = Counts.load(run / "counts" / "tiny" / "common.safetensors")
    assert counts.provenance["frames shown"] == {"3": 3}
    assert mmneuron("select", run, "--fraction", "0.3", "--percentile", "0.6").exit_code == 0
    asked = ["ablate", run, *words, "--random-draws", "1", "--max-new-tokens", "2"]
    assert mmneuron(*asked, "--frames", "strip").exit_code == 0
    other = mmneuron(*asked, "--frames", "fit")
    assert other.exit_code == 1
    assert 'asked common frames is "strip" there and "fit" here' in other.stderr
    for command in ("count", "ablate", "paper"):
        assert mmneuron(command, "--help").stdout.count("--frames") == 1
    for command in ("ablate", "paper"):
        assert mmneuron(command, "--help").stdout.count("--prompt-form") == 1


def test_domains_of_one_and_of_several_images_are_selected_from_together(tmp_path):
    """As LingoQA beside the other corpora."""
    write_images(tmp_path, "common", 4)
    several = segments(tmp_path / "several")
    rows = [row("common", number, f"Is it red, {number}?") for number in range(4)]
    single = load_corpus(write_rows(tmp_path, rows))
    both = [one for one in several if one.domain == "document"] + list(single)
    found = identify(tiny_lens("llava_next"), replace(several, samples=tuple(both)), permutations=1, fraction=0.3)
    told = {one.domain: one.provenance.get("frames shown") for one in found.counts}
    assert told["common"] is None
    assert sum(told["document"].values()) == 3
