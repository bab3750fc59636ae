"""Sample numbers: what each sample of a run is called, where something asks for it."""

from __future__ import annotations

from collections.abc import Sequence

from interventions.errors import InvalidValue
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.wire.numbering import asks_for_samples
from mmneuron_lens.wire.types import SitePlan


class SampleNumbers:
    """Counts the samples of batches, in the order in which they are asked about."""

    def __init__(self, plans: list[SitePlan]) -> None:
        self._asked, self._next, self._own = asks_for_samples(plans), 0, False

    def of(self, batch: Batch) -> Sequence[int] | None:
        """The batch's own numbers, or those that follow the batch before; None where nothing asks for them.

        Raises `InvalidValue` where some batches have numbers of their own and some have not: one number could mean two
        samples.
        """
        if not self._asked:
            return None
        own = batch.samples is not None
        if self._next and own != self._own:
            raise InvalidValue(
                "Some batches of this run have sample numbers of their own and some have none, so that one number "
                "could mean two samples; give all of them numbers, batch.with_samples([...]), or none."
            )
        first, self._own = self._next, own
        self._next += batch.sample_count
        return batch.samples if batch.samples is not None else range(first, self._next)


def refuse_unnumbered(plans: list[SitePlan], batch: Batch, job: str) -> None:
    """Raise `InvalidValue` for a job of several whose samples would be numbered from 0 as those of every other."""
    if batch.samples is None and asks_for_samples(plans):
        raise InvalidValue(
            f"job {job}: a read asks for samples, and those of every job would be counted from 0; give them numbers, "
            "batch.with_samples([...])."
        )
