"""Folders elsewhere, by URL: `file://`, `memory://`, `s3://`, `hf://` and what else fsspec has.

What goes wrong is one line that names the place without the credentials that its URL may hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from interventions.errors import FileMissing, InvalidValue, MissingPackage, MMNeuronError, ServerUnreachable
from mmneuron_lens.extras import missing

BLOCK = 2**20
"""Bytes that are fetched at one time."""

TOGETHER = 50
"""Files of one commit to the hub."""

LIVES = (AssertionError, AttributeError, NameError, TypeError)
"""What stays a traceback: a fault of a program."""

NO_KEYS = ("LocalTokenNotFoundError", "NoCredentialsError")
"""What the hub's client and S3's raise where nobody has logged in."""

_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.*))?", re.ASCII)
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}")

Content = bytes | Path


def is_url(text: object) -> bool:
    """Whether a text names a place by URL, not a folder of this machine by its path."""
    return isinstance(text, str) and _PROTOCOL.match(text) is not None


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: name and password, query, fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else url


class RemoteFolder:
    """A folder that fsspec can reach."""

    def __init__(self, url: str) -> None:
        """Raises `InvalidValue` for what is no URL of a protocol that there is, `MissingPackage` where it needs one."""
        if not is_url(url) or "::" in url:
            raise InvalidValue(
                f"{shown_url(url)!r} is no URL of a folder; write file:///folder, s3://bucket/folder or "
                "hf://datasets/OWNER/NAME."
            )
        self.url, self.shown = url.rstrip("/"), shown_url(url.rstrip("/"))
        from fsspec.core import url_to_fs

        with self._said("opened"):
            fs, root = url_to_fs(self.url)
        self.fs: Any = fs
        # One object serves all folders of a protocol, and remembers what it saw.
        self.fs.invalidate_cache()
        self.root = str(root).rstrip("/")

    def names(self) -> set[str]:
        """The paths of all files below it; none where there is no such folder."""
        with self._said("listed"):
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.root)
            except FileNotFoundError:
                return set()
        prefix = f"{self.root}/".lstrip("/")
        return {one.lstrip("/").removeprefix(prefix) for one in found}

    def read(self, name: str, at_most: int) -> bytes | None:
        """A small file, or None where there is none. Raises `InvalidValue` for one of more bytes."""
        found = b""
        try:
            for block in self.blocks(name):
                found += block
                if len(found) > at_most:
                    raise InvalidValue(f"{self.shown}/{name}: has more than {at_most:,} bytes, so it is not read.")
        except FileMissing:
            return None
        return found

    def blocks(self, name: str) -> Iterator[bytes]:
        """A file from its beginning, at most `BLOCK` bytes at a time. Raises `FileMissing` where there is none."""
        with self._said("read", name):
            file = self._open(f"{self.root}/{name}")
        with closing(file):
            while True:
                with self._said("read", name):
                    block = file.read(BLOCK)
                if not block:
                    return
                yield block

    def _open(self, path: str) -> BinaryIO:
        return self.fs.open(path, "rb")

    def prepare(self) -> None:
        """Makes the folder."""
        with self._said("made"):
            self.fs.makedirs(self.root, exist_ok=True)

    def put(self, files: Mapping[str, Content]) -> None:
        """Writes files, each in place of one that is there."""
        for name, content in files.items():
            with self._said("written", name):
                path = f"{self.root}/{name}"
                self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                if isinstance(content, Path):
                    self.fs.put_file(str(content), path)
                else:
                    self.fs.pipe_file(path, content)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; those that are not there are not missed."""
        for name in names:
            with self._said("removed", name), suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")

    @contextmanager
    def _said(self, done: str, name: str = "") -> Generator[None]:
        """Raises what goes wrong inside as one line."""
        where = f"{self.shown}/{name}" if name else self.shown
        try:
            yield
        except (MMNeuronError, *LIVES):
            raise
        except ImportError as error:
            if "s3fs" in str(error):
                raise missing(where, "s3fs") from None
            raise MissingPackage(f"{where}: needs a package that is not installed: {self._clean(error)}.") from None
        except FileNotFoundError as error:
            if _status(error) is None:
                raise FileMissing(f"{where}: no such file or folder; check the URL.") from None
            raise self._refused(where, done, error) from None
        except Exception as error:
            raise self._refused(where, done, error) from None

    def _refused(self, where: str, done: str, error: Exception) -> MMNeuronError:
        status, said = _status(error), self._clean(error)
        if status in (401, 403) or isinstance(error, PermissionError) or type(error).__name__ in NO_KEYS:
            return InvalidValue(
                f"{where}: cannot be {done}, since this is not allowed to you ({status or said}); log in (`hf auth "
                "login` for hf://, the keys of your provider otherwise), or check the URL."
            )
        if status == 404:
            return FileMissing(
                f"{where}: is not there, or not for you (404); check the URL, and log in if it is private."
            )
        if isinstance(error, ValueError) and "rotocol not known" in said:
            return InvalidValue(f"{where}: no such protocol; choose from file, s3, hf, or another that fsspec has.")
        if isinstance(error, ValueError) and status is None:
            return InvalidValue(f"{where}: cannot be {done}: {said}")
        return ServerUnreachable(f"{where}: cannot be {done} ({status or said}); what was done is kept, try again.")

    def _clean(self, error: Exception) -> str:
        """What an error says, in a line, without secrets."""
        parts = urlsplit(self.url)
        secrets = [
            self.url,
            parts.query,
            parts.fragment,
            parts.netloc.rpartition("@")[0],
            parts.password,
            parts.username,
        ]
        secrets += [value for name, value in os.environ.items() if re.search("TOKEN|SECRET|PASSWORD|KEY", name)]
        said = " ".join(str(error).split()) or type(error).__name__
        for secret in filter(None, secrets):
            if len(secret) > 3:
                said = said.replace(secret, "***").replace(unquote(secret), "***")
        return _TOKEN.sub("***", said)[:300].rstrip(".")


class HubFolder(RemoteFolder):
    """A data set of the Hugging Face hub, which is written in commits."""

    def __init__(self, url: str) -> None:
        found = _HUB.fullmatch(url.rstrip("/"))
        if found is None:
            raise InvalidValue(f"{shown_url(url)} is no data set of the hub; write hf://datasets/OWNER/NAME.")
        super().__init__(url)
        self.repo, self.revision, self.folder = found[1], found[2], (found[3] or "").strip("/")

    def _open(self, path: str) -> BinaryIO:
        # One request, not one for each block.
        return self.fs.open(path, "rb", block_size=0)

    @property
    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.fs.endpoint, token=self.fs.token)

    def prepare(self) -> None:
        """Makes the data set, which nobody else sees, unless it is there."""
        with self._said("made"):
            self._api.create_repo(self.repo, repo_type="dataset", private=True, exist_ok=True)
            self.fs.invalidate_cache()

    def put(self, files: Mapping[str, Content]) -> None:
        from huggingface_hub import CommitOperationAdd

        names = list(files)
        for first in range(0, len(names), TOGETHER):
            some = names[first : first + TOGETHER]
            self._commit([CommitOperationAdd(self._place(name), files[name]) for name in some], "written")

    def remove(self, names: Iterable[str]) -> None:
        from huggingface_hub import CommitOperationDelete

        there = self.names()
        if gone := [CommitOperationDelete(self._place(name)) for name in names if name in there]:
            self._commit(gone, "removed")

    def _place(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    def _commit(self, operations: list[Any], done: str) -> None:
        with self._said(done):
            self._api.create_commit(
                self.repo,
                operations,
                commit_message="A run of mmneuron-lens",
                repo_type="dataset",
                revision=self.revision,
            )
            self.fs.invalidate_cache()


def remote_folder(url: str) -> RemoteFolder:
    """The folder that a URL names; raises as `RemoteFolder`."""
    return HubFolder(url) if url.startswith("hf://") else RemoteFolder(url)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error is about."""
    for one in (error, error.__cause__, error.__context__):
        found = getattr(getattr(one, "response", None), "status_code", None) or getattr(one, "status", None)
        if isinstance(found, int):
            return found
    return None
