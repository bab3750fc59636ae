"""What a server sends is read without a loader: what torch saved comes back, all else is refused whatever its bytes."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from mmneuron_lens.runtime.container import DEPTH, Refused, read

GENERATOR = torch.Generator().manual_seed(0)
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def saved(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def zipped(content: bytes, name: str = "archive/data.pkl", **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
        for other, bytes_of in more.items():
            archive.writestr(f"archive/data/{other}", bytes_of)
    return file.getvalue()


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


RESULT = {
    "returned": {
        "values": {
            ("count", "llm.mlp.act"): torch.randint(0, 9, (3, 2, 5), generator=GENERATOR),
            ("mean", "llm.mlp.act"): (torch.rand(3, 5, dtype=torch.float64, generator=GENERATOR), torch.tensor(7)),
            ("keep", "llm.norm"): [torch.rand(2, 4, generator=GENERATOR).T, torch.empty(0, 4)],
            ("said", "llm.norm"): [{"text": "ä\x1b[31m", "number": -(2**70), "no": None, "yes": True, "part": 0.5}],
        },
        "answers": [torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64)],
        "logits": [],
        "shape": torch.Size([2, 3]),
        "ordered": OrderedDict(),
    }
}


def test_what_torch_saved_comes_back():
    assert same(read(saved(RESULT)), RESULT)
    values = {str(dtype): torch.randint(0, 2, (2, 3, 4), generator=GENERATOR).to(dtype) for dtype in DTYPES}
    assert same(read(saved(values)), values)


def test_parts_of_one_storage_come_back_as_tensors_of_their_own():
    whole = torch.arange(24).view(2, 3, 4)
    one, other = read(saved([whole[1, :, ::2], whole.transpose(0, 2)]))
    assert torch.equal(one, whole[1, :, ::2])
    assert torch.equal(other, whole.transpose(0, 2))
    one.fill_(0)
    assert torch.equal(other, whole.transpose(0, 2))


class Runs:
    def __reduce__(self):
        return os.system, ("echo owned",)


def tensor_of(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A file whose one tensor of eight numbers has this shape, stride and offset."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 8) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, OrderedDict())

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(Tensor())
    return zipped(file.getvalue(), **{"0": struct.pack("8f", *range(8))})


NESTED = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
HOSTILE = {
    "a callable": zipped(pickle.dumps({"data": Runs()}, protocol=4)),
    "an old opcode": zipped(pickle.dumps({"data": Runs()}, protocol=0)),
    "a bare pickle": pickle.dumps(Runs()),
    # What a zip reader accepts, and a loader that begins at the first byte runs.
    "a bare pickle before a file of tensors": pickle.dumps(Runs(), protocol=2) + saved(RESULT),
    "a callable behind the values": zipped(pickle.dumps(1, protocol=2) + pickle.dumps(Runs(), protocol=2)),
    "two data.pkl": zipped(pickle.dumps(1, protocol=2), **{"data.pkl": pickle.dumps(Runs(), protocol=2)}),
    "TorchScript": zipped(b"\x80\x04N.", "archive/constants.pkl"),
    "a class": zipped(b"\x80\x02ccollections\nOrderedDict\n."),
    "state set on a made object": zipped(b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb."),
    "a method of an allowed name": zipped(b"\x80\x02ccollections\nOrderedDict.fromkeys\n)R."),
    "a type called as a function": zipped(b"\x80\x02ctorch\nFloatStorage\n)R."),
    "an extension": zipped(b"\x80\x02\x82\x01."),
    "one name for two entries": zipped(pickle.dumps(1, protocol=2), **{"0": b"a", "1": b"a"}).replace(
        b"data/1", b"data/0"
    ),
    "deeper than an answer is": zipped(NESTED),
    "a list in itself": zipped(b"\x80\x02]q\x00h\x00a."),
    "a memo that is not there": zipped(b"\x80\x02h\x07."),
    "a memo of four billion places": zipped(b"\x80\x02Nr\xff\xff\xff\xff\x80."),
    "eight bytes that say they are four billion": zipped(b"\x80\x02X\xff\xff\xff\xffabc."),
    "more numbers than the storage has": tensor_of((100,), (1,)),
    "a million numbers in eight": tensor_of((1000, 1000), (0, 0)),
    "numbers beyond the storage": tensor_of((4,), (1,), 6),
    "a stride beyond the storage": tensor_of((2, 2), (100, 1)),
    "a negative offset": tensor_of((2,), (1,), -1),
    "no number where one is due": tensor_of(("a",), (1,)),
    "a storage that is absent": zipped(saved(torch.ones(2))[64:200]),
    "nothing": b"",
    "a page of HTML": b"<html>502 Bad Gateway</html>",
    "an empty zip": zipfile.ZipFile(io.BytesIO(), "w").fp.getvalue() + b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_plain_is_refused(name, capfd):
    with pytest.raises(Refused):
        read(HOSTILE[name])
    assert "owned" not in capfd.readouterr().out


def test_entries_that_are_packed_are_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(Refused, match="compressed"):
        read(file.getvalue())


def test_depth_is_bounded_where_it_is_said():
    value = 1
    for _ in range(DEPTH - 1):
        value = [value]
    assert read(saved(value)) == value
    with pytest.raises(Refused, match="nested"):
        read(saved([value]))


def test_two_thousand_damaged_files_are_refused_or_plain():
    whole, draw = saved(RESULT), random.Random(0)
    refused = 0
    for number in range(2000):
        damaged = bytearray(whole)
        if number % 4 == 0:
            damaged = damaged[: draw.randrange(len(damaged))]
        elif number % 4 == 1:
            place = draw.randrange(len(damaged))
            damaged[place:place] = draw.randbytes(draw.randrange(1, 40))
        else:
            for _ in range(draw.choice((1, 1, 3, 20))):
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        try:
            read(bytes(damaged))
        except Refused:
            refused += 1
    # The checksums of the zip see what falls on an entry; what is between them changes nothing.
    assert refused > 1200
