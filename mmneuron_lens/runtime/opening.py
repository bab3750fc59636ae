"""Opening: a model from a name, a folder, a module in memory, or a server."""

from __future__ import annotations

import os
from typing import Any, TypedDict, cast

import torch

from interventions.errors import InvalidType, InvalidValue
from mmneuron_lens.architectures import ARCHITECTURES, loading, placement
from mmneuron_lens.model import Model, model_of, shown_name
from mmneuron_lens.runtime.discovering import discovered_model

Named = str | os.PathLike[str]


class Placing(TypedDict):
    """Where and how weights are loaded: arguments of `Lens`."""

    dtype: str | torch.dtype | None
    device: str | torch.device | None
    device_map: Any
    quantize: str | None


def opened(
    named: Named,
    placing: Placing,
    *,
    revision: str | None,
    attn_implementation: str | None,
    remote: bool | str,
    discover: bool,
) -> Model:
    """A checkpoint with its weights, or what a server says of its own; arguments and errors are those of `Lens`."""
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if remote:
        return _served(named, placing, revision, attention, remote, discover)
    repo = loading.located(named)
    device, device_map = placement.checked_placement(placing["device"], placing["device_map"], placing["quantize"])
    dtype = placement.checked_dtype(placing["dtype"])
    settings: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "quantize": placing["quantize"]}
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    discover = discover and loading.load_config(repo, revision, known=False).model_type not in ARCHITECTURES
    module, processor = loading.load(repo, revision, known=not discover, **given, **attention)
    module = module if device is None else module.to(device)
    made = discovered_model if discover else model_of
    return made(module, processor, repo=repo, name=_name(named, repo), revision=revision)


def _served(
    named: Named, placing: Placing, revision: str | None, attention: dict[str, Any], remote: bool | str, discover: bool
) -> Model:
    repo = loading.located(named)
    if discover:
        raise InvalidValue("discover=True proves a model with its weights; leave it out where it runs remotely.")
    if any(one is not None for one in placing.values()):
        raise InvalidValue(
            "dtype, device, device_map and quantize are the server's; leave them out where the model runs remotely."
        )
    # Loaded where it is needed: it imports nnsight.
    from mmneuron_lens.runtime.remote import as_served

    return as_served(weightless(named, revision, attention, repo), remote)


def weightless(named: Named, revision: str | None, settings: dict[str, Any], repo: str | None = None) -> Model:
    """A checkpoint on the meta device. settings: as in transformers' `from_pretrained`."""
    repo = loading.located(named) if repo is None else repo
    module, processor = loading.load_meta(repo, revision, **settings)
    return model_of(module, processor, repo=repo, name=_name(named, repo), revision=revision)


def wrapped(module: torch.nn.Module, processor: Any, name: str | None, discover: bool) -> Model:
    """A module in memory with its processor; arguments and errors are those of `Lens.wrap`."""
    if not isinstance(cast(object, module), torch.nn.Module) or not hasattr(module, "config"):
        raise InvalidType(f"Lens.wrap takes a transformers model, not {type(module).__name__}; load with Lens(...).")
    if not hasattr(processor, "tokenizer"):
        raise InvalidType(f"Lens.wrap takes the model's AutoProcessor, not {type(processor).__name__}.")
    repo = str(getattr(module, "name_or_path", "") or type(module).__name__)
    if discover and cast(Any, module).config.model_type not in ARCHITECTURES:
        return discovered_model(module.eval(), processor, repo=repo, name=name or shown_name(repo), revision=None)
    return model_of(module.eval(), processor, repo=repo, name=name)


def _name(given: Named, repo: str) -> str:
    """What a checkpoint is called: as it was named, unless that was a folder's path."""
    return shown_name(repo) if os.fspath(given) == repo else os.fspath(given)
