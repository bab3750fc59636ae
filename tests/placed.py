"""Tensors that are said to lie on a GPU, with their values on the CPU; torch's fake tensors say what may meet."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU = torch.device("cpu")
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
MOVING = (Tensor.to, Tensor.cpu)


class Placed(Tensor):
    """A CPU tensor that says it is elsewhere."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    where: torch.device

    @property
    def device(self) -> torch.device:
        return self.where


def place(value: Tensor, where: torch.device) -> Tensor:
    """The same values, said to be on a device."""
    value = value.as_subclass(Tensor)
    if where == CPU:
        return value
    placed = value.as_subclass(Placed)
    placed.where = where
    return placed


class Places(TorchFunctionMode):
    """Where what torch makes lies. Raises torch's `FakeTensorDeviceMismatchError` where tensors of two devices meet."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.autograd.grad:
            # A backward goes from one device to the other; each gradient lies where the tensor does that it is of.
            made = function(*args, **kwargs)
            return tuple(
                found if found is None else place(found, of.device) for found, of in zip(made, args[1], strict=True)
            )
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        devices = {one.device for one in tensors}
        asked = kwargs.pop("device", None)
        if function in MOVING:
            args, kwargs, asked = moved(function, args, kwargs, asked)
            function = Tensor.to
        elif function is not Tensor.copy_ and len(devices) > 1:
            refuse_mixed(function, args, kwargs)
        if getattr(function, "__name__", "") == "__get__" and not tensors:
            return function(*args, **kwargs)
        where = torch.device(asked) if asked is not None else home(tensors)
        made = function(*args, **kwargs)

        def settled(one: Tensor) -> Tensor:
            # In place: what was given.
            return one if any(one is given for given in tensors) and one.device == where else place(one, where)

        return tree_map_only(Tensor, settled, made)


def home(tensors: list[Tensor]) -> torch.device:
    """Where a result of these lies: with the first that is no number."""
    return next((one.device for one in tensors if one.ndim), tensors[0].device if tensors else CPU)


def moved(function, args, kwargs, asked):
    """`to` and `cpu` as a `to` of the same device, and the device that it goes to."""
    value, *rest = args
    if function is Tensor.cpu:
        return (value, value.dtype), {}, CPU
    other = kwargs.pop("other", None)
    rest = [*rest, *([] if other is None else [other])]
    for one in rest:
        if isinstance(one, Tensor):
            return (value, one.dtype, *rest[1:]), kwargs, one.device
    named = [one for one in rest if isinstance(one, str | int | torch.device) and not isinstance(one, bool)]
    rest = [one for one in rest if not any(one is name for name in named)]
    where = asked if asked is not None else named[0] if named else value.device
    dtypes = [one for one in (*rest, kwargs.get("dtype")) if isinstance(one, torch.dtype)]
    return (value, *(dtypes or [value.dtype])), {}, where


def refuse_mixed(function, args, kwargs) -> None:
    """Ask torch's fake tensors whether tensors of several devices may meet here."""
    if function in INDEXING:
        # These look for a driver. An index may be a number or on the CPU, and what is put in is copied.
        function, args, kwargs = torch.cat, (index_parts(args[0], args[1]),), {}

    def fake(one: Tensor) -> Tensor:
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device)

    with FakeTensorMode():
        args, kwargs = tree_map_only(Tensor, fake, (args, kwargs))
        function(*args, **kwargs)


def index_parts(value: Tensor, index: Any) -> list[Tensor]:
    """What stands for a tensor and those in its index that are on a GPU: one number each, to be joined."""
    parts = [one for one in tree_leaves(index) if isinstance(one, Tensor) and one.ndim and one.device != CPU]
    return [place(torch.zeros(1), one.device) for one in (value, *parts)]


def spread(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model on two GPUs, as accelerate's `dispatch_model` lays it.

    The second half of every list of blocks, the last norm and the unembedding lie on `cuda:1`, the rest on `cuda:0`.
    Inputs of a part are moved to it, and the model's outputs to where its inputs were.
    """
    module = copy.deepcopy(module)
    blocks = {
        f"{path}.{number}": torch.device("cuda", int(number >= len(some) / 2))
        for path, some in module.named_modules()
        if isinstance(some, torch.nn.ModuleList)
        for number in range(len(some))
    }
    parts: dict[str, torch.device] = {}
    with Places():
        for path, one in module.named_modules():
            outer = next((block for block in blocks if path.startswith(f"{block}.")), None)
            late = path.rpartition(".")[2] in ("norm", "lm_head")
            where = blocks[outer] if outer else blocks.get(path, torch.device("cuda", int(late)))
            for held in (one._parameters, one._buffers):
                held.update({name: place(value.detach(), where) for name, value in held.items() if value is not None})
            if path in blocks or (outer is None and not list(one.children())):
                parts[path] = where
                one.forward = called_on(one.forward, where, None)
    module.forward = called_on(module.forward, None, torch.device("cuda:0"))
    # A pipeline moves a model that does not say this to one device.
    module.hf_device_map = {path: str(where) for path, where in parts.items()}
    return module


def called_on(forward: Callable[..., Any], to: torch.device | None, back: torch.device | None) -> Callable[..., Any]:
    """A forward whose inputs are moved before it, or outputs after it."""

    @functools.wraps(forward)
    def on(*args, **kwargs):
        if to is not None:
            args, kwargs = tree_map_only(Tensor, lambda one: one.to(to), (args, kwargs))
        made = forward(*args, **kwargs)
        if back is not None:
            for name, value in made.items():
                if isinstance(value, Tensor):
                    made[name] = value.to(back)
        return made

    return on
