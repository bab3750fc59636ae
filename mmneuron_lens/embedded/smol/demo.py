"""The demo on the smol model: what `mmneuron demo` does with the embedded ones, on fewer images, for it is larger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmneuron_lens.embedded.smol import NAME, smol_folder

GENERATION = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1}

NOT_RUN = (
    "The corpus is drawn by a program; vision encoder and language model are real, published ones, and the connector "
    "between them was trained for minutes. Nothing here says anything about the published checkpoints.",
    "Neurons were switched off in all modules at once, not in one module at a time.",
)


def smol_demo(
    out: str | Path,
    *,
    identification_images: int = 60,
    identification_questions: int = 2,
    evaluation_images: int = 10,
    evaluation_questions: int = 2,
    random_draws: int = 3,
    permutations: int = 20,
    fraction: float = 0.01,
    batch_size: int = 16,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Any, str], Any] = lambda items, name: items,
    say: Callable[[str], Any] = lambda text: None,
) -> Path:
    """Fetch and assemble the model if need be, identify, switch off, write the page, and return its path.

    Numbers are per domain and per image. settings: of `open_lens`; the dtype "bfloat16" is about three times faster
    where the processor has instructions for it, and slower elsewhere. Raises as `smol_folder` does.
    """
    from mmneuron_lens.corpora.folder import by_domain, read_folder, some_of
    from mmneuron_lens.embedded.corpus.draw import write_folder
    from mmneuron_lens.paper.summary import publish
    from mmneuron_lens.runs.stages import ablate_stage, count_stage, open_lens, results_of, select_stage

    out = Path(out)
    smol_folder(say=say)
    images = identification_images + evaluation_images
    say(f"Drawing {images} images in each domain into {out / 'corpus'}")
    samples, problems = read_folder(write_folder(out / "corpus", images_per_domain=images))
    identified = by_domain(some_of(samples, identification_images, identification_questions))
    evaluated = by_domain(some_of(samples, evaluation_images, evaluation_questions, skip_images=identification_images))
    lens = open_lens(f"embedded/{NAME}", **(settings or {}))
    shared: dict[str, Any] = {"batch_size": batch_size, "problems": problems, "progress": progress}
    say("Counting active neurons of smol")
    count_stage(lens, identified, out, corpus="drawn", **shared)
    say("Selecting domain-specific neurons, and shuffling domains to see what chance would select")
    found = select_stage(out, fraction=fraction, permutations=permutations, progress=progress)
    say("Switching neurons of smol off and asking questions")
    ablate_stage(lens, evaluated, out, random_draws=random_draws, **shared, **GENERATION)
    say("Drawing figures and writing the page")
    return publish([results_of(out, one) for one in found], out, NOT_RUN)
