"""`mmneuron corpora check`: what was found, what is missing and where to get it, and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest
from published_formats import make
from rich.console import Console
from typer.testing import CliRunner

from mmneuron_lens.corpora.check import as_table, check_corpora, exit_code, problem_lines
from mmneuron_lens.corpora.command import corpora_app
from mmneuron_lens.corpora.folder import CorpusError


@pytest.fixture
def folder(tmp_path):
    return make.write_all(tmp_path / "corpora", images=2)


def printed(checked) -> str:
    console = Console(width=400)
    with console.capture() as captured:
        console.print(as_table(checked))
    return captured.get()


def test_a_whole_folder_is_whole(folder):
    checked = check_corpora(folder, None, decode=True)
    assert [one.name for one in checked] == ["VQAv2", "RSVQA-HR", "PMC-VQA", "DocVQA", "LingoQA"]
    assert exit_code(checked) == 0
    assert problem_lines(checked) == []
    read = {one.name: {split: count for split, (count, _) in one.read.items()} for one in checked}
    assert read == {
        "VQAv2": {"train": 4, "val": 4},
        "RSVQA-HR": {"train": 6, "val": 6},
        "PMC-VQA": {"train": 2, "test": 2},
        "DocVQA": {"train": 4, "val": 4},
        "LingoQA": {"train": 4, "val": 2},
    }
    ran = CliRunner().invoke(corpora_app, ["check", str(folder)])
    assert ran.exit_code == 0
    assert "train: 4 good, 0 bad" in ran.output
    assert "v2_mscoco_val2014_annotations.json" in ran.output


def test_what_is_missing_is_named_with_where_to_get_it(folder):
    (folder / "vqav2" / "v2_mscoco_val2014_annotations.json").unlink()
    (folder / "docvqa").rename(folder / "elsewhere")
    images = folder / "pmc_vqa" / "images"
    with zipfile.ZipFile(folder / "pmc_vqa" / "images.zip", "w") as packed:
        for file in sorted(images.iterdir()):
            packed.write(file, file.name)
            file.unlink()
    images.rmdir()
    checked = check_corpora(folder)
    assert exit_code(checked) == 1
    by_name = {one.name: one for one in checked}
    (line,) = by_name["VQAv2"].missing
    assert line.endswith(
        "no v2_mscoco_val2014_annotations.json or val/v2_mscoco_val2014_annotations.json (answers); "
        "get it from https://visualqa.org/download.html."
    )
    assert list(by_name["VQAv2"].read) == ["train"]
    (line,) = by_name["PMC-VQA"].missing
    assert line.endswith("no images or figures (figures); unpack images.zip.")
    assert len(by_name["DocVQA"].missing) == 4
    assert by_name["DocVQA"].found == ()
    shown = printed(checked)
    assert "https://rrc.cvc.uab.es" in shown
    ran = CliRunner().invoke(corpora_app, ["check", str(folder)])
    assert ran.exit_code == 1
    assert "rrc.cvc.uab.es" in "".join(ran.output.split())


def test_bad_records_are_shown_and_counted(folder):
    file = folder / "docvqa" / "val_v1.0_withQT.json"
    document = json.loads(file.read_text())
    document["data"][1]["question"] = ""
    file.write_text(json.dumps(document))
    picture = folder / "vqav2" / "val2014" / "COCO_val2014_000000000009.jpg"
    picture.write_bytes(picture.read_bytes()[:-700])
    parquet = folder / "lingoqa" / "evaluation" / "val.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-40])
    checked = check_corpora(folder, decode=True)
    assert exit_code(checked) == 1
    bad = {f"{one.name} {split}": len(found) for one in checked for split, (_, found) in one.read.items() if found}
    assert bad == {"DocVQA val": 1, "VQAv2 val": 2, "LingoQA val": 1}
    lines = "\n".join(problem_lines(checked))
    assert "DocVQA val: " in lines
    assert "record 2 (questionId 49154): question '' is empty" in lines
    assert "val.parquet is no complete parquet file" in lines
    # Headers alone do not show a truncated image.
    by_name = {one.name: one for one in check_corpora(folder)}
    assert by_name["VQAv2"].whole
    ran = CliRunner().invoke(corpora_app, ["check", str(folder), "--decode", "--records", "0"])
    assert ran.exit_code == 1
    assert "common question 9000: image cannot be decoded" in ran.output
    assert "val: 3 good, 1 bad" in ran.output


def test_few_records_are_looked_at_when_few_are_asked_for(folder):
    checked = check_corpora(folder, 1)
    assert {count for one in checked for count, _ in one.read.values()} == {1}


def test_version_2_of_pmc_vqa_is_enough(folder):
    for split in ("train", "test"):
        (folder / "pmc_vqa" / f"{split}.csv").unlink()
        make.write_pmc_vqa(folder / "pmc_vqa", split, 3, 2)
    (pmc,) = [one for one in check_corpora(folder) if one.name == "PMC-VQA"]
    assert pmc.whole
    assert pmc.found == ("train_2.csv", "test_2.csv", "figures")


def test_no_folder(tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere is not a folder; give one with subfolders vqav2, rsvqa"):
        check_corpora(tmp_path / "nowhere")
    ran = CliRunner().invoke(corpora_app, ["check", str(tmp_path / "nowhere")])
    assert isinstance(ran.exception, CorpusError)


def test_the_command_is_imported_without_torch():
    code = "import sys, mmneuron_lens.corpora.command; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
