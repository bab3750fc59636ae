"""Two small byte-level tokenizers learned from the corpus: of the language models, and in lower case of the Q-Former.

All 256 bytes are in the alphabet, so any text can be encoded. Answers follow the prompt with a leading space, and every
prompt ends in punctuation, so an answer is always one token of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmneuron_lens.corpora import prompts
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus.draw import SPLITS, draw, draw_real
from mmneuron_lens.embedded.corpus.real import DOMAINS_WITH_IMAGES

VOCABULARY_SIZE = 1024
SCENES_PER_DOMAIN = 150


def language_tokenizer(names_image_token: bool = True) -> PreTrainedTokenizerFast:
    """Tokenizer of all language models: `<s>` before, padding on the left, the image placeholder a token of its own.

    InstructBLIP's stock processor keeps the placeholder itself and fails on a tokenizer that already names it.
    """
    named = {"extra_special_tokens": {"image_token": "<image>"}} if names_image_token else {}
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = Tokenizer.from_str(_train((*specials.values(), "<image>"), lowercase=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **specials, **named, padding_side="left", truncation_side="left",
        model_max_length=2048, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def tiled_tokenizer() -> PreTrainedTokenizerFast:
    """`language_tokenizer` with the marks that Idefics3 sets around an image and before each of its tiles."""
    tokenizer = language_tokenizer()
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    marks = ["<fake_token_around_image>", "<global-img>", *tiles, "<end_of_utterance>"]
    tokenizer.add_tokens(marks, special_tokens=True)
    return tokenizer


def qformer_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of the Q-Former's instruction: lower case, `[CLS] ... [SEP]`, padded on the right as BERT's is.

    The stock processor overrules that: it pads both texts on the language model's side.
    """
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer.from_str(_train(tuple(specials.values()), lowercase=True))
    marks = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **specials, padding_side="right", model_max_length=512,
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


@lru_cache(maxsize=2)
def _train(specials: tuple[str, ...], lowercase: bool) -> str:
    """A trained tokenizer as JSON; learned once a process, since the corpus it learns from never changes."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=list(specials), min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer.to_str()


def _texts() -> Iterator[str]:
    """Every form in which the corpus's questions are asked, and the answers behind a space."""
    for domain in DOMAINS:
        for i in range(SCENES_PER_DOMAIN):
            for question in draw(domain, SPLITS["train"][i]).questions:
                yield question.question
                yield f" {question.answer}"
                for kind in prompts.MODEL_KINDS:
                    yield prompts.evaluation(kind, question.question, question.options, domain).replace("<image>", "")
    for domain in DOMAINS_WITH_IMAGES:
        for i in range(SCENES_PER_DOMAIN):
            for question in draw_real(domain, SPLITS["train"][i]).questions:
                yield question.question
                yield f" {question.answer}"
