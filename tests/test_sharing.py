"""Sharing a run: what leaves the machine, what comes back, and what is refused on the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
import torch
from drawn_corpus import files_of
from hub_server import TOKEN, Hub, hub_server
from typer.testing import CliRunner

from interventions.errors import (
    FileMissing,
    InvalidValue,
    MissingPackage,
    MMNeuronError,
    ServerUnreachable,
    StorageFailed,
    UnknownName,
)
from mmneuron_lens.artifacts.answers import Answer, Answers
from mmneuron_lens.artifacts.counts import BUCKETS, LEFT_OUT, REASONS, Counts
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.artifacts.means import Means
from mmneuron_lens.cli import app
from mmneuron_lens.report.csv_files import csv
from mmneuron_lens.runs.folder import RunError, file_of
from mmneuron_lens.runs.identify import select_stage
from mmneuron_lens.runs.keys import StoreConflict
from mmneuron_lens.runs.loaded_run import load_run
from mmneuron_lens.runs.manifest import ManifestError, RunManifest, SharedFile
from mmneuron_lens.runs.remote_folder import RemoteFolder, remote_folder, shown_url
from mmneuron_lens.runs.shared_kinds import CARD, MANIFEST, UNFINISHED, kind_of_file
from mmneuron_lens.runs.sharing import SharingError, pull_run, push_run
from mmneuron_lens.runs.store import Store

SITE, MODEL = "llm.mlp.act", "m"
SECRET = "Tumour-of-Jane-Doe"
"""Stands in everything that belongs to the corpus."""

SENT = {
    "counts/m/common.safetensors", "counts/m/medical.safetensors", "selection/m.safetensors",
    "selection_wider/m.safetensors", "controls/m/halves_overlap.safetensors", "controls/m/effect_sizes.safetensors",
    "controls/m/false_discovery.safetensors", "neurons.parquet", "neurons.csv", "tables/neurons_per_domain.csv",
    "figures/figure_5.png", "index.html", CARD,
}  # fmt: skip
TEXTS = {"answers/m.jsonl", "neurons/index.html", "neurons/cards.js"}
PICTURES = {"neurons/pictures/0123456789abcdef.jpg"}


def counts_of(domain: str, seed: int) -> Counts:
    generator = torch.Generator().manual_seed(seed)
    active = torch.randint(0, 9, (BUCKETS, 2, 1, 50), generator=generator)
    facts = {
        "corpus": {"name": "mine", "questions": 9, "sha256": "0" * 64},
        LEFT_OUT: [f"{SECRET}-1", f"{SECRET}-2"] if domain == "medical" else [],
        **({REASONS: {f"{SECRET}-1": f"text {SECRET!r} holds a token"}} if domain == "medical" else {}),
    }
    return Counts(MODEL, domain, {SITE: active}, {SITE: torch.full((BUCKETS, 1), 9)}, {SITE: ("text",)}, 7, facts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that may lie in one."""
    run = tmp_path_factory.mktemp("made") / "run"
    for seed, domain in enumerate(("common", "medical")):
        counts_of(domain, seed).save(file_of(run, "counts", MODEL, domain), {"a": "key"})
    select_stage(run, Store(run), permutations=2)
    answer = Answer(MODEL, "None", "none", "", "medical", f"{SECRET}-3", f"Is it {SECRET}?", (SECRET,), SECRET)
    Answers((answer,)).save(run / "answers" / "m.jsonl")
    frame = pl.DataFrame({"model": [MODEL, MODEL], "layer": [0, 1], "neuron": [3, 4], "domains": [["common"], []]})
    frame.write_parquet(run / "neurons.parquet")
    shown = pl.DataFrame({"model": [MODEL], "domain": ["<b>2024</b>"], "neurons": [3]})
    texts = {
        "neurons.csv": "model\n", "tables/neurons_per_domain.csv": csv(shown), "index.html": "<p>page</p>",
        "figures/figure_5.png": "PNG", "neurons/index.html": SECRET, "neurons/cards.js": SECRET,
        "neurons/pictures/0123456789abcdef.jpg": SECRET, "corpus/questions.jsonl": SECRET,
        "corpus/images/1.png": SECRET, "samples/identification/medical.json": SECRET, "problems.txt": SECRET,
        "counts/m/common.pieces/jobs/run.json": SECRET, "rounds/1/m/common.safetensors": SECRET, "notes.txt": SECRET,
        ".locks/a.lock": SECRET, ".env": SECRET, "run.json": SECRET,
    }  # fmt: skip
    for name, text in texts.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    (run / "tables" / "linked.csv").symlink_to(run / "notes.txt")
    (run / "figures" / "linked").symlink_to(run / "corpus")
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run", symlinks=True))


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/there" if request.param == "file" else "memory://there/run"


def lies_at(url: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(url)
    return {name.removeprefix(root).lstrip("/"): fs.cat_file(name) for name in fs.find(root)}


def files_pulled(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items()}


# --- there and back ---


def test_a_run_comes_back_as_it_was(run: Path, url: str, tmp_path: Path) -> None:
    manifest = push_run(run, url, licence="cc-by-4.0")
    there = lies_at(url)
    assert there.keys() == {*SENT, MANIFEST}
    assert manifest.paths == SENT
    for one in manifest.files:
        assert (one.size, one.sha256) == (len(there[one.path]), hashlib.sha256(there[one.path]).hexdigest())
    pulled = tmp_path / "pulled"
    assert pull_run(url, pulled) == manifest == RunManifest.unpacked((pulled / MANIFEST).read_bytes(), "it")
    assert files_pulled(pulled) == there
    # Bytes are those of the run but where ids of samples stood, and everything is read as before.
    changed = {name for name in SENT - {CARD} if there[name] != (run / name).read_bytes()}
    assert changed == {"counts/m/medical.safetensors"}
    old, new = (Counts.load_with_key(one / "counts/m/medical.safetensors") for one in (run, pulled))
    assert (old[1], old[0].samples, len(old[0].provenance[LEFT_OUT])) == (new[1], new[0].samples, 2)
    assert torch.equal(old[0].active[SITE], new[0].active[SITE])
    said: list[str] = []
    assert push_run(run, url, licence="cc-by-4.0", say=said.append) == manifest
    assert said == [f"already there: {shown_url(url)}"]
    pull_run(url, pulled, say=said.append)
    assert said[1:] == [f"fetched 0 of 13 files: {pulled}"]
    # What came back can be sent on, and is the same run.
    assert push_run(pulled, "memory://other", licence="cc-by-4.0").paths == SENT


def test_nothing_of_the_corpus_leaves_unasked(run: Path) -> None:
    plain = push_run(run, "memory://plain")
    for name, content in lies_at("memory://plain").items():
        assert SECRET.encode() not in content, name
        assert str(run).encode() not in content, name
    parquet = fsspec.filesystem("memory").cat_file("/plain/neurons.parquet")
    assert SECRET not in str(pl.read_parquet(parquet))
    assert plain.left_out == {
        "a link": 2,
        "holds pictures of the corpus (--with-pictures)": 1,
        "holds texts of the corpus (--with-texts)": 3,
        "no result: records, or not ours": 5,
        "part of the corpus": 3,
    }
    assert push_run(run, "memory://texts", texts=True).paths == SENT | TEXTS
    assert SECRET.encode() in lies_at("memory://texts")["counts/m/medical.safetensors"]
    assert push_run(run, "memory://pictures", pictures=True).paths == SENT | PICTURES
    assert push_run(run, "memory://both", texts=True, pictures=True).paths == SENT | TEXTS | PICTURES
    # A page that may show questions with their pictures is one of both.
    Means(MODEL, {SITE: torch.zeros(1, 2, dtype=torch.float64)}, {}).save(run / "traces" / "1" / "m" / "a.safetensors")
    assert push_run(run, "memory://pages", texts=True).paths == (SENT | TEXTS) - {"index.html"}
    assert "traces/1/m/a.safetensors" in push_run(run, "memory://all", texts=True, pictures=True).paths


@pytest.mark.parametrize("name", ["index.html", "counts", "neurons.parquet"])
def test_no_path_of_this_machine_leaves(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    path = "/home/jane/models/llava"
    if name == "counts":
        one = counts_of("common", 0)
        one = replace(one, provenance={**one.provenance, "corpus": {"name": path}})
        one.save(run / "counts" / "m" / "common.safetensors")
    elif name == "neurons.parquet":
        # Compressed, so that the path stands nowhere in the bytes.
        texts = ["!", *(f"m{number}" for number in range(3000)), path]
        pl.DataFrame({"domains": [[text] for text in texts]}).write_parquet(run / name)
        assert path.encode() not in (run / name).read_bytes()
    else:
        (run / name).write_text(f"<p>{run}/counts</p>")
    with pytest.raises(InvalidValue, match=rf"{name}.*: names /.*, a folder of this machine, so nothing is sent"):
        push_run(run, "memory://there")
    assert lies_at("memory://there") == {}


def test_the_card_says_what_it_is(run: Path) -> None:
    from huggingface_hub import DatasetCard

    strange = "a|b`<script>x</script>\n# [l](http://x)"
    one = counts_of(strange, 3)
    replace(one, provenance={**one.provenance, LEFT_OUT: ["x"]}).save(file_of(run, "counts", MODEL, strange))
    push_run(run, "memory://there", licence="cc-by-4.0")
    text = lies_at("memory://there")[CARD].decode()
    card = DatasetCard(text)
    assert (card.data.license, card.data.pretty_name) == ("cc-by-4.0", "Domain-specific neurons of m")
    assert "mmneuron-lens" in card.data.tags
    assert "| medical | mine | 7 | 1,296 | 2 |" not in text  # 16 buckets of 9 tokens
    assert "| medical | mine | 7 | 144 | 2 |" in text
    assert r"| a\|b\`\<script\>x\</script\> \# \[l\](http://x) | mine | 7 | 144 | 1 |" in text
    assert "samples that could not be read or run: 1 of a" in text
    assert "- 3 files not sent: holds texts of the corpus (--with-texts)" in text
    found = select_stage(run, Store(None), permutations=1)[0].selection
    assert f"| {SITE} | {found.selected(SITE)} | {found.requested[SITE]} | " in text
    assert "file://" not in text
    with pytest.raises(InvalidValue, match="licence 'CC BY' is no name of one; write it as the hub does"):
        push_run(run, "memory://other", licence="CC BY")


def test_damaged_artifacts_are_not_sent(run: Path) -> None:
    file = run / "selection" / "m.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ArtifactError, match=r"selection/m\.safetensors: is damaged"):
        push_run(run, "memory://there")
    shutil.rmtree(run / "selection")
    shutil.rmtree(run / "counts")
    with pytest.raises(RunError, match="holds no counts and no selection"):
        push_run(run, "memory://there")
    assert lies_at("memory://there") == {}


# --- what lies there ---


def test_an_interrupted_push_is_not_read_and_goes_on(
    run: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmneuron_lens.runs.sharing.TOGETHER", 3)
    put, left = RemoteFolder.put, [4]

    def stopped(self: RemoteFolder, files: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        put(self, files)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "put", stopped)
        with pytest.raises(KeyboardInterrupt):
            push_run(run, url)
    assert {UNFINISHED} < lies_at(url).keys()
    assert MANIFEST not in lies_at(url)
    with pytest.raises(FileMissing, match="the push to it was not finished; run `mmneuron push` again, then pull"):
        pull_run(url, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    push_run(run, url)
    assert lies_at(url).keys() == {*SENT, MANIFEST}
    pull_run(url, tmp_path / "pulled")
    # The same where it replaces another run, of which nothing is left in the end.
    (run / "index.html").write_text("<p>another page</p>")
    (run / "neurons.csv").unlink()
    left[0] = 4
    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "put", stopped)
        with pytest.raises(KeyboardInterrupt):
            push_run(run, url, replace=True)
    with pytest.raises(FileMissing, match="the push to it was not finished"):
        pull_run(url, tmp_path / "replaced")
    push_run(run, url)
    assert lies_at(url).keys() == {*SENT, MANIFEST} - {"neurons.csv"}


def test_what_lies_there_is_not_written_over_unasked(run: Path, url: str) -> None:
    push_run(run, url)
    before = lies_at(url)
    (run / "index.html").write_text("<p>another page</p>")
    (run / "neurons.csv").unlink()
    with pytest.raises(StoreConflict, match="holds another run; give another URL, or --replace"):
        push_run(run, url)
    assert lies_at(url) == before
    push_run(run, url, replace=True)
    after = lies_at(url)
    assert after.keys() == before.keys() - {"neurons.csv"}
    assert after["index.html"] == b"<p>another page</p>"
    elsewhere = url.replace("there", "elsewhere")
    remote_folder(elsewhere).put({"mine.txt": b"mine"})
    with pytest.raises(StoreConflict, match="holds 1 files that are no run"):
        push_run(run, elsewhere)


def test_a_file_that_changes_while_it_is_sent_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = RemoteFolder.put

    def written(self: RemoteFolder, files: Any) -> None:
        put(self, files)
        (run / "index.html").write_text("<p>new</p>")

    monkeypatch.setattr(RemoteFolder, "put", written)
    with pytest.raises(StorageFailed, match=r"index\.html: was written while it was sent"):
        push_run(run, "memory://there")
    assert MANIFEST not in lies_at("memory://there")


# --- what comes back damaged ---

NAME = "counts/m/common.safetensors"
DAMAGE: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "a bit": (lambda content: content[:99] + bytes([content[99] ^ 1]) + content[100:], "is damaged, its sha256"),
    "cut": (lambda content: content[:-1], r"ends after [\d,]+ of [\d,]+ bytes"),
    "more": (lambda content: content + b"x", r"has more than the [\d,]+ bytes that the manifest says"),
    "much more": (lambda content: content + b"x" * 2**22, r"has more than the [\d,]+ bytes that the manifest says"),
    "gone": (lambda content: None, "is in the manifest and not there"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_of_it_is_kept(run: Path, url: str, tmp_path: Path, damage: str) -> None:
    push_run(run, url)
    fs, root = fsspec.core.url_to_fs(url)
    good, pulled = fs.cat_file(f"{root}/{NAME}"), tmp_path / "pulled"
    bad = DAMAGE[damage][0](good)
    fs.rm_file(f"{root}/{NAME}") if bad is None else fs.pipe_file(f"{root}/{NAME}", bad)
    with pytest.raises(SharingError, match=f"{re.escape(shown_url(url))}/{NAME}: {DAMAGE[damage][1]}"):
        pull_run(url, pulled)
    kept = files_of(pulled)
    assert NAME not in kept
    assert MANIFEST not in kept
    assert not [name for name in kept if name.endswith(".partial")]
    # Mended, it goes on with what is missing.
    fs.pipe_file(f"{root}/{NAME}", good)
    said: list[str] = []
    (pulled / "counts" / "m" / f".x{os.sep.strip('/')}.partial").write_text("of a kill")
    pull_run(url, pulled, say=said.append)
    assert said == [f"fetched {13 - len(kept)} of 13 files: {pulled}"]
    assert files_of(pulled) == lies_at(url)


def test_a_folder_with_something_else_is_refused(run: Path, tmp_path: Path) -> None:
    push_run(run, "memory://there")
    for number, (name, content) in enumerate(
        {"mine.txt": "mine", "index.html": "another page", MANIFEST: "{}", "a/b/c.txt": ""}.items()
    ):
        out = tmp_path / str(number)
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text(content)
        with pytest.raises(StoreConflict, match=f"{name}: is none of the files of this run; give another folder"):
            pull_run("memory://there", out)
        assert files_of(out) == {name: content.encode()}
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "counts").symlink_to(outside)
    with pytest.raises(StoreConflict, match="counts: is a link, so nothing is fetched"):
        pull_run("memory://there", tmp_path / "links")
    assert not list(outside.iterdir())
    with pytest.raises(FileMissing, match=r"memory://empty: holds no run, since it has no manifest\.json"):
        pull_run("memory://empty", tmp_path / "empty")


# --- hostile manifests ---

GOOD = {"path": NAME, "size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
PATHS = [
    "../x.csv", "tables/../../x.csv", "/etc/passwd", "tables//x.csv", "./tables/x.csv", "tables/./x.csv", "", "tables/",
    "tables\\x.csv", "..\\x.csv", "C:/x.csv", "tables/x.csv:stream", "tables/con.csv", "tables/NUL.csv",
    "tables/x.csv.", "tables/x .csv ", ".locks/x.lock", "tables/.hidden.csv", "tables/a\nb.csv", "tables/a\x00b.csv",
    "tables/\u202eb.csv", f"tables/{'x' * 300}.csv", "counts/m/common.pieces/jobs/run.json", "run.json", "notes.txt",
    "problems.txt", "tables/x.csv/../y.csv", "~/x.csv", "manifest.json", "unfinished.json", "MANIFEST.JSON", "x.exe",
    "index.html/x", "tables/a./x.csv", "tables/a /x.csv", "tables/ a/x.csv",
]  # fmt: skip
DOCUMENTS: dict[str, Any] = {
    "not JSON": "{",
    "deep": "[" * 100_000,
    "a list": [],
    "another kind": {"kind": "other"},
    "no version": {"version": None},
    "a newer version": {"version": 2},
    "true for a version": {"version": True},
    "no list": {"files": {"a": 1}},
    "no objects": {"files": ["a"]},
    "a field more": {"files": [{**GOOD, "mode": 511}]},
    "a field less": {"files": [{"path": NAME, "size": 3}]},
    "a path of a number": {"files": [{**GOOD, "path": 3}]},
    "a size of text": {"files": [{**GOOD, "size": "3"}]},
    "a size of true": {"files": [{**GOOD, "size": True}]},
    "a size below 0": {"files": [{**GOOD, "size": -1}]},
    "half a byte": {"files": [{**GOOD, "size": 3.5}]},
    "a size beyond all": {"files": [{**GOOD, "size": 2**60}]},
    "a short digest": {"files": [{**GOOD, "sha256": "ab"}]},
    "a digest of a number": {"files": [{**GOOD, "sha256": 3}]},
    "a capital digest": {"files": [{**GOOD, "sha256": GOOD["sha256"].upper()}]},
    "a file twice": {"files": [GOOD, GOOD]},
    "a file twice but for capitals": {"files": [GOOD, {**GOOD, "path": "counts/M/common.safetensors"}]},
    "left out of text": {"left_out": {"a": "b"}},
    **{f"path {path[:30]!r}": {"files": [{**GOOD, "path": path}]} for path in PATHS},
}  # fmt: skip


@pytest.mark.parametrize("case", DOCUMENTS)
def test_hostile_manifests_are_refused_before_anything_is_fetched(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"kind": "shared run", "version": 1, "files": [GOOD], "left_out": {}}
    document = DOCUMENTS[case]
    if isinstance(document, dict):
        document = {**whole, **document}
    text = document if isinstance(document, str) else json.dumps(document)
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").pipe_file(f"/there/{MANIFEST}", text.encode())
    with pytest.raises(ManifestError) as caught:
        pull_run("memory://there", tmp_path / "out")
    assert str(caught.value).startswith(f"memory://there/{MANIFEST}")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_of_the_cases_is_good_but_for_them(tmp_path: Path) -> None:
    whole = {"kind": "shared run", "version": 1, "files": [GOOD], "left_out": {}}
    there = fsspec.filesystem("memory")
    there.pipe_file(f"/there/{MANIFEST}", json.dumps(whole).encode())
    there.pipe_file(f"/there/{NAME}", b"abc")
    there.pipe_file("/there/tables/more.csv", b"not in the manifest")
    pull_run("memory://there", tmp_path / "out")
    assert files_of(tmp_path / "out").keys() == {NAME, MANIFEST}
    there.pipe_file(f"/there/{MANIFEST}", b" " * (2**24 + 1))
    with pytest.raises(InvalidValue, match="has more than 16,777,216 bytes, so it is not read"):
        pull_run("memory://there", tmp_path / "other")


def test_every_file_that_is_sent_may_come_back() -> None:
    for name in SENT | TEXTS | PICTURES:
        assert name == CARD or kind_of_file(name)
    document = RunManifest(tuple(SharedFile(name, 1, "0" * 64) for name in sorted(SENT))).packed()
    assert RunManifest.unpacked(document, "it").packed() == document


# --- errors ---


def test_errors_are_one_line_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_url("s3://KEY:SECRET@bucket/run?token=x#y") == "s3://bucket/run"
    with pytest.raises(InvalidValue, match=r"nowhere://x: no such protocol; choose from file, s3, hf"):
        remote_folder("nowhere://user:hunter2@x")
    with pytest.raises(InvalidValue, match=r"'folder' is no URL of a folder; write file:///folder"):
        remote_folder("folder")
    with pytest.raises(InvalidValue, match=r"hf://me/run is no data set of the hub; write hf://datasets/OWNER/NAME"):
        remote_folder("hf://me/run")
    with pytest.raises(InvalidValue, match="is no URL of a folder"):
        remote_folder("simplecache::s3://bucket/run")
    for error, kind, said in (
        (
            ImportError("Install s3fs to access S3"),
            MissingPackage,
            r"^s3://bucket/run needs s3fs: pip install 'mmneuron-lens\[s3\]'",
        ),
        (
            PermissionError("Access Denied for hunter2"),
            InvalidValue,
            r"not allowed to you \(Access Denied for \*\*\*\)",
        ),
        (ConnectionError("https://user:hunter2@x: refused"), ServerUnreachable, "cannot be opened"),
        (OSError("no space hf_abcdefgh123"), ServerUnreachable, r"cannot be opened \(no space \*\*\*\)"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr("fsspec.core.url_to_fs", lambda url, error=error: _raise(error))
            with pytest.raises(kind, match=said) as caught:
                remote_folder("s3://user:hunter2@bucket/run")
        assert "hunter2" not in str(caught.value)
        assert "abcdefgh" not in str(caught.value)
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: _raise(AttributeError("a fault")))
    with pytest.raises(AttributeError):
        remote_folder("s3://bucket/run")


def _raise(error: Exception) -> Any:
    raise error


def test_the_commands(run: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    pushed = CliRunner().invoke(app, ["push", str(run), url, "--with-pictures", "--licence", "mit"])
    assert (pushed.exit_code, pushed.stdout) == (0, f"{url}\n")
    assert "not sent: 3 files: holds texts of the corpus (--with-texts)\n" in pushed.stderr
    pulled = CliRunner().invoke(app, ["pull", url, "--out", str(tmp_path / "pulled")])
    assert (pulled.exit_code, pulled.stdout) == (0, f"{tmp_path / 'pulled'}\n")
    assert files_of(tmp_path / "pulled").keys() == SENT | PICTURES | {MANIFEST}
    refused = CliRunner().invoke(app, ["pull", "file:///nowhere", "--out", str(tmp_path / "x")])
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert refused.output.startswith("mmneuron: file:///nowhere: holds no run")


# --- in Python ---


def test_a_run_is_loaded_without_its_model(
    run: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMNEURON_CACHE", str(tmp_path / "cache"))
    push_run(run, url)
    for source in (url, run, str(run)):
        found = load_run(source)
        assert found.models == (MODEL,)
        assert [one.domain for one in found.counts()] == ["common", "medical"]
        assert torch.equal(found.selection().masks[SITE], select_stage(run, Store(None))[0].selection.masks[SITE])
        assert found.neurons["domains"].to_list() == [["common"], []]
        assert found.tables == (("neurons_per_domain",) if source == url else ("linked", "neurons_per_domain"))
        assert found.table("neurons_per_domain")["domain"].to_list() == ["<b>2024</b>"]
        assert found.controls[MODEL].missing == ""
        assert found.controls[MODEL].discovery.count(SITE) == found.selection(MODEL).selected(SITE)
        assert found.page.read_text() == "<p>page</p>"
        assert repr(found) == f"LoadedRun({source}: m)"
    with pytest.raises(UnknownName, match="no selection of 'n'; choose from m"):
        found.selection("n")
    with pytest.raises(UnknownName, match=r"Unknown table 'neurons_per_domian'\. Did you mean"):
        load_run(url).table("neurons_per_domian")
    shown = load_run(url)._repr_html_()
    assert "&lt;b&gt;2024&lt;/b&gt;" in shown
    assert "<b>2024" not in shown
    with pytest.raises(FileMissing, match="no such folder; give a run's folder, or a URL"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="holds neither counts nor a selection"):
        load_run(tmp_path)


def test_a_url_is_fetched_once_while_it_stays_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMNEURON_CACHE", str(tmp_path / "cache"))
    manifest = push_run(run, "memory://there")
    read: list[str] = []
    blocks = RemoteFolder.blocks
    monkeypatch.setattr(RemoteFolder, "blocks", lambda self, name: read.append(name) or blocks(self, name))
    first = load_run("memory://there")
    assert first.folder == tmp_path / "cache" / "runs" / manifest.digest[:32]
    assert sorted(read) == sorted([MANIFEST, *SENT])
    read.clear()
    assert load_run("memory://there").folder == first.folder
    assert read == [MANIFEST]
    # A file of the cache that was damaged is none of the run's.
    (first.folder / "index.html").write_text("other")
    with pytest.raises(StoreConflict, match=r"index\.html: is none of the files of this run"):
        load_run("memory://there")
    (run / "index.html").write_text("<p>another page</p>")
    push_run(run, "memory://there", replace=True)
    assert load_run("memory://there").page.read_text() == "<p>another page</p>"


# --- the hub ---


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, with a token that is known to it."""
    from huggingface_hub import HfFileSystem, constants

    with hub_server() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        HfFileSystem.clear_instance_cache()
        yield found


def test_a_data_set_of_the_hub(run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem

    monkeypatch.setenv("MMNEURON_CACHE", str(tmp_path / "cache"))
    url = "hf://datasets/me/run"
    with pytest.raises(FileMissing, match=r"hf://datasets/me/run: holds no run, .* and log in if it is private"):
        pull_run(url, tmp_path / "pulled")
    manifest = push_run(run, url)
    assert hub.private == {"me/run": True}
    assert hub.sets["me/run"].keys() == {*SENT, MANIFEST, ".gitattributes"}
    assert 'mm.load_run("hf://datasets/me/run")' in hub.sets["me/run"][CARD].decode()
    assert sum(one.endswith("/commit/main") for one in hub.requests) == 4
    pull_run(url, tmp_path / "pulled")
    assert {**files_of(tmp_path / "pulled"), ".gitattributes": b"*.bin lfs\n"} == hub.sets["me/run"]
    assert load_run(url).folder.name == manifest.digest[:32]
    (run / "index.html").write_text("<p>another page</p>")
    (run / "neurons.csv").unlink()
    with pytest.raises(StoreConflict, match="hf://datasets/me/run holds another run"):
        push_run(run, url)
    push_run(run, url, replace=True)
    assert hub.sets["me/run"].keys() == {*SENT, MANIFEST, ".gitattributes"} - {"neurons.csv"}
    hub.sets["me/run"][NAME] += b"x"
    with pytest.raises(SharingError, match="has more than the"):
        pull_run(url, tmp_path / "more")
    hub.sets["me/run"][NAME] = hub.sets["me/run"][NAME][:-9]
    with pytest.raises(SharingError, match="ends after"):
        pull_run(url, tmp_path / "cut")
    with monkeypatch.context() as patched:
        patched.setenv("HF_TOKEN", "hf_anotherOne1234")
        HfFileSystem.clear_instance_cache()
        with pytest.raises(
            InvalidValue, match=r"run/manifest\.json: cannot be read, since this is not allowed .*\(401\)"
        ):
            pull_run(url, tmp_path / "other")
    HfFileSystem.clear_instance_cache()
    # Below the data set, beside what is there.
    push_run(run, f"{url}/second")
    assert {f"second/{name}" for name in (MANIFEST, NAME, CARD)} < hub.sets["me/run"].keys()
    pull_run(f"{url}/second", tmp_path / "second")


@pytest.mark.parametrize("status", [401, 403, 500])
def test_what_the_hub_refuses_is_one_line(run: Path, hub: Hub, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refuses = status
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(MMNeuronError, match=rf"hf://datasets/me/run.*\({status}\)") as caught:
        push_run(run, "hf://datasets/me/run")
    assert TOKEN not in str(caught.value)
    assert isinstance(caught.value, InvalidValue if status in (401, 403) else ServerUnreachable)
