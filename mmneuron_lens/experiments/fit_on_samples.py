"""Fit on samples: a Jacobian lens on the questions of a corpus, at a cost that does not grow with their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.fit_jacobian import fit_jacobian_lens
from mmneuron_lens.lens import Lens

POSITIONS = 1024
"""Of the prompts of a batch together, at most: the activations of so many are kept for the backward passes."""

SKIP = 16
"""Positions at the start of a prompt that do not count; half of the shortest prompt where that is less."""


def fit_on_samples(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    prompt: Prompt = "identification",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    seed: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> JacobianLens:
    """The Jacobian lens of a model on some questions, each output dimension from one batch of them.

    - samples: in the order in which they share batches; of several domains, mix them
    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`
    - seed: of the output dimensions that each batch is used for

    A batch is as many prompts as come to `POSITIONS` positions, or one; all batches together take `hidden` backward
    passes. See `fit_jacobian_lens`, and `jacobian.error` for what so few prompts are worth.

    Raises `InvalidValue` where no sample can be read, and as `fit_jacobian_lens` does.
    """
    left = LeftOut(problems)
    asked, put = asked_as(lens, askable(lens, samples, prompt, problems), prompt, frames, prompt_form)
    encoding: dict[str, Any] = {"frames": frames, "prompt_form": prompt_form}
    first, _ = encode(lens, asked[:1], prompt, left, **encoding)
    rows = 1 if first is None else max(1, POSITIONS // first.prompt_length)
    # Of equal numbers of prompts, or an output dimension would rest on the few of the last batch.
    steps = -(-len(asked) // rows)
    parts = [asked[len(asked) * one // steps : len(asked) * (one + 1) // steps] for one in range(steps)]
    batches = [batch for some in parts if (batch := encode(lens, some, prompt, left, **encoding)[0]) is not None]
    if not batches:
        raise InvalidValue(f"None of {len(samples)} questions can be read, so no lens is fitted on them.")
    shortest = min(int((one.fields["llm"]["weight"] > 0).sum(1).min()) for one in batches)
    hidden = lens.architecture.place("llm.residual").sizes["hidden"]
    made = fit_jacobian_lens(
        lens, batches, samples=-(-hidden // len(batches)), skip=min(SKIP, shortest // 2), seed=seed, progress=progress
    )
    made.parameters.update({"prompt": prompt, **put})
    return made
