"""Transport: requests to a server, bounded in bytes and seconds, that follow no redirect."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

from interventions.errors import InvalidValue, MMNeuronError
from mmneuron_lens.runtime.host import Host, is_loopback

PAGE = 16 * 2**20
"""Bytes of a page: a status, a list of models, an error."""

RESULT = 2**30
"""Bytes of a result, as it is sent and unpacked."""

CONNECT, SILENCE, WHOLE_PAGE, WHOLE_RESULT = 10.0, 600.0, 60.0, 3600.0
"""Seconds until a server is there, between two pieces of an answer, and for a whole one."""


WHOSE = "this is the server's fault: tell those who run it, or give another server"
"""What ends a message about an answer that no server should give."""

SMALLER = "read fewer layers, positions or batches in one run"


class RemoteFailed(MMNeuronError, RuntimeError):
    """A job that raised on the server, or whose answer did not arrive or is none; the message is one line.

    traceback: all that the server or the connection said.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback or message


def page(
    host: Host,
    path: str,
    *,
    keyed: bool = True,
    seconds: float = WHOLE_PAGE,
    absent: int | None = None,
    **post: Any,
) -> dict[str, Any] | None:
    """The object that a page of a server holds as JSON.

    - path: with its slash
    - keyed: whether the host's key goes with it
    - seconds: for the whole answer
    - absent: the status that means that there is nothing yet, for which None is returned
    - post: httpx's `data`, `files` and `headers` of a POST; a GET without them

    Raises httpx's errors for a connection that fails and for a status that is not 200, and `RemoteFailed` for an answer
    that is a redirect, too large, too slow, or no object.
    """
    headers = {**post.pop("headers", {}), **({"ndif-api-key": host.key} if keyed and host.key else {})}
    content = _fetch(host, f"{host.url}{path}", headers, PAGE, seconds, absent, post)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RemoteFailed(f"{host.url}{path} answers with {_shown(content)}, which is no JSON; {WHOSE}.") from error
    if not isinstance(found, dict):
        raise RemoteFailed(f"{host.url}{path} answers with {type(found).__name__} in place of an object; {WHOSE}.")
    return found


def result_bytes(host: Host, url: Any, stores: tuple[str, ...] = ()) -> bytes:
    """The bytes of a result, from the host that was asked or one of `stores`; no key is sent.

    Raises as `page`, and `RemoteFailed` for a URL of another host.
    """
    if not isinstance(url, str):
        raise RemoteFailed(
            f"{host.url} says a job is complete with {type(url).__name__} in place of a result; {WHOSE}."
        )
    try:
        parts = urlsplit(url)
        name = parts.hostname or ""
    except ValueError:
        name, parts = "", urlsplit("")
    known = name in (host.name, *stores) or (is_loopback(name) and is_loopback(host.name))
    if not known or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(name))):
        raise RemoteFailed(
            f"{host.url} keeps a result at {f'{parts.scheme}://{name}'[:100]!r}, which is neither its own nor a store "
            f"that is named; if it is right, name it: NDIF_RESULT_HOSTS={name[:100] or 'NAME'}."
        )
    content = _fetch(host, url, {}, RESULT, WHOLE_RESULT, None, {})
    assert content is not None
    return content


def unpacked(host: Host, content: bytes) -> bytes:
    """A result out of zstd. Raises `RemoteFailed` for one of more than `RESULT` bytes, or none."""
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(content) as reader:
            whole = reader.read(RESULT + 1)
    except zstandard.ZstdError as error:
        raise RemoteFailed(f"{host.url} sends a result that cannot be unpacked ({error}); {WHOSE}.") from error
    if len(whole) > RESULT:
        raise RemoteFailed(f"{host.url} sends a result of more than {RESULT:,} bytes; {SMALLER}.")
    return whole


def _fetch(
    host: Host,
    url: str,
    headers: Mapping[str, str],
    most: int,
    seconds: float,
    absent: int | None,
    post: Mapping[str, Any],
) -> bytes | None:
    import httpx

    from mmneuron_lens.runtime.deadline import end_at

    try:
        httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        # A job's id, or where its result lies, as the server says.
        raise RemoteFailed(f"{host.url} names a job or a result by what is no address ({error}); {WHOSE}.") from error
    timeout = httpx.Timeout(CONNECT, read=min(SILENCE, seconds))
    # Packed answers could be many times their size.
    headers = {**headers, "Accept-Encoding": "identity"}
    with _in_time(host, seconds), httpx.Client(timeout=timeout, follow_redirects=False) as client, ExitStack() as held:
        end_at(client, time.monotonic() + seconds)
        answer = held.enter_context(client.stream("POST" if post else "GET", url, headers=headers, **post))
        if answer.status_code == absent:
            return None
        if answer.is_redirect:
            raise RemoteFailed(f"{host.url} answers with a redirect, which is not followed; {WHOSE}.")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise RemoteFailed(f"{host.url} sends an answer that is packed unasked; {WHOSE}.")
        if not answer.is_success:
            # What it says of the matter is wanted, a little of it.
            most = min(most, 2**16)
        pieces, size = [], 0
        for piece in answer.iter_raw():
            pieces.append(piece)
            size += len(piece)
            if size > most and answer.is_success:
                what = "a result" if most == RESULT else "a page"
                raise RemoteFailed(
                    f"{host.url} sends {what} of more than {most:,} bytes; {SMALLER if most == RESULT else WHOSE}."
                )
            if size > most:
                break
        content = b"".join(pieces)
        if not answer.is_success:
            raise httpx.HTTPStatusError(_detail(answer.status_code, content), request=answer.request, response=answer)
        return content


@contextmanager
def _in_time(host: Host, seconds: float) -> Iterator[None]:
    """Turns the end of a server's time, while it still answers, into `RemoteFailed`."""
    import httpx

    from mmneuron_lens.runtime.deadline import Late

    try:
        yield
    except httpx.ReadTimeout as error:
        if not isinstance(error.__cause__, Late):
            raise
        raise RemoteFailed(f"{host.url} was still answering after {seconds:.0f} seconds; {WHOSE}.") from error


def _detail(status: int, content: bytes) -> str:
    """What a server says of a status that is no success: its JSON's `detail`, or nothing where it is a page of HTML."""
    try:
        said = json.loads(content)
        said = said.get("detail", "") if isinstance(said, dict) else ""
    except (ValueError, RecursionError):
        said = ""
    return f"HTTP {status}" + (f": {str(said)[:300]}" if said else "")


def _shown(content: bytes) -> str:
    start = content[:40].decode("utf-8", "backslashreplace").strip()
    return repr(start) if start else "nothing"


def stores_named(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The hosts in `NDIF_RESULT_HOSTS`, parted by commas: where a server's results may lie beside its own address."""
    found = tuple(name.strip().lower() for name in environment.get("NDIF_RESULT_HOSTS", "").split(",") if name.strip())
    for name in found:
        if "/" in name or "*" in name:
            raise InvalidValue(f"NDIF_RESULT_HOSTS holds {name!r}; give names of hosts without scheme and path.")
    return found


def next_step(status: int) -> str:
    """What to do about a status that is no success, in a few words."""
    if status in (401, 403):
        return "set the key it knows you by: NDIF_API_KEY, with NDIF_HOST for a host of your own"
    if status == 404:
        return "it may be no NDIF server: look at the URL"
    if status == 429:
        return "you ask too often: try again in a minute"
    return "it is not ready: try again in a minute" if status >= 500 else "look at the URL, and at the versions of both"
