"""Official scores of the five benchmarks, one file each, with bootstrap intervals; `score` picks by corpus name."""

from mmneuron_lens.metrics.dispatch import METRICS, score
from mmneuron_lens.metrics.intervals import Estimate, paired_difference
from mmneuron_lens.metrics.lingo_judge import LingoJudge
from mmneuron_lens.metrics.measured import MetricError
from mmneuron_lens.metrics.scores import Scores

__all__ = ["score", "Scores", "Estimate", "paired_difference", "LingoJudge", "MetricError", "METRICS"]
