"""Host: which server is asked, and whether it is given a key."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from interventions.errors import InvalidType, InvalidValue


@dataclass(frozen=True)
class Host:
    """A server's address without path, and the key that belongs to it.

    - url: `https://name`, or `http://127.0.0.1:8001` of this machine
    - key: sent to this address alone; "" for none
    """

    url: str
    key: str = ""

    @property
    def name(self) -> str:
        """The host's name or number, without port."""
        return urlsplit(self.url).hostname or ""

    def __repr__(self) -> str:
        return f"Host({self.url}, {'with a key' if self.key else 'no key'})"


def checked_remote(remote: bool | str | None) -> bool | str:
    """False, True, "local", or a server's URL without a slash at its end.

    Raises `InvalidValue` for what is no URL of a server, and for plain http to another machine; `InvalidType` for
    another type.
    """
    if remote is None or isinstance(remote, bool):
        return bool(remote)
    if not isinstance(remote, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidType(f"remote is True, False or a server's URL, not {remote!r}.")
    return remote if remote == "local" else _checked_url(remote)


def host_of(remote: bool | str) -> Host:
    """The host that True (as nnsight is configured) or a URL means.

    The configured key belongs to the configured host and goes to no other. Raises as `checked_remote`.
    """
    from nnsight import CONFIG

    configured = _checked_url(CONFIG.API.HOST)
    url = configured if remote is True else _checked_url(str(remote))
    return Host(url, (CONFIG.API.APIKEY or "") if _origin(url) == _origin(configured) else "")


def is_loopback(name: str) -> bool:
    """Whether a host's name or number is this machine's own."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _checked_url(text: str) -> str:
    example = "give one like https://api.ndif.us or http://127.0.0.1:8001"
    try:
        parts = urlsplit(text.strip())
        name, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidValue(f"remote {text!r} is no URL ({error}); {example}.") from None
    if parts.scheme not in ("http", "https") or not name or any(not one.isprintable() or one.isspace() for one in text):
        raise InvalidValue(f"remote {text!r} is no URL of a server; {example}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidValue(f"remote {_origin(text)} has more than an address; {example}.")
    if parts.scheme == "http" and not is_loopback(name):
        raise InvalidValue(
            f"remote {text!r} is plain http to another machine, which anyone on the way can read; use https, "
            "or a tunnel (ssh -L 8001:127.0.0.1:8001 ...) and http://127.0.0.1:8001."
        )
    return text.strip().rstrip("/")


def _origin(url: str) -> str:
    parts = urlsplit(url.strip())
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"
