"""Deadline: connections that end at a time, however a server spreads what it sends."""

from __future__ import annotations

import time
from typing import Any

import httpcore
import httpx


class Late(httpcore.ReadTimeout):
    """A server was still answering when its time was over."""


def end_at(client: httpx.Client, ends: float) -> None:
    """Ends every connection of a client at a time of `time.monotonic`: its headers too, which come piece by piece.

    httpx knows a timeout between two pieces alone. What ends raises its `ReadTimeout`, caused by `Late` where pieces
    came to the end, or its `WriteTimeout`.
    """
    made: list[Any] = [client._transport, *client._mounts.values()]
    for transport in made:
        if transport is not None:
            transport._pool._network_backend = _Backend(transport._pool._network_backend, ends)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend, ends: float) -> None:
        self.inner, self.ends = inner, ends

    def connect_tcp(self, *place: Any, **settings: Any) -> httpcore.NetworkStream:
        return _Stream(self.inner.connect_tcp(*place, **settings), self.ends)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, ends: float) -> None:
        self.inner, self.ends = inner, ends

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.inner.read(max_bytes, self._left(timeout, Late))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.inner.write(buffer, self._left(timeout, httpcore.WriteTimeout))

    def start_tls(self, *given: Any, **settings: Any) -> httpcore.NetworkStream:
        return _Stream(self.inner.start_tls(*given, **settings), self.ends)

    def close(self) -> None:
        self.inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)

    def _left(self, timeout: float | None, late: type[Exception]) -> float:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise late("its time is over")
        return left if timeout is None else min(timeout, left)
