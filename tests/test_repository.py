"""What says the same in several files says the same: versions, dates, matrices, terms of pictures, targets of make."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import mmneuron_lens

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CI = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
EMBEDDED = ROOT / "mmneuron_lens" / "embedded"


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_newest_changes_are_of_this_version_and_dated_as_it_is_cited():
    versions = re.findall(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", text("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == (mmneuron_lens.__version__, str(CITATION["date-released"]))
    assert len(versions) == len(re.findall(r"^## ", text("CHANGELOG.md"), re.MULTILINE))
    assert [date for _, date in versions] == sorted((date for _, date in versions), reverse=True)
    assert str(CITATION["version"]) == mmneuron_lens.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", mmneuron_lens.__version__)


def test_every_change_is_under_a_heading_and_none_is_there_twice():
    released = text("CHANGELOG.md").partition("\n## 0.1.0")[0]
    headings = re.findall(r"^### (.*)$", released, re.MULTILINE)
    assert len(headings) == len(set(headings))
    changes = re.findall(r"^- (.*(?:\n  .*)*)", released, re.MULTILINE)
    assert [one for one in changes if changes.count(one) > 1] == []
    assert not re.findall(r"^- ", released.partition("### ")[0], re.MULTILINE)


def test_the_paper_is_cited_with_its_address():
    (paper,) = CITATION["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert [one["family-names"] for one in paper["authors"]] == ["Huo", "Yan", "Hu", "Yue", "Hu"]
    assert CITATION["authors"][0]["name"] == PROJECT["authors"][0]["name"]
    assert CITATION["license"] == PROJECT["license"].partition(" ")[0]


def test_the_matrix_of_a_public_forge_is_the_one_that_is_run_here():
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    (versions,) = re.findall(r"^VERSIONS=\((.*)\)$", text(".ci/matrix"), re.MULTILINE)
    asked = CI["jobs"]["versions"]["strategy"]["matrix"]
    assert asked == {"python": classified, "transformers": versions.split()}
    assert CI["jobs"]["tests"]["strategy"]["matrix"]["python"] == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"
    (wanted,) = [one for one in PROJECT["dependencies"] if one.startswith("transformers")]
    first, last = versions.split()[0], versions.split()[-1].split(".")
    assert wanted == f"transformers>={first},<{last[0]}.{int(last[1]) + 1}"


@pytest.mark.parametrize("file", ["ci.yml", "release.yml"])
def test_actions_are_pinned_and_commands_are_there(file):
    jobs = yaml.safe_load(text(f".github/workflows/{file}"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", step["uses"]) for step in steps if "uses" in step)
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    ran = [step["run"].split() for step in steps if "run" in step]
    assert {words[1] for words in ran if words[0] == "make"} <= targets
    assert all((ROOT / words[0]).is_file() for words in ran if words[0].startswith(".ci/"))


def test_make_alone_lists_every_target():
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text("Makefile"), re.MULTILINE)).split())
    assert {line.split()[1] for line in shown.splitlines()} == phony
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_every_picture_is_attributed_and_its_terms_are_the_packages():
    pictures = json.loads((EMBEDDED / "images" / "LICENSES.json").read_text())
    notices = (EMBEDDED / "NOTICES.md").read_text()
    declared = set(PROJECT["license"].split(" AND "))
    used = set()
    for one in pictures:
        assert f"| `{one['file']}` | {one['terms']} | {one['attribution']} |" in notices
        if not one["terms"].startswith(("public domain", "no known")):
            used |= set(one["terms"].split(" AND "))
    assert declared == used | {"MIT"}
    for terms in declared:
        assert re.search(
            rf"^(- {re.escape(terms)}: <https://|## {terms.partition('-')[0]}\b)", notices, re.MULTILINE
        ), terms
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])


def test_hooks_of_commits_fetch_nothing():
    told = yaml.safe_load(text(".pre-commit-config.yaml"))
    assert [one["repo"] for one in told["repos"]] == ["local"]
    assert {hook["language"] for hook in told["repos"][0]["hooks"]} == {"system"}


def test_a_notebook_with_errors_red_text_or_paths_is_refused(tmp_path):
    outputs = {
        "error": nbformat.v4.new_output("error", ename="KeyError", evalue="'x'"),
        "red": nbformat.v4.new_output("stream", name="stderr", text="UserWarning: old"),
        "path": nbformat.v4.new_output("display_data", data={"text/plain": "written to /tmp/somewhere/run"}),
        "good": nbformat.v4.new_output("stream", name="stdout", text="runs/demo, 3/4, https://a.org/home/x"),
    }
    for name, output in outputs.items():
        cell = nbformat.v4.new_code_cell("1", outputs=[output])
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"{name}.ipynb")
    files = [str(tmp_path / f"{name}.ipynb") for name in outputs]
    done = subprocess.run([sys.executable, ".ci/check_notebooks.py", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.replace(f"{tmp_path}/", "").splitlines() == [
        "error.ipynb: cell 1 ends in KeyError: 'x'",
        "red.ipynb: cell 1 shows 'UserWarning: old' in red",
        "path.ipynb: cell 1 shows the path /tmp/somewhere",
    ]
    done = subprocess.run([sys.executable, ".ci/check_notebooks.py", files[-1]], cwd=ROOT, capture_output=True)
    assert done.returncode == 0
