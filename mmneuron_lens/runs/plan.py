"""How much of the paper is run: questions, draws, settings of every stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.artifacts.positions import check_position
from mmneuron_lens.batching.chat import PROMPT_FORMS, PromptForm
from mmneuron_lens.corpora.frames import FRAMES, Frames
from mmneuron_lens.experiments.ablate import PAPER_GENERATION
from mmneuron_lens.experiments.conditions import Off

FURTHER = (
    *("flow_questions", "probe_images", "jacobian_prompts", "jacobian_images", "neighbour_texts", "neighbour_states"),
)
"""The amounts of a plan that are of sections of their own, which `--no-further` leaves out."""

BEYOND = ("example_images", *FURTHER)
"""The amounts of a plan that are of what is not in the paper."""


@dataclass(frozen=True)
class Plan:
    """How much is asked; the defaults take both embedded models through in under a quarter of an hour on two cores.

    Images and questions are per domain and per image. Deviation, entropy, embeddings and traces take the first of what
    identification and evaluation take. `random_draws` are of deviations, `ablation_draws` of answers with neurons off
    in all modules at once, which is also where the neurons of other domains are tried. `frames` and `prompt_form` are
    those of every stage, see `batching.encoding.encode`. Figures 6 and 10 to 13 show the questions of the ids
    `lens_questions`, or the first ones, at the positions `lens_at` (`artifacts.positions.place_of`, or "paper"), in all
    layers or the even ones.

    What goes beyond the paper, of which 0 leaves each out: in `example_images` a domain the `examples` are looked for
    on which each selected neuron is most active; `flow_questions` a domain have their attention cut layer by
    layer; `probe_images` a domain are read by linear probes; the Jacobian lens is fitted on `jacobian_prompts` of all
    domains together, and its entropy read on `jacobian_images` a domain; `neighbour_texts` questions a domain, with
    their answers, make the bank of text states, of at most `neighbour_states`.
    """

    identification_images: int | None = 300
    identification_questions: int | None = 2
    evaluation_images: int | None = 75
    evaluation_questions: int | None = 2
    deviation_questions: int | None = 64
    entropy_images: int | None = 100
    embedding_images: int | None = 100
    traces: int = 1
    example_images: int = 100
    examples: int = 8
    flow_questions: int = 32
    probe_images: int = 60
    jacobian_prompts: int = 16
    jacobian_images: int = 20
    neighbour_texts: int = 60
    neighbour_states: int = 20_000
    lens_questions: tuple[str, ...] = ()
    lens_at: tuple[str, ...] = ()
    even_layers: bool = False
    random_draws: int = 5
    ablation_draws: int = 3
    permutations: int = 20
    fraction: float = 0.01
    percentile: float = 0.95
    seed: int = 0
    cross: bool = True
    off: str = "zero"
    factor: float = 0.0
    batch_size: int = 32
    frames: Frames = "fit"
    prompt_form: PromptForm = "auto"
    budget: int = 20_000_000
    questions: int = 500
    judge: str | None = None
    generation: dict[str, Any] = field(default_factory=lambda: dict(PAPER_GENERATION))

    def __post_init__(self) -> None:
        # Raises for an unknown way before anything runs.
        Off(self.off, self.factor, means={})  # pyright: ignore[reportArgumentType]
        for position in self.lens_at:
            check_position(position)
        for name in BEYOND:
            if getattr(self, name) < 0:
                raise InvalidValue(f"{name} is {getattr(self, name)}; give 0, which leaves it out, or more.")
        for name, value, choices in (("frames", self.frames, FRAMES), ("prompt form", self.prompt_form, PROMPT_FORMS)):
            if value not in choices:
                raise InvalidValue(unknown(name, value, choices))
