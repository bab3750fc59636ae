"""Prompts in a checkpoint's own chat template, against frames written out by hand and ids counted one by one."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch
from drawn_corpus import write_corpus, write_images
from tokenizers.processors import TemplateProcessing

from mmneuron_lens import Lens, ablate, deviate, identify, load_corpus, read_layers
from mmneuron_lens.batching.chat import form_facts, form_of, images_come_first
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.corpora import prompts
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count import count_domain, plan_count

IMAGE_THEN_TEXT = (
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    + IMAGE_THEN_TEXT
    + " [/INST]"
    "{% endif %}{% endfor %}",
    "qwen2": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a "
    "helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    + IMAGE_THEN_TEXT
    + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    + IMAGE_THEN_TEXT
    + "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}",
}
VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() }}: " + IMAGE_THEN_TEXT + " {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WITH_SYSTEM = prompts.SYSTEM + " " + VICUNA
TEXT_ONLY = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FRAMES = {
    "mistral": "[INST] {images}{body} [/INST]",
    "qwen2": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{images}{body}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n{images}{body}<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\n",
}
SHORT = "Answer the question using a single word or phrase."
OPEN = Sample("1", "common", (), "Is it red?", ("yes",))
SEVERAL = replace(OPEN, options=("red", "it's blue"))
DRIVING = replace(OPEN, domain="auto_driving")
BODIES = {
    OPEN: f"Question: Is it red?\nContext: N/A\n{SHORT}",
    SEVERAL: "Question: Is it red?\nContext: N/A\nOptions: ['A: red', 'B: it's blue']\n"
    "Answer with the option's letter from the given choices directly.",
    DRIVING: f"{prompts.DRIVING_ROLE}\nQuestion: Is it red?\nContext: N/A\n{SHORT}",
}


def lens_of(
    template: str | dict | None, *, bos: bool = True, of_tokenizer: bool = False, kind: str = "llava_next"
) -> Lens:
    """A tiny model with a chat template; bos: whether its tokenizer writes BOS itself."""
    module, shared = getattr(tiny_models, kind)()
    processor = copy.copy(shared)
    processor.tokenizer = copy.deepcopy(shared.tokenizer)
    if bos:
        processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    (processor.tokenizer if of_tokenizer else processor).chat_template = template
    return Lens.wrap(module, processor, name="tiny")


@pytest.mark.parametrize("sample", BODIES, ids=["open", "options", "driving"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_body_stands_in_the_checkpoints_own_frame(name, images, sample):
    lens = lens_of(TEMPLATES[name])
    expected = FRAMES[name].format(images="<image>\n" * images, body=BODIES[sample])
    assert prompt_of(lens, sample, "evaluation", images) == expected
    assert prompt_of(lens, sample, "evaluation", images, "chat") == expected
    paper = prompts.evaluation("llava-next", sample.question, sample.options, sample.domain)
    assert prompt_of(lens, sample, "evaluation", 1, "paper") == paper
    # Identification is plain in whatever form.
    assert prompt_of(lens, sample, "identification", 1, "chat") == "<image>\nIs it red?"


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_bos_is_there_once(tmp_path, name, bos):
    lens = lens_of(TEMPLATES[name], bos=bos)
    write_images(tmp_path, "common", 1)
    sample = replace(OPEN, images=(tmp_path / "images" / "common0.png",))
    batch, _ = encode(lens, [sample], "evaluation")
    assert batch is not None
    ids = batch.inputs["input_ids"][0].tolist()
    # Written by the tokenizer, or by the template where the tokenizer does not.
    assert ids.count(1) == int(bos or name != "qwen2")
    assert ids[:1] == [1] or not (bos or name != "qwen2")


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, "paper"),
        (VICUNA, "paper"),
        (WITH_SYSTEM, "paper"),
        ("{{ bos_token }}" + WITH_SYSTEM, "paper"),
        (VICUNA.replace(" {% endfor %}", "{% endfor %} "), "paper"),
        (VICUNA.replace("ASSISTANT:", "Answer:"), "chat"),
        (TEMPLATES["qwen2"], "chat"),
        ({"tool_use": "{{ nothing }}", "default": TEMPLATES["mistral"]}, "chat"),
        (TEXT_ONLY, "chat"),
    ],
)
@pytest.mark.parametrize("of_tokenizer", [False, True])
def test_the_papers_frame_where_there_is_no_other(template, form, of_tokenizer):
    lens = lens_of(template, of_tokenizer=of_tokenizer)
    assert form_of(lens, "auto") == form
    if form == "paper":
        assert prompt_of(lens, OPEN, "evaluation", 1) == prompts.evaluation("llava-next", OPEN.question)
    else:
        assert BODIES[OPEN] in prompt_of(lens, OPEN, "evaluation", 1)


def test_a_template_of_a_text_model_is_given_the_images_as_text():
    text = prompt_of(lens_of(TEXT_ONLY, of_tokenizer=True), OPEN, "evaluation", 2)
    assert text == f"<|im_start|>user\n<image>\n<image>\n{BODIES[OPEN]}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("kind", ["instructblip", "blip2"])
def test_a_model_that_places_images_itself_keeps_the_papers_prompt_unless_told(kind):
    lens = lens_of(TEXT_ONLY, of_tokenizer=True, kind=kind)
    paper = "Question: Is it red?\nShort Answer:"
    assert prompt_of(lens, OPEN, "evaluation", 1) == paper
    asked = prompt_of(lens, OPEN, "evaluation", 1, "chat")
    assert asked == f"<|im_start|>user\n{paper}<|im_end|>\n<|im_start|>assistant\n"


def test_the_embedded_models_keep_the_frame_they_were_trained_on():
    lens = lens_of(TEMPLATES["qwen2"])
    embedded = Lens.wrap(lens.module, lens.processor, name="embedded/smol")
    assert (form_of(lens, "auto"), form_of(embedded, "auto"), form_of(embedded, "chat")) == ("chat", "paper", "chat")


@pytest.mark.parametrize("question", ["{{ 7 * 7 }}", "{% endfor %}", "a\\n'b'\"c\"", "<b>&amp;</b>", "{# no #} é 漢"])
def test_what_a_row_says_is_data_for_the_template(question):
    for template in (*TEMPLATES.values(), TEXT_ONLY):
        assert f"Question: {question}\n" in prompt_of(
            lens_of(template), replace(OPEN, question=question), "evaluation", 1
        )


BROKEN = {
    "syntax": ("{% for m in messages %}", "Unexpected end of template"),
    "unknown attribute": ("{{ messages[0].content[0].text.nothing.more }}", "has no attribute"),
    "refuses": ("{{ raise_exception('only text, please') }}", "only text, please"),
    "no question": ("{% for m in messages %}<image>{% endfor %}", "it changes the question, or the number of images"),
    "no image": (
        "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}",
        "it changes the question, or the number of images",
    ),
    "upper case": (VICUNA.replace("p['text']", "p['text'].upper()"), "it changes the question"),
}


@pytest.mark.parametrize("form", ["auto", "chat"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_one_line(name, form):
    template, reason = BROKEN[name]
    with pytest.raises(ValueError, match=reason) as caught:
        prompt_of(lens_of(template), OPEN, "evaluation", 2, form)
    assert str(caught.value).startswith("tiny: its chat template cannot be used (")
    assert "ask with prompt form paper" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "USER: <image>" in prompt_of(lens_of(template), OPEN, "evaluation", 2, "paper")


def test_forms_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"prompt form 'vicuna'.*auto, paper, chat"):
        form_of(lens_of(None), "vicuna")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tiny has no chat template; ask with prompt form paper"):
        form_of(lens_of(None), "chat")


def test_the_artifacts_say_the_form_and_the_template():
    sha = hashlib.sha256(TEMPLATES["qwen2"].encode()).hexdigest()
    lens = lens_of(TEMPLATES["qwen2"])
    assert form_facts(lens, "evaluation", "auto") == {"prompt form": "chat", "chat template sha256": sha}
    assert form_facts(lens, "evaluation", "paper") == {"prompt form": "paper"}
    assert form_facts(lens, "identification", "auto") == {}
    # Without a template there is no other form than the paper's.
    assert form_facts(lens_of(None), "evaluation", "auto") == {}


@pytest.fixture
def corpus(tmp_path: Path):
    return load_corpus(write_corpus(tmp_path, images=4))


@pytest.mark.parametrize("name", ["mistral", "qwen2"])
def test_every_stage_asks_in_the_form_and_says_so(name, corpus, tmp_path):
    lens = lens_of(TEMPLATES[name])
    said = form_facts(lens, "evaluation", "auto")
    selection = identify(lens, corpus, permutations=2, fraction=0.3, percentile=0.6).selection
    settings = {"random_draws": 1, "max_new_tokens": 3, "out": tmp_path / "run"}
    answers = ablate(lens, selection, corpus, **settings).answers
    assert answers.settings["asked"] == dict.fromkeys(corpus.by_domain(), said)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="prompt form is "):
        ablate(lens, selection, corpus, prompt_form="paper", **settings)
    # By the model's own generate, on the text written by hand.
    sample = corpus[0]
    hand = FRAMES[name].format(images="<image>\n", body=f"Question: {sample.question}\nContext: N/A\n{SHORT}")
    batch = lens.encode([sample.images[0]], [hand])
    inputs = {key: value for key, value in batch.inputs.items() if key != "position_ids"}
    with torch.no_grad():
        ids = lens.module.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=3)
    text = lens.processor.tokenizer.decode(ids[0, batch.prompt_length :], skip_special_tokens=True).strip()
    assert next(one.answer for one in answers if (one.condition, one.id) == ("none", sample.id)) == text
    trace = read_layers(lens, sample)
    assert trace.prompt == hand
    assert trace.parameters["prompt form"] == "chat"
    deviations = deviate(lens, selection, corpus, random_draws=1)
    assert deviations[0].parameters["chat template sha256"] == said["chat template sha256"]


@pytest.mark.parametrize("name", [*TEMPLATES, "image behind"])
def test_packed_counts_equal_those_one_by_one(name, corpus):
    behind = "{% for m in messages %}{{ m['content'][-1]['text'] }}\n{% for part in m['content'] %}" + (
        "{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}\n{% endfor %}"
    )
    lens = lens_of(TEMPLATES.get(name, behind))
    samples = corpus.by_domain()["common"]
    assert images_come_first(lens, "auto") == (name in TEMPLATES)
    assert plan_count(lens, samples, prompt="evaluation").packs == (name in TEMPLATES)
    packed = count_domain(lens, samples, prompt="evaluation")
    alone = count_domain(lens, samples, prompt="evaluation", exact=True, batch_size=1)
    for site in packed.active:
        assert torch.equal(packed.tokens[site], alone.tokens[site])
        assert int((packed.active[site] - alone.active[site]).abs().sum()) <= 2
    assert packed.provenance["prompt form"] == "chat"
