"""What Jupyter shows of a value of ours: a compact table or a figure, and what to call next. Light to import."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

SHOWN = {
    "counts": ("mmneuron_lens.artifacts.counts", "Counts"),
    "moments": ("mmneuron_lens.artifacts.moments", "Moments"),
    "selection": ("mmneuron_lens.artifacts.selection", "Selection"),
    "identified": ("mmneuron_lens.runs.identify", "Identified"),
    "effect_sizes": ("mmneuron_lens.artifacts.effect_sizes", "EffectSizes"),
    "comparison": ("mmneuron_lens.artifacts.comparison", "NeuronComparison"),
    "comparison_table": ("mmneuron_lens.evaluation.comparison_table", "ComparisonTable"),
    "deviations": ("mmneuron_lens.evaluation.deviation", "DeviationTable"),
    "one_deviations": ("mmneuron_lens.artifacts.deviations", "Deviations"),
    "ablation": ("mmneuron_lens.evaluation.ablation", "Ablation"),
    "examples": ("mmneuron_lens.artifacts.neuron_examples", "NeuronExamples"),
    "entropies": ("mmneuron_lens.artifacts.entropies", "Entropies"),
    "lens_trace": ("mmneuron_lens.artifacts.lens_trace", "LensTrace"),
    "neighbours": ("mmneuron_lens.artifacts.neighbours", "Neighbours"),
    "corpus": ("mmneuron_lens.corpora.corpus", "Corpus"),
    "batch": ("mmneuron_lens.runtime.batch", "Batch"),
    "result": ("mmneuron_lens.runtime.result", "Result"),
    "lens": ("mmneuron_lens.lens", "Lens"),
}
"""By function of `notebook_values`, module and name of what it shows."""


def register(ipython: Any) -> None:
    """Teaches an IPython shell to show our values; a second call changes nothing.

    - ipython: what `IPython.get_ipython()` returns.
    """
    formatter = ipython.display_formatter.formatters["text/html"]
    for name, (module, kind) in SHOWN.items():
        formatter.for_type_by_name(module, kind, _shower(name))


def value_html(name: str, value: Any) -> str:
    """The HTML of a value by the function of that name."""
    return getattr(import_module("mmneuron_lens.report.notebook_values"), name)(value)


def _shower(name: str) -> Callable[[Any], str]:
    """Calls what shows a value once there is one; a notebook's first import does not load torch."""
    return lambda value: value_html(name, value)
