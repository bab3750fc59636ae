"""LAPE's masks: the neurons of each language, or domain, in the torch files that this line of work exchanges.

A file holds a list by domain of lists by layer of the indices of its neurons, int64 tensors, at one site; it names
neither. Source of the format: the published code of LAPE (arXiv 2402.16438).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from interventions.errors import FileMissing, InvalidValue
from interventions.files import write_atomically
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.selection import Selection, sites_of

SITE = "llm.mlp.act"
"""The site of the files that were published: after the activation function of a language model's MLP."""

METHOD = "masks"
"""What a selection that was read from such a file says its method is."""


def read_masks(
    path: str | Path, like: Selection, *, domains: Sequence[str] | None = None, site: str = SITE
) -> Selection:
    """The neurons of a file as a selection; a model's other sites have none.

    - path: the torch file.
    - like: a selection of the same model, by whatever method, that says how many layers and neurons there are and what
      probabilities were counted.
    - domains: what the file's lists are of, in order; the domains of `like` unless given.
    - site: which neurons they are.

    The file is opened as tensors, lists and numbers alone: nothing in it is run. Raises `FileMissing`, `UnknownName`
    for a site or domain that `like` does not have, `InvalidValue` for another number of domains or layers, an index
    that is not there or comes twice, and anything but indices.
    """
    (site,) = sites_of([name for name in like.masks if name == site] or like.masks, site)
    order = tuple(like.domains if domains is None else domains)
    if sorted(order) != sorted(like.domains):
        raise InvalidValue(f"{path}: lists of {', '.join(order)} are no selection of {', '.join(like.domains)}.")
    mask = _mask(path, _opened(path), order, like.masks[site])
    mask = mask[..., [order.index(domain) for domain in like.domains]]
    masks = {name: mask if name == site else torch.zeros_like(other) for name, other in like.masks.items()}
    selected = int(mask.any(dim=-1).sum())
    rule = {
        "method": METHOD,
        "site": site,
        "file sha256": content_hash(path),
        "fraction": selected / mask[..., 0].numel(),
    }
    kept = {name: like.parameters[name] for name in ("percentile", "kinds") if name in like.parameters}
    return replace(
        like,
        masks=masks,
        requested={name: selected if name == site else 0 for name in masks},
        parameters={**kept, **rule},
        scores={},
    )


def write_masks(selection: Selection, path: str | Path, *, site: str = SITE) -> None:
    """Writes the neurons of one site, atomically, as a torch file: a list by domain of lists by layer of indices.

    - selection: whose neurons. path: the file. site: which of them.

    Domains are in the order of `selection.domains`; the file cannot say so. Raises `UnknownName` with the choices for a
    site, `StorageFailed` where the file cannot be written.
    """
    (site,) = sites_of([name for name in selection.masks if name == site] or selection.masks, site)
    mask = selection.masks[site].cpu()
    lists = [[layer.nonzero().squeeze(1) for layer in mask[..., number]] for number in range(len(selection.domains))]
    held = io.BytesIO()
    # The one torch file that is written, for those who read no other: lists of tensors, nothing else.
    torch.save(lists, held)
    write_atomically(path, held.getvalue())


def _opened(path: str | Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileMissing(f"{path}: no such file; give one that torch wrote.") from None
    except Exception as error:
        raise InvalidValue(
            f"{path}: cannot be opened as lists of tensors ({type(error).__name__}), and nothing else is opened; write "
            "[domain][layer] indices with torch."
        ) from None


def _mask(path: str | Path, lists: Any, domains: Sequence[str], like: Tensor) -> Tensor:
    layers, neurons = like.shape[:2]
    _refuse_number(path, lists, len(domains), f"the domains {', '.join(domains)}")
    mask = torch.zeros(layers, neurons, len(domains), dtype=torch.bool, device="cpu")
    for number, (domain, by_layer) in enumerate(zip(domains, lists, strict=True)):
        _refuse_number(path, by_layer, layers, f"the layers of {domain}")
        for layer, indices in enumerate(by_layer):
            where = f"{path}: {domain}, layer {layer}"
            mask[layer, _indices(where, indices, neurons), number] = True
    return mask


def _refuse_number(path: str | Path, lists: object, wanted: int, of: str) -> None:
    if not isinstance(lists, list | tuple):
        raise InvalidValue(f"{path}: {type(lists).__name__} stands where a list of {of} is expected.")
    if len(cast("Sequence[Any]", lists)) != wanted:
        raise InvalidValue(f"{path}: has {len(cast('Sequence[Any]', lists))} lists for {of}; {wanted} are expected.")


def _indices(where: str, indices: object, neurons: int) -> Tensor:
    if not isinstance(indices, Tensor) or indices.ndim != 1 or indices.is_sparse:
        what = f"a tensor of {indices.ndim} axes" if isinstance(indices, Tensor) else type(indices).__name__
        raise InvalidValue(f"{where}: {what} stands where a list of indices is expected, int64 [neuron].")
    if not len(indices):
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    if indices.dtype != torch.int64:
        raise InvalidValue(f"{where}: indices are {indices.dtype}; int64 is expected.")
    if len(indices) > neurons or len(indices.unique()) < len(indices):
        raise InvalidValue(f"{where}: {len(indices)} indices of {neurons} neurons; each is named once.")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= neurons:
        raise InvalidValue(f"{where}: neuron {low if low < 0 else high} is not there; they go from 0 to {neurons - 1}.")
    return indices
