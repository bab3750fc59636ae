"""Answers of a server, drawn: an honest exchange over a wire without sockets or time, and one thing in it made hostile.

What is hostile is drawn at one level: the bytes on the wire, how and when they come, a page's JSON, the packing of the
result, its zip, its pickle, or its values. A clock that only reading moves stands for time.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpcore
import torch
import zstandard

URL = "http://127.0.0.1:9"
KEY = 'class:{"repo_id": "owner/model"}'
JOB = "4f0c1d2e-0000-4000-8000-000000000001"
TROUBLE = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\nValueError: it does not fit'

Event = bytes | float | type[Exception]
"""What comes next on the wire: bytes, seconds of silence, or the end of the connection by an error."""


class Clock:
    """Seconds that pass by reading and waiting alone."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


class Stream(httpcore.NetworkStream):
    """A connection that answers each request with events."""

    def __init__(self, answer: Callable[[str], Iterator[Event]], clock: Clock) -> None:
        self.answer, self.clock = answer, clock
        self.sent, self.events, self.rest = b"", None, b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.sent += buffer

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.events is None:
            self.events = self.answer(self.sent.split(b" ", 2)[1].decode("latin-1"))
        while not self.rest:
            event = next(self.events, None)
            if event is None:
                return b""
            if isinstance(event, float):
                if timeout is not None and event >= timeout:
                    self.clock.wait(timeout)
                    raise httpcore.ReadTimeout("timed out")
                self.clock.wait(event)
            elif isinstance(event, bytes):
                self.rest = event
            else:
                raise event("broken")
        found, self.rest = self.rest[:max_bytes], self.rest[max_bytes:]
        return found

    def close(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


def http(content: bytes, status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("utf-8") + content


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@dataclass
class Exchange:
    """The pages of one job, by path; what is hostile in them, and which page is hostile, are drawn.

    result: what the job sends back. fails: the job raises instead.
    """

    result: dict[str, Any]
    draw: random.Random
    marker: str
    fails: bool = False
    level: str = ""
    pages: dict[str, list[bytes]] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        self.level = self.draw.choice(tuple(LEVELS))
        LEVELS[self.level](self)

    def page(self, path: str) -> bytes:
        """The body of an honest page."""
        model = {"model_key": KEY, "repo_id": "owner/model", "task": "image-text-to-text", "deployment_level": "HOT"}
        if path == "/status":
            return json.dumps({"deployments": {"one": model}}).encode()
        if path == "/env":
            return json.dumps({"packages": {}}).encode()
        if path == "/results/1":
            return zstandard.compress(saved(self.result))
        status = "RECEIVED" if path == "/request" else ("QUEUED", "RUNNING")[self.asked] if self.asked < 2 else None
        said = {"id": JOB, "status": status, "description": ""}
        if status is None:
            last = {"status": "COMPLETED", "data": f"{URL}/results/1"}
            said.update({"status": "ERROR", "description": TROUBLE} if self.fails else last)
        self.asked += path.startswith("/response")
        return json.dumps(said).encode()

    def answer(self, path: str) -> Iterator[Event]:
        known = path in ("/status", "/env", "/request", "/results/1") or path == f"/response/{JOB}"
        if not known:
            yield http(b"{}", 404)
        elif self.where == path or (self.where == "/response" and path.startswith("/response")):
            yield from self.hostile(self.page(path))
        else:
            yield http(self.page(path))

    where: str = ""
    hostile: Callable[[bytes], Iterator[Event]] = lambda content: iter(())

    def at(self, *paths: str) -> Callable[[Callable[[bytes], Iterator[Event]]], None]:
        self.where = self.draw.choice(paths or ("/status", "/env", "/request", "/response", "/results/1"))

        def take(hostile: Callable[[bytes], Iterator[Event]]) -> None:
            self.hostile = hostile

        return take


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bits turned, cut, bytes put in, doubled or taken out."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(found) + 1)
        way = draw.randrange(5)
        if way == 0 and found:
            found[place % len(found)] ^= 1 << draw.randrange(8)
        elif way == 1:
            del found[place:]
        elif way == 2:
            found[place:place] = draw.randbytes(draw.randrange(1, 40))
        elif way == 3:
            del found[place : place + draw.randrange(1, 40)]
        else:
            found[place:place] = found[place : place + draw.randrange(1, 400)]
    return bytes(found)


def on_the_wire(one: Exchange) -> None:
    @one.at()
    def hostile(content: bytes) -> Iterator[Event]:
        head, _, body = http(content).partition(b"\r\n\r\n")
        if one.draw.random() < 0.5:
            head = damaged(head, one.draw)
        lengths = (b"0", b"-1", b"1e9", b"99999999999999999999", b"7", b"", b"0x10")
        if one.draw.random() < 0.3:
            head = head.replace(str(len(content)).encode(), one.draw.choice(lengths))
        if one.draw.random() < 0.2:
            head += b"\r\nTransfer-Encoding: chunked"
            body = one.draw.choice((b"5\r\nabc", b"ffffffffffffffff\r\n" + body, b"0\r\n\r\n", b"-1\r\n", b"zz\r\n"))
        if one.draw.random() < 0.2:
            head += b"\r\nX: " + one.draw.choice((b"y" * 200_000, b"\x00", b"\r\n Z", b"\xff\xfe"))
        yield head + b"\r\n\r\n" + body


def by_its_status(one: Exchange) -> None:
    @one.at()
    def hostile(content: bytes) -> Iterator[Event]:
        far = one.draw.choice(("http://169.254.169.254/", "https://evil.org/", "file:///etc/passwd", "//evil", "", URL))
        more = one.draw.choice((
            {"Location": far}, {"Content_Encoding": "gzip"}, {"Content_Encoding": "zstd, br"},
            {"Content_Type": "text/html"}, {"Set_Cookie": "a=b"}, {"Retry_After": "99999"},
            {"WWW_Authenticate": "Basic"}, {},
        ))  # fmt: skip
        body = one.draw.choice(
            (content, b"", gzip.compress(bytes(10**6)), b'{"detail": "\\u001b[2J no\\n"}', b"<html>")
        )
        status = one.draw.choice((200, 201, 204, 206, 301, 302, 303, 307, 308, 304, 400, 401, 403, 404, 418, 429, 500))
        yield http(body, status, **more)


def in_its_time(one: Exchange) -> None:
    @one.at()
    def hostile(content: bytes) -> Iterator[Event]:
        whole, way = http(content), one.draw.randrange(7)
        place = one.draw.randrange(len(whole))
        if way == 0:
            yield one.draw.choice((httpcore.ReadError, httpcore.RemoteProtocolError, httpcore.ConnectError))
        elif way == 1:
            yield whole[:place]
            yield one.draw.choice((httpcore.ReadError, 10.0**9))
        elif way == 2:
            yield 10.0**9
        elif way == 3:
            # A byte at a time, headers too, never long enough apart to be given up.
            whole = http(content, X="y" * 3000)
            for number in range(len(whole)):
                yield 50.0
                yield whole[number : number + 1]
        elif way == 4:
            for _ in range(10**6):
                yield whole[:place] if place < 60 else b" " * 65536
        elif way == 5:
            yield http(b"", 200).replace(b"Content-Length: 0\r\n", b"")
            for _ in range(10**6):
                yield 1.0
                yield b" "
        else:
            yield whole + whole


STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 7, 10**30, math.nan, 0.5, "", "evil", "x" * 300_000, "\x1b[2J", "\ud800", "a\nb", "COMPLETED",
    "ERROR", "RUNNING", "DONE", "LOG", [], {}, [[]], {"a": {}}, [None] * 3, "../../evil", "\0", "http://[::1", URL, "%",
    f"{URL}/results/2", "https://evil.org/1", "http://169.254.169.254/latest", "file:///etc/passwd", "Traceback x\n  y",
)  # fmt: skip


def in_its_json(one: Exchange) -> None:
    @one.at("/status", "/env", "/request", "/response", "/response")
    def hostile(content: bytes) -> Iterator[Event]:
        document = json.loads(content)
        way = one.draw.randrange(8)
        if way == 0:
            deep = one.draw.choice((30, 900, 60_000))
            yield http(b'{"a":' * deep + b"1" + b"}" * deep)
        elif way == 1:
            yield http(content[:-1] + b', "status": "COMPLETED", "status": 7}')
        elif way == 2:
            yield http(one.draw.choice((b"\xff\xfe", b"NaN", b"[]", b"7", b"null", b'""', b"{", b"1" * 5000)))
        elif way == 3:
            yield http(damaged(content, one.draw))
        else:
            name = one.draw.choice(tuple(document))
            place = document
            while isinstance(place[name], dict) and place[name] and one.draw.random() < 0.7:
                place, name = place[name], one.draw.choice(tuple(place[name]))
            if way == 4:
                del place[name]
            else:
                place[name] = one.draw.choice(STRANGE)
            if one.draw.random() < 0.2:
                place[str(one.draw.choice(STRANGE))[:100]] = one.draw.choice(STRANGE)
            yield http(json.dumps(document).encode())


def in_its_packing(one: Exchange) -> None:
    @one.at("/results/1")
    def hostile(content: bytes) -> Iterator[Event]:
        whole = zstandard.decompress(content)
        yield http(one.draw.choice((
            lambda: whole, lambda: gzip.compress(whole), lambda: content + content, lambda: content[:-3], lambda: b"",
            lambda: damaged(content, one.draw), lambda: b"\x28\xb5\x2f\xfd" + one.draw.randbytes(30),
            lambda: b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip" + content,
            lambda: zstandard.compress(bytes(10**8)), lambda: zstandard.compress(content),
            lambda: b"\x28\xb5\x2f\xfd\x80\x00" + struct.pack("<I", 0xFFFFFFFF) + one.draw.randbytes(9),
        ))())  # fmt: skip


def rezipped(whole: bytes, change: Callable[[str, bytes], bytes | None], **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as given, zipfile.ZipFile(file, "w") as made:
        for name in given.namelist():
            content = change(name, given.read(name))
            if content is not None:
                made.writestr(name, content)
        for name, content in more.items():
            made.writestr(name, content)
    return file.getvalue()


def pickles_of(one: Exchange) -> list[bytes]:
    """Pickles that run something when a loader sees them."""

    class Runs:
        def __reduce__(self) -> Any:
            return open, (one.marker, "w")

    class Asks:
        def __reduce__(self) -> Any:
            return eval, (f"open({one.marker!r}, 'w')",)

    marker = one.marker.encode()
    return [
        *(pickle.dumps({"returned": made}, protocol=number) for made in (Runs(), Asks()) for number in range(5)),
        b"cbuiltins\nopen\n(V" + marker + b"\nVw\ntR.", b"(V" + marker + b"\nVw\nibuiltins\nopen\n.",
        b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(marker) + 6) + b"touch " + marker + b"\x85R.",
    ]  # fmt: skip


def in_its_zip(one: Exchange) -> None:
    @one.at("/results/1")
    def hostile(content: bytes) -> Iterator[Event]:
        whole, draw = zstandard.decompress(content), one.draw
        runs, way = draw.choice(pickles_of(one)), draw.randrange(9)
        if way == 0:
            whole = damaged(whole, draw)
        elif way == 1:
            whole = runs + whole
        elif way == 2:
            whole = rezipped(whole, lambda name, held: held, **{"other/data.pkl": runs})
        elif way == 3:
            whole = rezipped(whole, lambda name, held: None if draw.random() < 0.3 else held)
        elif way == 4:
            whole = rezipped(whole, lambda name, held: runs if name.endswith("data.pkl") else held)
        elif way == 5:
            whole = rezipped(whole, lambda name, held: damaged(held, draw) if draw.random() < 0.4 else held)
        elif way == 6:
            # Lengths, methods and flags in the headers of entries.
            signature = draw.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06"))
            place = whole.find(signature) + draw.randrange(4, 46)
            whole = whole[:place] + draw.choice((b"\xff" * 4, bytes(4), struct.pack("<I", 2**31))) + whole[place + 4 :]
        elif way == 7:
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))) as made:
                made.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
                made.writestr("archive/data/0", bytes(10**6))
            whole = file.getvalue()
        else:
            whole += draw.choice((runs, whole, b"PK\x05\x06" + bytes(18)))
        yield http(zstandard.compress(whole))


OPCODES: tuple[bytes, ...] = (
    b"R", b"b", b"\x81", b"\x92", b"o", b"ios\nsystem\n", b"cos\nsystem\n", b"cbuiltins\neval\n", b"\x93", b"Q",
    b"Pa\n", b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"0", b"1", b"2", b"(", b"t", b"]", b"}", b"a",
    b"e", b"s", b"u", b"h\x00", b"h\xff", b"j\xff\xff\xff\x7f", b"q\x00", b"r\xff\xff\xff\xff", b"\x94", b"\x97",
    b"\x96" + b"\xff" * 8, b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8a\xff" + b"\xff" * 255,
    b"\x8b\xff\xff\xff\x7f", b"N", b"\x88", b"K\x07", b"J\xff\xff\xff\xff", b"G\x7f\xf8" + bytes(6), b"\x85",
    b"\x86", b"\x87", b".", b"\x80\x05", b"\x95" + bytes(8), b"I1\n", b"L1L\n", b"F1\n", b"S'a'\n", b"Va\n",
    b"]" * 5000, b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nLongStorage\n",
    b"ccollections\nOrderedDict\n", b"ctorch\nload\n", b"\x8f", b"\x90", b"\x91", b"d", b"l",
)  # fmt: skip


def in_its_pickle(one: Exchange) -> None:
    @one.at("/results/1")
    def hostile(content: bytes) -> Iterator[Event]:
        draw = one.draw

        def change(name: str, held: bytes) -> bytes:
            if not name.endswith("data.pkl"):
                return held
            starts = [place for _, _, place in pickle_operations(held)]
            for _ in range(draw.choice((1, 1, 2, 4))):
                place = draw.choice(starts) if starts else 0
                taken = draw.choice((0, 0, 1, 2, 5))
                held = held[:place] + draw.choice(OPCODES) + held[place + taken :]
            return held

        yield http(zstandard.compress(rezipped(zstandard.decompress(content), change)))


def pickle_operations(held: bytes) -> list[Any]:
    import pickletools

    return list(pickletools.genops(held))


def in_its_values(one: Exchange) -> None:
    draw = one.draw

    def other(value: torch.Tensor) -> Any:
        return draw.choice((
            lambda: value[:1], lambda: value[..., :1], lambda: value > 0, lambda: value.double(), lambda: value.int(),
            lambda: value + 10**6, lambda: value - 10**6, lambda: value[None], lambda: value.flatten(), lambda: [value],
            lambda: None, lambda: 7, lambda: "many", lambda: value.numpy().tolist(), lambda: torch.empty(0), lambda: {},
            lambda: torch.full(value.shape, math.nan), lambda: (value, value), lambda: value.expand(2, *value.shape),
        ))()  # fmt: skip

    @one.at("/results/1")
    def hostile(content: bytes) -> Iterator[Event]:
        result = {name: dict(value) for name, value in one.result.items()}
        inner = result["returned"]
        values = inner["values"] = {
            key: dict(value) if isinstance(value, dict) else value for key, value in inner["values"].items()
        }
        key, way = draw.choice(tuple(values)), draw.randrange(9)
        if way < 3:
            part = draw.choice(tuple(values[key])) if isinstance(values[key], dict) else None
            if part is None:
                values[key] = other(values[key])
            else:
                values[key][part] = other(values[key][part])
        elif way == 3:
            del values[key]
        elif way == 4:
            values[draw.choice((("a", "b"), "a", 7, None, (), key[0], ("count_checked",)))] = torch.ones(2)
        elif way == 5:
            inner[draw.choice(tuple(inner))] = draw.choice((None, [], {}, 7, "a", torch.ones(2), [1], [torch.ones(2)]))
        elif way == 6:
            del inner[draw.choice(tuple(inner))]
        elif way == 7:
            result = draw.choice(
                ({}, {"other": inner}, {"returned": 7}, [inner], inner, torch.ones(3), None, "a", [[[]]])
            )
        else:
            values[key] = OrderedDict(values)
        yield http(zstandard.compress(saved(result)))


LEVELS: dict[str, Callable[[Exchange], None]] = {
    "the wire": on_the_wire,
    "status": by_its_status,
    "time": in_its_time,
    "JSON": in_its_json,
    "packing": in_its_packing,
    "zip": in_its_zip,
    "pickle": in_its_pickle,
    "values": in_its_values,
}


def marker_in(folder: Any) -> str:
    return os.path.join(folder, "ran")
