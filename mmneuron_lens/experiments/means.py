"""Means: the mean activation of every neuron, for mean ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from interventions import count_positions, sum_activations
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.means import Means
from mmneuron_lens.batching.batches import Step, ids_of, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, add, by_group, gather
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.finite import refuse_not_finite


def mean_activations(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> Means:
    """The mean activation of every neuron over all positions of these questions; domains weigh as many as they have.

    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`.

    Raises `InvalidValue` when no sample could be read, `NotFinite` for activations that are infinite or NaN.
    """
    samples = [one for some in samples_by_domain.values() for one in some]
    asked, put = asked_as(lens, askable(lens, samples, prompt, problems), prompt, frames, prompt_form)
    graph, left = sum_activations.at("*.act") | count_positions.at("*.act"), LeftOut(problems)

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, prompt, left, opened, frames, prompt_form)
        out = {} if batch is None else lens.run(graph, batch)
        for site in (site for name, site in out if name == "sum_activations"):
            layered = lens.architecture.place(site).layers is not None
            refuse_not_finite(site, out["sum_activations", site], lens.dtype, layered=layered)
        tensors = {f"{name}/{site}": value.cpu() for (name, site), value in out.items()}
        return Piece(step.group, tensors, ids_of(kept))

    steps = steps_of(sized(asked, problems), batch_size, buckets=False)
    held = gather(
        steps, run, add, keeper=keeper or Memory(), left=left, title="averaging activations", progress=progress
    )  # fmt: skip
    total = by_group(held, add).get(0)
    if total is None or not total.tensors:
        raise InvalidValue("no sample could be read; see the problems of the rows.")
    sites = [name.partition("/")[2] for name in total.tensors if name.startswith("sum_activations/")]
    values = {
        site: total.tensors[f"sum_activations/{site}"] / total.tensors[f"count_positions/{site}"].sum(-1, keepdim=True)
        for site in sites
    }
    return Means(lens.name, values, provenance(**lens.model.facts(), prompt=prompt, **put))
