"""Remote: the same graph on an NDIF server; files and words go up, folded results come down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from interventions import Graph
from interventions.errors import MMNeuronError
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.arguments import paired
from mmneuron_lens.runtime.backend import backend_of
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.between import refuse_elsewhere
from mmneuron_lens.runtime.compile import compile_graph, results_over, with_start
from mmneuron_lens.runtime.finite import guarded, refuse_unsound
from mmneuron_lens.runtime.forms import forms_of
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.returned import checked_returned, checked_served
from mmneuron_lens.runtime.run import checked_generation, job_of, needs_source, refuse_unfit, result_of
from mmneuron_lens.runtime.sample_numbers import SampleNumbers
from mmneuron_lens.runtime.serving import is_servers_trouble, refuse_unserved
from mmneuron_lens.runtime.shapes import check_plans
from mmneuron_lens.runtime.shipping import bare
from mmneuron_lens.runtime.transport import WHOSE, RemoteFailed, next_step
from mmneuron_lens.wire.describe import describe
from mmneuron_lens.wire.job import run_job
from mmneuron_lens.wire.types import FoldedJob, Job, PairedItem, Served, SitePlan


class RemoteRaised(RemoteFailed):
    """The job's own code raised on the server, for instance on what it was given."""


def run_remote(
    model: Model,
    graph: Graph,
    batches: Iterable[Batch],
    sources: Iterable[Batch] | None = None,
    logits: bool = False,
    *,
    remote: bool | str,
    generation: Mapping[str, Any] | None = None,
    between: list[float] | None = None,
) -> Result:
    """One blocking session for all batches.

    - sources: for graphs that rewire, one paired batch per batch
    - logits: keep them
    - remote: True (the configured host), a host's URL, or "local" (nnsight's dry run of the remote path)
    - generation: settings of transformers' `generate`; a forward if left out
    - between: shares of the way from the source batch, at whose points gradients are taken

    Everything wrong with the graph is raised here first; what cannot ship is refused before anything is sent, as is a
    model that the server does not have (`runtime.serving.refuse_unserved`). Raises `RemoteFailed` with the message and
    the user's line when the job fails there.
    """
    batches, sources = list(batches), None if sources is None else list(sources)
    settings = checked_generation(model, generation or {})
    graph = guarded(graph) if settings else graph
    checked = compile_graph(graph, model.architecture, typed=True, attention=model.attentions)
    overs = results_over(graph, model.architecture)
    job = job_of(model, settings, logits)
    if between:
        refuse_elsewhere(checked)
        checked, job["between"] = with_start(checked, model.architecture), between
    pairs = list(paired(batches, sources, needs_source(checked) or bool(between)))
    for batch, source in pairs:
        refuse_unfit(model, checked, batch, source, job)
        check_plans(checked, batch, model.architecture, model.module, model.dtype, bool(settings))
    plans, entry = travelling(graph, model)
    plans = with_start(plans, model.architecture) if between else plans
    numbers, sent = SampleNumbers(plans), folded_job(job, plans)
    items: list[PairedItem] = [
        {**batch.travelling(numbers.of(batch)), "source": None if source is None else source.travelling()}
        for batch, source in pairs
    ]
    held, backend = model.nnsight, ready_backend(model, remote)
    with in_one_line(backend), held.session(backend=backend):
        returned = entry(held, plans, items, sent).save()
    if remote != "local":
        # A server may have sent nothing under this name.
        forms = forms_of(checked, batches[0], model.architecture, model.module, model.dtype) if batches else {}
        returned = checked_returned(backend.found.get("returned"), overs, len(batches), backend.host, forms)
    values = returned["values"]
    values = refuse_unsound(values, model.dtype) if settings and values else values
    return result_of(model, values, overs, returned["answers"], returned["logits"], job["pad"])


def ask_served(model: Model, remote: bool | str) -> Served:
    """What `wire.describe` tells about the model on the server; raises as `run_remote` does."""
    held, entry, backend = model.nnsight, bare(describe), ready_backend(model, remote)
    with in_one_line(backend), held.session(backend=backend):
        returned = entry(held).save()
    return returned if remote == "local" else checked_served(backend.found.get("returned"), backend.host)


def as_served(model: Model, remote: bool | str) -> Model:
    """The model with what the server says of its device and weights: its fingerprint is theirs."""
    return replace(model, served=ask_served(model, remote))


def ready_backend(model: Model, remote: bool | str) -> Any:
    """The backend of a host that was asked whether it serves the model; raises as `refuse_unserved` does."""
    backend = backend_of(model, remote)
    if remote != "local":
        refuse_unserved(backend.asked, backend.model_key)
    return backend


@contextmanager
def in_one_line(backend: Any) -> Iterator[None]:
    """Turns whatever nnsight, the connection or the answer raise into `RemoteFailed`; a fault of ours stays one."""
    import httpx
    from nnsight.intervention.backends.remote import RemoteError
    from pydantic import ValidationError

    host = getattr(backend, "host", "local")
    try:
        yield
    except MMNeuronError:
        raise
    except RemoteError as error:
        said = " ".join(str(error).split())
        whole = getattr(error, "traceback", str(error))
        raised = "Traceback" in whole and not is_servers_trouble(whole)
        kind = RemoteRaised if raised else RemoteFailed
        raise kind(said if said.startswith(host) else f"{host}: {said}", whole) from error
    except httpx.HTTPStatusError as error:
        raise RemoteFailed(f"{host} answers {error}; {next_step(error.response.status_code)}.", repr(error)) from error
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, one["loc"])) for one in error.errors()) or "its form"
        raise RemoteFailed(f"{host}: a job's status cannot be read ({fields}); {WHOSE}.", repr(error)) from error
    except (httpx.HTTPError, OSError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RemoteFailed(f"{host}: the connection failed; try again ({said})", repr(error)) from error


def travelling(graph: Graph, model: Model) -> tuple[list[SitePlan], Any]:
    """The compiled graph with bare functions, and the bare function that runs it."""
    made: dict[int, Any] = {}
    plans = compile_graph(graph, model.architecture, typed=False, attention=model.attentions)
    for plan in plans:
        for act in plan["acts"]:
            act["function"] = bare(act["function"], made)
            act["over"] = bare(act["over"], made)
    return plans, bare(run_job, made)


def folded_job(job: Job, plans: list[SitePlan]) -> FoldedJob:
    """The job with the folds of plans that are ready to travel."""
    acts = [act for plan in plans for act in plan["acts"]]
    return {**job, "overs": {act["key"]: act["over"] for act in acts if act["over"] is not None}}
