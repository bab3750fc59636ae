"""What `.ci/dist` built: the wheel holds both packages as the tree has them and nothing else, and works from there."""

from __future__ import annotations

import email
import email.policy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from functools import lru_cache
from pathlib import Path

import pytest

import mmneuron_lens

ROOT = Path(__file__).parents[2]
PACKAGES = ("interventions", "mmneuron_lens")


@lru_cache(maxsize=1)
def wheel() -> zipfile.ZipFile:
    (file,) = (ROOT / "dist").glob("*.whl")
    return zipfile.ZipFile(file)


def info() -> str:
    return next(name.partition("/")[0] for name in wheel().namelist() if name.endswith(".dist-info/METADATA"))


def metadata() -> email.message.Message:
    return email.message_from_bytes(wheel().read(f"{info()}/METADATA"), policy=email.policy.default)


def tracked(*folders: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def test_the_wheel_holds_what_the_tree_has():
    there = {name for name in wheel().namelist() if name.partition("/")[0] in PACKAGES}
    assert there == tracked(*PACKAGES)
    assert [name for name in there if wheel().read(name) != (ROOT / name).read_bytes()] == []
    assert {"interventions/py.typed", "mmneuron_lens/py.typed", "mmneuron_lens/report/style.css"} <= there


def test_the_wheel_holds_nothing_else():
    other = {name for name in wheel().namelist() if name.partition("/")[0] not in PACKAGES}
    licences = {f"licenses/{name}" for name in project()["license-files"]}
    assert other == {f"{info()}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", *licences)}


def test_the_source_archive_holds_the_tree_and_stays_small():
    (file,) = (ROOT / "dist").glob("*.tar.gz")
    with tarfile.open(file) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    assert there - {"PKG-INFO"} == tracked()
    # An index takes files up to 100 MB; what is above 64 here is a mistake.
    assert file.stat().st_size < 64e6
    assert Path(str(wheel().filename)).stat().st_size < 64e6


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_metadata_are_whole():
    told = metadata()
    assert (told["Name"], told["Version"]) == ("mmneuron-lens", mmneuron_lens.__version__)
    assert told["Author"]
    assert told["License-Expression"] == project()["license"]
    assert told["Project-URL"]
    assert set(told.get_all("Provides-Extra", [])) == set(project()["optional-dependencies"])
    assert told.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text().strip()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    wheel().extractall(folder)
    return folder


JOB = """
import interventions
import mmneuron_lens as mm

lens, corpus = mm.Lens("embedded/llava-next"), mm.load_corpus("drawn", images=1, questions_per_image=1)
batch = lens.encode(corpus[0].images, [corpus[0].question])
print(lens.run(mm.count_active, batch)["count_active", "llm.mlp.act"].sum().item())
print(interventions.__file__, mm.__file__)
"""


def test_a_model_is_counted_from_the_wheel(unpacked, tmp_path, monkeypatch):
    """Its files alone: the working directory is another, and the tree is behind it."""
    monkeypatch.setenv("PYTHONPATH", str(unpacked))
    done = subprocess.run([sys.executable, "-c", JOB], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    active, files = done.stdout.splitlines()
    assert int(active) > 0
    assert files.split() == [str(unpacked / name / "__init__.py") for name in PACKAGES]


def test_every_name_the_wheel_gives_leads_somewhere(unpacked, tmp_path, monkeypatch):
    """The command, the checkpoints and the corpora, found through the wheel's own metadata."""
    monkeypatch.setenv("PYTHONPATH", str(unpacked))
    code = (
        "from importlib.metadata import distribution as d; from pathlib import Path; "
        "made = d('mmneuron-lens'); names = [e.name for e in made.entry_points if e.load()]; "
        "print(made.locate_file(''), *names)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, *names = done.stdout.split()
    assert Path(where) == unpacked
    declared = project()["entry-points"]
    assert set(names) == {"mmneuron", *(name for group in declared.values() for name in group)}
