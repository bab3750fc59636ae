"""Remote: the same graph on an NDIF server; files and words go up, folded results come down."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from interventions import Graph
from interventions.errors import InvalidType
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.compile import compile_graph, results_over
from mmneuron_lens.runtime.envelope import refuse_unsafe
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.run import job_of, needs_source, result_of
from mmneuron_lens.runtime.serving import explained, refuse_unserved
from mmneuron_lens.runtime.shapes import check_plans
from mmneuron_lens.runtime.shipping import bare, refuse_unshippable
from mmneuron_lens.wire import fold
from mmneuron_lens.wire.describe import describe
from mmneuron_lens.wire.job import run_job

if TYPE_CHECKING:
    from mmneuron_lens.lens import Lens


def run_remote(
    lens: Lens,
    graph: Graph,
    batches: Iterable[Batch],
    sources: Iterable[Batch] | None,
    generation: dict[str, Any],
    logits: bool,
    remote: bool | str,
) -> Result:
    """One blocking session for all batches. `remote` is True (the configured host), a host's URL, or "local" (nnsight's
    dry run of the remote path).

    Everything wrong with the graph is raised here first; what cannot ship is refused before anything is sent.
    Before that the server is asked whether it serves the model (`runtime.serving.refuse_unserved`). Raises
    `RemoteError` with the message and the user's line when the job fails there; its `traceback` is the server's own.
    """
    batches, sources = list(batches), None if sources is None else list(sources)
    checked = compile_graph(graph, lens.architecture, typed=True, attention=lens.attention)
    if needs_source(checked) and sources is None:
        raise InvalidType("This graph rewires: give the paired batches, lens.run(graph, batches, sources=[...]).")
    for batch in batches:
        check_plans(checked, batch, lens.architecture, lens.module, lens.dtype)
    plans, entry = travelling(graph, lens)
    overs = results_over(graph, lens.architecture)
    job = {**job_of(lens, generation, logits), "overs": overs}
    items = [
        {**batch.travelling(), "source": sources[index].travelling() if sources and needs_source(plans) else None}
        for index, batch in enumerate(batches)
    ]
    model, backend = lens.nnsight, backend_of(lens, remote)
    if remote != "local":
        refuse_unserved(backend.host, backend.model_key)
    with model.session(backend=backend):
        returned = entry(model, plans, items, job).save()
    values = fold.finish(returned["values"], overs)
    return result_of(lens, values, returned["answers"], returned["logits"], job["pad"])


def ask_served(lens: Lens, remote: bool | str) -> dict[str, Any]:
    """What `wire.describe` tells about the model on the server; raises as `run_remote` does."""
    model, entry, backend = lens.nnsight, bare(describe), backend_of(lens, remote)
    if remote != "local":
        refuse_unserved(backend.host, backend.model_key)
    with model.session(backend=backend):
        returned = entry(model).save()
    return returned


def travelling(graph: Graph, lens: Lens) -> tuple[list[dict[str, Any]], Any]:
    """The compiled graph with bare functions, and the bare function that runs it."""
    made: dict[int, Any] = {}
    plans = compile_graph(graph, lens.architecture, typed=False, attention=lens.attention)
    for plan in plans:
        for act in plan["acts"]:
            act["function"] = bare(act["function"], made)
    return plans, bare(run_job, made)


def backend_of(lens: Lens, remote: bool | str, **settings: Any) -> Any:
    """The nnsight backend of a host, whose payloads are inspected and whose results load tensors only."""
    if remote == "local":
        return lens.nnsight._remote_backend("local", True, None, False)
    from nnsight.intervention.backends.remote import RemoteBackend, RemoteError

    class Backend(RemoteBackend):
        def _serialize(self, tracer: Any) -> bytes:
            from nnsight.schema.request import RequestModel

            refuse_unshippable(RequestModel.serialize(tracer, compress=False))
            return super()._serialize(tracer)

        def finalize(self, content: bytes) -> Any:
            if self.compress:
                import zstandard

                content = zstandard.ZstdDecompressor().decompress(content)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

        @staticmethod
        def parse(message: str | bytes) -> Any:
            if not isinstance(message, str):
                refuse_unsafe(message)
            return RemoteBackend.parse(message)

        def handle(self, response: Any) -> Any:
            try:
                return super().handle(response)
            except RemoteError as error:
                short = RemoteError(explained(str(error), self.host))
                # For whom the short form is not enough.
                short.traceback = str(error)  # type: ignore[attr-defined]
                raise short from None

    host = remote.rstrip("/") if isinstance(remote, str) else None
    return Backend(lens.nnsight.to_model_key(), host=host, **settings)
