"""Domain-specific neurons of vision-language models: found, switched off, and read (MMNeuron, arXiv 2406.11193).

    import mmneuron_lens as mm

    lens, corpus = mm.Lens("embedded/llava-next"), mm.load_corpus("drawn", images=30)
    found = mm.identify(lens, corpus)
    batch = lens.encode([corpus[0].images[0]], [corpus[0].question])
    lens.run(found.selection.off("medical") | mm.count_active, batch)
    mm.ablate(lens, found.selection, corpus).to_frame()
    mm.deviate(lens, found.selection, corpus).to_frame()
    mm.read_layers(lens, corpus[0])
    mm.compare(lens, corpus, counts=found.counts).to_frame()
    mm.neuron("run", "llm.mlp.act", 3, 17)

A model and graphs on it: `Lens`, `Batch`, `Result`, `count_active`, `zero_neurons`; more in `interventions`.
Questions: `load_corpus`, `Corpus`, `Sample`.
The main job: `identify`, `compare`, `ablate`, `deviate`, `read_layers`, `read_entropy`; `neuron`, one of a run with its
pictures; `merge_runs` of several machines; `load_run`, without a model; `selector`, for a method of your own.
What is found: `Identified`, `Controls`, `Counts`, `Selection`.
What it comes to: `Ablation`, `Deviations`, `DeviationTable`, `Entropies`, `LensTrace`.
What a user can mend: `MMNeuronError`.
"""

from __future__ import annotations

import sys as _sys
from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from mmneuron_lens.shadowing import refuse_shadow as _refuse_shadow

# Before anything of ours looks for it, and again before a public name is first used: folders may have changed by then.
_refuse_shadow()

# nnsight gives every object a `save`, which beartype cannot hash while it is being imported: beartype comes first, or
# `save` is taken off for that moment.
if "nnsight" in _sys.modules and "beartype" not in _sys.modules:
    _save, _c = _import_module("nnsight").save, _import_module("nnsight._c")
    _c.unmount("save")
    _import_module("beartype")
    _c.mount(_save, "save")
else:
    _import_module("beartype")

if TYPE_CHECKING:
    # For editors and type checkers; at run time each name is imported when it is first used.
    from interventions import count_active, zero_neurons
    from interventions.errors import MMNeuronError
    from mmneuron_lens.artifacts.counts import Counts
    from mmneuron_lens.artifacts.deviations import Deviations
    from mmneuron_lens.artifacts.entropies import Entropies
    from mmneuron_lens.artifacts.lens_trace import LensTrace
    from mmneuron_lens.artifacts.selection import Selection
    from mmneuron_lens.corpora.corpus import Corpus
    from mmneuron_lens.corpora.load import load_corpus
    from mmneuron_lens.corpora.sample import Sample
    from mmneuron_lens.evaluation.ablation import Ablation
    from mmneuron_lens.evaluation.deviation import DeviationTable
    from mmneuron_lens.lens import Lens
    from mmneuron_lens.neurons.selectors.registry import selector
    from mmneuron_lens.runs.api import ablate, deviate, identify, read_entropy, read_layers
    from mmneuron_lens.runs.compare_api import compare
    from mmneuron_lens.runs.identify import Controls, Identified
    from mmneuron_lens.runs.loaded_run import load_run
    from mmneuron_lens.runs.merging import merge_runs
    from mmneuron_lens.runs.neuron import neuron
    from mmneuron_lens.runtime.batch import Batch
    from mmneuron_lens.runtime.result import Result

__version__ = "0.2.0"

__all__ = [
    "Ablation",
    "Batch",
    "Controls",
    "Corpus",
    "Counts",
    "DeviationTable",
    "Deviations",
    "Entropies",
    "Identified",
    "Lens",
    "LensTrace",
    "MMNeuronError",
    "Result",
    "Sample",
    "Selection",
    "ablate",
    "compare",
    "count_active",
    "deviate",
    "identify",
    "load_corpus",
    "load_run",
    "merge_runs",
    "neuron",
    "read_entropy",
    "read_layers",
    "selector",
    "zero_neurons",
]

_HOMES = {
    "Ablation": "mmneuron_lens.evaluation.ablation",
    "Batch": "mmneuron_lens.runtime.batch",
    "Controls": "mmneuron_lens.runs.identify",
    "Corpus": "mmneuron_lens.corpora.corpus",
    "Counts": "mmneuron_lens.artifacts.counts",
    "DeviationTable": "mmneuron_lens.evaluation.deviation",
    "Deviations": "mmneuron_lens.artifacts.deviations",
    "Entropies": "mmneuron_lens.artifacts.entropies",
    "Identified": "mmneuron_lens.runs.identify",
    "Lens": "mmneuron_lens.lens",
    "LensTrace": "mmneuron_lens.artifacts.lens_trace",
    "MMNeuronError": "interventions.errors",
    "Result": "mmneuron_lens.runtime.result",
    "Sample": "mmneuron_lens.corpora.sample",
    "Selection": "mmneuron_lens.artifacts.selection",
    "ablate": "mmneuron_lens.runs.api",
    "compare": "mmneuron_lens.runs.compare_api",
    "count_active": "interventions",
    "deviate": "mmneuron_lens.runs.api",
    "identify": "mmneuron_lens.runs.api",
    "load_corpus": "mmneuron_lens.corpora.load",
    "load_run": "mmneuron_lens.runs.loaded_run",
    "merge_runs": "mmneuron_lens.runs.merging",
    "neuron": "mmneuron_lens.runs.neuron",
    "read_entropy": "mmneuron_lens.runs.api",
    "read_layers": "mmneuron_lens.runs.api",
    "selector": "mmneuron_lens.neurons.selectors.registry",
    "zero_neurons": "interventions",
}


if not TYPE_CHECKING:
    # Out of a type checker's sight, which would take any name for one that is here.

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
        _refuse_shadow()
        return getattr(_import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if "IPython" in _sys.modules and (_shell := _sys.modules["IPython"].get_ipython()) is not None:
    # In a notebook, artifacts are shown as figures and tables.
    _import_module("mmneuron_lens.report.notebook").register(_shell)
