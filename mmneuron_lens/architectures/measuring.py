"""Measuring: the shapes that modules give in a forward, of a model with weights or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from interventions.errors import InvalidValue

aten: Any = torch.ops.aten


class WithoutWeights(TorchDispatchMode):
    """A forward on the meta device whose whole numbers are real.

    What follows from weights has a shape alone; what follows from token ids, grids and masks has its values, with
    which models index, count and branch.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs and not any(_is_meta(one) for one in tree_flatten((args, kwargs))[0]):
            # Asked for beside a weight; made with its values.
            kwargs["device"] = torch.device("cpu")
        given = tree_flatten((args, kwargs))[0]
        if not any(map(_is_meta, given)):
            return func(*args, **kwargs)
        if func is aten.index.Tensor or func is aten.index_put_.default or func is aten.index_put.default:
            args = (args[0], _places(args[1]), *args[2:])
        if func is aten.copy_.default and not _is_meta(args[0]):
            return args[0]
        args, kwargs = tree_map_only(Tensor, lambda one: one.to("meta"), (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


def shapes_of(
    module: torch.nn.Module, paths: Sequence[str], inputs: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """The shape of what each of these modules returns in one forward; a module that it does not reach is left out.

    Raises `InvalidValue` for a model without weights whose forward depends on their values.
    """
    seen: dict[str, tuple[int, ...]] = {}

    def see(path: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        if isinstance(first, Tensor):
            seen.setdefault(path, tuple(first.shape))

    handles = [
        module.get_submodule(path).register_forward_hook(lambda _one, _given, output, path=path: see(path, output))
        for path in paths
    ]
    weightless = next(module.parameters()).is_meta
    try:
        with torch.no_grad():
            if weightless:
                with WithoutWeights():
                    module(**inputs)
            else:
                module(**inputs)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError) as error:
        if not weightless:
            raise
        said = " ".join(str(error).split()).partition(". ")[0]
        raise InvalidValue(
            f"{type(module).__name__} has no forward without weights, so its widths are not measured ({said:.100}); "
            "load it with weights."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as the places where they hold, which a shape alone does not tell."""
    found: list[Tensor | None] = []
    for one in indices:
        if one is not None and one.dtype in (torch.bool, torch.uint8) and not one.is_meta:
            found.extend(one.nonzero().unbind(-1))
        else:
            found.append(one)
    return found
