"""Attributions: how much each neuron adds to the log-probability of the answers of one domain, by gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor

from interventions.errors import InvalidValue, UnknownName
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.counts import BUCKETS
from mmneuron_lens.artifacts.fitting import refuse_range, refuse_tensor, refuse_unless
from mmneuron_lens.artifacts.selection import in_order, module_of
from mmneuron_lens.artifacts.table_html import table_html


@dataclass(frozen=True, eq=False, repr=False)
class Attributions(Artifact):
    """Sums over the questions of one domain, each with its right answer behind it, by bucket of images.

    By site whose neurons are counted (`llm.mlp.act`, ...). Activation times gradient is the same at `act` as at `post`,
    since post = act * up.

    - `questions`: int64 [bucket]. `tokens[site]`: int64 [bucket], positions of prompt and answer that count.
    - `attribution[site]`: float64 [bucket, layer, neuron], in nats: the sum over questions and positions of activation
      times the gradient of the answer's log-probability; by so much it falls, to first order, without the neuron.
    - `strength[site]`: float64 [bucket, layer, neuron], the sum of |gradient|^alpha * |activation| (arXiv 2512.00918).
    - `parameters`: alpha, and how gradients were taken: steps 0 at the activations themselves, more along a line from
      a baseline, where the change from the baseline stands in place of the activation.
    """

    kind: ClassVar[str] = "attributions"

    model: str
    domain: str
    questions: Tensor
    tokens: dict[str, Tensor]
    attribution: dict[str, Tensor]
    strength: dict[str, Tensor]
    parameters: dict[str, Any]
    samples: int
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def per_question(self, site: str) -> Float64[Tensor, "layer neuron"]:
        """The mean attribution of each neuron of a site over questions, in nats.

        Raises `UnknownName` with the choices.
        """
        return self._at(self.attribution, site).sum(0) / self._number("question", int(self.questions.sum()))

    def per_token(self, site: str) -> Float64[Tensor, "layer neuron"]:
        """The mean strength of each neuron of a site over positions. Raises `UnknownName` with the choices."""
        return self._at(self.strength, site).sum(0) / self._number(f"token at {site}", int(self.tokens[site].sum()))

    def _at(self, sums: dict[str, Tensor], site: str) -> Tensor:
        if site not in sums:
            raise UnknownName(f"no attributions at site {site!r}; choose from {', '.join(sums)}.")
        return sums[site]

    def _number(self, what: str, number: int) -> int:
        if number < 1:
            raise InvalidValue(f"attributions of {self.domain} are of no {what}; take some of more questions.")
        return number

    def check(self) -> None:
        refuse_unless(self.samples >= 0, "samples", f"is {self.samples}, and cannot be below 0")
        refuse_unless(bool(self.attribution), "attribution", "names no site")
        refuse_tensor("questions", self.questions, torch.int64, BUCKETS)
        refuse_range("questions", self.questions, 0)
        asked = int(self.questions.sum())
        refuse_unless(asked == self.samples, "questions", f"are {asked}, and samples {self.samples}")
        for name in ("tokens", "strength"):
            own, others = getattr(self, name).keys(), self.attribution.keys()
            refuse_unless(own == others, name, f"names the sites {sorted(own)}, attribution {sorted(others)}")
        for site, sums in self.attribution.items():
            refuse_tensor(f"attribution/{site}", sums, torch.float64, BUCKETS, "layer", "neuron")
            refuse_tensor(f"strength/{site}", self.strength[site], torch.float64, *sums.shape)
            refuse_range(f"strength/{site}", self.strength[site], 0)
            refuse_tensor(f"tokens/{site}", self.tokens[site], torch.int64, BUCKETS)
            refuse_range(f"tokens/{site}", self.tokens[site], 0)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("tokens", "attribution", "strength")
        tensors = {f"{name}/{site}": value for name in names for site, value in getattr(self, name).items()}
        own = ("model", "domain", "parameters", "samples", "provenance")
        return {**tensors, "questions": self.questions}, {name: getattr(self, name) for name in own}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Attributions:
        by_name: dict[str, Any] = {"tokens": {}, "attribution": {}, "strength": {}}
        for site in in_order(name.partition("/")[2] for name in tensors if name.startswith("attribution/")):
            for name, values in by_name.items():
                values[site] = tensors[f"{name}/{site}"]
        return cls(**{**metadata, **by_name, "questions": tensors["questions"]})

    def to_frame(self) -> pl.DataFrame:
        """A row per site and layer: model, domain, module, site, layer, questions, attribution (of all its neurons,
        nats, mean per question), neuron (the one of the largest |attribution|), and largest (its own).
        """
        rows: list[dict[str, Any]] = []
        for site in self.attribution:
            for layer, each in enumerate(self.per_question(site)):
                neuron = int(each.abs().argmax())
                place = {"model": self.model, "domain": self.domain, "module": module_of(site), "site": site}
                sums = {"layer": layer, "questions": int(self.questions.sum()), "attribution": float(each.sum())}
                rows.append({**place, **sums, "neuron": neuron, "largest": float(each[neuron])})
        return pl.DataFrame(rows)

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())
