"""`mmneuron doctor`: what fits, what does not, and what to do; no key is shown, no model loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmneuron_lens.cli import app
from mmneuron_lens.doctor import command, machine, services
from mmneuron_lens.doctor.diagnosis import Diagnosis
from mmneuron_lens.doctor.packages import EXTRAS, extra_checks, package_checks, version_line

GIB = 2**30

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class Written:
    """The metadata of a package, as an index would hold them."""

    class metadata(dict):
        def get_all(self, name):
            return ["corpora", "dev"] if name == "Provides-Extra" else None

    def __init__(self, python=">=3.11"):
        self.requires = [
            "torch<2.15,>=2.12",
            "transformers<5.25,>=5.20",
            "rich>=14",
            "datasets<6,>=5.2; extra == 'corpora'",
            "mmneuron-lens[corpora]; extra == 'dev'",
            "ruff>=0.15; extra == 'dev'",
        ]
        self.metadata = Written.metadata({"Requires-Python": python})


def checked(python=">=3.11", **versions):
    there = {"torch": "2.13.0+cpu", "transformers": "5.22.2", "rich": "15.0", **versions}
    return {one.name: one for one in package_checks(Written(python), there.get)}


def test_every_package_is_held_to_the_range_of_the_metadata():
    good = checked()
    assert {one.state for one in good.values()} == {"ok"}
    assert good["torch"].found == "2.13.0+cpu (>=2.12,<2.15)"
    # Those that fit and have no line of their own are counted.
    assert good["others"].found == "1 more, all in their ranges"
    old = checked(torch="2.15.1", rich=None)
    assert (old["torch"].state, old["torch"].found) == ("problem", "2.15.1, not >=2.12,<2.15")
    assert old["torch"].next_step == "pip install 'torch>=2.12,<2.15'"
    assert (old["rich"].found, old["rich"].next_step) == ("missing", "pip install 'rich>=14'")
    assert checked(python=">=3.99")["Python"].state == "problem"


def test_extras_say_what_they_are_for_and_none_is_forgotten():
    assert set(PROJECT["optional-dependencies"]) <= set(EXTRAS)
    corpora, dev = extra_checks(Written(), {"datasets": "5.1"}.get)
    assert (corpora.state, corpora.next_step) == ("note", "pip install 'mmneuron-lens[corpora]'")
    assert corpora.found.startswith("not installed (datasets): corpora of the hub")
    assert (dev.state, dev.next_step) == ("ok", "")
    assert extra_checks(Written(), {"datasets": "5.3"}.get)[0].found.startswith("installed: ")


@pytest.mark.parametrize(
    ("free", "state", "says"),
    [
        (0.5, "problem", "enough for the embedded models, not for a 7B"),
        (10, "note", "enough for the embedded models, not for a 7B in bfloat16 (14 GiB)"),
        (20, "ok", "enough for a 7B in bfloat16 (14 GiB), not for a 13B (27 GiB)"),
        (64, "ok", "enough for a 13B in bfloat16 (27 GiB)"),
    ],
)
def test_memory_is_said_as_what_it_holds(free, state, says):
    found = machine.memory_check(free * GIB)
    assert (found.state, says in found.found, bool(found.next_step)) == (state, True, state != "ok")


def test_a_full_disk_is_a_problem_and_a_small_cache_a_note(tmp_path):
    folders = {"this folder": tmp_path, "hub cache": tmp_path / "not" / "made" / "yet"}
    full = machine.disk_checks(folders, free=GIB / 8)
    assert [one.state for one in full] == ["problem", "problem"]
    assert [one.state for one in machine.disk_checks(folders, free=4 * GIB)] == ["ok", "note"]
    assert [one.state for one in machine.disk_checks(folders, free=40 * GIB)] == ["ok", "ok"]


def test_the_key_of_ndif_is_found_where_nnsight_finds_it_and_never_shown(tmp_path):
    file = tmp_path / "nnsight" / "config.yaml"
    file.parent.mkdir()
    file.write_text("API:\n  APIKEY: secret-of-the-file\n  HOST: https://own.example\n")
    for environment, host, state in (
        ({"XDG_CONFIG_HOME": str(tmp_path)}, "https://own.example", "ok"),
        ({"XDG_CONFIG_HOME": str(tmp_path / "none")}, "https://api.ndif.us", "note"),
        ({"XDG_CONFIG_HOME": str(tmp_path / "none"), "NDIF_API_KEY": "secret-of-mine"}, "https://api.ndif.us", "ok"),
    ):
        found = services.ndif_checks(environment)
        assert [found[0].found, found[1].state] == [host, state]
        assert "secret" not in str(found)


def test_offline_and_spinning_threads_are_noted():
    (_, offline) = services.hub_checks({"HF_TOKEN": "secret", "HF_HUB_OFFLINE": "1"})
    assert (offline.state, offline.found) == ("note", "HF_HUB_OFFLINE=1: nothing is fetched")
    assert "secret" not in str(services.hub_checks({"HF_TOKEN": "secret"}))
    named = {one.name for one in machine.speed_checks({"OMP_WAIT_POLICY": "active"})}
    assert "idle threads" in named
    assert "idle threads" not in {one.name for one in machine.speed_checks({})}


def test_a_module_of_the_users_by_the_name_of_ours_is_a_problem(tmp_path):
    assert services.shadow_checks(tmp_path) == []
    (tmp_path / "interventions.py").write_text("")
    (found,) = services.shadow_checks(tmp_path)
    assert found.state == "problem"
    assert found.found.startswith(f"{tmp_path / 'interventions.py'} hides this package's `interventions`")
    # The folder of a clone is ours.
    assert services.shadow_checks(Path(services.__file__).parent.parent.parent) == []


def test_it_ends_with_1_where_something_is_a_problem_and_prints_the_same_as_json(monkeypatch):
    checks = [
        Diagnosis("Packages", "torch", "ok", "2.13"),
        Diagnosis("Devices", "CUDA", "problem", "unseen", "install it"),
    ]
    monkeypatch.setattr(command, "all_checks", lambda: checks)
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "60"})
    assert result.exit_code == 1
    assert [line.split() for line in result.stdout.splitlines() if "next:" in line] == [["next:", "install", "it"]]
    assert "1 ok, 0 notes, 1 problems." in result.stdout
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert (told["problem"], told["checks"][1]["next_step"]) == (1, "install it")
    monkeypatch.setattr(command, "all_checks", lambda: checks[:1])
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_nothing_heavy_is_loaded_and_the_version_is_one_line():
    code = (
        "import sys\nfrom mmneuron_lens.cli import app\n"
        "try:\n    app(['doctor'])\nexcept SystemExit as end:\n    assert end.code in (0, 1)\n"
        "assert not {'transformers', 'nnsight'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for group in ("Packages", "Devices", "Memory and disk", "Models from elsewhere", "Extras", "Speed"):
        assert group in [line.strip() for line in done.stdout.splitlines()]
    shown = CliRunner().invoke(app, ["--version"]).stdout
    assert shown == version_line() + "\n"
    assert all(f"{name} " in shown for name in ("mmneuron-lens", "torch", "transformers", "nnsight"))
