"""Do modules rank the domains differently, or only as noise would have it?

Two rankings of noisy numbers always differ somewhere. What counts is a reversal: one domain above another in one
module, and below it in another, each by more than chance. This is the range test for a qualitative interaction
(Piantadosi and Gail, Statistics in Medicine 12, 1993), for each pair of domains, Bonferroni-corrected over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy
from jaxtyping import Float64
from scipy.stats import norm

LEVEL = 0.05
"""How often, at most, modules of one true ranking are said to differ."""


@dataclass(frozen=True)
class Reversal:
    """What is said of the rankings.

    - differ: True where some pair is reversed by more than chance, False where every pair has the same order in all
      modules by more than chance, None where neither is known.
    - upper, lower, above, below: the most certain reversal: `upper` has more than `lower` in module `above`, and fewer
      in module `below`. Places in the arrays given.
    """

    differ: bool | None
    upper: int
    lower: int
    above: int
    below: int


def reversal(
    numbers: Float64[numpy.ndarray, "module domain"], drawn: Float64[numpy.ndarray, "draw module domain"]
) -> Reversal:
    """Whether two domains are in one order in one module and in the other order in another.

    - numbers: neurons of each domain in each module; two modules and two domains, or more.
    - drawn: the same on resampled data, two draws or more. Their standard deviation is that of a difference.

    With z = difference / standard deviation in each module, a pair is reversed where the largest z is above c and the
    smallest below -c. If all modules have one order, the worst that chance can do is one module of any certainty and
    the M - 1 others with no difference at all, so 1 - Phi(c)^(M - 1) = `LEVEL` / pairs. All modules have one order
    where each |z| is above the one-sided point of `LEVEL`, with one sign over modules in every pair.
    """
    pairs = list(combinations(range(numbers.shape[1]), 2))
    first, second = [numpy.array(places) for places in zip(*pairs, strict=True)]
    difference = numbers[:, first] - numbers[:, second]
    spread = (drawn[:, :, first] - drawn[:, :, second]).std(0, ddof=1)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        # No difference and no spread is no evidence.
        z = numpy.where(difference == 0, 0.0, difference / spread)
    certain = numpy.minimum(z.max(0), -z.min(0))
    pair = int(certain.argmax())
    critical = norm.ppf((1 - LEVEL / len(pairs)) ** (1 / (len(numbers) - 1)))
    one_order = (numpy.abs(z) > norm.ppf(1 - LEVEL)).all() and (numpy.sign(z) == numpy.sign(z[:1])).all()
    differ = True if certain[pair] > critical else False if one_order else None
    return Reversal(differ, *pairs[pair], above=int(z[:, pair].argmax()), below=int(z[:, pair].argmin()))
