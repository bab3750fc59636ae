"""Loading: a checkpoint and its processor from a folder or a hub id, with weights or without."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from interventions.errors import UnknownName

EMBEDDED = ("llava-next", "instructblip")
"""Models whose weights ship with the package."""

SMOL = "smol"
"""Assembled on its first use, from parts that are fetched."""


def load(repo_or_folder: str, revision: str | None = None, **settings: Any) -> tuple[torch.nn.Module, Any]:
    """The stock transformers model in evaluation mode, and its processor.

    settings: what `from_pretrained` takes (`dtype`, `device_map`, `attn_implementation`). Raises `OSError` naming
    the folder or id when it cannot be found.
    """
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(repo_or_folder, revision=revision, **settings)
    return model.eval(), load_processor(repo_or_folder, revision)


def load_meta(repo_or_folder: str, revision: str | None = None, **settings: Any) -> tuple[torch.nn.Module, Any]:
    """The same model on the meta device: every module, no weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(repo_or_folder, revision=revision)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, **settings)
    return model.eval(), load_processor(repo_or_folder, revision)


def load_processor(repo_or_folder: str, revision: str | None = None) -> Any:
    """The checkpoint's own processor; its image part falls back to PIL where torchvision is absent."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(repo_or_folder, revision=revision)


def embedded_folder(name: str) -> Path:
    """Where an embedded model lies; `smol` is assembled if need be. Raises `KeyError` with the choices."""
    from interventions.sites import unknown

    if name == SMOL:
        from mmneuron_lens.embedded.smol import smol_folder

        return smol_folder()
    if name not in EMBEDDED:
        raise UnknownName(unknown("embedded model", name, [*EMBEDDED, SMOL]))
    return Path(__file__).parent.parent / "embedded" / name


def wrap(module: torch.nn.Module, processor: Any, repo: str, revision: str | None) -> Any:
    """The nnsight model around a transformers model, known to a server by `repo`: a hub id or a shared folder."""
    from nnsight.modeling.huggingface import _ID_CACHE
    from nnsight.modeling.transformers import TransformersModel

    if Path(repo).is_dir():
        # A folder is its own name; nnsight would ask the hub for the spelling of an id.
        repo = str(Path(repo).resolve())
        _ID_CACHE[repo] = repo

    with warnings.catch_warnings():
        # The Q-Former's children named `output` are reached as `E_output`; `wire.execute.find` knows.
        warnings.filterwarnings("ignore", message="Module '.*' has a submodule named 'output'")
        task = "image-text-to-text"
        if next(module.parameters()).is_meta:
            # nnsight can only make its own model without weights: the same class from the same configuration.
            return TransformersModel(repo, task=task, revision=revision)
        model = TransformersModel(module, task=task, processor=processor, tokenizer=processor.tokenizer)
    model.repo_id, model.revision = repo, revision
    return model
