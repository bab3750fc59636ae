"""The prompts, written out to the character (Table 5, Figure 8 and appendix C.1 of the paper)."""

from __future__ import annotations

import pytest

from mmneuron_lens.corpora.prompts import evaluation, identification, option_list

POLES = ("Right upper pole", "Right lower pole", "Left upper pole", "Left lower pole")


def test_identification_is_the_plain_question() -> None:
    assert identification("llava-next", "Is a square building present?") == "<image>\nIs a square building present?"
    assert identification("instructblip", "Is a square building present?") == "Is a square building present?"


def test_llava_open_ended_as_figure_8a() -> None:
    assert evaluation("llava-next", "Is a square building present?") == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nQuestion: Is a square building present?\n"
        "Context: N/A\n"
        "Answer the question using a single word or phrase. ASSISTANT:"
    )


def test_llava_options_as_figure_8b() -> None:
    assert evaluation("llava-next", "Is a square building present?", POLES) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nQuestion: Is a square building present?\n"
        "Context: N/A\n"
        "Options: ['A: Right upper pole', 'B: Right lower pole', 'C: Left upper pole', 'D: Left lower pole']\n"
        "Answer with the option's letter from the given choices directly. ASSISTANT:"
    )


def test_llava_driving_has_the_role() -> None:
    assert evaluation("llava-next", "Is it safe to go?", domain="auto_driving") == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\n"
        "Role: You are an advanced AI assistant installed on the Ego vehicle, equipped with conversational analysis "
        "capabilities for discussing autonomous driving scenarios. The perspective presented is from the point-of-view "
        "of the Ego vehicle, where the camera is mounted. It's important to note that the Ego vehicle itself is not "
        "visible in the images provided.\nQuestion: Is it safe to go?\nContext: N/A\n"
        "Answer the question using a single word or phrase. ASSISTANT:"
    )


def test_instructblip() -> None:
    assert evaluation("instructblip", "Where?", domain="medical") == "Question: Where?\nShort Answer:"
    assert evaluation("instructblip", "Where?", POLES, "medical") == (
        "Question: Where?\n"
        "Options: ['A: Right upper pole', 'B: Right lower pole', 'C: Left upper pole', 'D: Left lower pole']\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert evaluation("instructblip", "Is it safe to go?", domain="auto_driving") == (
        "Role: You are an advanced AI assistant installed on the Ego vehicle, equipped with conversational analysis "
        "capabilities for discussing autonomous driving scenarios. The perspective presented is from the point-of-view "
        "of the Ego vehicle, where the camera is mounted. It's important to note that the Ego vehicle itself is not "
        "visible in the images provided.\nQuestion: Is it safe to go?\nShort Answer:"
    )


def test_only_driving_has_a_role() -> None:
    for domain in ("", "common", "remote_sensing", "medical", "document"):
        assert "Role:" not in evaluation("llava-next", "What?", domain=domain)
    assert "Role:" not in evaluation("llava-next", "What?", ("yes", "no"), "auto_driving")


def test_option_cells_are_stripped_and_quotes_stay_single() -> None:
    assert option_list((" Crohn's ", "none\n")) == "['A: Crohn's', 'B: none']"


def test_unknown_model_kind_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown model kind 'blip': choose one of llava-next, instructblip"):
        identification("blip", "What?")  # type: ignore[arg-type]
