"""Shipping: functions made ready to travel, and what cannot travel refused by name before anything is sent."""

from __future__ import annotations

import contextlib
import pickletools
import sys
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, cast

from interventions import Intervention
from interventions.errors import InvalidValue

SERVER_PACKAGES = ("torch", "transformers", "nnsight", "numpy", "PIL", "safetensors", "cloudpickle")
"""What an NDIF server has, beside the standard library."""


def bare(function: Any, made: dict[int, Any] | None = None) -> Any:
    """A copy of a function without annotations, whose globals are only those it names, made bare likewise.

    - function: anything; what is no function or intervention, or dict of these, is returned as it is
    - made: copies that were made before, by the id of the function; what shares it shares them

    nnsight ships functions by their source and pickles their `__annotations__`; a server has no jaxtyping to rebuild
    these, and none of this package's types. Interventions that a function calls become the functions they wrap, and
    functions that it closes over are made bare too. Raises `InvalidValue` naming a module that a server does not have.
    """
    made = {} if made is None else made
    if isinstance(function, Intervention):
        function = function.function
    if isinstance(function, dict):
        return {name: bare(part, made) for name, part in cast("dict[str, Any]", function).items()}
    if not isinstance(function, FunctionType):
        return function
    if id(function) in made:
        return made[id(function)]
    names: dict[str, Any] = {"__builtins__": __builtins__, "__name__": function.__module__}
    closure = function.__closure__ and tuple(CellType() for _ in function.__closure__)
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__ = "__main__"
    made[id(function)] = copy
    for cell, before in zip(closure or (), function.__closure__ or (), strict=True):
        # A name that is bound later has no content yet.
        with contextlib.suppress(ValueError):
            value = before.cell_contents
            cell.cell_contents = bare(value, made) if _is_ours(value) else value
    for name in _names(function.__code__):
        if name in function.__globals__:
            value = function.__globals__[name]
            if isinstance(value, ModuleType) and not _is_there(value.__name__):
                raise InvalidValue(
                    f"{function.__name__} uses {value.__name__}, which an NDIF server does not have. "
                    "Use torch, or copy the code you need into the function."
                )
            names[name] = bare(value, made) if _is_ours(value) else value
    return copy


def _is_ours(value: Any) -> bool:
    """A function or intervention that does not belong to a package the server has."""
    if isinstance(value, Intervention):
        return True
    if not isinstance(value, FunctionType):
        return False
    root = (value.__module__ or "").partition(".")[0]
    return root not in SERVER_PACKAGES and root not in sys.stdlib_module_names


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def refuse_unshippable(payload: bytes) -> None:
    """Raise `ValueError` naming every package that a serialized job would import and a server does not have."""
    missing = sorted({module for module in _modules(payload) if not _is_there(module)})
    if missing:
        raise InvalidValue(
            f"The job needs {', '.join(missing)}, which an NDIF server does not have. "
            "Use torch inside the function, or copy the code you need into it."
        )


def _is_there(module: str) -> bool:
    root = module.partition(".")[0]
    return root in SERVER_PACKAGES or root in sys.stdlib_module_names


def _modules(payload: bytes) -> set[str]:
    """Modules of all global references in a pickle, without loading it."""
    found: set[str] = set()
    pushed: list[Any] = []
    memo: list[Any] = []
    for opcode, argument, _ in pickletools.genops(payload):
        if opcode.name == "MEMOIZE":
            memo.append(pushed[-1] if pushed else None)
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            pushed.append(memo[int(argument or 0)])
        elif opcode.name == "STACK_GLOBAL":
            # The two values pushed last are the module and the name.
            found.add(str(pushed[-2]))
            pushed.append(None)
        # A frame begins anywhere, also between a module and a name, and pushes nothing.
        elif opcode.name != "FRAME":
            pushed.append(argument if "UNICODE" in opcode.name else None)
    return found
