"""The command: what it writes, what it prints, and how it ends."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import compared_selectors  # noqa: F401
import polars as pl
import pytest
import torch
from drawn_corpus import write_rows
from typer.testing import CliRunner

from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.cli import app
from mmneuron_lens.embedded.corpus.draw import write_folder
from mmneuron_lens.paper.demo import DemoPlan, demo
from mmneuron_lens.runs.store import Store

MODEL = ["--model", "embedded/instructblip"]


def mmneuron(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("corpus"), images_per_domain=4, domains=("medical", "document"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run")
    with open(corpus / "questions.jsonl", "a", encoding="utf-8") as rows:
        rows.write('{"domain": "medical"}\n')
    options = ["--questions-per-image", 2, "--batch-size", 4]
    result = mmneuron("count", *MODEL, "--corpus", corpus, "--out", out, *options)
    return out, result


def test_count_writes_counts_and_names_bad_rows(run, corpus):
    out, result = run
    assert result.exit_code == 0
    assert "1 of 57 rows skipped:" in result.stderr
    assert "questions.jsonl, line 57: no question, answer, image in {'domain': 'medical'}" in result.stderr
    assert f"Next: mmneuron select {out}" in result.stderr
    files = [out / "counts" / "embedded+instructblip" / f"{domain}.safetensors" for domain in ("medical", "document")]
    assert result.stdout.split() == [str(file) for file in files]
    counts = Counts.load(files[0])
    assert (counts.model, counts.domain, counts.samples) == ("embedded/instructblip", "medical", 8)
    assert counts.provenance["batch size"] == 4
    assert counts.provenance["corpus"]["name"] == corpus.name
    assert "line 57" in (out / "problems.txt").read_text()


def test_select_and_show_print_the_tables_and_the_page(run, tmp_path):
    out, _ = run
    result = mmneuron("select", out, "--fraction", "0.05", "--kinds", "image,patch", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    selection = Selection.load(tmp_path / "selection" / "embedded+instructblip.safetensors")
    assert selection.parameters["fraction"] == 0.05
    assert selection.parameters["kinds"]["llm.mlp.act"] == ["image"]
    assert selection.parameters["kinds"]["vision.mlp.act"] == ["patch"]
    assert selection.parameters["kinds"]["qformer.text.act"] == ["text"]
    table = pl.read_csv(tmp_path / "tables" / "neurons_per_domain.csv")
    assert table.columns == ["model", "module", "domain", "neurons", "reachable"]
    assert table["module"].unique(maintain_order=True).to_list() == ["Vision Encoder", "Q-Former", "LLM"]
    for name in ("neurons_per_domain_wider", "selection", "layer_distribution", "silent"):
        assert (tmp_path / "tables" / f"{name}.csv").is_file()
    assert not (tmp_path / "tables" / "ablation.csv").exists()
    assert f"Page: {tmp_path / 'index.html'}" in result.stdout
    assert "No question was answered with neurons off." in (tmp_path / "index.html").read_text()
    shown = mmneuron("show", tmp_path)
    assert (shown.exit_code, shown.stdout) == (0, result.stdout)
    assert "Domain-specific neurons, embedded/instructblip" in " ".join(shown.stdout.split())
    numbers = [str(number) for number in table.filter(pl.col("module") == "Q-Former")["neurons"]]
    line = next(line for line in shown.stdout.splitlines() if "Q-Former" in line)
    assert [part for part in re.findall(r"\d+", line)] == numbers


def test_one_domain_and_few_images_when_asked(corpus, tmp_path):
    result = mmneuron("count", *MODEL, "--corpus", corpus, "--out", tmp_path, "--domain", "document", "--images", 1)
    assert result.exit_code == 0
    (file,) = (tmp_path / "counts" / "embedded+instructblip").iterdir()
    assert (file.name, Counts.load(file).samples) == ("document.safetensors", 7)


PROBLEMS = {
    "no corpus": (
        ["count", *MODEL, "--corpus", "{nothing}", "--out", "{nothing}"],
        "is neither a folder nor the name of a corpus; give a folder with questions.jsonl",
    ),
    "unknown embedded model": (
        ["count", "--model", "embedded/llava", "--corpus", "{corpus}", "--out", "{nothing}"],
        "Unknown embedded model 'embedded/llava'. Did you mean 'embedded/llava-next'? Choices: embedded/idefics3,",
    ),
    "no such model": (
        ["count", "--model", "{corpus}", "--corpus", "{corpus}", "--out", "{nothing}"],
        "{corpus} has no config.json; give the folder of a saved model.",
    ),
    "unknown dtype": (
        ["count", *MODEL, "--corpus", "{corpus}", "--out", "{nothing}", "--dtype", "float31"],
        "Unknown dtype 'float31'. Did you mean 'float32'? Choices: float32, bfloat16, float16.",
    ),
    "unknown device": (
        ["count", *MODEL, "--corpus", "{corpus}", "--out", "{nothing}", "--device", "tpu"],
        "Unknown device 'tpu'.",
    ),
    "absent domain": (
        ["count", *MODEL, "--corpus", "{corpus}", "--out", "{nothing}", "--domain", "food"],
        "has no good row of food; it has medical, document.",
    ),
    "no counts": (
        ["select", "{nothing}"],
        "nothing holds no counts; write them with `mmneuron count --model ... --corpus ... --out {nothing}`.",
    ),
    "unknown kind": (
        ["select", "{run}", "--kinds", "pixels"],
        "no kind of token 'pixels' was counted; choose from image, text, query, cls, patch.",
    ),
    "impossible fraction": (
        ["select", "{run}", "--fraction", "2"],
        "fraction is 2.0; it must be above 0 and at most 1",
    ),
    "nothing to show": (["show", "{nothing}"], "holds no tables yet; write them with `mmneuron select"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_with_the_input_is_one_line_and_exit_code_1(run, corpus, tmp_path, name):
    arguments, message = PROBLEMS[name]
    places = {"nothing": tmp_path / "nothing", "corpus": corpus, "run": run[0]}
    result = mmneuron(*(str(argument).format(**places) for argument in arguments))
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("mmneuron: ")]
    assert len(lines) == 1
    assert message.format(**places) in lines[0]
    assert result.stderr.splitlines()[-1] == lines[0]
    assert result.stdout == ""


@pytest.mark.parametrize("error", [ValueError, KeyError, FileNotFoundError])
@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["select", "{run}", "--fraction", "0.5", "--replace"], "mmneuron_lens.runs.identify.select"),
        (["show", "{run}"], "mmneuron_lens.cli.print_tables"),
        (["corpora", "check", "{corpus}"], "mmneuron_lens.corpora.check.check_corpora"),
    ],
)
def test_a_fault_of_the_program_keeps_its_traceback(run, corpus, tmp_path, monkeypatch, words, place, error):
    def broken(*_, **__):
        raise error("a fault")

    shutil.copytree(run[0], tmp_path / "run")
    mmneuron("select", tmp_path / "run")
    monkeypatch.setattr(place, broken)
    with pytest.raises(error, match="a fault"):
        mmneuron(*(word.format(corpus=corpus, run=tmp_path / "run") for word in words))


def test_a_damaged_artifact_is_named(run, tmp_path):
    folder = tmp_path / "counts" / "m"
    folder.mkdir(parents=True)
    whole = (run[0] / "counts" / "embedded+instructblip" / "medical.safetensors").read_bytes()
    (folder / "medical.safetensors").write_bytes(whole[:1000])
    result = mmneuron("select", tmp_path)
    assert result.exit_code == 1
    assert "medical.safetensors: is damaged (its checksum does not match its content)" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["count", "--corpus", "x", "--out", "y"],
        ["count", *MODEL, "--corpus", "x", "--out", "y", "--batch-size", "0"],
        ["select"],
        ["show", "x", "--colour"],
        ["find"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert mmneuron(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["demo", "count", "select", "compare", "show"])
def test_every_help_has_an_example(command):
    result = mmneuron(command, "--help")
    assert result.exit_code == 0
    assert f"Example: mmneuron {command} " in result.stdout


def test_help_loads_no_torch_and_the_module_is_the_command():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['mmneuron', '--help']\n"
        "try:\n    runpy.run_module('mmneuron_lens', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: mmneuron" in done.stdout


def test_a_small_demo_goes_the_whole_way(tmp_path):
    named, said = [], []

    def progress(items, name):
        named.append(name)
        return items

    domains = ("common", "medical")
    amounts = {"identification_images": 5, "evaluation_images": 2, "random_draws": 1, "permutations": 2}
    plan = DemoPlan(**amounts, fraction=0.05, compared=(0.2,), planted=0)
    page = demo(Store(tmp_path, say=said.append), domains=domains, plan=plan, progress=progress)
    for model in ("embedded+llava-next", "embedded+instructblip", "embedded+idefics3"):
        assert len(list((tmp_path / "counts" / model).iterdir())) == 2
        assert (tmp_path / "selection" / f"{model}.safetensors").is_file()
        comparison = NeuronComparison.load(tmp_path / "comparison" / f"{model}.safetensors")
        assert (len(comparison.questions), comparison.fractions, comparison.methods) == (
            2 * 4,
            (0.05, 0.2),
            ("dape", "margin"),
        )
        drawn = {file.name.removesuffix(f"_{model}.png") for file in (tmp_path / "figures").glob(f"*_{model}.png")}
        # Silent neurons are drawn where their bars would not all be alike.
        assert drawn - {"figure_9_silent"} == {"figure_5_layers", "comparison_curves", "comparison_matrix"}
    frames = {file.stem: pl.read_csv(file) for file in (tmp_path / "tables").glob("*.csv")}
    # A row a domain and fraction of its own questions, and at 5 % of those of the other.
    assert len(frames["comparison"]) == 2 * 3 * 2 * (2 + 1)
    assert len(frames["comparison_accuracy"]) == 2 * 3 * 2
    assert len(frames["comparison_matrix"]) == 2 * 3 * 2 * 2
    models = {"embedded/llava-next", "embedded/instructblip", "embedded/idefics3"}
    assert all(set(frame["model"]) == models for name, frame in frames.items() if name != "corpora")
    assert page == tmp_path / "index.html"
    html = page.read_text()
    assert html.count("<main>") == html.count("</main>") == 1
    anchors, links = re.findall(r' id="([^"]+)"', html), re.findall(r'href="#([^"]+)"', html)
    assert len(set(anchors)) == len(anchors)
    assert set(links) <= set(anchors)
    assert {one.partition("#")[0] for one in re.findall(r'(?:src|srcset|href)="(?!data:|#)([^"]*)', html)} == {
        "neurons/index.html"
    }
    assert (tmp_path / "neurons" / "index.html").is_file()
    assert "counting medical" in named
    assert sum(name.startswith("comparing dape, margin under ") for name in named) == 3
    assert not [one for one in said if "is not compared" in one]
    assert said[0] == f"drawing 7 images in each of 2 domains into {tmp_path / 'corpus'}"
    assert "embedded/llava-next: how often and how strongly neurons are active, medical" in said
    assert said[-1] == "drawing figures and writing the page"
    before = {file: file.read_bytes() for file in tmp_path.rglob("tables/*.csv")}
    again = mmneuron("show", tmp_path)
    assert "embedded/llava-next: with 5 % of the neurons off, those of " in html
    assert "right answer in nats, 5 % of the neurons off, embedded/llava-next" in " ".join(again.stdout.split())
    # What is there was made with fewer permutations, or another fraction: not replaced unless this is asked for.
    for fraction, differs in (
        ("0.05", "permutations is 2 there and 20 here"),
        ("0.1", "fraction is 0.05 there and 0.1"),
    ):
        result = mmneuron("select", tmp_path, "--fraction", fraction)
        assert result.exit_code == 1
        assert differs in result.stderr
        assert "--replace" in result.stderr
    assert mmneuron("select", tmp_path, "--fraction", "0.05", "--replace").exit_code == 0
    assert all(file.read_bytes() == content for file, content in before.items() if file.stem != "control")
    # A comparison belongs to the counts, and goes with them.
    for file in (tmp_path / "counts" / "embedded+idefics3").iterdir():
        counts = Counts.load(file)
        replace(counts, samples=counts.samples + 1).save(file)
    assert mmneuron("select", tmp_path, "--fraction", "0.1", "--replace").exit_code == 0
    compared = pl.read_csv(tmp_path / "tables" / "comparison.csv")
    assert set(compared["model"]) == models - {"embedded/idefics3"}
    assert not (tmp_path / "figures" / "comparison_curves_embedded+idefics3.png").exists()


def test_compare_says_which_neurons_matter_on_the_page_and_in_the_terminal(run, corpus, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    out = tmp_path / "run"
    assert mmneuron("select", out, "--fraction", "0.05").exit_code == 0
    words = ["compare", out, *MODEL, "--corpus", corpus, "--methods", "dape,random", "--fractions", "0.05,0.2"]
    words += [
        "--random-draws",
        2,
        "--images",
        2,
        "--questions-per-image",
        1,
        "--accuracy",
        "--amplify",
        "--max-new-tokens",
        2,
    ]
    result = mmneuron(*words)
    assert result.exit_code == 0, result.stderr
    found = NeuronComparison.load(out / "comparison" / "embedded+instructblip.safetensors")
    assert (found.methods, found.fractions, len(found.questions)) == (("dape",), (0.05, 0.2), 4)
    assert {one.strength for one in found.conditions if one.fraction == 0.05} == {-1, 0, 1, 2, 3}
    assert "right answer in nats, 5 % of the neurons off" in " ".join(result.stdout.split())
    assert "  dape: off, they change the log-probability of the right answer by " in result.stdout
    html = (out / "index.html").read_text()
    assert "No question was answered with neurons off." not in html
    assert (out / "figures" / "comparison_doses_embedded+instructblip.png").is_file()
    again = mmneuron(*words)
    assert "already done: embedded/instructblip: comparing the neurons of dape with random ones" in again.stderr
    for wrong, says in (
        (["--fractions", "much"], "--fractions is 'much'; write shares with commas, such as 0.01,0.05."),
        (["--methods", "dap"], "Unknown selection method 'dap'. Did you mean 'dape'?"),
        (["--methods", "margin", "--replace"], "margin needs moments of embedded/instructblip, which are not there;"),
        (["--seed", "1"], "holds another value: seed is 0 there and 1 here"),
    ):
        refused = mmneuron(*words, *wrong)
        assert refused.exit_code == 1
        assert says in refused.stderr


def test_a_corpus_without_a_good_row_is_a_problem(tmp_path):
    write_rows(tmp_path, ["{}"])
    result = mmneuron("count", *MODEL, "--corpus", tmp_path, "--out", tmp_path)
    assert result.exit_code == 1
    assert "has no good row among 1. The first:" in result.stderr
