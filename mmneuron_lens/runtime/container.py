"""Container: the tensors and plain values in a torch file that a server sent, read without any loader that can execute.

A torch file is a zip of stored entries: `data.pkl`, whose opcodes are carried out here, and the bytes of each storage.
Pickle's second protocol, which `torch.save` writes, and of it what is listed below; all else is refused before anything
is made of it.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEPTH = 32
"""How deep dicts, lists and tuples may lie in one another."""

VALUES = 2_000_000
"""How many values an answer may hold; the numbers of a tensor are one."""

STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
"""The names under which torch saves storages, and the type of their numbers."""

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}

LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")

TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(ValueError):
    """A file that is not plain tensors and values; the message says what it holds instead."""


def read(content: bytes) -> Any:
    """The value in a torch file: tensors, numbers, texts, None, and dicts, lists and tuples of these.

    Raises `Refused` for anything else, whatever the bytes are.
    """
    try:
        entries = _entries(content)
        pickled = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickled) != 1 or [name for name in entries if name.endswith(".pkl")] != pickled:
            raise Refused(f"it holds {len(pickled)} data.pkl")
        folder = pickled[0].removesuffix("data.pkl")
        if entries.get(f"{folder}byteorder", b"little") != b"little":
            raise Refused("its numbers are not little-endian")
        value = _Values(entries, folder).read(entries[pickled[0]])
        _bounded(value)
    except Refused:
        raise
    except Exception as error:
        # A damaged file raises whatever its bytes make the readers raise.
        raise Refused(f"{type(error).__name__}: {error}") from error
    return value


def _entries(content: bytes) -> dict[str, bytes]:
    """The entries of a zip that begins at the first byte, stored and not compressed, each name once."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = archive.infolist()
        if not found or min(one.header_offset for one in found) != 0 or content[:4] != b"PK\x03\x04":
            raise Refused("something lies before its first entry")
        if len({one.filename for one in found}) != len(found):
            raise Refused("two entries have one name")
        for one in found:
            if one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size:
                raise Refused(f"entry {one.filename[:80]!r} is compressed")
        if sum(one.file_size for one in found) > len(content):
            raise Refused("its entries lie over one another")
        return {one.filename: archive.read(one) for one in found}


class _Name:
    """A name that a file may mention, and what calling it makes; None where it is not called."""

    def __init__(self, make: Callable[..., Any] | None = None, dtype: torch.dtype | None = None) -> None:
        self.make, self.dtype = make, dtype


class _Mark:
    """Where a tuple, or the items for a list or dict, begin on the stack."""


class _Values:
    """Carries out the opcodes of one `data.pkl`."""

    def __init__(self, entries: dict[str, bytes], folder: str) -> None:
        self.entries, self.folder = entries, folder
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Tensor] = {}
        self.names = {
            "torch._utils _rebuild_tensor_v2": _Name(_tensor),
            "collections OrderedDict": _Name(OrderedDict),
            "torch Size": _Name(tuple),
            **{f"torch {name}": _Name(dtype=dtype) for name, dtype in STORAGES.items()},
        }

    def read(self, pickled: bytes) -> Any:
        done = 0
        for opcode, argument, place in pickletools.genops(pickled):
            self._carry_out(opcode.name, argument)
            done = (place or 0) + 1
        if done != len(pickled):
            raise Refused("something lies behind its values")
        (value,) = self.stack
        return value

    def _carry_out(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "STOP"):
            return
        if name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_Mark)
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            _of(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
            _of(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            if argument not in self.names:
                raise Refused(f"it names {argument[:80]}")
            stack.append(self.names[argument])
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            given = _of(stack.pop(), tuple)
            called = _of(stack.pop(), _Name)
            if called.make is None:
                raise Refused("it calls a type of numbers")
            stack.append(called.make(*given))
        else:
            raise Refused(f"it uses {name}")

    def _marked(self) -> list[Any]:
        place = len(self.stack) - 1 - self.stack[::-1].index(_Mark)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _storage(self, said: Any) -> Tensor:
        kind, of, key, _, count = _of(said, tuple)
        if kind != "storage" or _of(of, _Name).dtype is None:
            raise Refused("it mentions something that is no storage")
        if key not in self.storages:
            content = self.entries[f"{self.folder}data/{key}"]
            size = torch.empty((), dtype=of.dtype).element_size()
            if len(content) != _of(count, int) * size:
                raise Refused(f"storage {key} has {len(content)} bytes for {count} numbers")
            # A copy: the bytes of the file are not to be written on.
            numbers = (
                torch.frombuffer(bytearray(content), dtype=of.dtype) if content else torch.empty(0, dtype=of.dtype)
            )
            if of.dtype is torch.bool and content and max(content) > 1:
                raise Refused(f"storage {key} holds booleans that are neither 0 nor 1")
            self.storages[key] = numbers
        found = self.storages[key]
        if found.dtype != of.dtype:
            raise Refused(f"storage {key} is of two types")
        return found


def _tensor(
    numbers: Any, offset: Any, shape: Any, stride: Any, grad: Any = False, hooks: Any = None, *more: Any
) -> Tensor:
    """A tensor of its own over some numbers of a storage, no larger than these."""
    numbers, shape, stride = _of(numbers, Tensor), _of(shape, tuple), _of(stride, tuple)
    # Whether it had a gradient there is not asked.
    _of(grad, bool)
    if hooks or more or len(shape) != len(stride):
        raise Refused("a tensor has more to it than numbers, shape and stride")
    if any(_of(one, int) < 0 for one in (offset, *shape, *stride)) or math.prod(shape) > numbers.numel():
        raise Refused(f"a tensor of shape {list(shape)[:8]} has {numbers.numel()} numbers")
    # What reaches beyond the numbers is refused by torch.
    return numbers.as_strided(shape, stride, offset).clone() if math.prod(shape) else numbers.new_empty(shape)


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(f"it has {type(value).__name__} where {kind.__name__} is due")
    return value


def _bounded(value: Any) -> None:
    """Refuses what is nested too deeply or in itself, and what is no value."""
    level, count = [value], 0
    for _ in range(DEPTH):
        if not level:
            return
        count += len(level)
        if count > VALUES:
            raise Refused(f"it holds more than {VALUES:,} values")
        following: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                following += [*one.keys(), *one.values()]
            elif isinstance(one, (list, tuple)):
                following += one
            elif not (one is None or isinstance(one, (bool, int, float, str, Tensor))):
                raise Refused(f"it holds {type(one).__name__}")
            if len(following) > VALUES:
                raise Refused(f"it holds more than {VALUES:,} values")
        level = following
    if level:
        raise Refused(f"it is nested more than {DEPTH} deep")
