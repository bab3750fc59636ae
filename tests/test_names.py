"""Whatever a model or domain is called, every place that shows the name shows it, and none obeys it."""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from matplotlib.lines import Line2D
from strange_names import DOMAINS, IMAGE, MODELS, strange_run

from interventions.printable import printable
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.echo import echo, plain
from mmneuron_lens.report import figures, page
from mmneuron_lens.report.csv_files import csv, read_csv
from mmneuron_lens.report.heat import Heat, heat_table
from mmneuron_lens.report.html_text import html, visible
from mmneuron_lens.report.latex import escaped, latex
from mmneuron_lens.report.lettering import lettered_domains, lettered_titles
from mmneuron_lens.report.terminal import terminal_tables

ROOT = Path(__file__).parent.parent
SHOWN = [printable(model) for model in MODELS]
FORMULAS = ("=1+1", "+1", "-5", "@x", "\tx", "\rx", "\nx", " =a", "'=a", "''-a", "＝x", "\u3000＠x")
HARMLESS = ("'a", "a=1", "007", "null", 'a,"b', "−1.4", " lead", "日本")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return strange_run(tmp_path_factory.mktemp("strange"))


class Elements(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_pages_hold_names_as_text(run):
    text = (run[0] / "index.html").read_text()
    elements = Elements(text)
    assert not [one for one, _ in elements.found if one in ("object", "iframe", "link", "base", "form")]
    for tag, attributes in elements.found:
        assert not [key for key in attributes if key.startswith("on")], (tag, attributes)
        assert tag != "img" or str(attributes["src"]).startswith("data:image/png;base64,")
        assert tag != "a" or str(attributes["href"]).startswith("#") or attributes["href"] == "neurons/index.html"
    scripts = [attributes for tag, attributes in elements.found if tag == "script"]
    assert [one for one in scripts if "type" not in one] == [{}]
    said = "".join(elements.text)
    assert [one for one in [*SHOWN, *DOMAINS] if one not in said] == []
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_a_terminal_shows_every_name(run):
    out, answered = run
    # A progress bar goes back to the beginning of its line.
    assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", answered.stdout + answered.stderr)
    shown = list(terminal_tables(out / "index.html"))
    headings = [str(column.header) for column in shown[0].columns][1:]
    assert headings == [{"neurons off in": "neurons off in (domain)"}.get(one, one) for one in first_order(out)]
    assert {title for one in shown for title in SHOWN if str(one.title).endswith(title)} == {*SHOWN}
    assert all(one in answered.stdout for one in ("[/] :smile:", "$x_$ %", "_hid_den", "[bold]@SUM(1)"))


def first_order(out: Path) -> list[str]:
    return read_csv(out / "tables" / "neurons_per_domain.csv")["domain"].unique(maintain_order=True).to_list()


def test_csv_is_no_formula_and_is_read_back(run):
    files = sorted((run[0] / "tables").rglob("*.csv"))
    assert len(files) > 10
    for file in files:
        plainly = pl.read_csv(file, infer_schema=False)
        cells = [*plainly.columns, *(str(cell) for row in plainly.iter_rows() for cell in row)]
        assert [cell for cell in cells if re.match(r"\s*[=+@\t\r]|\s*-[^0-9]", cell)] == [], file.name
        frame = read_csv(file)
        if "domain" in frame.columns and file.stem != "corpora":
            assert set(frame["domain"]) <= set(DOMAINS), file.name
        if "model" in frame.columns:
            assert set(frame["model"]) <= set(SHOWN)


def test_csv_marks_text_alone_and_takes_the_mark_away_again(tmp_path):
    names = [*FORMULAS, *HARMLESS]
    frame = pl.DataFrame({"domain": names, "=h": [-1.5] * len(names), "n": [-3] * len(names)})
    (tmp_path / "a.csv").write_bytes(csv(frame).encode())
    assert read_csv(tmp_path / "a.csv").equals(frame)
    raw = pl.read_csv(tmp_path / "a.csv")
    assert raw.columns == ["domain", "'=h", "n"]
    assert raw["domain"].to_list() == [*(f"'{one}" for one in FORMULAS), *HARMLESS]
    assert (raw["'=h"].sum(), raw["n"].sum()) == (-1.5 * len(names), -3 * len(names))


def commands_in(text: str) -> list[str]:
    """What TeX reads as commands, cells and ends of rows; fails where braces or special characters do not add up."""
    assert text.isascii()
    found, depth, place = [], 0, 0
    while place < len(text):
        one = text[place]
        token = re.match(r"\\([a-zA-Z]+|.)", text[place:], re.DOTALL)
        if token:
            found.append(token[0])
            place += len(token[0])
            following = re.match(r"\s*(.?)", text[place:], re.DOTALL)
            if token[0] in ("\\\\", "\\toprule", "\\midrule", "\\bottomrule"):
                assert following is None or following[1] not in ("[", "*", "("), text[place : place + 40]
            continue
        depth += (one == "{") - (one == "}")
        assert depth >= 0
        found += [one] if one in "&%#_^~$" else []
        place += 1
    assert depth == 0
    return found


def test_latex_reads_no_name_as_a_command(run):
    allowed = {
        *(r"\begin", r"\end", r"\centering", r"\caption", r"\toprule", r"\midrule", r"\bottomrule", "\\\\", r"\par"),
        *(r"\usepackage", r"\footnotesize", r"\textbackslash", r"\textless", r"\textgreater", r"\textbar", r"\texttt"),
        *(r"\char", r"\{", r"\}", r"\&", r"\%", r"\$", r"\#", r"\_", r"\dag", r"\times", "&", "%", "$"),
    }
    files = sorted((run[0] / "tables").rglob("*.tex"))
    assert len(files) > 10
    for file in files:
        text = file.read_text()
        found = commands_in(text)
        assert set(found) <= allowed, file.name
        assert found.count("%") == 1
        assert found.count("$") % 2 == 0
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
        assert columns is not None
        rows = text.split("\\toprule\n")[1].split("\\bottomrule")[0].replace("\\midrule\n", "").splitlines()
        assert {len(re.findall(r"(?<!\\)&", one)) + 1 for one in rows} == {len(columns[1])}, file.name
        assert all(one.endswith(" \\\\") for one in rows)


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("[/] *", "{[}/] {*}"),
        ("a--b ''c`` ?` ,,", "a-{}-b '{}'c`{}` ?{}` ,{},"),
        ("a\n\nb\tc", "a  b c"),
        ("é ñ ï č ß ø", "\\'{e} \\~{n} \\\"{\\i} \\v{c} \\ss{} \\o{}"),
        ("日 \x1b \u202e", "U+65E5 U+001B U+202E"),
        ("“x” – 1−2 …", "``x'' -- 1$-$2 \\ldots{}"),
    ],
)
def test_latex_is_ascii_on_one_line(text, tex):
    assert escaped(text) == tex
    commands_in(tex)
    assert "\n\n" not in latex(pl.DataFrame({text: [text]}), text, notes=[text])


def test_figures_keep_every_name_apart_and_in_the_picture():
    names = (*DOMAINS, "common", "Common Scenes", "a\nb", "\u202eabc", "$\\frac$")
    shown = lettered_domains(names)
    assert len(set(shown.values())) == len(names)
    assert max(map(len, shown.values())) <= 32
    assert shown["$\\frac$"] == "$\\frac$"
    assert lettered_titles(["y" * 300, "y" * 301])[1].endswith("… (2)")
    with figures.themed("light"):
        handles = [Line2D([], [], label=name) for name in shown.values()]
        figure, axes = figures.panels(["y" * 300, *MODELS], 2.0, handles)
        axes[0].set_yticks(range(len(shown)), list(shown.values()))
    # Warnings are errors: every glyph is there, and the layout was applied.
    assert figures.png(figure)[:4] == b"\x89PNG"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(shown.values())
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert all(panel.get_position().height > 0.05 for panel in axes)
    assert not any(text.get_parse_math() for text in (*legend.get_texts(), *axes[0].get_yticklabels()))


def test_echo_and_cells_show_text_as_it_is_written(capsys):
    echo("a\nb\x1b]0;t\x07\x9b\r\u202e é\u3000日")
    assert capsys.readouterr().out == "a\nb\\x1b]0;t\\x07\\x9b\\r\\u202e é\u3000日\n"
    assert str(plain("[/] :smile: [link=x]\x1b")) == "[/] :smile: [link=x]\\x1b"


def test_fragments_of_a_notebook_hold_text_alone():
    frame = pl.DataFrame({IMAGE: [f"{IMAGE}\u202e", "x" * 299 + "y"]})
    heat = heat_table(Heat((IMAGE,), ((IMAGE,),), ((0.5,),)), IMAGE)
    for text in (table_html(frame), heat, html("<b>{}</b>", IMAGE)):
        assert "<img" not in text
        assert "&lt;img" in text
        assert "\u202e" not in text
    assert "x" * 299 + "y" in table_html(frame)
    assert 'class="tex2jax_ignore mathjax_ignore"' in table_html(frame)
    assert visible("a\u2066b\udcff") == "a\\u2066b\\udcff"


def called(tree: ast.AST) -> list[str]:
    """Names of the functions and methods that a module calls."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in calls]


EDGES = {
    "Markup": {*(f"report/{one}.py" for one in ("html_text", "hover", "page", "heat")), "runs/loaded_run.py"},
    "write_csv": {"report/csv_files.py"},
    "secho": set(),
    "from_markup": set(),
}
"""Functions that go round an edge, and the files that may call them."""


def test_each_edge_is_one_function():
    for file in sorted((ROOT / "mmneuron_lens").rglob("*.py")):
        name, text = file.relative_to(ROOT / "mmneuron_lens").as_posix(), file.read_text()
        found = called(ast.parse(text))
        assert [one for one, files in EDGES.items() if one in found and name not in files] == [], name
        assert name == "echo.py" or "typer.echo" not in text, name
        assert "rich.markup" not in text, name
        assert "parse_math" not in text or name == "report/figures.py", name
        if "from rich.table import Table" in text:
            assert "plain(" in text, name
    template = (ROOT / "mmneuron_lens" / "report" / "page.html.jinja").read_text()
    assert not re.search(r"\|\s*safe|autoescape|\bon[a-z]+=", template)
    environment = page._environment()
    assert (environment.autoescape, environment.finalize) == (True, visible)
