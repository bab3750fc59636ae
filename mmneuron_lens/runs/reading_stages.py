"""What a run reads beyond the paper: knock-out curves, probes, the Jacobian lens and the nearest words in context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.flow import KnockOutFlow
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.artifacts.layer_probes import LayerProbes
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.neighbours import Neighbours
from mmneuron_lens.artifacts.text_states import TextStates
from mmneuron_lens.batching.frames import asked_as, told_by_domain
from mmneuron_lens.batching.gather import Keeper
from mmneuron_lens.batching.left_out import NoneLeft
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import some_of
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.domain_probes import read_domain_probes
from mmneuron_lens.experiments.entropy import read_entropy
from mmneuron_lens.experiments.fit_on_samples import fit_on_samples
from mmneuron_lens.experiments.flow import NEW_TOKENS, read_flow, why_uncut
from mmneuron_lens.experiments.neighbours import read_neighbours
from mmneuron_lens.experiments.text_bank import needs_picture, read_text_states, texts_of
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.folder import file_of, key_of
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.store import Codec, Store

ByDomain = Mapping[str, Sequence[Sample]]
Made = TypeVar("Made", bound=Codec)


def read_further(
    lens: Lens,
    identification: ByDomain,
    evaluation: ByDomain,
    shown: ByDomain,
    plan: Plan,
    store: Store,
    shared: dict[str, Any],
) -> None:
    """Every stage beyond the paper that the plan has an amount for.

    - shown: the questions that are read layer by layer, one a domain.
    - shared: batch_size, problems and progress.
    """
    stages = _Stages(lens, plan, store, shared)
    stages.flow(evaluation)
    stages.probes(identification)
    stages.jacobian(identification, shown)
    stages.neighbours(identification, shown)


@dataclass(frozen=True)
class _Stages:
    lens: Lens
    plan: Plan
    store: Store
    shared: dict[str, Any]

    @property
    def put(self) -> dict[str, Any]:
        return {"frames": self.plan.frames, "prompt_form": self.plan.prompt_form}

    @property
    def facts(self) -> dict[str, Any]:
        return {**self.lens.model.facts(), "batch size": self.plan.batch_size}

    def flow(self, evaluation: ByDomain) -> None:
        asked = {domain: some[: self.plan.flow_questions] for domain, some in evaluation.items()}
        self._each(
            "flow", "attention cut layer by layer,", "evaluation", asked, KnockOutFlow,
            lambda samples, keeper: read_flow(self.lens, samples, keeper=keeper, **self.shared, **self.put),
            new_tokens=NEW_TOKENS,
        )  # fmt: skip

    def probes(self, identification: ByDomain) -> None:
        if not self.plan.probe_images:
            return
        seen = {domain: some_of(some, self.plan.probe_images, 1) for domain, some in identification.items()}
        if min(map(len, seen.values())) < 2:
            self.store.say(f"{self.lens.name}: no probes, which need two images of every domain or more.")
            return
        own = {**self._asked(seen), "seed": self.plan.seed}
        self._one(
            "probes", "linear probes of the domain", LayerProbes, own,
            lambda keeper: read_domain_probes(
                self.lens, seen, seed=self.plan.seed, keeper=keeper, **self.shared, **self.put
            ),
        )  # fmt: skip

    def jacobian(self, identification: ByDomain, shown: ByDomain) -> None:
        """The lens, and with it the questions that are shown and the entropies."""
        if not self.plan.jacobian_prompts:
            return
        if self.lens.remote:
            self.store.say(f"{self.lens.name}: no Jacobian lens, which is fitted where the weights are.")
            return
        each = -(-self.plan.jacobian_prompts // len(identification))
        seen = {domain: some_of(some, each, 1) for domain, some in identification.items()}
        try:
            fitted = self._one(
                "jacobian", "fitting the Jacobian lens", JacobianLens, {**self._asked(seen), "seed": self.plan.seed},
                lambda _: fit_on_samples(
                    self.lens, [one for some in zip(*seen.values(), strict=False) for one in some],
                    seed=self.plan.seed, problems=self.shared["problems"], progress=self.shared["progress"], **self.put,
                ),
            )  # fmt: skip
        except torch.OutOfMemoryError:
            self.store.say(f"{self.lens.name}: no Jacobian lens, for which this device has too little memory.")
            return
        own = {"jacobian": self._hash("jacobian")}
        self._each(
            "traces_jacobian", "reading the layers by the Jacobian lens,", "evaluation", shown, LensTrace,
            lambda samples, _: trace_sample(self.lens, samples[0], fitted=fitted, **self.put), **own,
        )  # fmt: skip
        some = {domain: some_of(some, self.plan.jacobian_images) for domain, some in identification.items()}
        self._each(
            "entropies_jacobian", "entropy by the Jacobian lens,", "identification", some, Entropies,
            lambda samples, keeper: read_entropy(
                self.lens, samples, fitted=fitted, keeper=keeper, **self.shared, **self.put
            ),
            **own,
        )  # fmt: skip

    def neighbours(self, identification: ByDomain, shown: ByDomain) -> None:
        """The bank of text states, and in it the neighbours of the questions that are shown."""
        number, most = self.plan.neighbour_texts, self.plan.neighbour_states
        if not number or not most:
            return
        if needs_picture(self.lens) and (why := why_uncut(self.lens)):
            self.store.say(f"{self.lens.name}: no neighbours among states of texts: {why}")
            return
        texts = texts_of(
            self.lens, [one for some in identification.values() for one in some[:number]], self.shared["problems"]
        )
        own = {"texts": texts, "most": most, "seed": self.plan.seed}
        bank = self._one(
            "text_states", "states of texts", TextStates, own,
            lambda _: read_text_states(
                self.lens, texts, most=most, batch_size=self.plan.batch_size, seed=self.plan.seed,
                progress=self.shared["progress"],
            ),
        )  # fmt: skip
        self._each(
            "neighbours", "nearest words in context,", "evaluation", shown, Neighbours,
            lambda samples, _: read_neighbours(self.lens, samples[0], bank, **self.put), bank=self._hash("text_states"),
        )  # fmt: skip

    def _each(
        self,
        kind: str,
        what: str,
        prompt: Prompt,
        asked: ByDomain,
        codec: type[Made],
        make: Callable[[Sequence[Sample], Keeper], Made],
        **own: Any,
    ) -> None:
        """A value a domain; a domain without questions has none."""
        for domain, samples in asked.items():
            if not samples:
                continue
            told = asked_as(self.lens, samples, prompt, **self.put)[1]
            facts = {**self.facts, "questions": content_digest(samples), **told, **own}
            try:
                self.store.get_or_make(
                    key_of(kind, self.lens.name, domain, facts=facts),
                    lambda keeper, samples=samples: make(samples, keeper),
                    codec,
                    what=f"{self.lens.name}: {what} {domain}",
                )
            except NoneLeft as error:
                # The few that are asked here may be those that cannot be read.
                self.store.say(f"{self.lens.name}: {what} {domain} is left out: {error}")

    def _one(
        self, kind: str, what: str, codec: type[Made], own: Mapping[str, Any], make: Callable[[Keeper], Made]
    ) -> Made:
        key = key_of(kind, self.lens.name, facts={**self.facts, **own})
        return self.store.get_or_make(key, make, codec, what=f"{self.lens.name}: {what}")

    def _asked(self, seen: ByDomain) -> dict[str, Any]:
        told = told_by_domain(self.lens, seen, prompt="identification", **self.put)
        return {"questions": {domain: content_digest(samples) for domain, samples in seen.items()}, **told}

    def _hash(self, kind: str) -> str:
        """The sha256 of the run's own file; "" where nothing is kept."""
        return "" if self.store.folder is None else content_hash(file_of(self.store.folder, kind, self.lens.name))
