"""The whole paper in little: every named table and figure, numbers as the artifacts have them, and going on."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import pictures, tiny_lens
from published_formats.make import write_all
from test_cli import mmneuron

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.answers import Answers
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.deviations import Deviations
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.flow import KnockOutFlow
from mmneuron_lens.artifacts.format import ArtifactError, content_hash
from mmneuron_lens.artifacts.layer_probes import LayerProbes
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.neighbours import Neighbours
from mmneuron_lens.artifacts.official_scores import OfficialScores
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.artifacts.text_states import TextStates
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import with_frames_that_fit
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.sample_list import SampleList
from mmneuron_lens.evaluation.claims import claims
from mmneuron_lens.evaluation.findings import Evidence
from mmneuron_lens.evaluation.neuron_claims import largest_share, silent_in_vision, turning_points
from mmneuron_lens.evaluation.official_scores import score_answers
from mmneuron_lens.paper import page as paper_page
from mmneuron_lens.paper import paper_numbers
from mmneuron_lens.paper import run as whole
from mmneuron_lens.paper.drawn import drawn_corpus
from mmneuron_lens.paper.further import flow, probes
from mmneuron_lens.paper.layers import figure_6, figure_7
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.paper.other_lenses import HEADING
from mmneuron_lens.paper.page import paper_of
from mmneuron_lens.report import latex
from mmneuron_lens.report.claims_table import claims_table
from mmneuron_lens.runs import deviate as deviating
from mmneuron_lens.runs.keys import StoreConflict
from mmneuron_lens.runs.plan import BEYOND, Plan
from mmneuron_lens.runs.questions import Questions, corpus_questions
from mmneuron_lens.runs.reading_stages import read_further
from mmneuron_lens.runs.store import Store

MODEL = "embedded/instructblip"
NAME = "embedded+instructblip"
"""The model in names of files."""
DOMAINS = ("remote_sensing", "document")
LITTLE = Plan(
    identification_images=4,
    identification_questions=2,
    evaluation_images=2,
    evaluation_questions=2,
    deviation_questions=3,
    entropy_images=2,
    embedding_images=3,
    random_draws=2,
    ablation_draws=1,
    permutations=2,
    fraction=0.05,
    flow_questions=2,
    jacobian_prompts=2,
    jacobian_images=1,
    neighbour_texts=4,
    generation={"num_beams": 2, "length_penalty": -1.0, "max_new_tokens": 3, "do_sample": False},
)
SECTIONS = [
    *("Figure 2", "Figure 5", "Table 1", "Table 2", "Table 3", "Figure 6", "Figure 7", "Table 4", "Figure 9"),
    *("Figures 10–13", "Table 6", "Table 7", "Table 8", "Table 9", "Controls", "Cross matrix"),
    *("Neurons", "Flow", "Probes"),
]


def make(out: Path, plan: Plan = LITTLE, said: list[str] | None = None, replace: bool = False) -> Path:
    torch.set_num_threads(1)
    store = Store(out, replace=replace, say=(said if said is not None else []).append)
    return whole.paper(store, models=[MODEL], questions=asked(store, plan), plan=plan)


def asked(store: Store, plan: Plan = LITTLE) -> Questions:
    corpus = drawn_corpus(store, (plan.identification_images or 0) + (plan.evaluation_images or 0), DOMAINS)
    return corpus_questions(corpus, plan, drawn=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("paper")
    make(out)
    return out


def test_every_table_and_figure_by_name_and_in_the_papers_order(run):
    html = (run / "index.html").read_text()
    items = {item.name: item for item in paper_of(run).sections}
    assert [*items] == SECTIONS
    # What has no content has no section, and a line at the end.
    there = [name for name in SECTIONS if not items[name].missing]
    assert re.findall(r'<section id="[^"]*">\n<h2><span class="count">([^<]*)</span>', html) == there
    assert html.count("<li>Table 7: ") == html.count("<li>Table 8: ") == 1
    assert [name for name, item in items.items() if item.missing] == ["Table 7", "Table 8"]
    for name, item in items.items():
        assert item.missing or item.sources, name
        for source in item.sources:
            # Every hash on the page is that of the file it names, and a link leads to it.
            assert content_hash(run / source.file) == source.sha256
            assert f'href="#{source.anchor}"' in html
            assert html.count(f'id="{source.anchor}"') == 1
    for stem in ("neurons_per_domain", "ablation_accuracy", "deviation", "entropy", "claims", "cross", "silent"):
        assert (run / "tables" / f"{stem}.csv").is_file()
        assert "\\toprule" in (run / "tables" / f"{stem}.tex").read_text()
    for stem in ("figure_2_embeddings", f"figure_5_layers_{NAME}", "figure_7_entropy"):
        assert (run / "figures" / f"{stem}.png").read_bytes()[:4] == b"\x89PNG"
    assert "not a model of the paper, so its printed numbers are not shown" in html
    assert "://" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)


def test_numbers_on_the_page_are_those_of_the_artifacts(run):
    selection = Selection.load(run / "selection" / f"{NAME}.safetensors")
    table = pl.read_csv(run / "tables" / "neurons_per_domain.csv")
    for row in table.iter_rows(named=True):
        own = selection.neurons(row["domain"], row["module"])
        assert row["neurons"] == sum(int(mask.sum()) for mask in own.values())
    answers = Answers.load(run / "answers" / f"{NAME}.jsonl")
    accuracy = pl.read_csv(run / "tables" / "ablation.csv")
    here = accuracy.filter((pl.col("module") == "None") & (pl.col("domain") == "document"))["accuracy"][0]
    mine = [one.answer == one.answers[0] for one in answers if (one.condition, one.domain) == ("none", "document")]
    assert here == 100 * sum(mine) / len(mine)
    found = Deviations.load(run / "deviations" / NAME / "document.safetensors")
    number = found.conditions.index(("LLM", "domain"))
    shown = pl.read_csv(run / "tables" / "deviation.csv").filter(
        (pl.col("module") == "LLM") & (pl.col("condition") == "domain") & (pl.col("domain") == "document")
    )
    assert shown["deviation"][0] == pytest.approx(100 * float(found.values["after norm"][number].mean()))
    entropies = Entropies.load(run / "entropies" / NAME / "document.safetensors")
    entropy = pl.read_csv(run / "tables" / "entropy.csv").filter(pl.col("domain") == "document")
    assert entropy["entropy"].to_list() == pytest.approx(entropies.mean().T.flatten().tolist())
    assert {"None", "Vision Encoder", "Q-Former", "LLM", "All"} == set(accuracy["module"])


def test_done_again_nothing_is_made_and_the_page_has_the_same_bytes(run, monkeypatch):
    before, said = (run / "index.html").read_bytes(), []
    make(run, said=said)
    assert [line for line in said if not line.startswith(("already done", "drawing figures"))] == []
    assert (run / "index.html").read_bytes() == before
    monkeypatch.setattr(paper_page, "publish_paper", lambda out: out / "index.html")
    assert mmneuron("report", run).stdout.strip() == f"Page: {run / 'index.html'}"


@pytest.fixture
def _no_page(monkeypatch):
    """Leaves out the page, whose figures take seconds, where a test is about stages."""
    monkeypatch.setattr(whole, "publish_paper", lambda out: out)


@pytest.mark.usefixtures("_no_page")
def test_a_run_that_was_stopped_goes_on_where_it_was(run, tmp_path, monkeypatch):
    real, left = deviating.deviate, [1]

    def stopping(*arguments, **settings):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(*arguments, **settings)

    monkeypatch.setattr(deviating, "deviate", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    monkeypatch.setattr(deviating, "deviate", real)
    said: list[str] = []
    make(tmp_path, said=said)
    made = [line for line in said if not line.startswith("already done")]
    assert made[0] == f"{MODEL}: deviation of the last hidden state, document"
    artifacts = [file.relative_to(run) for file in run.rglob("*.safetensors")] + [Path(f"answers/{NAME}.jsonl")]
    assert len(artifacts) > 12
    for file in artifacts:
        assert (tmp_path / file).read_bytes() == (run / file).read_bytes(), file


@pytest.mark.usefixtures("_no_page")
def test_a_change_repeats_what_depends_on_it_alone(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    other = replace(LITTLE, random_draws=1)
    with pytest.raises(
        StoreConflict, match=r"document.*|remote_sensing.*holds another value: draws is 2 there and 1 here"
    ):
        make(tmp_path / "run", other)
    said: list[str] = []
    make(tmp_path / "run", other, said, replace=True)
    made = [line for line in said if not line.startswith("already done")]
    assert made == [f"{MODEL}: deviation of the last hidden state, {domain}" for domain in DOMAINS] + [
        "drawing figures and writing the page"
    ]
    # A file that lost bytes is named, and made again once it is gone.
    file = tmp_path / "run" / "entropies" / NAME / "document.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"entropies/.*/document\.safetensors: is damaged"):
        make(tmp_path / "run", other)
    file.unlink()
    said.clear()
    make(tmp_path / "run", other, said)
    assert [line for line in said if not line.startswith(("already done", "drawing"))] == [
        f"{MODEL}: entropy of the next token by layer, document"
    ]


def test_claims_are_one_row_a_statement_and_model(run):
    found = paper_of(run).claims
    assert [claim.number for claim in found] == ["1", "2", "3", "4a", "4b", "4c", "5", "6", "7", "8"]
    frame = claims_table(found)
    assert frame["verdict"].is_in(["holds", "does not hold", "not decided"]).all()
    shares = frame.filter(pl.col("claim") == "3").to_dicts()[0]
    assert shares["low"] <= shares["value"] + 1e-9
    silent = pl.read_csv(run / "tables" / "silent.csv").filter(pl.col("site") == "vision.mlp.act")["silent"].sum()
    assert frame.filter(pl.col("claim") == "8")["value"][0] == silent


def selection_of(per_layer: list[list[int]], document: list[int] | None = None) -> Selection:
    """Made by hand: so many neurons in each LLM layer of domain "common", so many vision neurons of "document"."""
    masks = torch.zeros(len(per_layer), 100, 2, dtype=torch.bool)
    for layer, (first, second) in enumerate(per_layer):
        masks[layer, :first, 0] = True
        masks[layer, :second, 1] = True
    parameters = {"fraction": 0.01, "percentile": 0.95, "kinds": {}}
    empty = torch.zeros(len(per_layer), 100, dtype=torch.float64)
    return Selection(
        "<m>", ("common", "document"), {"llm.mlp.act": masks}, {"llm.mlp.act": empty}, {}, {}, {}, {}, parameters
    )


def test_turning_points_and_shares_by_hand():
    rises_falls_rises = selection_of([[1, 0], [5, 0], [2, 0], [2, 0], [6, 0]])
    finding = turning_points(Evidence(rises_falls_rises), [rises_falls_rises] * 3)
    assert (finding.value, finding.low, finding.high, finding.verdict) == (2.0, 2.0, 2.0, "holds")
    rising = selection_of([[1, 0], [2, 0], [3, 0]])
    assert turning_points(Evidence(rising), [rising] * 3).verdict == "does not hold"
    assert turning_points(Evidence(rises_falls_rises), [rising, rises_falls_rises] * 5).verdict == "not decided"
    share = largest_share(Evidence(rises_falls_rises), [rises_falls_rises] * 3)
    assert share.value == pytest.approx(100 * 16 / 500)
    (claim, *_) = claims([Evidence(rises_falls_rises)], resamples=2)
    assert claim.findings[0].verdict == "not decided"


def test_the_interval_of_silent_neurons_holds_their_number():
    # Neurons active in one bucket of sixteen each: a resample misses about a third of them.
    active = torch.zeros(16, 1, 1, 40, dtype=torch.int64)
    active[torch.arange(32) % 16, 0, 0, torch.arange(32)] = 1
    site = "vision.mlp.act"
    tokens = torch.full((16, 1), 5)
    counts = Counts("m", "common", {site: active}, {site: tokens}, {site: ("image",)}, 8)
    found = silent_in_vision(Evidence(selection_of([[1, 1]]), [counts]), 100, 0)
    assert found.value == 8
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 8 <= found.high
    assert found.low < found.high
    assert found.verdict == "holds"


def test_the_papers_numbers_stand_beside_its_own_models_only():
    table = paper_numbers.accuracy("llava-hf/llava-v1.6-vicuna-7b-hf")
    assert table is not None
    row = table.filter((pl.col("module") == "All") & (pl.col("domain") == "remote_sensing"))
    assert row["accuracy"].to_list() == [38.5]
    assert paper_numbers.neurons("Salesforce/instructblip-vicuna-7b", 0.05)["neurons"].sum() == 17065 + 5229 + 28946  # type: ignore[index]
    assert paper_numbers.deviation("llava-hf/llava-v1.6-vicuna-13b-hf") is None
    assert paper_numbers.entropy("llava-hf/llava-v1.6-vicuna-13b-hf") is not None
    assert paper_numbers.neurons(MODEL, 0.01) is None


def test_latex_escapes_what_it_would_read_as_a_command():
    frame = pl.DataFrame({"a_b": ["50 % & <x>"], "n": [-1.5]})
    text = latex.latex(frame, "Costs $5", decimals=1)
    assert "a\\_b & n \\\\" in text
    assert r"50 \% \& \textless{}x\textgreater{} & $-$1.5 \\" in text
    assert r"\caption{Costs \$5}" in text
    assert r"\begin{tabular}{lr}" in text


def test_official_scores_where_a_corpus_has_them(run, tmp_path):
    answers = [one for one in Answers.load(run / "answers" / f"{NAME}.jsonl") if one.domain == "document"]
    questions = asked(Store(run))
    samples = {"document": [replace(one, options=()) for one in questions.evaluation["document"]]}
    spelt = [replace(one, answer=one.answers[0] + "x") for one in answers]
    scores = score_answers(spelt, samples, {"document": "DocVQA"})
    for one in spelt:
        right = one.answers[0]
        # ANLS: one letter too many, unless half of the answer or more is wrong.
        expected = 1 - 1 / (len(right) + 1) if 1 / (len(right) + 1) < 0.5 else 0.0
        assert scores.values[one.module, one.condition, one.neurons_of, one.domain, one.id] == pytest.approx(expected)
    scores.save(tmp_path / "scores.jsonl")
    assert OfficialScores.load(tmp_path / "scores.jsonl") == scores
    plain = score_answers(answers, samples, {"document": "LingoQA"})
    assert plain.notes == ("LingoQA was not scored by Lingo-Judge, whose weights were not given (--judge).",)


def test_published_corpora_through_their_own_readers_and_scores(tmp_path):
    write_all(tmp_path / "corpora", images=2)
    record = (tmp_path / "corpora" / "docvqa" / "train_v1.0_withQT.json").read_text()
    broken = json.loads(record)
    broken["data"][0]["question"] = ""
    (tmp_path / "corpora" / "docvqa" / "train_v1.0_withQT.json").write_text(json.dumps(broken))
    said: list[str] = []
    plan = replace(LITTLE, budget=400, cross=False, random_draws=0, ablation_draws=0, deviation_questions=1)
    plan = replace(plan, **dict.fromkeys(BEYOND, 0))
    out = tmp_path / "run"
    arguments = {"models": [MODEL], "corpora": tmp_path / "corpora", "questions": 2}
    whole.paper_command(Store(out, say=said.append), plan, **arguments)
    assert f"1 records are skipped and named in {out / 'problems.txt'}" in said
    scores, key = OfficialScores.load_with_key(out / "official_scores" / f"{NAME}.jsonl")
    assert key is not None
    assert list(scores.metrics) == ["common", "remote_sensing", "medical", "document", "auto_driving"]
    assert "ANLS" in scores.metrics["document"]
    html = (out / "index.html").read_text()
    assert "LingoQA was not scored by Lingo-Judge, whose weights were not given (--judge)." in html
    assert {"VQAv2", "RSVQA-HR", "PMC-VQA", "DocVQA", "LingoQA"} == set(key["corpora"].values())
    listed = SampleList.load(out / "samples" / "identification" / "document.json")
    counts = Counts.load(out / "counts" / NAME / "document.safetensors")
    assert counts.samples == len(listed.ids)


def test_as_many_frames_as_fit(tmp_path):
    lens = tiny_lens("llava_next")
    files = []
    for number, picture in enumerate(pictures(*[(64, 64)] * 5)):
        picture.save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    sample = Sample("a", "common", tuple(files), "why", ("yes",))
    limit = lens.module.config.get_text_config().max_position_embeddings
    for new, expected in ((10, 2), (100, 1)):
        (fitted,) = with_frames_that_fit(lens, [sample], "evaluation", new)
        assert len(fitted.images) == expected
        batch, _ = encode(lens, [fitted], "evaluation")
        assert batch is not None
        assert batch.prompt_length + new <= limit
    assert with_frames_that_fit(tiny_lens("instructblip"), [sample], "evaluation", 1) == [sample]


PROBLEMS = {
    "no models": (["paper"], "say which models: --embedded, or --model with a folder or hub id"),
    "no questions": (
        ["paper", "--model", "somewhere/else"],
        "say which questions: --corpora with published corpora, or --corpus with a questions.jsonl.",
    ),
    "two corpora": (["paper", "--embedded", "--corpora", "a", "--corpus", "b"], "give one of them."),
    "another way": (["paper", "--embedded", "--off", "flip", "--out", "{out}"], "no way 'flip' to switch neurons"),
    "no run": (["report", "{out}"], "holds no run of the paper; make one with `mmneuron paper --embedded --out"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_cannot_be_run_is_said_in_one_line(name, tmp_path):
    arguments, expected = PROBLEMS[name]
    result = mmneuron(*(argument.format(out=tmp_path) for argument in arguments))
    assert result.exit_code == 1
    assert expected in result.stderr
    assert "\n" not in result.stderr.strip()


def test_the_run_says_what_it_was_made_with(run):
    described = json.loads((run / "paper.json").read_text())
    assert described["models"] == [MODEL]
    assert described["plan"]["generation"]["num_beams"] == 2
    answers, key = Answers.load_with_key(run / "answers" / f"{NAME}.jsonl")
    assert key == answers.settings
    assert key["selection"] == content_hash(run / "selection" / f"{NAME}.safetensors")
    assert key["generation"]["num_beams"] == 2


def test_what_is_not_in_the_paper_stands_behind_it_and_says_so(run):
    html = (run / "index.html").read_text()
    sections = {name: body for name, body in re.findall(r'<section id="([^"]*)">(.*?)</section>', html, re.DOTALL)}
    case, more = sections["figure-6"].split(f"<h3>{HEADING}</h3>")
    assert case.count('<table class="heat">') == 2
    assert '<div class="lens"' in case
    assert re.findall(r"<caption>([^<]*)</caption>", more) == ["Logit lens", "Jacobian lens", "Nearest words"] * 2
    assert re.findall(r"<caption>([^<]*)</caption>", sections["figures-10-13"])[2:] == [
        *(["Logit lens", "Jacobian lens", "Nearest words"] * 2),
    ]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", sections["figure-7"], re.DOTALL)
    assert ["Not in the paper" in one for one in captions] == [False, True]
    assert "Not in the paper; arXiv 2411.18620." in sections["flow"]
    assert f"The Q-Former of {MODEL} reads the question before the language model does" in sections["flow"]
    assert "Not in the paper. Ridge regression" in sections["probes"]
    for stem in ("entropy_jacobian", f"flow_{NAME}", "probes"):
        assert (run / "figures" / f"{stem}.png").read_bytes()[:4] == b"\x89PNG"


def test_numbers_beyond_the_paper_are_those_of_the_artifacts(run):
    found = KnockOutFlow.load(run / "flow" / NAME / "remote_sensing.safetensors")
    table = pl.read_csv(run / "tables" / "flow.csv").filter(pl.col("domain") == "remote_sensing")
    assert found.asked == LITTLE.flow_questions
    assert table["change"].to_list() == pytest.approx(found.change().mean(-1).flatten().tolist())
    read = LayerProbes.load(run / "probes" / f"{NAME}.safetensors")
    table = pl.read_csv(run / "tables" / "probes.csv")
    assert table["accuracy"].to_list() == pytest.approx((100 * read.accuracy()).flatten().tolist())
    assert len(read.labels) == 2 * 4
    (traces, near) = (
        kind.load(run / folder / NAME / "document.safetensors")
        for kind, folder in ((LensTrace, "traces_jacobian"), (Neighbours, "neighbours"))
    )
    own = LensTrace.load(run / "traces" / "1" / NAME / "document.safetensors")
    assert own.id == traces.id == near.id
    assert own.labels == traces.labels == near.labels
    # At the last layer the Jacobian lens is the logit lens.
    assert torch.equal(own.tokens[-1], traces.tokens[-1])
    bank = TextStates.load(run / "text_states" / f"{NAME}.safetensors")
    assert near.parameters["states in the bank"] == len(bank.tokens)
    entropies = Entropies.load(run / "entropies_jacobian" / NAME / "document.safetensors")
    table = pl.read_csv(run / "tables" / "entropy_jacobian.csv").filter(pl.col("domain") == "document")
    assert table["entropy"].to_list() == pytest.approx(entropies.mean().T.flatten().tolist())


def test_without_what_goes_beyond_the_paper_the_page_is_as_it_was_and_says_so(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for folder in ("flow", "probes", "entropies_jacobian", "traces_jacobian", "neighbours"):
        shutil.rmtree(tmp_path / "run" / folder)
    left = [ModelRun(tmp_path / "run", MODEL)]
    assert flow(left).missing == "no attention was cut."
    assert probes(left).missing == "no probes were fitted."
    assert not any(HEADING in part for part in figure_6(left).after)
    assert [one.name for one in figure_7(left).pictures] == ["figure_7_entropy"]
    assert any(HEADING in part for part in figure_6([ModelRun(run, MODEL)]).after)


def test_a_plan_without_it_leaves_it_out(tmp_path):
    with pytest.raises(InvalidValue, match="probe_images is -1; give 0, which leaves it out, or more"):
        replace(LITTLE, probe_images=-1)
    lens = tiny_lens("llava")
    nothing = replace(LITTLE, **dict.fromkeys(BEYOND, 0))
    read_further(lens, {"common": []}, {"common": []}, {}, nothing, Store(tmp_path), {})
    assert not any(tmp_path.iterdir())
