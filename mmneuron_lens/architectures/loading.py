"""Loading: a checkpoint and its processor from a name, a folder or a hub id, with weights or without."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from interventions.errors import FileMissing, InvalidType, InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.architectures import architecture_of
from mmneuron_lens.architectures.checking import check_places
from mmneuron_lens.architectures.placement import quantization_of, refuse_offloaded

GROUP = "mmneuron_lens.checkpoints"
"""The entry points under which a package offers checkpoints by name: functions that return a folder."""

QUICK = 1_000_000_000
"""Bytes of weights that are read before a progress bar says anything."""

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def located(given: str | os.PathLike[str]) -> str:
    """Where a checkpoint lies: the folder that a name such as `embedded/llava-next` stands for; others as they are.

    Raises `UnknownName` with the choices for an `embedded/NAME` that is not there, `FileMissing` for what is neither a
    name, nor a folder, nor like a hub id, and `InvalidType` for what is no name at all.
    """
    named = {point.name: point for point in entry_points(group=GROUP)}
    name = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(name, str) or not name.strip():
        what = repr(given) if given is None or isinstance(given, str | bytes | int) else type(given).__name__
        raise InvalidType(f"A model is a folder, a hub id like owner/model, or {_or(sorted(named))}; not {what}.")
    if name in named:
        return str(named[name].load()())
    if Path(name).is_dir():
        return name
    if name.startswith("embedded/"):
        raise UnknownName(unknown("embedded model", name, sorted(named)))
    if Path(name).is_file():
        raise FileMissing(f"{name} is a file; give the folder of a saved model that it lies in.")
    if not HUB_ID.fullmatch(name):
        raise FileMissing(f"{name}: no such folder. Give a folder, a hub id like owner/model, or {_or(sorted(named))}.")
    return name


def load(
    repo: str, revision: str | None = None, known: bool = True, *, quantize: str | None = None, **settings: Any
) -> tuple[torch.nn.Module, Any]:
    """The stock transformers model in evaluation mode, and its processor.

    - repo: a folder or hub id
    - known: whether it must have a table of sites
    - quantize: as `placement.quantization_of`
    - settings: what `from_pretrained` takes (`dtype`, `device_map`, `attn_implementation`)

    Raises `FileMissing` when it cannot be found, and `InvalidValue` for an architecture without a table of sites or one
    that does not fit, before its weights are read, for files that cannot be read, or weights that no device holds.
    """
    from transformers import AutoModelForImageTextToText

    config, processor = load_config(repo, revision, known), load_processor(repo, revision)
    if known:
        check_places(architecture_of(config), _empty(config))
    if quantize is not None:
        settings["quantization_config"] = quantization_of(quantize, settings.get("dtype") or config.dtype)
    with _in_one_line(repo), _quiet_where_quick(repo):
        model = AutoModelForImageTextToText.from_pretrained(repo, revision=revision, **settings)
    refuse_offloaded(model, repo)
    return model.eval(), processor


@contextmanager
def _quiet_where_quick(repo: str) -> Iterator[None]:
    """No progress bar of hundreds of tensors for a folder whose weights are read in a second."""
    from transformers.utils import logging

    sizes = [file.stat().st_size for file in Path(repo).glob("*.safetensors")] if Path(repo).is_dir() else []
    if not sizes or sum(sizes) > QUICK or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def load_meta(
    repo: str, revision: str | None = None, known: bool = True, **settings: Any
) -> tuple[torch.nn.Module, Any]:
    """The same model on the meta device: every module, no weights. Raises as `load` does.

    - known: whether it must have a table of sites
    """
    config = load_config(repo, revision, known)
    with _in_one_line(repo):
        model = _empty(config, **settings)
    model.generation_config = load_generation(repo, revision)
    return model.eval(), load_processor(repo, revision)


def _empty(config: Any, **settings: Any) -> Any:
    """The modules of a configuration, on the meta device."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, **settings)


def load_config(repo: str, revision: str | None = None, known: bool = True) -> Any:
    """The configuration of a checkpoint. Raises as `load` does, unless `known` is false for one without a table."""
    from transformers import AutoConfig

    if Path(repo).is_dir() and not (Path(repo) / "config.json").is_file():
        raise FileMissing(f"{repo} has no config.json; give the folder of a saved model.")
    with _in_one_line(repo):
        config = AutoConfig.from_pretrained(repo, revision=revision)
    if known:
        architecture_of(config)
    return config


def load_generation(repo: str, revision: str | None = None) -> Any:
    """The checkpoint's own settings of generation, from where `from_pretrained` takes them."""
    from transformers import GenerationConfig

    given: dict[str, Any] = {"revision": revision}
    try:
        return GenerationConfig.from_pretrained(repo, **given)
    except OSError:
        return GenerationConfig.from_pretrained(repo, config_file_name="config.json", _from_model_config=True, **given)


def load_processor(repo: str, revision: str | None = None) -> Any:
    """The checkpoint's own processor; its image part falls back to PIL where torchvision is absent."""
    from transformers import AutoProcessor

    with _in_one_line(repo):
        return AutoProcessor.from_pretrained(repo, revision=revision)


@contextmanager
def _in_one_line(repo: str) -> Iterator[None]:
    """Whatever transformers says of a checkpoint that it cannot load, as one line with the checkpoint's name."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "mismatched_sizes" not in str(error):
            raise
        said = " ".join(str(error).split())
        first = re.split(r"(?<=[.!])\s", said)[0]
        if isinstance(error, OSError):
            kind = "its files cannot be read" if Path(repo).is_dir() else "not found on the hub or in its cache"
            raise FileMissing(f"{repo}: {kind}. {first}") from error
        if isinstance(error, RuntimeError):
            raise InvalidValue(f"{repo}: its weights have other sizes than its config.json says.") from error
        raise InvalidValue(f"{repo}: cannot be loaded. {first}") from error


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
            # nnsight can only make its own model without weights: the same class from the same configuration. With
            # the processor in hand it need not guess one, which it cannot from transformers 5.23 on.
            return TransformersModel(repo, task=task, revision=revision, processor=processor)
        model = TransformersModel(module, task=task, processor=processor, tokenizer=processor.tokenizer)
    model.repo_id, model.revision = repo, revision
    return model


def _or(names: list[str]) -> str:
    return f"one of {', '.join(names)}" if names else "install a package that offers one"
