"""Tokens as people read them: of every kind of vocabulary, in scripts whose characters are several bytes."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmneuron_lens.runtime.readable_tokens import BYTES, readable

MARKS = "Ġ▁Ċ"
LETTERS = {byte: letter for letter, byte in BYTES.items()}


def named(text: str | bytes) -> str:
    """What a byte-level vocabulary calls a text."""
    return "".join(LETTERS[byte] for byte in (text.encode() if isinstance(text, str) else text))


def byte_level(*texts: str | bytes) -> PreTrainedTokenizerFast:
    words = [*pre_tokenizers.ByteLevel.alphabet(), *(named(text) for text in texts)]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(dict.fromkeys(words))}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_piece(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {
        word: place for place, word in enumerate(("<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words))
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    parts = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(list(parts))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate(("[UNK]", *words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_the_letters_of_bytes_are_those_of_the_library():
    assert sorted(BYTES) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTES.values()) == list(range(256))
    text = "ÿ Grüße\n日\xad\xa0"
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert named(text) == "".join(piece for piece, _ in pieces)


@pytest.mark.parametrize(
    ("token", "read"),
    [
        *((" cat", "cat"), (" Grüße", "Grüße"), (" 日本", "日本"), (" ответ", "ответ"), ("日", "日"), (" 🐕", "🐕")),
        *(
            (" ", "␣"),
            ("\n", "⏎"),
            ("  \n", "␣␣⏎"),
            ("\t", "⇥"),
            ("\u00a0", "␣"),
            ("\x1b", "\\x1b"),
            ("\u202e", "\\u202e"),
        ),
        *((b"\xe2", "<0xE2>"), (b" \xe6\x97", "<0xE6><0x97>"), ("##", "##"), ("Ġ", "Ġ"), ("�", "�")),
    ],
)
def test_tokens_of_bytes(token, read):
    tokenizer = byte_level(token)
    place = tokenizer.convert_tokens_to_ids(named(token))
    assert readable(tokenizer, place) == read


@pytest.mark.parametrize(
    ("token", "read"),
    [
        *(("▁cat", "cat"), ("cat", "cat"), ("▁Grüße", "Grüße"), ("▁日本", "日本"), ("▁", "␣"), ("▁▁", "␣␣")),
        *(("<0xE2>", "<0xE2>"), ("<0x41>", "A"), ("<0x0A>", "⏎")),
    ],
)
def test_tokens_of_sentence_piece(token, read):
    tokenizer = sentence_piece(token)
    shown = readable(tokenizer, tokenizer.convert_tokens_to_ids(token))
    # The decoder takes one leading space away.
    assert shown == read or (token == "▁▁" and shown == "␣")


@pytest.mark.parametrize(
    ("token", "read"),
    [("cat", "cat"), ("##ing", "ing"), ("##ßen", "ßen"), ("##", "##"), ("#", "#"), ("[UNK]", "[UNK]")],
)
def test_tokens_of_word_piece(token, read):
    tokenizer = word_piece(*({token} - {"[UNK]"}))
    assert readable(tokenizer, tokenizer.convert_tokens_to_ids(token)) == read


def test_space_is_kept_where_it_is_asked_for():
    tokenizer = byte_level(" cat")
    assert readable(tokenizer, tokenizer.convert_tokens_to_ids("Ġcat"), strip=False) == " cat"


def test_no_mark_of_a_whole_vocabulary_is_shown():
    """But for bytes that are letters of their own, which are named."""
    tokenizer = byte_level(" a", "\n\n", " é", b" \xc4")
    shown = [readable(tokenizer, place) for place in range(len(tokenizer))]
    assert not [text for text in shown if any(mark in text for mark in MARKS)]
    assert all(text.isprintable() and text for text in shown)
