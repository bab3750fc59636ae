"""Neurons that cannot reach the logits: known when they are counted, and marked wherever neurons are shown."""

from __future__ import annotations

from dataclasses import asdict, replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from conftest import ARCHITECTURES, tiny_lens
from drawn_corpus import write_corpus
from rich.console import Console

from mmneuron_lens.artifacts.answers import ALL, Answer, Answers
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.deviations import MEASURES, Deviations
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.reachability import UNREACHABLE, Reachability
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.experiments.conditions import conditions_of
from mmneuron_lens.experiments.count import count_domain, unreachable_layers
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.paper.page import PAPER, paper_of, write_described
from mmneuron_lens.paper.summary import summary_of
from mmneuron_lens.report.page import Page, write
from mmneuron_lens.report.terminal import terminal_tables
from mmneuron_lens.report.unreachable import HATCH, LEGEND, MARK
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.identify import select_stage
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.store import Store

SAYS = "cannot reach the logits"
PLACES = {"module", "site", "neurons off in", "neurons_of"}
"""Columns that say of which neurons a row is."""

NUMBERS = {"neurons": "reachable", "selected": "reachable", "memberships": "reachable", "silent": "reaches_logits"}
"""Columns that hold a number of neurons, and the column that says which of them reach the logits."""

OTHER_PICTURES = {"figure_2_embeddings", "figure_7_entropy"}
"""Figures of images and of tokens, not of neurons."""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Any:
    """A run of a tiny LLaVA-NeXT, whose projector reads the hidden state before the last: every section has content."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run")
    lens = tiny_lens("llava_next")
    samples = by_domain(read_folder(write_corpus(out / "corpus", images=6))[0])
    counts = count_stage(lens, samples, Store(out), corpus="drawn")
    (identified,) = select_stage(out, Store(out), fraction=0.2, percentile=0.6, permutations=2)
    model, selection = identified.selection.model, identified.selection
    digest, answers = content_hash(file_of(out, "selection", model)), []
    modules = (ALL, "Vision Encoder", "LLM")
    for domain, some in samples.items():
        conditions = conditions_of(selection, domain, modules=modules, random_draws=1, controls=[ALL], cross=True)
        answers += [
            Answer(model, one.module, one.condition, one.neurons_of, domain, asked.id, "?", ("a",), "a", digest)
            for one in conditions
            for asked in some
        ]
        named = [(one.module, one.condition) for one in conditions if one.neurons_of == domain]
        values = {name: torch.full((len(named), len(some)), 0.1, dtype=torch.float64) for name in MEASURES}
        ids, parameters = tuple(one.id for one in some), {"selection": digest}
        Deviations(model, domain, tuple(named), ids, values, parameters).save(file_of(out, "deviations", model, domain))
    Answers(tuple(answers), {}).save(file_of(out, "answers", model, suffix=".jsonl"))
    described = {"models": [model], "corpus": "drawn", "drawn": True, "plan": asdict(Plan()), "notes": [], "shared": 0}
    write_described(out / PAPER, described)
    return SimpleNamespace(lens=lens, out=out, counts=list(counts.values()), identified=identified, model=model)


@pytest.fixture(scope="module")
def pages(found) -> dict[str, Page]:
    return {"index": paper_of(found.out), "selection": summary_of([ModelRun(found.out, found.model)])}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_counts_say_what_the_proof_of_every_site_sees(architecture, tmp_path):
    """`lens.prove` changes each layer and looks at the logits."""
    lens = tiny_lens(architecture)
    samples, _ = read_folder(write_corpus(tmp_path, ("medical",), images=1))
    counts = count_domain(lens, samples)
    dead = {proof.site: proof for proof in lens.prove() if proof.site.endswith(".act") and proof.dead}
    known = counts.reachability
    assert known.known
    assert {site: known.layers(site) for site in known.sites or {}} == {
        site: tuple(layer or 0 for layer in proof.dead) for site, proof in dead.items()
    }
    assert {site: known.why(site) for site in dead} == {site: proof.says for site, proof in dead.items()}
    for site, active in counts.active.items():
        reached = [layer not in known.layers(site) for layer in range(active.shape[1])]
        assert known.mask(site, active.shape[1]).tolist() == reached
        assert [known.reaches(site, layer) for layer in range(active.shape[1])] == reached


def test_every_table_figure_and_page_marks_neurons_that_cannot_reach_the_logits(found, pages, tmp_path):
    seen: dict[str, set[str]] = {}
    for name, page in pages.items():
        write(page, tmp_path, name)
        folder = "" if name == "index" else name
        html = (tmp_path / f"{name}.html").read_text()
        for section in page.said:
            inside = html.split(f'<section id="{section.anchor}">')[1].split("</section>")[0]
            shows = [grid for grid in section.grids if PLACES & {*grid.frame.columns, *grid.file.columns}]
            for grid in shows:
                note = " ".join(grid.notes)
                assert f"{MARK} {found.model}: " in note, grid.name
                assert SAYS in note, grid.name
                assert "vision.mlp.act layer 2: the projector reads hidden state 2 of 3" in note, grid.name
                tex = (tmp_path / "tables" / folder / f"{grid.name}.tex").read_text()
                assert "\\dag{}" in tex, grid.name
                assert SAYS in tex, grid.name
                file = pl.read_csv(tmp_path / "tables" / folder / f"{grid.name}.csv")
                for column, says in NUMBERS.items():
                    if column in file.columns and grid.name not in ("tokens", "layer_distribution"):
                        assert {says, "reaches_logits"} & {*file.columns}, grid.name
                # More than the notes have: the rows are marked too, but where a row is of all modules at once.
                assert tex.count("\\dag{}") > len(grid.notes) or "neurons_of" in grid.frame.columns, grid.name
            assert not shows or inside.count(SAYS) >= 1, section.label
            for picture in section.pictures:
                if picture.name not in OTHER_PICTURES:
                    assert SAYS in picture.caption, picture.name
            seen[name] = seen.get(name, set()) | {grid.name for grid in shows}
    assert seen["index"] >= {
        *("neurons_per_domain", "selection", "neurons_per_domain_wider", "layer_distribution", "silent", "tokens"),
        *("control", "effect", "ablation_accuracy", "ablation_difference", "ablation_against_random", "ablation"),
        *("deviation", "deviation_measures", "cross"),
    }
    assert seen["index"] >= seen["selection"]


def test_the_numbers_are_those_of_the_masks(found, pages, tmp_path):
    selection = found.identified.selection
    lost = {site: {2} if site == "vision.mlp.act" else set() for site in selection.masks}
    write(pages["index"], tmp_path)

    def reached(site: str, mask: torch.Tensor) -> int:
        return sum(int(row.sum()) for layer, row in enumerate(mask) if layer not in lost[site])

    table = pl.read_csv(tmp_path / "tables" / "neurons_per_domain.csv")
    frame = selection.summary()
    for row in frame.iter_rows(named=True):
        mask = selection.neurons(row["domain"], row["site"])[row["site"]]
        assert row["reachable"] == reached(row["site"], mask)
        here = table.filter((pl.col("module") == row["module"]) & (pl.col("domain") == row["domain"]))
        assert here["reachable"].to_list() == [row["reachable"]]
    assert frame["reachable"].sum() < frame["neurons"].sum()
    summary = pl.read_csv(tmp_path / "tables" / "selection.csv")
    assert summary["reachable"].to_list() == [
        reached(site, selection.masks[site].any(-1)) for site in selection.masks
    ]  # fmt: skip
    control = pl.read_csv(tmp_path / "tables" / "control.csv")
    total = sum(reached(site, mask.any(-1)) for site, mask in selection.masks.items())
    assert control.filter(pl.col("module") == "All")["reachable"].to_list() == [total]
    effect = pl.read_csv(tmp_path / "tables" / "effect.csv")
    memberships = sum(reached(site, mask.sum(-1)) for site, mask in selection.masks.items())
    assert effect.filter(pl.col("module") == "All")["reachable"].to_list() == [memberships]
    layers = pl.read_csv(tmp_path / "tables" / "layer_distribution.csv")
    silent = pl.read_csv(tmp_path / "tables" / "silent.csv")
    for row in [*layers.iter_rows(named=True), *silent.iter_rows(named=True)]:
        assert row["reaches_logits"] == (row["layer"] not in lost[row["site"]])


def test_figures_by_layer_hatch_those_layers_only(pages):
    checked = 0
    for picture in (one for section in pages["index"].sections for one in section.pictures):
        if not picture.name.startswith(("figure_5", "figure_9")):
            continue
        for theme in ("light", "dark"):
            figure = picture.draw(theme)  # type: ignore[arg-type]
            assert LEGEND in [text.get_text() for text in figure.legends[0].get_texts()]
            for panel in figure.axes:
                hatched = [patch for patch in panel.patches if patch.get_hatch() == HATCH]
                title = panel.get_title(loc="left")
                assert [patch.get_x() for patch in hatched] == ([1.5] if title.startswith("Vision") else []), title
                checked += len(hatched)
    assert checked == 4


def test_values_in_jupyter_and_a_terminal_say_it(found, tmp_path, pages):
    selection, counts = found.identified.selection, found.counts[0]
    for value in (selection, counts, found.identified.controls.effects):
        assert "unreachable={'vision.mlp.act': [2]}" in repr(value)
    assert "reachable" in selection._repr_html_()
    rows = counts.to_frame().filter(pl.col("site") == "vision.mlp.act")
    assert rows["unreachable_layers"].unique().to_list() == ["2"]
    assert "unreachable_layers" in counts._repr_html_()
    assert "reaches_logits" in found.identified.controls.effects._repr_html_()
    console = Console(width=160, record=True, file=StringIO())
    for table in terminal_tables(write(pages["selection"], tmp_path)):
        console.print(table)
    text = console.export_text()
    lost = selection.selected("vision.mlp.act") - (selection.reachable("vision.mlp.act") or 0)
    assert f"Vision Encoder {MARK}" in text
    assert f"{MARK} in layers that cannot reach the logits: Vision Encoder: {lost}" in text


def test_what_cannot_reach_is_selected_like_all_others(found):
    """As the paper does: the marks change no number."""
    bare = [replace(one, provenance={**one.provenance, UNREACHABLE: {}}) for one in found.counts]
    own = found.identified.selection
    again = select(bare, 0.2, 0.6)
    for site, mask in own.masks.items():
        assert torch.equal(again.masks[site], mask)
    assert again.reachable() == sum(again.selected(site) for site in again.masks)
    assert own.off("common").interventions[0].bindings["neurons"].values.keys() == own.masks.keys()


def test_nothing_is_marked_where_all_reach_and_what_is_not_known_is_said(found, tmp_path):
    for sites, expected in (({}, False), (None, True)):
        facts = {name: value for name, value in found.counts[0].provenance.items() if name != UNREACHABLE}
        facts |= {} if sites is None else {UNREACHABLE: sites}
        out = tmp_path / str(expected)
        for one in found.counts:
            replace(one, provenance={**facts, "corpus": one.provenance["corpus"]}).save(
                file_of(out, "counts", one.model, one.domain)
            )
        select_stage(out, Store(out), fraction=0.2, percentile=0.6, permutations=2)
        page = summary_of([ModelRun(out, found.model)])
        html = write(page, out).read_text()
        assert SAYS not in html
        unknown = "hich layers can reach the logits was not kept"
        assert (unknown in html) == expected
        for grid in (grid for section in page.sections for grid in section.grids):
            shows = bool(PLACES & {*grid.frame.columns})
            assert (unknown in " ".join(grid.notes)) == (expected and shows), grid.name
        assert f"Vision Encoder {MARK}" not in html
        selection = Selection.load(file_of(out, "selection", found.model))
        assert selection.summary()["reachable"].is_null().all() == expected
        assert list(terminal_tables(out / "index.html"))


def test_counts_of_models_that_differ_in_it_are_not_selected_from_together(found):
    other = replace(found.counts[1], provenance={**found.counts[1].provenance, UNREACHABLE: {}})
    with pytest.raises(ValueError, match="provenance unreachable is"):
        select([found.counts[0], other])


def test_it_is_kept_with_the_file(found, tmp_path):
    for kind, value in (("c", found.counts[0]), ("s", found.identified.selection)):
        value.save(tmp_path / kind)
        back = type(value).load(tmp_path / kind)
        assert back.reachability == value.reachability
        assert back.reachability.layers("vision.mlp.act") == (2,)
    assert unreachable_layers(found.lens) == found.counts[0].provenance[UNREACHABLE]
    assert Reachability.of({}).reaches("llm.mlp.act", 0) is None
    assert isinstance(found.counts[0], Counts)
