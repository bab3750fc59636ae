"""The page of neurons and their cards: what they hold is what the artifacts hold, and no name in them is a command."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from neuron_inputs import HOSTILE, WHY, Made, peak, rows_of, write_run
from PIL import Image

import mmneuron_lens as mm
from interventions.printable import printable
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.paper.neurons_page import pages_beside, publish_neurons
from mmneuron_lens.report.looks import colours_of
from mmneuron_lens.report.neuron_document import neuron_document
from mmneuron_lens.report.neuron_maps import RAMP, coloured, enlarged, outline, outline_level
from mmneuron_lens.report.neuron_sources import NeuronSources, Written, domains_in, most_specific
from mmneuron_lens.report.page import Page, render


def read(file: Path) -> tuple[str, object]:
    """A file of data as a second reader has it: a call with a name and JSON."""
    found = re.fullmatch(r'neuronData\("([a-z]+-[0-9a-f]{12}\.js)",(.*)\);\n', file.read_text(), re.DOTALL)
    assert found is not None, file
    return found[1], json.loads(found[2])


class Index(HTMLParser):
    """The elements of a page, their attributes, and the JSON of the run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.within, self.run, self.text = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.within = str(dict(attrs).get("type") or tag)

    def handle_data(self, data):
        self.run += data if self.within == "application/json" else ""
        self.text += data if self.within not in ("application/json", "script", "style") else ""

    def handle_endtag(self, tag):
        self.within = ""


def read_page(folder: Path) -> tuple[dict, list[dict], list[list[dict]]]:
    """What the page says of its run, and by model its table and its cards, through the names that it gives."""
    facts = json.loads(Index((folder / "index.html").read_text()).run)
    tables, cards = [], []
    for model in facts["models"]:
        files = [model["table"], *model["chunks"]]
        found = [read(folder / name) for name in files]
        assert [name for name, _ in found] == files
        tables.append(found[0][1])
        cards.append([card for _, chunk in found[1:] for card in chunk])
    return facts, tables, cards


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two models: one with everything, one of hostile names whose measurements were not run."""
    torch.set_num_threads(1)
    out = write_run(tmp_path_factory.mktemp("neurons"), Made(share=0.05), replace(HOSTILE, measured=False))
    publish_neurons(out)
    return out


def test_the_tables_data_are_the_frame(run):
    _, tables, _ = read_page(run / "neurons")
    for made, table in zip((Made(), HOSTILE), tables, strict=True):
        rows, columns = rows_of(run, made.model), table["columns"]
        sites = [site["site"] for site in table["sites"]]
        assert [sites[one] for one in columns["site"]] == [row["site"] for row in rows]
        for name in ("layer", "neuron", "selected", "reaches_logits", "entropy", "log_odds", "log_odds_low",
                     "attribution", "attribution_rank", "effect", "effect_low", "effect_high",
                     "effect_rank"):  # fmt: skip
            assert columns[name] == [row[name] for row in rows], name
        assert [made.domains[one] for one in columns["domain"]] == [row["domain"] for row in rows]
        assert [[made.domains[one] for one in some] for some in columns["domains"]] == [row["domains"] for row in rows]
        for site in table["sites"]:
            assert (site["layers"], site["neurons"]) == made.sizes[site["site"]]
            assert site["unreachable"] == ([3] if site["site"] == "vision.mlp.act" else [])


def test_each_card_is_its_neurons_examples_and_numbers(run):
    _, _, cards = read_page(run / "neurons")
    examples = NeuronExamples.load(run / "examples" / "made+model.safetensors")
    rows = rows_of(run, "made/model")
    assert len(cards[0]) == len(rows) == 99
    for row, card in zip(rows, cards[0], strict=True):
        assert (card["site"], card["layer"], card["neuron"]) == (row["site"], row["layer"], row["neuron"])
        assert (card["odds"]["value"], card["odds"]["low"]) == (row["log_odds"], row["log_odds_low"])
        assert (card["unreachable"] == "") is row["reaches_logits"]
        assert WHY in card["unreachable"] or row["reaches_logits"]
        (kind, bars), *by_kind = card["bars"]
        assert (kind, [bar[1] for bar in bars]) == ("", [row[f"p_{domain}"] for domain in Made().domains])
        for kind, some in by_kind:
            assert [bar[1] for bar in some] == [row[f"p_{domain}_{kind}"] for domain in Made().domains]
        assert {kind for kind, _ in by_kind} == {
            kind for kind in ("cls", "patch", "image", "text") if row[f"p_medical_{kind}"] is not None
        }
        site = row["site"]
        place = examples.neurons[site].tolist().index([row["layer"], row["neuron"]])
        assert len(card["examples"]) == 4
        for rank, one in enumerate(card["examples"]):
            sample = examples.samples[examples.sample[site][place, rank]]
            assert (one["id"], one["question"], one["answers"]) == (sample.id, sample.question, [*sample.answers])
            assert base64.b64decode(one["map"]) == examples.maps[site][place, rank].numpy().tobytes()
            assert one["maximum"] == examples.map_maximum[site][place, rank].item()
            assert one["activation"] == f"{examples.activation[site][place, rank].item():.2f}"
            box = examples.box[site][place, rank].tolist()
            assert (one["box"] is None) is math.isnan(box[0])
            assert one["box"] is None or one["box"] == pytest.approx(box, abs=1e-4)
            picture = run / "neurons" / one["picture"]
            assert picture.stem == sample.images[0][0][:16]
            with Image.open(picture) as own:
                width, height = own.size
            assert one["ratio"] == pytest.approx(width / height, abs=1e-3)


def test_words_around_a_word_are_tinted_and_image_positions_are_one(run):
    _, _, cards = read_page(run / "neurons")
    on_words = [card for card in cards[0] if card["site"] == "llm.mlp.act" and card["neuron"] % 4 == 0]
    assert on_words
    for card in on_words:
        # The position is the fifth word behind 40 positions of the image; 12 before it are shown, as many behind.
        assert card["examples"][0]["words"] == [
            [8, 0, 0], ["What", 0, 0], [" is", 0, 0], [" to", 40, 0], [" be", 0, 0], [" seen", 255, 1], [" in", 120, 0],
            [" this", 60, 0], [" picture", 0, 0], ["?", 0, 0], ["Assistant", 0, 0], [":", 0, 0],
        ]  # fmt: skip
    assert all(card["examples"][0]["words"] == [] for card in cards[0] if card not in on_words)


def test_what_was_not_run_is_said_with_its_command(run, tmp_path):
    _, _, cards = read_page(run / "neurons")
    assert [one for card in cards[0] for one in card["missing"] if "words it writes" not in one] == [
        "Its own effect was not measured: `mmneuron neurons RUN --effects 20 --model ... --corpus ...`."
        for row in rows_of(run, "made/model")
        if row["effect"] is None
    ]
    assert all("mmneuron neurons RUN --attributions" in card["missing"][1] for card in cards[1])
    bare = write_run(tmp_path / "bare", Made(examples=False, shapes={"llm.mlp.act": (2, 20)}), pictures=False)
    (bare / "selection" / "made+model.safetensors").unlink()
    publish_neurons(bare)
    _, (table,), (found,) = read_page(bare / "neurons")
    assert all(card["examples"] == [] and "mmneuron neurons RUN" in card["unseen"] for card in found)
    assert table["domains"] == ["Common Scenes", "Remote Sensing", "Medical", "Document", "Auto Driving"]
    with pytest.raises(mm.MMNeuronError, match="mmneuron select"):
        publish_neurons(tmp_path)


def test_the_selected_come_first_then_the_largest_log_odds(tmp_path):
    out = write_run(tmp_path, Made(unselected=True, examples=False, shapes={"llm.mlp.act": (3, 50)}), pictures=False)
    index = publish_neurons(out, most=40)
    facts, (table,), (cards,) = read_page(index.parent)
    rows = rows_of(out, "made/model")
    assert [(card["layer"], card["neuron"]) for card in cards] == [(row["layer"], row["neuron"]) for row in rows[:40]]
    assert [card["selected"] for card in cards] == [True] * 15 + [False] * 25
    assert facts["models"][0]["kept"].startswith("40 of 150 neurons have a card: the selected ones")
    others = [0] * 150
    for row in rows[40:]:
        others[50 * row["layer"] + row["neuron"]] = 1 + Made().domains.index(row["domain"])
    assert list(base64.b64decode(table["sites"][0]["others"])) == others
    with pytest.raises(mm.MMNeuronError, match="1 or more"):
        publish_neurons(out, most=0)


def test_the_same_inputs_are_the_same_bytes_and_old_files_go(run):
    folder = run / "neurons"
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    (folder / "cards-000000000000.js").write_text("old")
    (folder / "own.js").write_text("a user's")
    publish_neurons(run)
    (folder / "own.js").unlink()
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


def test_no_name_is_an_element_or_ends_a_script(run):
    folder = run / "neurons"
    for file in folder.glob("*.js"):
        assert "<" not in file.read_text()
    text = (folder / "index.html").read_text()
    page = Index(text)
    assert {tag for tag, _ in page.found} <= {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "p", "h1", "a", "details", "summary"),
        *("kbd", "section", "div", "form", "label", "span", "select", "option", "input", "noscript", "footer"),
        *("dialog", "button", "script", "wbr"),
    }
    assert not [key for _, attributes in page.found for key in attributes if key.startswith("on") or key == "style"]
    assert [one for tag, one in page.found if tag == "script"] == [{"type": "application/json", "id": "run"}, {}]
    assert {str(one["href"]) for tag, one in page.found if tag == "a"} == {
        *("../index.html", "../neurons.csv", "../neurons.parquet"),
    }
    assert printable(HOSTILE.model) in page.text
    assert not re.search("[\u202e\x1b]", text)
    _, tables, cards = read_page(folder)
    assert tables[1]["domains"] == [printable(one) for one in HOSTILE.domains]
    said = json.dumps([cards[1]], ensure_ascii=False)
    assert not re.search("[\u202e\x1b\u2028]", said)
    assert {one["question"] for card in cards[1] for one in card["examples"]} == {printable(HOSTILE.question)}
    # The policy names the script and the style as they are, so that no other one is allowed.
    policy = next(str(one["content"]) for tag, one in page.found if "http-equiv" in one)
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_a_card_in_a_notebook_shows_the_same_without_a_script(run):
    row = rows_of(run, "made/model")[0]
    card = mm.neuron(run, row["site"], row["layer"], row["neuron"], model="made/model")
    page = Index(card._repr_html_())
    assert not {"script", "iframe", "object", "link", "form"} & {tag for tag, _ in page.found}
    pictures = [str(one["src"]) for tag, one in page.found if tag == "img"]
    assert len(pictures) == 8
    assert all(one.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for one in pictures)
    said = neuron_document(card._sources, card._place)
    for text in (f"{row['layer']}/{row['neuron']}", said["odds"]["text"], said["attribution"]["text"], Made().question):
        assert text in page.text
    own = card.to_frame().to_dicts()[0]
    assert own == {name: row[name] for name in own}
    assert [name for name in row if name not in own and row[name] is not None] == []
    assert card.examples()["activation"].to_list() == sorted(card.examples()["activation"], reverse=True)
    assert len(card.examples()) == 4
    figure = card.figure()
    assert [len(panel.images) for panel in figure.axes] == [2, 2, 2, 2, 0, 0]
    bars = {bar.get_width() for bar in figure.axes[4].patches}
    assert bars == {row[f"p_{domain}"] for domain in Made().domains}


def test_a_hostile_neuron_is_shown_as_text_in_a_notebook_too(run):
    row = rows_of(run, HOSTILE.model)[0]
    card = mm.neuron(run, row["site"], row["layer"], row["neuron"], model=HOSTILE.model)
    page = Index(card._repr_html_())
    assert not {"script", "iframe"} & {tag for tag, _ in page.found}
    assert not [key for _, attributes in page.found for key in attributes if key.startswith("on")]
    assert printable(HOSTILE.question, keep="\n\t") in page.text
    card.figure("dark")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("x.act", 0, 0), "choose a site from vision.mlp.act, projector.act, llm.mlp.act"),
        (("llm.mlp.act", 6, 0), "choose from 0 to 5"),
        (("llm.mlp.act", 0, 256), "choose from 0 to 255"),
        (("llm.mlp.act", 0, -1), "choose from 0 to 255"),
    ],
)
def test_a_neuron_that_is_not_there_names_the_choices(run, asked, said):
    with pytest.raises(mm.MMNeuronError, match=re.escape(said)):
        mm.neuron(run, *asked, model="made/model")


def test_a_model_that_is_not_there_names_the_choices(run, tmp_path):
    with pytest.raises(mm.MMNeuronError, match="say whose: model="):
        mm.neuron(run, "llm.mlp.act", 0, 0)
    with pytest.raises(mm.MMNeuronError, match="choose a model from made/model"):
        mm.neuron(run, "llm.mlp.act", 0, 0, model="other")
    with pytest.raises(mm.MMNeuronError, match="mmneuron select"):
        mm.neuron(tmp_path, "llm.mlp.act", 0, 0)
    (tmp_path / "neurons.parquet").write_bytes(b"PAR1")
    with pytest.raises(mm.MMNeuronError, match="is no table"):
        mm.neuron(tmp_path, "llm.mlp.act", 0, 0)


def test_what_a_neuron_writes_is_on_its_card():
    frame = pl.DataFrame({"model": "m", "module": "LLM", "site": "llm.mlp.act", "layer": [1], "neuron": [2],
                          "selected": True, "domains": [["a"]], "domain": "a", "p_a": 0.5, "p_b": 0.25,
                          "p_a_low": 0.4, "p_a_high": 0.6})  # fmt: skip
    written = {("llm.mlp.act", 1, 2): Written([(" cat", 2.5), ("\n", 1.25)], [("</script>", -3.0)], -0.0125)}
    sources = NeuronSources("m", frame, ("a", "b"), written=written, reachability=Reachability({}))
    card = neuron_document(sources, 0)
    assert card["writes"] == {
        "top": [[" cat", "2.50"], ["\\n", "1.25"]], "bottom": [["</script>", "−3.00"]],
        "contribution": "−0.0125", "missing": "",
    }  # fmt: skip
    assert card["bars"] == [["", [[0, 0.5, 0.4, 0.6, "0.50 [0.40, 0.60]"], [1, 0.25, None, None, "0.250"]]]]
    assert card["scale"] == 0.6
    assert card["missing"][-1].startswith("Its own effect")


def test_maps_are_enlarged_between_the_centres_of_cells():
    values = torch.from_numpy(peak(5, 17, 3.0))
    height, width = 48, 31
    found = enlarged(values, height, width).numpy()
    for row, column in ((0, 0), (10, 22), (11, 23), (47, 30), (20, 7)):
        down = min(max((row + 0.5) * 24 / height - 0.5, 0), 23)
        across = min(max((column + 0.5) * 24 / width - 0.5, 0), 23)
        y, x = min(int(down), 22), min(int(across), 22)
        corners = values[y : y + 2, x : x + 2].numpy().astype(float)
        weights = np.outer([1 - (down - y), down - y], [1 - (across - x), across - x])
        assert found[row, column] == pytest.approx((corners * weights).sum(), abs=1e-3)
    most = np.unravel_index(int(enlarged(values, 120, 120).argmax()), (120, 120))
    assert (most[0] // 5, most[1] // 5) == (5, 17)


def test_the_outline_goes_around_the_largest_twentieth():
    values = torch.from_numpy(peak(5, 17, 3.0))
    level = outline_level(values)
    assert level == pytest.approx(np.percentile(values.numpy(), 95))
    for line in outline(values, level):
        for x, y in line:
            down, across = min(max(24 * y - 0.5, 0), 23), min(max(24 * x - 0.5, 0), 23)
            top, left = min(int(down), 22), min(int(across), 22)
            corners = values[top : top + 2, left : left + 2].numpy().astype(float)
            weights = np.outer([1 - (down - top), down - top], [1 - (across - left), across - left])
            assert (corners * weights).sum() == pytest.approx(level, abs=1e-3)
    assert outline_level(torch.zeros(24, 24, dtype=torch.uint8)) is None
    one = torch.zeros(24, 24, dtype=torch.uint8)
    one[3, 3] = 255
    assert outline_level(one) == 0.5


def test_colours_grow_with_activation():
    shown = coloured(torch.tensor([[0.0, 63.75, 255.0]]))[0].tolist()
    assert [one[:3] for one in shown] == [list(RAMP[0]), list(RAMP[1]), list(RAMP[-1])]
    assert [one[3] for one in shown] == [0, 46, 184]


def test_domains_of_ones_own_have_colours_apart():
    own = colours_of(["medical", "a", "b", "c", "d"])
    assert own[0] == "#009E73"
    assert len({*own}) == 5


def test_domains_are_found_in_a_table_alone():
    frame = pl.DataFrame({"domain": ["a_image", "b"], "domains": [["a"], []], "p_a": 0.1, "p_b": 0.2, "p_a_image": 0.3,
                          "site": "s", "layer": 0, "neuron": [0, 1]})  # fmt: skip
    assert domains_in(frame) == ("a", "b", "a_image")
    frame = frame.with_columns(selected=pl.Series([False, True]), log_odds=pl.Series([3.0, None]))
    assert most_specific(frame, 1)["domain"].to_list() == ["b"]


def test_the_pages_of_a_run_link_to_its_neurons(run, tmp_path):
    assert pages_beside(tmp_path) == ()
    ((text, href),) = pages_beside(run)
    shown = render(Page("t", "l", (), (), beside=pages_beside(run)))
    assert f'<a href="{href}">{text} →</a>' in shown
    assert (run / href).is_file()


def test_a_table_of_a_selection_alone_and_examples_alone_have_cards(tmp_path):
    out = write_run(tmp_path / "a", Made(shapes={"llm.mlp.act": (2, 20)}, share=0.2), pictures=False)
    whole = pl.read_parquet(out / "neurons.parquet")
    whole.drop("selected", "domain", "log_odds", "effect").write_parquet(out / "neurons.parquet")
    publish_neurons(out)
    _, (table,), (cards,) = read_page(out / "neurons")
    domains = whole["domain"].to_list()
    assert [Made().domains[one] for one in table["columns"]["domain"]] == domains
    assert table["columns"]["selected"] == [1] * len(whole)
    some = whole.head(3)
    some.write_parquet(out / "neurons.parquet")
    publish_neurons(out, most=5)
    _, _, (cards,) = read_page(out / "neurons")
    assert [bool(card["bars"]) for card in cards] == [True] * 3 + [False] * 2
    assert all(card["examples"] for card in cards)
    (out / "neurons.parquet").unlink()
    publish_neurons(out)
    _, _, (cards,) = read_page(out / "neurons")
    assert sorted((card["layer"], card["neuron"]) for card in cards) == [*whole.select("layer", "neuron").iter_rows()]
    assert all("mmneuron select RUN" in card["missing"][0] for card in cards)
