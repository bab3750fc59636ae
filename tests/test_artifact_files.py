"""Files: names that every file system tells apart, and content that is there whole or not at all."""

from __future__ import annotations

import ast
import errno
import io
import itertools
import os
import stat
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import mmneuron_lens
from interventions import files
from interventions.errors import StorageFailed
from interventions.files import sweep, write_atomically
from mmneuron_lens.artifacts.file_names import file_name

PACKAGE = Path(mmneuron_lens.__file__).parent

# --- names ---

DEVICES = ("con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10)))
STRANGE = (
    "road/signs", "road--signs", "road+signs", "Roads", "roads", "ROADS", "a+b", "a/b", "a_b", "a b", "", ".", "..",
    "/", "//", "../x", ".x", "x.", "_x", "x_", "con", "CON", "con.txt", "nul.", "con/x", "é", "e\u0301", "É", "K", "k",
    "\u212a", "İ", "ß", "ss", "道路", "\udcff", "a\0b", "a\nb", "x" * 100, "x" * 101, "x" * 300,
    "x" * 299 + "y", "é" * 300,
    "C:\\x", "a:b", "a*b", "a?b", "~", "a~b", "-", "--", "embedded/llava-next", "embedded+llava-next",
)  # fmt: skip
NAMES = st.one_of(
    st.text(max_size=320),
    st.text("aA/+._-~ ", max_size=8),
    st.sampled_from(STRANGE),
    st.builds(str.__add__, st.sampled_from(DEVICES), st.sampled_from(["", ".", ".x", "/x", " ", "~"])),
)


def refused_nowhere(name: str) -> None:
    """What Linux, macOS and Windows ask of the name of a file, and of a folder."""
    assert name
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>| ')
    assert name == name.lower()
    assert name[0] != "."
    assert name[-1] != "."
    # Windows takes what stands before the first point for the device.
    assert name.partition(".")[0] not in DEVICES
    # With the ending, and as the hidden file that it is while it is written.
    assert len(f".{name}.safetensors.{'0' * 16}.partial".encode()) <= 255


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(NAMES, NAMES)
@example("con.x", "com1.safetensors")
@example("road/signs", "road--signs")
def test_two_names_are_two_files_on_every_file_system(first: str, second: str) -> None:
    made = file_name(first), file_name(second)
    refused_nowhere(made[0])
    refused_nowhere(made[1])
    assert made[0] == file_name(first)
    assume(first != second)
    assert made[0] != made[1]


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(NAMES)
def test_no_name_is_the_file_of_a_name_and_its_own_too(name: str) -> None:
    """A domain may be called as another one's file is."""
    made = file_name(name)
    assert made == name or file_name(made) != made
    for other in (name.upper(), name.lower(), name.swapcase(), name.replace("/", "+"), f"{name} ", f"{name}."):
        assert other == name or file_name(other) != made


def test_every_short_name_has_a_file_of_its_own() -> None:
    """All 2,801 names of at most four of the characters that are changed, and all strange ones."""
    alphabet = "aA/+._~"
    names = {"".join(some) for length in range(5) for some in itertools.product(alphabet, repeat=length)}
    names |= set(STRANGE) | {f"{one}{end}" for one in DEVICES for end in ("", ".", ".a", "/a", "_")}
    names |= {f"_{one}" for one in DEVICES}
    made = Counter(map(file_name, names))
    assert made.most_common(1)[0][1] == 1
    for one in made:
        refused_nowhere(one)


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("medical", "remote_sensing", "llava-v1.6-7b", "console", "com10", "x" * 100):
        assert file_name(name) == name
    assert file_name("embedded/llava-next") == "embedded+llava-next"
    assert file_name("Roads").partition("~")[0] == "roads"


# --- content ---


def entries(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    write_atomically(tmp_path / "a", "old")
    return tmp_path / "a"


def test_content_is_safe_before_it_has_its_name_and_the_name_after(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        found = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(found.st_mode) else f"file of {found.st_size}")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        done.append(f"{target.name} is {target.read_text()}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomically(old, "anew")
    assert done == ["file of 4", "a is old", "folder"]
    assert old.read_text() == "anew"


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full(io.BytesIO):
    """A file on a full disk."""

    write = full


def fsync_of(kind: Any) -> Any:
    """An `os.fsync` that fails for files, or for folders."""
    fsync = os.fsync
    return lambda descriptor: full() if kind(os.fstat(descriptor).st_mode) else fsync(descriptor)


FAULTS = {
    "write": (files, "open", lambda *_, **__: Full()),
    "open": (files, "open", full),
    "fsync": (os, "fsync", fsync_of(stat.S_ISREG)),
    "replace": (os, "replace", full),
    "mkdir": (Path, "mkdir", full),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_full_disk_costs_the_new_content_alone(old: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    place, name, failing = FAULTS[fault]
    monkeypatch.setattr(place, name, failing, raising=False)
    with pytest.raises(StorageFailed) as caught:
        write_atomically(old, "new")
    monkeypatch.undo()
    said = f"{old}: cannot be written (No space left on device); what was written before it is complete."
    assert str(caught.value) == said
    assert (entries(old.parent), old.read_text()) == (["a"], "old")


def test_a_folder_that_cannot_be_flushed_is_told(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new content is whole then, and may not survive the machine."""
    monkeypatch.setattr(os, "fsync", fsync_of(stat.S_ISDIR))
    with pytest.raises(StorageFailed, match=r"a: cannot be written \(No space left on device\)"):
        write_atomically(old, "new")
    monkeypatch.undo()
    assert (entries(old.parent), old.read_text()) == (["a"], "new")


def test_a_folder_that_is_a_file_is_named(old: Path) -> None:
    with pytest.raises(StorageFailed, match=r"a/b/c\.txt: cannot be written \(Not a directory\)"):
        write_atomically(old / "b" / "c.txt", "new")
    (old.parent / "folder").mkdir()
    with pytest.raises(StorageFailed, match=r"folder: cannot be written \(Is a directory\)"):
        write_atomically(old.parent / "folder", "new")
    assert entries(old.parent) == ["a", "folder"]


def test_writers_of_one_file_leave_what_one_of_them_wrote(old: Path) -> None:
    contents, start = [bytes([number]) * 300_000 for number in range(6)], threading.Barrier(6)
    failed: list[BaseException] = []

    def write(content: bytes) -> None:
        start.wait()
        try:
            for _ in range(5):
                write_atomically(old, content)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        # A reader never meets a part.
        assert old.read_bytes() in [b"old", *contents]
        threads[0].join(0.001)
        threads = [thread for thread in threads if thread.is_alive()] or threads[:1]
    assert not failed
    assert old.read_bytes() in contents
    assert entries(old.parent) == ["a"]


def test_what_a_kill_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = ["a[1]", "b", ".b.0123456789abcdef.partial", ".a1.0123456789abcdef.partial", ".a[1].partial"]
    for name in [*kept, ".a[1].0123456789abcdef.partial"]:
        (tmp_path / name).write_text("x")
    sweep(tmp_path / "a[1]")
    assert entries(tmp_path) == sorted(kept)
    sweep(tmp_path / "none" / "a")


# --- writers ---

BY_THEMSELVES = {
    "embedded/corpus/draw.py": "streams a corpus into a folder that takes its name at the end",
    "embedded/smol/__init__.py": "transformers writes a folder that takes its name at the end",
    "embedded/smol/fetch.py": "a temporary folder that pip reads",
    "embedded/train/": "a tool that streams",
    "interventions/files.py": "the one function",
    "artifacts/lape_masks.py": "torch's own format, into memory that the one function writes",
    "runs/neuron_tables.py": "parquet, into memory that the one function writes",
    "ndif/environment.py": "a log that pip streams into",
    "ndif/state.py": "logs that services stream into",
    "runs/store.py": "who holds a lock, which a kill ends too",
}
"""Files and folders of both packages that write without `write_atomically`, and why."""


def writes(tree: ast.AST) -> list[str]:
    """The calls by which a module writes files itself."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        # open(path, mode), path.open(mode)
        modes = [*call.args[0 if isinstance(call.func, ast.Attribute) else 1 :][:1]]
        modes += [one.value for one in call.keywords if one.arg == "mode"]
        by_mode = name == "open" and any(
            isinstance(one, ast.Constant) and set(str(one.value)) & set("wax+") for one in modes
        )
        # A table that is given no path gives its text.
        by_name = name in ("write_text", "write_bytes", "save_file", "save_pretrained")
        by_name = by_name or (name in ("write_csv", "write_parquet") and bool(call.args))
        if by_mode or by_name or (owner, name) in (("json", "dump"), ("torch", "save"), ("numpy", "save")):
            found.append(f"{call.lineno}: {name}")
    return found


def test_every_writer_of_the_package_goes_through_one_function() -> None:
    alone = {}
    for file in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "interventions").rglob("*.py")]):
        if found := writes(ast.parse(file.read_text(encoding="utf-8"))):
            alone[file.relative_to(PACKAGE.parent).as_posix().removeprefix("mmneuron_lens/")] = found
    excused = {file: found for file, found in alone.items() if any(file.startswith(one) for one in BY_THEMSELVES)}
    assert {file: found for file, found in alone.items() if file not in excused} == {}
    assert [file for file in BY_THEMSELVES if not file.endswith("/") and file not in excused] == []


def test_a_writer_is_found_in_whatever_form() -> None:
    for text in (
        'Path("a").write_text("x")', 'file.write_bytes(b"")', 'open("a", "w")', 'path.open("ab")', "json.dump(x, f)",
        'open("a", mode="x+")', "save_file({}, path)", "torch.save(x, path)", "frame.write_csv(path)",
    ):  # fmt: skip
        assert writes(ast.parse(text)), text
    for text in (
        'open("a")',
        'open("a", "rb")',
        "json.dumps(x)",
        "frame.write_csv()",
        "image.save(buffer)",
        "os.open(a.x, 0)",
        'open("a", encoding="utf-8")',
    ):
        assert not writes(ast.parse(text)), text
