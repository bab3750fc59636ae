"""Fingerprint: one hash that says which model this is, by everything that decides its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mmneuron_lens.wire.describe import weights_of
from mmneuron_lens.wire.types import WeightFacts

LEFT_OUT = ("transformers_version", "architectures", "dtype", "torch_dtype")
"""Of a configuration: what names no property of the model. Each weight tells its own dtype."""


def fingerprint_of(
    module: torch.nn.Module,
    processor: Any,
    *,
    repo: str,
    revision: str | None = None,
    weights: Sequence[WeightFacts] | None = None,
) -> str:
    """A sha256 over configuration, settings of generation, tokenizer, processor, chat template and all weights.

    - module: the transformers model, with weights or on the meta device
    - processor: the checkpoint's own
    - repo, revision: a folder or hub id; they count only where the weights cannot be seen
    - weights: those of a server, as `wire.describe` tells them; the module's own if left out

    Paths, versions of libraries and the format of files do not count: equal models have equal fingerprints, here and
    on a server. One changed value of one weight changes it. Reads every weight once.
    """
    digest = hashlib.sha256()
    generation = getattr(module, "generation_config", None)
    for part in (module.config, generation, *parts_of(processor)):
        digest.update(_canonical(part if isinstance(part, dict) else {} if part is None else settings_of(part)))
    weights = weights_of(module) if weights is None else weights
    for weight in weights:
        digest.update(_canonical(weight))
    if any(weight["checksum"] is None for weight in weights):
        digest.update(_canonical({"weights not seen": [repo, revision]}))
    return digest.hexdigest()


def parts_of(processor: Any) -> list[dict[str, Any]]:
    """The processor's own settings with its chat template, then those of its tokenizers and image processors."""
    parts = [{**settings_of(processor), "chat template": getattr(processor, "chat_template", None)}]
    for name in sorted(processor.get_attributes()):
        one = getattr(processor, name)
        parts.append({name: tokenizer_facts(one) if hasattr(one, "get_vocab") else settings_of(one)})
    return parts


def settings_of(holder: Any) -> dict[str, Any]:
    """The settings of a transformers object, without paths, versions and dtype."""
    return _kept(holder.to_dict())


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """What turns text into token ids: the tokenizer's own file, its special tokens and chat template."""
    facts = {"special": tokenizer.special_tokens_map, "chat template": tokenizer.chat_template}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # One written in Python: the vocabulary as it would be saved.
        with TemporaryDirectory() as folder:
            files = [Path(file) for file in tokenizer.save_vocabulary(folder)]
            return {**facts, "files": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]}
    # Padding and truncation are set by whoever encoded last.
    own = {name: part for name, part in json.loads(backend.to_str()).items() if name not in ("padding", "truncation")}
    return {**facts, "own": own}


def _kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _kept(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if not str(name).startswith("_") and name not in LEFT_OUT
    }


def _canonical(facts: Mapping[str, Any]) -> bytes:
    """One line of JSON; what JSON does not know (a token with its flags) as Python shows it."""
    return (json.dumps(facts, sort_keys=True, default=str) + "\n").encode()
