"""The paper's sheet: a run's artifacts as the named tables and figures of the paper, its claims, and one page.

Needs no model: `mmneuron report` makes the page again from the folder alone.
"""

from mmneuron_lens.experiments.sheet.whole import paper_of, publish_paper

__all__ = ["paper_of", "publish_paper"]
