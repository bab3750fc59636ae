"""Interventions and the graphs they make: pure typed functions of the value at a site, joined with `|`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Literal, TypeAlias, cast, get_args

from interventions.bindings import Binding, binding
from interventions.errors import InvalidType, InvalidValue
from interventions.narrowing import (
    Positions,
    Steps,
    checked_layers,
    checked_positions,
    checked_rows,
    checked_sites,
    checked_steps,
    show_positions,
    show_steps,
)
from interventions.overs import Over, checked_over, show_over
from interventions.sites import SITES, named_sites, site_order, unknown

Mode: TypeAlias = Literal["reads", "writes", "rewires"]

MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, eq=False)
class Intervention:
    """A function of a value at some sites. Calling it calls the function, so it also works on bare tensors.

    Made by `reads`, `writes` and `rewires`; narrowed by `at`, renamed by `named`, completed by `bind`;
    joined with `|`. Frozen: each of these returns a new one. Two are equal when all their fields are, bindings by
    content.

    - function: what it does to a value.
    - mode: `"reads"`, `"writes"` or `"rewires"`.
    - sites: names and globs of the sites where it acts.
    - over: how a read's batches become one, a word or a function of two partial results; None for writes and rewires.
    - name: under which its results come back, `out[name, site]`; the function's own unless it was renamed.
    - bindings: arguments of the function by name.
    - layers: layers where it acts, negative ones from the end; None means all.
    - positions: a kind of position, indices, or a slice as plain data; None means all.
    - steps: forward passes in which it acts; None means all for a write and the prompt for a read.
    - rows: rows of the batch where it acts; None means all.
    - all_beams: whether a read sees every beam's row.

    Raises what `at`, `bind` and `named` raise, however it is made.
    """

    function: Callable[..., Any]
    mode: Mode
    sites: tuple[str, ...]
    over: Over | None = None
    name: str = ""
    bindings: Mapping[str, Binding] = field(default_factory=dict[str, Binding])
    layers: tuple[int, ...] | None = None
    positions: Positions = None
    steps: Steps | None = None
    rows: tuple[int, ...] | None = None
    all_beams: bool = False

    def __post_init__(self) -> None:
        # The function's own documentation and signature show through in help(), in notebooks and in editors.
        for attribute in ("__module__", "__qualname__", "__doc__"):
            object.__setattr__(self, attribute, getattr(self.function, attribute, None))
        object.__setattr__(self, "__wrapped__", self.function)
        object.__setattr__(self, "name", self.name or self.function.__name__)
        if self.mode not in MODES:
            raise InvalidValue(f"{self.name}: {unknown('mode', self.mode, MODES)}")
        if self.mode == "reads":
            checked_over(self.over, self.name)
        elif self.over is not None:
            raise InvalidValue(
                f"{self.name}: over={show_over(self.over)!r} is how a read's batches become one; it {self.mode}."
            )
        object.__setattr__(self, "sites", checked_sites(self.sites))
        if self.layers is not None:
            object.__setattr__(self, "layers", checked_layers(self.layers, self.mode == "reads"))
        if self.positions is not None:
            object.__setattr__(self, "positions", checked_positions(self.positions))
        if self.steps is not None:
            object.__setattr__(self, "steps", checked_steps(self.steps, self.mode == "rewires"))
        if self.rows is not None:
            object.__setattr__(self, "rows", checked_rows(self.rows))
        if not isinstance(cast(object, self.all_beams), bool):
            raise InvalidType(f"{self.name}: all_beams is True or False, not {self.all_beams!r}.")
        names = self.parameters
        for name in self.bindings:
            if name not in names:
                raise InvalidType(f"{self.name}: {unknown('argument', name, names)}")

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """The function itself, on the tensors given; bindings are not filled in."""
        return self.function(*arguments, **keywords)

    def bind(self, **bindings: object) -> Intervention:
        """Give arguments of the function, by name.

        - bindings: constants (tensors, numbers, text, lists of these), `per_layer(...)`, `batch_field(...)` or
          `module(...)`.

        Raises:

        - `InvalidType`: for a name that the function does not take.
        """
        bound = {name: binding(value) for name, value in bindings.items()}
        return replace(self, bindings={**self.bindings, **bound})

    def at(
        self,
        site: str | Iterable[str] | None = None,
        *,
        layers: int | Iterable[int] | None = None,
        positions: int | str | slice | Iterable[int] | None = None,
        steps: int | str | Iterable[int] | None = None,
        rows: int | Iterable[int] | None = None,
        all_beams: bool | None = None,
    ) -> Intervention:
        """Narrow where it acts; what is left out stays as it is.

        - site: a site name, a glob (`"*.act"`), or several of them.
        - layers: indices, negative ones from the end; of a read in the model's order, in which its results come back.
        - positions: token indices of the padded batch (prompts are padded on the left, so -1 is the last
          token of every row) in the order in which the function shall see them, a slice, or a kind (`"image"`,
          `"text"`, `"generated"`, `"cls"`, ...).
        - steps: `"prompt"`, `"generated"`, `"all"`, or indices of forward passes (0 is the prompt).
          Unset, writes act on every step and reads on the prompt.
        - rows: indices of rows of the batch, in the order in which the function shall see them. Before the language
          model, what belongs to the images of these rows.
        - all_beams: a read sees every beam's row at every step, as a raw hook would.

        Whether a model has these layers, a batch these positions and a generation these steps is seen by `lens.check`
        and before anything runs.

        Raises:

        - `UnknownName`: for a site that does not exist.
        - `InvalidValue`: for a kind of position or a word for steps that does not exist, an index twice, none at all,
          or layers or steps in an order that is not kept.
        - `InvalidType`: for a slice of layers, or what is no whole number.
        """
        given: dict[str, Any] = {"layers": layers, "positions": positions, "steps": steps, "rows": rows}
        given["all_beams"] = all_beams
        if site is not None:
            several = isinstance(cast(object, site), Iterable) and not isinstance(site, str)
            given["sites"] = tuple(site) if several else (site,)
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def named(self, name: str) -> Intervention:
        """The same intervention under another name: its results come back as `out[name, site]`.

        Raises:

        - `InvalidType`: for a name that is no text, or empty.
        """
        if not isinstance(cast(object, name), str) or not name:
            raise InvalidType(f"{self.name}: a name is text of at least one character, not {name!r}.")
        return replace(self, name=name)

    def folded(self, over: Over) -> Intervention:
        """The same read, whose batches become one in another way: `top_activations.folded(largest(50, ...))`.

        - over: as in `reads`.

        Raises:

        - `InvalidValue`: for another word, or what does not read.
        - `InvalidType`: for what is no function of two partial results.
        """
        if self.mode != "reads":
            raise InvalidValue(f"{self.name}: a read's batches become one, and it {self.mode}; fold a read.")
        return replace(self, over=over)

    def __or__(self, other: Intervention | Graph) -> Graph:
        return Graph((self,)) | other

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the function's arguments after the value (and, for a rewire, the source)."""
        skipped = 2 if self.mode == "rewires" else 1
        return tuple(inspect.signature(self.function).parameters)[skipped:]

    @property
    def missing(self) -> tuple[str, ...]:
        """Arguments without a default that nothing is bound to."""
        parameters = inspect.signature(self.function).parameters
        return tuple(
            name
            for name in self.parameters
            if name not in self.bindings and parameters[name].default is inspect.Parameter.empty
        )

    def check_complete(self) -> None:
        """Raise `InvalidType` for an argument that nothing is bound to."""
        if self.missing:
            names = ", ".join(f"{name}=..." for name in self.missing)
            raise InvalidType(f"{self.name} is not complete: write {self.name}.bind({names}).")

    @property
    def where(self) -> str:
        """One phrase that says which layers, positions, steps and rows it is narrowed to."""
        parts: list[str] = []
        if self.layers is not None:
            parts.append(f"layers {', '.join(map(str, self.layers))}")
        if self.positions is not None:
            parts.append(f"positions {show_positions(self.positions)}")
        if self.steps is not None:
            parts.append(f"steps {show_steps(self.steps)}")
        if self.rows is not None:
            parts.append(f"rows {', '.join(map(str, self.rows))}")
        if self.all_beams:
            parts.append("all beams")
        return "; ".join(parts)

    def __repr__(self) -> str:
        return self.line()

    def line(self, sites: bool = True) -> str:
        """What `repr` shows: what it does, with which bindings, and where; `sites=False` leaves out the sites."""
        shown = ", ".join(f"{name}={value.show()}" for name, value in self.bindings.items())
        missing = "".join(f", {name}=?" for name in self.missing).removeprefix("" if shown else ", ")
        over = f" over={show_over(self.over)}" if self.over else ""
        at = f" at {', '.join(self.sites)}" if sites else ""
        where = f" [{self.where}]" if self.where else ""
        return f"{self.mode} {self.name}({shown}{missing}){over}{at}{where}"

    def identity(self) -> tuple[Hashable, ...]:
        """Everything that makes two interventions the same; tensors stand for themselves by content."""
        return (
            self.function,
            self.mode,
            self.sites,
            self.over,
            self.name,
            tuple((name, self.bindings[name].identity()) for name in sorted(self.bindings)),
            self.layers,
            self.positions,
            self.steps,
            self.rows,
            self.all_beams,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(self.identity())


@dataclass(frozen=True)
class Graph:
    """Interventions joined with `|`. Data only: it can be printed, compared and saved before anything runs.

    At one site they act left to right; between sites the model's own order decides. `|` is associative and
    `Graph()` is its identity.

    - interventions: in the order they were joined.

    Raises:

    - `InvalidType`: for anything that is not an intervention.
    - `InvalidValue`: for two reads whose results would come back under one key.
    """

    interventions: tuple[Intervention, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", tuple(map(_intervention, self.interventions)))
        taken: set[tuple[str, str]] = set()
        for intervention in self.interventions:
            if intervention.mode != "reads":
                continue
            for site in named_sites(intervention.sites, tuple(SITES)):
                if (intervention.name, site) in taken:
                    raise InvalidValue(
                        f"Two results would come back as out[{intervention.name!r}, {site!r}]. "
                        f'Rename one: {intervention.name}.named("...").'
                    )
                taken.add((intervention.name, site))

    def __or__(self, other: Intervention | Graph) -> Graph:
        joined = _joined(other)
        return NotImplemented if joined is None else Graph(self.interventions + joined)

    def __len__(self) -> int:
        return len(self.interventions)

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.interventions)

    def check_bound(self) -> None:
        """Raise `InvalidType` for the first intervention with an argument that nothing is bound to."""
        for intervention in self.interventions:
            intervention.check_complete()

    def by_site(self) -> dict[str, list[Intervention]]:
        """What acts at each standard site, sites in forward order, interventions left to right."""
        acting: dict[str, list[Intervention]] = {}
        for intervention in self.interventions:
            for site in named_sites(intervention.sites, tuple(SITES)):
                acting.setdefault(site, []).append(intervention)
        return dict(sorted(acting.items(), key=lambda item: site_order(item[0])))

    def __repr__(self) -> str:
        if not self.interventions:
            return "Graph() — runs the model and changes nothing"
        lines = ["Graph"]
        for site, interventions in self.by_site().items():
            layers = "every layer" if SITES[site].per_layer else "once"
            lines.append(f"  {site} [{SITES[site].axes}], {layers}")
            lines += [f"    {intervention.line(sites=False)}" for intervention in interventions]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(site) if index == 0 else ''}</td><td>{escape(intervention.line(sites=False))}</td></tr>"
            for site, interventions in self.by_site().items()
            for index, intervention in enumerate(interventions)
        )
        head = "<tr><th>site</th><th>acts, in this order</th></tr>"
        # What is bound may hold `$`, which Jupyter would take for mathematics.
        return f'<table class="tex2jax_ignore mathjax_ignore">{head}{rows}</table>'


def _intervention(value: object) -> Intervention:
    if not isinstance(value, Intervention):
        raise InvalidType(
            f"A graph is made of interventions, not {type(value).__name__}: "
            "decorate the function with @reads, @writes or @rewires."
        )
    return value


def _joined(value: object) -> tuple[Intervention, ...] | None:
    """What joining this adds; None for anything that Python should refuse as an operand."""
    if isinstance(value, Intervention):
        return (value,)
    return value.interventions if isinstance(value, Graph) else None
