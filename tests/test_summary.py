"""The short page of the demo and of `mmneuron select` against the artifacts it shows, of one model and of several."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from test_report import DOMAINS, Cells, make_counts

from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM, Answer, Answers
from mmneuron_lens.artifacts.digits import interval
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.evaluation.accuracy import against_random, scores
from mmneuron_lens.neurons.controls import false_discovery_rate, halves_overlap
from mmneuron_lens.neurons.effects import effect_sizes
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.paper import paper_numbers
from mmneuron_lens.paper.corpora import DEFINITIONS
from mmneuron_lens.paper.summary import publish
from mmneuron_lens.report import figures, tables
from mmneuron_lens.runs.folder import RunError
from mmneuron_lens.runs.identify import Controls, Identified

MODELS = ("<m>", "folder/other-model")


def found_of(model: str) -> Identified:
    counts = [replace(one, model=model) for one in make_counts()]
    selection = select(counts, fraction=0.1)
    discovery = false_discovery_rate(counts, selection, permutations=3)
    overlap = halves_overlap(counts, fraction=0.1, splits=2)
    effects = effect_sizes(counts, selection, resamples=20)
    return Identified(tuple(counts), selection, select(counts, fraction=0.3), Controls(discovery, overlap, effects))


def answers_of(model: str, selection: str) -> list[Answer]:
    """Eight questions a domain, of which the neurons of the n-th domain cost n."""
    conditions = [("None", NONE), (ALL, DOMAIN), (ALL, f"{RANDOM} 1")]
    made = []
    for number, domain in enumerate(DOMAINS):
        for module, condition in conditions:
            neurons_of = domain if condition != NONE else ""
            for question in range(8):
                said = "no" if condition == DOMAIN and question < number else "yes"
                key = (model, module, condition, neurons_of, domain, f"{domain} {question}")
                made.append(Answer(*key, "why", ("yes",), said, selection))
    return made


def save(found: Identified, out: Path, counts_in: Path | None = None, answered: bool = True) -> None:
    """The files that the stages of a run write."""
    name = file_name(found.selection.model)
    for one in found.counts:
        one.save((counts_in or out) / "counts" / name / f"{one.domain}.safetensors")
    found.selection.save(out / "selection" / f"{name}.safetensors")
    found.wider.save(out / "selection_wider" / f"{name}.safetensors")
    if found.controls.discovery is not None and found.controls.overlap is not None:
        found.controls.discovery.save(out / "controls" / name / "false_discovery.safetensors")
        found.controls.overlap.save(out / "controls" / name / "halves_overlap.safetensors")
    if found.controls.effects is not None:
        found.controls.effects.save(out / "controls" / name / "effect_sizes.safetensors")
    if answered:
        digest = content_hash(out / "selection" / f"{name}.safetensors")
        Answers(tuple(answers_of(found.selection.model, digest))).save(out / "answers" / f"{name}.jsonl")


UNREAD = "What single neurons answer to was not read: `mmneuron neurons RUN --model ... --corpus ...`."


def not_run(html: str) -> list[str]:
    return re.findall(r"<li>(.*?)</li>", html.split("What was not run")[1])


@pytest.fixture(scope="module")
def found() -> list[Identified]:
    return [found_of(model) for model in MODELS]


@pytest.fixture(scope="module")
def run(found: list[Identified], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    for one in found:
        save(one, out)
    assert publish(out, not_run=("The 13B model was not run.",)) == out / "index.html"
    return out


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes seconds, where a test is about words."""
    monkeypatch.setattr(figures, "png", lambda figure: b"png")


def test_the_page_contains_each_number_of_every_model(found: list[Identified], run: Path) -> None:
    html = (run / "index.html").read_text()
    rows = [row for table in Cells(html).tables for row in table]

    def on_page(frame: pl.DataFrame, decimals: int | None = None) -> None:
        for row in frame.iter_rows(named=True):
            assert [tables.shown(value, name, decimals) for name, value in row.items()] in rows, row

    for one in found:
        for selection in (one.selection, one.wider):
            on_page(tables.wide(tables.neurons_per_domain(selection), "neurons", DOMAINS))
        # Branches of the Q-Former have rows of their own.
        branches = tables.wide(tables.neurons_per_domain(one.selection, by="site"), "neurons", DOMAINS)
        on_page(branches.filter(pl.col("module") == "Q-Former").drop("module"))
        on_page(tables.wide(tables.layer_distribution(one.selection), "neurons", DOMAINS))
        on_page(tables.selection_summary(one.selection))
        on_page(tables.silent(list(one.counts)))
        assert one.controls.discovery is not None
        assert one.controls.overlap is not None
        on_page(tables.control(one.controls.discovery, one.controls.overlap, one.selection))
        assert one.controls.effects is not None
        for name, effect in one.controls.effects.effects.items():
            shown = interval(*(effect["log_odds"][end] for end in ("value", "low", "high")))
            assert [one.selection.model, name, f"{effect['memberships']:,}", "–", shown] in [row[:5] for row in rows]
        for counts in one.counts:
            on_page(counts.to_frame())
    for number, domain in enumerate(DOMAINS):
        paper = paper_numbers.corpus(domain)
        sizes = [f"{domain} corpus", f"{1230 + number:,}", "8", *map(tables.shown, paper.values())]
        assert [tables.domain_name(domain), DEFINITIONS[domain], *sizes] in rows
    assert f"{sum(1230 + number for number in range(len(DOMAINS))):,} image-question pairs" in html


def test_accuracies_are_those_of_the_answers(run: Path) -> None:
    frame = pl.read_csv(run / "tables" / "ablation.csv").filter(pl.col("condition") == DOMAIN)
    for model in MODELS:
        own = frame.filter(pl.col("model") == model)
        assert own["accuracy"].to_list() == [100 * (8 - number) / 8 for number in range(len(DOMAINS))]
    rows = [row for table in Cells((run / "index.html").read_text()).tables for row in table]
    assert [MODELS[0], "All", "100.0", "87.5", "75.0", "62.5", "50.0"] in rows


def test_csv_files_equal_the_frames_of_all_models(found: list[Identified], run: Path) -> None:
    answers = [one for model in MODELS for one in answers_of(model, "")]
    expected = {
        "neurons_per_domain": [tables.neurons_per_domain(one.selection) for one in found],
        "neurons_per_domain_wider": [tables.neurons_per_domain(one.wider) for one in found],
        "layer_distribution": [tables.layer_distribution(one.selection) for one in found],
        "selection": [tables.selection_summary(one.selection) for one in found],
        "silent": [tables.silent(list(one.counts)) for one in found],
        "control": [tables.control(one.controls.discovery, one.controls.overlap, one.selection) for one in found],  # type: ignore[arg-type]
        "effect": [tables.effect(one.controls.effects) for one in found],  # type: ignore[arg-type]
        "ablation": [tables.ablation(scores(answers))],
        "ablation_against_random": [pl.DataFrame(against_random(answers))],
    }
    for name, frames in expected.items():
        frame = pl.concat(frames)
        assert pl.read_csv(run / "tables" / f"{name}.csv", schema=frame.schema).equals(frame), name
        assert "\\toprule" in (run / "tables" / f"{name}.tex").read_text()
    names = [file_name(model) for model in MODELS]
    assert sorted(file.name for file in (run / "figures").iterdir()) == sorted(
        f"{kind}_{name}.png" for kind in ("figure_5_layers", "table_2_ablation") for name in names
    )
    # Three of the 60 neurons of every vision layer are silent, which a sentence says better than bars all alike.
    html = (run / "index.html").read_text()
    assert "No figure: the share of silent neurons in the vision layers of &lt;m&gt; is 5\xa0% everywhere." in html


def test_links_lead_somewhere_and_artifacts_are_named_by_their_bytes(run: Path) -> None:
    html = (run / "index.html").read_text()
    anchors, links = re.findall(r' id="([^"]+)"', html), re.findall(r'href="#([^"]+)"', html)
    assert len(set(anchors)) == len(anchors)
    assert set(links) == set(anchors)
    artifacts = [*run.rglob("*.safetensors"), *run.rglob("*.jsonl")]
    assert len(artifacts) == 2 * (len(DOMAINS) + 2 + 3 + 1)
    for file in artifacts:
        assert f"artifact-{content_hash(file)[:12]}" in anchors, file
        assert f"</code> {file.relative_to(run).as_posix()}</summary>" in html
    assert str(run) not in html
    assert "&lt;m&gt;" in html
    assert "<m>" not in html


def test_only_titles_name_the_sections(run: Path) -> None:
    html = (run / "index.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Findings", "Accuracy with domain-specific neurons off", "Domain-specific neurons by layer",
        "Neurons of each domain", "Neurons of each domain at 30 %", "Is the selection more than chance?",
        "Silent neurons", "Domains and corpora", "How it was run",
    ]  # fmt: skip
    assert not_run(html) == [
        UNREAD,
        "The 13B model was not run.",
    ]


@pytest.mark.usefixtures("_no_figures")
def test_what_was_not_run_is_said_and_has_no_section(found: list[Identified], tmp_path: Path) -> None:
    why = "The controls were not run: medical has tokens in 1 bucket."
    bare = replace(found[0], controls=Controls(missing=why))
    save(bare, tmp_path, answered=False)
    # Controls of an earlier selection say nothing about this one.
    save(replace(found[0]), tmp_path, answered=False)
    html = publish(tmp_path, uncontrolled={"<m>": why}).read_text()
    assert not_run(html) == [
        UNREAD,
        "No question was answered with neurons off.",
        why,
    ]
    assert "Is the selection more than chance?" not in html
    assert not list((tmp_path / "tables").glob("ablation*"))


@pytest.mark.usefixtures("_no_figures")
def test_answers_with_another_selection_leave_no_table_behind(found: list[Identified], tmp_path: Path) -> None:
    save(found[0], tmp_path)
    publish(tmp_path)
    assert (tmp_path / "tables" / "ablation.csv").is_file()
    another = replace(found[0], selection=found[0].wider)
    another.selection.save(tmp_path / "selection" / f"{file_name('<m>')}.safetensors")
    with pytest.raises(RunError, match=r"false_discovery\.safetensors: is of another selection than .*delete both"):
        publish(tmp_path)
    shutil.rmtree(tmp_path / "controls")
    html = publish(tmp_path).read_text()
    assert "No question was answered with neurons off." in html
    assert not list(tmp_path.rglob("*ablation*"))


@pytest.mark.usefixtures("_no_figures")
def test_counts_may_lie_in_another_folder(found: list[Identified], tmp_path: Path) -> None:
    save(found[0], tmp_path / "selected", counts_in=tmp_path / "counted", answered=False)
    html = publish(tmp_path / "selected", counts_in=tmp_path / "counted").read_text()
    assert "Silent neurons</h2>" in html
    assert str(tmp_path) not in html


@pytest.mark.usefixtures("_no_figures")
def test_the_page_of_the_paper_is_never_overwritten(found: list[Identified], tmp_path: Path) -> None:
    save(found[0], tmp_path)
    (tmp_path / "paper.json").write_text("{}")
    (tmp_path / "tables").mkdir()
    kept = {tmp_path / name: name for name in ("index.html", "tables/ablation.csv", "tables/neurons_per_domain.csv")}
    for file, content in kept.items():
        file.write_text(content)
    assert publish(tmp_path) == tmp_path / "selection.html"
    assert {file: file.read_text() for file in kept} == kept
    assert "Neurons of each domain" in (tmp_path / "selection.html").read_text()
    assert (tmp_path / "tables" / "selection" / "neurons_per_domain.csv").is_file()
