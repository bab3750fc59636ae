"""The numbers that the paper prints, by model, module and domain, to be shown beside ours for the paper's own models.

Tables 1 to 4 and 6 to 9 of arXiv 2406.11193v2; figures are not numbers. Domains are named, since the paper's tables
order its corpora differently.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

MODELS = {
    "llava-hf/llava-v1.6-vicuna-7b-hf": "LLaVA-NeXT",
    "Salesforce/instructblip-vicuna-7b": "InstructBLIP",
    "llava-hf/llava-v1.6-vicuna-13b-hf": "LLaVA-NeXT-13B",
}
"""The paper's checkpoints (section 4.1.1, appendix F) and the names its tables give them."""

# Corpora stand for domains: VQAv2, PMC-VQA, LingoQA, DocVQA, RS-VQA.
_COUNTED = ("common", "medical", "auto_driving", "document", "remote_sensing")
# Tables 2 and 8 swap the last two.
_SCORED = ("common", "medical", "auto_driving", "remote_sensing", "document")

_CORPORA = {
    "common": ("VQAv2", 21_000),
    "remote_sensing": ("RS-VQA", 11_000),
    "medical": ("PMC-VQA", 15_000),
    "document": ("DocVQA", 10_000),
    "auto_driving": ("LingoQA", 14_000),
}

_NEURONS = {
    0.01: {
        "LLaVA-NeXT": {
            "Vision Encoder": (65, 233, 168, 409, 465),
            "MLP Projector": (8, 13, 13, 11, 20),
            "LLM": (683, 915, 1536, 423, 2120),
        },
        "InstructBLIP": {
            "Vision Encoder": (94, 488, 279, 916, 891),
            "Q-Former": (39, 206, 334, 175, 72),
            "LLM": (410, 774, 1567, 556, 1419),
        },
        "LLaVA-NeXT-13B": {
            "Vision Encoder": (65, 224, 156, 430, 438),
            "MLP Projector": (2, 25, 9, 16, 15),
            "LLM": (992, 1276, 2518, 605, 3289),
        },
    },
    0.05: {
        "LLaVA-NeXT": {
            "Vision Encoder": (1709, 2103, 1789, 3046, 2527),
            "MLP Projector": (106, 120, 128, 87, 102),
            "LLM": (9775, 10839, 11326, 7445, 12893),
        },
        "InstructBLIP": {
            "Vision Encoder": (1656, 2868, 2927, 4402, 5212),
            "Q-Former": (526, 927, 1925, 902, 949),
            "LLM": (4269, 4303, 8113, 3350, 8911),
        },
    },
}

_ACCURACY = {
    "LLaVA-NeXT": {
        "None": (74.9, 34.4, 20.6, 42.5, 59.2),
        "Vision Encoder": (75.8, 34.3, 24.6, 42.1, 58.3),
        "MLP Projector": (74.9, 34.4, 24.2, 42.5, 59.2),
        "LLM": (75.7, 34.5, 24.2, 41.0, 59.0),
        "All": (73.5, 34.5, 24.2, 38.5, 57.0),
    },
    "InstructBLIP": {
        "None": (66.1, 28.1, 20.6, 34.7, 24.0),
        "Vision Encoder": (66.9, 31.0, 21.8, 34.8, 23.8),
        "Q-Former": (67.1, 32.4, 20.0, 33.1, 24.6),
        "LLM": (67.1, 32.6, 24.2, 35.5, 24.4),
        "All": (68.6, 30.9, 18.0, 33.6, 23.8),
    },
    "LLaVA-NeXT-13B": {
        "None": (83.6, 34.8, 37.2, 54.2, 74.7),
        "Vision Encoder": (84.1, 33.8, 34.0, 51.2, 74.4),
        "MLP Projector": (84.1, 34.8, 35.9, 54.2, 74.7),
        "LLM": (83.6, 33.8, 36.2, 48.3, 75.4),
        "All": (84.1, 31.8, 33.5, 50.2, 75.0),
    },
}

_DEVIATION = {
    "LLaVA-NeXT": {
        "Random (Avg.)": (8.41, 18.90, 16.04, 21.81, 32.76),
        "LLM": (0.01, 0.01, 0.02, 0.10, 0.02),
        "Vision Encoder": (17.19, 30.98, 35.74, 46.75, 49.90),
        "MLP Projector": (0.0, 0.0, 0.0, 0.0, 0.0),
        "All": (17.19, 30.98, 35.74, 46.75, 49.90),
    },
    "InstructBLIP": {
        "Random (Avg.)": (5.13, 8.15, 8.57, 14.85, 9.91),
        "LLM": (6.84, 12.13, 9.62, 7.80, 11.98),
        "Vision Encoder": (2.44, 17.93, 5.33, 26.11, 23.76),
        "Q-Former": (2.93, 11.61, 6.95, 14.58, 6.52),
        "All": (8.00, 24.84, 12.77, 29.04, 26.58),
    },
}

_ENTROPY = {
    "LLaVA-NeXT-13B": {
        "image": {0: 8.2734, 11: 8.3750, 28: 3.3359, 40: 3.6152},
        "text": {0: 8.1797, 11: 8.4688, 28: 2.4375, 40: 2.2656},
    }
}


def corpus(domain: str) -> dict[str, str | int | None]:
    """Table 4: the corpus of a domain and its samples, in thousands there; None for a domain that the paper has not."""
    name, samples = _CORPORA.get(domain, (None, None))
    return {"corpus of the paper": name, "samples of the paper": samples}


def neurons(model: str, fraction: float) -> pl.DataFrame | None:
    """Tables 1 and 7 (0.01) and 6 (0.05): module, domain, neurons; None where the paper prints none."""
    return _frame(_NEURONS.get(round(fraction, 4), {}).get(MODELS.get(model, ""), {}), _COUNTED, "neurons")


def accuracy(model: str) -> pl.DataFrame | None:
    """Tables 2 and 8: module (neurons off in), domain, accuracy; None where the paper prints none."""
    return _frame(_ACCURACY.get(MODELS.get(model, ""), {}), _SCORED, "accuracy")


def deviation(model: str) -> pl.DataFrame | None:
    """Table 3: module, domain, deviation in per cent; None where the paper prints none."""
    return _frame(_DEVIATION.get(MODELS.get(model, ""), {}), _COUNTED, "deviation")


def entropy(model: str) -> pl.DataFrame | None:
    """Table 9: kind, layer, entropy; None where the paper prints none."""
    found = _ENTROPY.get(MODELS.get(model, ""))
    if found is None:
        return None
    rows = [{"kind": kind, "layer": layer, "entropy": value} for kind in found for layer, value in found[kind].items()]
    return pl.DataFrame(rows)


def _frame(table: Mapping[str, tuple[float, ...]], domains: tuple[str, ...], value: str) -> pl.DataFrame | None:
    rows = [
        {"module": module, "domain": domain, value: number}
        for module, numbers in table.items()
        for domain, number in zip(domains, numbers, strict=True)
    ]
    return pl.DataFrame(rows) if rows else None
