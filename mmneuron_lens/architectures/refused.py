"""Model types that are refused on load, before any weight is read, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from interventions.sites import unknown

EXPERTS = "its MLPs are experts, and which of them a token is sent to stands in no site"
ENCODER_DECODER = "it is an encoder-decoder, and the sites are those of decoders alone"
LINEAR = "some of its layers have linear attention or convolutions, which have no heads and no mask"
TIMM = "its vision tower is one of timm's, whose modules depend on the installed timm"
HEARS = "it has an audio tower beside its vision tower, which has no sites"
SCALED = "its logits are scaled behind the unembedding, so a logit lens would show other probabilities"
DISCRETE = "its images are tokens of a codebook, so no vision tower has neurons that a prompt depends on"
VIDEO = "it takes videos; only pictures are read"
CROSS = (
    "image features enter its language model through cross-attention layers, and no position of a prompt is an image"
)

_BY_REASON: Mapping[str, tuple[str, ...]] = {
    EXPERTS: (
        *("qwen3_vl_moe", "glm4v_moe", "llama4", "kimi_k25", "kimi_vl", "ernie4_5_vl_moe", "aria", "deepseek_vl_v2"),
        *("deepseek_ocr2", "minimax_m3_vl", "mistral4", "mistral_large4", "step3p7", "unlimited_ocr", "muse_spark"),
        *("qwen3_5_moe", "qwen4_exp", "glm5_next", "nemotron_h_omni", "inkling_mm_model", "qwen3_omni_moe_thinker"),
        *("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v2", "deepseek_v3", "olmoe", "phimoe"),
    ),
    ENCODER_DECODER: ("florence2", "t5gemma2", "udop", "pix2struct", "pp_formulanet", "vision-encoder-decoder", "t5"),
    LINEAR: ("qwen3_5", "qwen3_5_text", "lfm2_vl", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7"),
    TIMM: ("perception_lm", "fast_vlm", "timm_wrapper"),
    HEARS: ("gemma3n", "qwen2_5_omni", "qwen2_5_omni_thinker", "phi4_multimodal", "gemma4", "gemma4_unified"),
    SCALED: ("aya_vision", "cohere2_vision", "cohere_compass", "cohere2"),
    DISCRETE: ("chameleon", "emu3", "janus"),
    VIDEO: ("video_llava", "instructblipvideo", "video_llama_3"),
    CROSS: ("mllama", "idefics", "evolla"),
}

REASONS: Mapping[str, str] = {
    **{kind: reason for reason, kinds in _BY_REASON.items() for kind in kinds},
    "deepseek_vl_hybrid": "it has two vision towers; DeepSeek-VL with one (deepseek_vl) is read",
    "granite4_vision": "its projectors are Q-Formers whose output is added to several layers of the language model",
    "idefics2": "a perceiver stands between its vision tower and its language model",
    "molmo2": "attention pools its patches before the projector, and its processor has no form without torchvision",
    "fuyu": "it has no vision tower: patches of pixels are projected into its language model",
    "ovis2": "its visual tokens are mixtures of a table's rows, and not what a projector returns",
    "exaone4_5": "its vision tower has fewer keys than queries in one projection, which no view takes apart",
    "git": "its images stand before the text, where no position of a prompt is theirs",
    "blip": "its text decoder reads images by cross-attention and answers in a model of its own",
    "got_ocr2": "its vision tower is SAM's, whose windows lay patches out in two directions",
}
"""By model type: of a model, of its language model or of its vision tower."""


def refusal(what: str, kind: str, choices: Iterable[str]) -> str:
    """Why a model type is refused: its own reason where one is known, and the choices.

    - what: "architecture", "language model" or "vision tower".
    """
    names = list(choices)
    if kind not in REASONS:
        return unknown(what, kind, names)
    return f"The {what} {kind!r} is not supported: {REASONS[kind]}. Choices: {', '.join(names)}."
