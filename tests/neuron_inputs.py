"""A run with a table of neurons and what they answer to, made up: real pictures, maps with known maxima."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

import mmneuron_lens
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.artifacts.neuron_examples import AROUND, SIDE, NeuronExamples, ShownSample
from mmneuron_lens.artifacts.reachability import UNREACHABLE
from mmneuron_lens.artifacts.selection import Selection, module_of
from mmneuron_lens.corpora.sample import DOMAINS

IMAGES = Path(mmneuron_lens.__file__).parent / "embedded" / "images"
SHAPES = {"vision.mlp.act": (4, 96), "projector.act": (1, 64), "llm.mlp.act": (6, 256)}
WHY = "the last layer of the tower is not what the projector reads"
KINDS = {"vision.mlp.act": ("cls", "patch"), "projector.act": (), "llm.mlp.act": ("image", "text")}
QUESTION = "What is to be seen in this picture, and where in it?"
WORDS = ("User", ":", "What", " is", " to", " be", " seen", " in", " this", " picture", "?", "Assistant", ":")
IMAGE_TOKENS = 40


@dataclass(frozen=True)
class Made:
    """What to make: a share of the neurons is selected; with `unselected`, all others have a row too.

    - domains, model, question, answer, tokens: names and text, hostile ones for a test. k: examples a neuron.
    """

    model: str = "made/model"
    domains: tuple[str, ...] = DOMAINS
    shapes: dict[str, tuple[int, int]] | None = None
    share: float = 0.1
    unselected: bool = False
    examples: bool = True
    k: int = 4
    question: str = QUESTION
    answer: str = "a thing"
    words: tuple[str, ...] = WORDS
    measured: bool = True
    seed: int = 0

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        return SHAPES if self.shapes is None else self.shapes


IMAGE = "<img src=x onerror=alert(1)>"
HOSTILE = Made(
    model=f'x">{IMAGE}</script><script>alert(1)</script>',
    domains=(f"{IMAGE} $x_$", "=cmd|' /C calc'!A0", "neurons \u202e\x1b[31m", "</script><!--", "__proto__"),
    question=f"{IMAGE} \u202e</script><!-- $x_$ \x1b[31m \u2028",
    answer=f"</style>{IMAGE}",
    words=("</script>", f"{IMAGE}", "\u202e", "\n", "'", '"', "\\", "`", "$x_$", "&lt;", "\x1b", "日本", "😀"),
    shapes={"llm.mlp.act": (2, 40)},
    share=0.3,
)


def write_run(folder: Path, *models: Made, pictures: bool = True) -> Path:
    """Writes the run's table, selections, examples, and thumbnails."""
    frames = [_frame(made) for made in models]
    folder.mkdir(parents=True, exist_ok=True)
    pl.concat(frames, how="diagonal_relaxed").write_parquet(folder / "neurons.parquet")
    pl.concat(frames, how="diagonal_relaxed").drop("domains").write_csv(folder / "neurons.csv")
    for made, frame in zip(models, frames, strict=True):
        _selection(made, frame).save(folder / "selection" / f"{file_name(made.model)}.safetensors")
        if made.examples:
            _examples(made, frame).save(folder / "examples" / f"{file_name(made.model)}.safetensors")
    for file in sorted(IMAGES.glob("*.??g")) if pictures else ():
        picture = folder / "neurons" / "pictures" / f"{_digest(file)[:16]}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as own:
            own.convert("RGB").save(picture, quality=80)
    return folder


def _frame(made: Made) -> pl.DataFrame:
    draw = np.random.default_rng(made.seed)
    rows = []
    for site, (layers, neurons) in made.sizes.items():
        count = max(1, round(made.share * layers * neurons))
        chosen = {*draw.choice(layers * neurons, count, replace=False).tolist()}
        for flat in range(layers * neurons):
            if flat in chosen or made.unselected:
                rows.append(_row(made, site, *divmod(flat, neurons), flat in chosen, draw))
    return pl.DataFrame(rows, infer_schema_length=None, schema_overrides={"domains": pl.List(pl.String)})


def _row(made: Made, site: str, layer: int, neuron: int, selected: bool, draw: np.random.Generator) -> dict:
    own = int(draw.integers(len(made.domains)))
    p = 0.02 + 0.1 * draw.random(len(made.domains))
    p[own] += 0.3 * draw.random() + (0.3 if selected else 0)
    odds = math.log(p[own] / (1 - p[own])) - math.log(np.delete(p, own).mean())
    share = p / p.sum()
    dead = site == "vision.mlp.act" and layer == made.sizes[site][0] - 1
    probabilities = {f"p_{one}": float(value) for one, value in zip(made.domains, p, strict=True)}
    by_kind = {
        f"p_{one}_{kind}": float(min(1, value * factor))
        for kind, factor in zip(KINDS[site], (1.3, 0.6), strict=False)
        for one, value in zip(made.domains, p, strict=True)
    }
    attribution = float(draw.normal(scale=0.01)) if made.measured else None
    effect = float(draw.normal(scale=0.02)) if made.measured and selected and neuron % 3 else None
    return {
        "model": made.model, "module": module_of(site), "site": site, "layer": layer, "neuron": neuron,
        "selected": selected, "domains": [made.domains[own]] if selected else [], "domain": made.domains[own],
        "entropy": float(-(share * np.log(share)).sum()), **probabilities, **by_kind,
        "log_odds": odds, "log_odds_low": odds - 0.3, "log_odds_high": odds + 0.4,
        "difference": float(p[own] - p.mean()),
        "f": float(40 * draw.random()), "reaches_logits": not dead, "mean_act": 0.2, "max_act": 6.1,
        "attribution": attribution, "attribution_rank": float(draw.random()) if made.measured else None,
        "effect": effect, "effect_low": None if effect is None else effect - 0.01,
        "effect_high": None if effect is None else effect + 0.01,
        "effect_rank": None if effect is None else float(draw.random()),
    }  # fmt: skip


def _selection(made: Made, frame: pl.DataFrame) -> Selection:
    masks, probability, entropy = {}, {}, {}
    for site, (layers, neurons) in made.sizes.items():
        masks[site] = torch.zeros(layers, neurons, len(made.domains), dtype=torch.bool)
        probability[site] = torch.zeros(layers, neurons, len(made.domains), dtype=torch.float64)
        entropy[site] = torch.zeros(layers, neurons, dtype=torch.float64)
    for row in frame.filter(pl.col("selected")).iter_rows(named=True):
        masks[row["site"]][row["layer"], row["neuron"], made.domains.index(row["domain"])] = True
    tower = made.sizes.get("vision.mlp.act")
    dead = {} if tower is None else {"vision.mlp.act": {"layers": [tower[0] - 1], "why": WHY}}
    tokens = {site: torch.full((len(made.domains),), 100) for site in masks}
    counted = dict.fromkeys(masks, 10)
    return Selection(
        made.model, made.domains, masks, entropy, probability, tokens, dict.fromkeys(masks, 0.5), counted,
        {"method": "dape", "fraction": made.share, "kinds": {}}, {UNREACHABLE: dead},
    )  # fmt: skip


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _samples(made: Made) -> tuple[ShownSample, ...]:
    shown = {one["file"]: one for one in json.loads((IMAGES / "LICENSES.json").read_text())}
    found = []
    for file in sorted(IMAGES.glob("*.??g")):
        domain = shown[file.name]["domain"]
        own = domain if domain in made.domains else made.domains[len(found) % len(made.domains)]
        with Image.open(file) as picture:
            width, height = picture.size
        tokens = ((0, made.words[:2]), (2 + IMAGE_TOKENS, made.words[2:]))
        about = ((_digest(file), height, width),)
        found.append(ShownSample(f"q-{file.stem}", own, made.question, (made.answer,), about, tokens))
    return tuple(found)


def _examples(made: Made, frame: pl.DataFrame) -> NeuronExamples:
    """Every selected neuron has `k` pictures, of its domain first; each map has one maximum, known by its position."""
    samples, draw = _samples(made), np.random.default_rng(made.seed + 1)
    fields: dict[str, dict] = {name: {} for name in
                               ("neurons", "activation", "sample", "position", "picture", "box", "maps",
                                "map_maximum", "around")}  # fmt: skip
    for site, rows in frame.filter(pl.col("selected")).group_by("site", maintain_order=True):
        count, (name,) = len(rows), site
        kept: dict[str, list] = {name: [] for name in fields}
        for row in rows.iter_rows(named=True):
            kept["neurons"].append([row["layer"], row["neuron"]])
            order = sorted(range(len(samples)), key=lambda one: (samples[one].domain != row["domain"], draw.random()))
            for rank in range(made.k):
                maximum = 8 * 0.6**rank + 0.1 * 0.6**rank * draw.random()
                on_word = name == "llm.mlp.act" and row["neuron"] % 4 == 0
                row_at, column_at = draw.integers(SIDE, size=2)
                kept["activation"].append(maximum)
                kept["sample"].append(order[rank])
                kept["position"].append(2 + IMAGE_TOKENS + 4 if on_word else 10)
                kept["picture"].append(0)
                at = np.array([column_at, row_at, column_at + 1, row_at + 1]) / SIDE
                kept["box"].append(np.full(4, np.nan) if on_word else at)
                kept["maps"].append(peak(int(row_at), int(column_at), 2 + 4 * draw.random()))
                kept["map_maximum"].append(maximum * (0.4 if on_word else 1))
                kept["around"].append(_around(on_word) if name == "llm.mlp.act" else np.zeros(2 * AROUND + 1))
        kinds = {"neurons": torch.int64, "sample": torch.int64, "position": torch.int64, "picture": torch.int64,
                 "maps": torch.uint8, "around": torch.uint8}  # fmt: skip
        for one, values in kept.items():
            tensor = torch.from_numpy(np.array(values)).to(kinds.get(one, torch.float32))
            fields[one][name] = tensor if one == "neurons" else tensor.unflatten(0, (count, made.k))
    return NeuronExamples(made.model, samples, **fields)


def peak(row: int, column: int, width: float) -> np.ndarray:
    """A map with one maximum, and a fainter hill elsewhere."""
    down, across = np.mgrid[:SIDE, :SIDE]
    own = np.exp(-((down - row) ** 2 + (across - column) ** 2) / (2 * width**2))
    far = 0.5 * np.exp(-((down - (row + 11) % SIDE) ** 2 + (across - (column + 7) % SIDE) ** 2) / (2 * 1.5**2))
    values = np.round(250 * np.maximum(own, far) - 12).clip(0, 254).astype(np.uint8)
    values[row, column] = 255
    return values


def _around(on_word: bool) -> np.ndarray:
    values = np.zeros(2 * AROUND + 1)
    values[AROUND - 2 : AROUND + 3] = [40, 0, 255, 120, 60] if on_word else [200, 210, 255, 190, 180]
    return values


def rows_of(run: Path, model: str) -> list[dict]:
    """The table's rows in the order of the page: selected first, then by the magnitude of the log-odds."""
    rows = pl.read_parquet(run / "neurons.parquet").filter(pl.col("model") == model).to_dicts()
    return sorted(rows, key=lambda row: (not row["selected"], -abs(row["log_odds"])))
