"""Model actors for a server of one's own. Runs in the server's environment: imports ndif, ray and torch, none of ours.

`CpuModel` replaces what touches CUDA in ndif's own actor and nothing else. The two sandboxed ones run every request in
a second process: ndif, without a database of users, trusts each request that does not ask otherwise.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import gc
import time

import ray
from ndif.common.metrics import ModelLoadTimeMetric
from ndif.common.telemetry import elapsed_ms
from ndif.services.ray.deployments.modeling.base import KILL_REASON_PREEMPTED, BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel


class OnCpu:
    """Weights live in the machine's memory; parking a model only marks it."""

    def load_from_disk(self):
        started = time.time()
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        ModelLoadTimeMetric.update(
            model_key=self.model_key, duration_ms=elapsed_ms(started), load_type="initial", num_gpus=0
        )
        return model

    async def to_cache(self):
        await self.cancel(KILL_REASON_PREEMPTED)
        self.cached = True

    def from_cache(self, gpu_mem_bytes_by_id):
        self.gpu_mem_bytes_by_id = gpu_mem_bytes_by_id
        self.cached = False

    def reset(self):
        """What follows a request in ndif's own actor, without its calls to CUDA."""
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


class AlwaysSandboxed(SandboxModelDeployment):
    """Also a request that arrives trusted is run in a process of its own."""

    async def run(self, request):
        request.trusted = False
        await super().run(request)


class _Cpu(OnCpu, BaseModelDeployment):
    def cleanup(self):
        self.reset()


class _CpuSandbox(OnCpu, AlwaysSandboxed):
    def cleanup(self):
        self.discard_sandbox()
        self.reset()


@ray.remote(num_cpus=1, max_restarts=-1)
class CpuModel(_Cpu):
    """A model on the CPU; code runs in the actor's process."""


@ray.remote(num_cpus=1, max_restarts=-1)
class CpuSandbox(_CpuSandbox):
    """A model on the CPU; code runs in a process of its own."""


@ray.remote(num_cpus=1, max_restarts=-1)
class GpuSandbox(AlwaysSandboxed):
    """ndif's own sandboxed actor, which also sandboxes trusted requests."""
