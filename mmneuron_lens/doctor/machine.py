"""The machine: processors, GPUs, memory and disk, and what they are enough for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil

from mmneuron_lens.doctor.diagnosis import Diagnosis, State

GIB = 2**30

WEIGHTS = {"7B": 7.06e9, "13B": 13.35e9}
"""Parameters of LLaVA-NeXT with Vicuna."""

BYTES = {"bfloat16": 2.0, "float32": 4.0, "nf4": 0.56}
"""Of a parameter: with nf4, embeddings and the vision tower's norms stay in 16 bits."""


def enough_for(free: float, dtype: str = "bfloat16") -> str:
    """What so many bytes can hold: the weights of which models, with a tenth for what runs."""
    needs = {name: 1.1 * number * BYTES[dtype] for name, number in WEIGHTS.items()}
    fits = [name for name, need in needs.items() if need <= free]
    if len(fits) == len(needs):
        return f"enough for a 13B in {dtype} ({needs['13B'] / GIB:.0f} GiB)"
    if fits:
        return f"enough for a 7B in {dtype} ({needs['7B'] / GIB:.0f} GiB), not for a 13B ({needs['13B'] / GIB:.0f} GiB)"
    return f"enough for the embedded models, not for a 7B in {dtype} ({needs['7B'] / GIB:.0f} GiB)"


def device_checks() -> list[Diagnosis]:
    """Processors and accelerators, with the dtypes that each computes in."""
    import torch

    cores = usable_cores()
    found = f"{cores} cores usable of {os.cpu_count()}, {torch.get_num_threads()} threads of torch, {_dtypes('cpu')}"
    few = cores < 2
    checks = [
        Diagnosis("Devices", "CPU", "note" if few else "ok", found, "count on a machine with more" if few else "")
    ]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, whole = torch.cuda.mem_get_info(number)
        said = f"{torch.cuda.get_device_name(number)}, {free / GIB:.1f} of {whole / GIB:.1f} GiB free, "
        said += f"{_dtypes(f'cuda:{number}')}; {enough_for(free)}"
        checks.append(Diagnosis("Devices", f"cuda:{number}", "ok", said))
    if not torch.cuda.is_available():
        checks.append(_no_cuda(torch.version.cuda))
    if torch.backends.mps.is_available():
        checks.append(Diagnosis("Devices", "mps", "ok", f"--device mps; {_dtypes('mps')}"))
    return checks


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _no_cuda(built: str | None) -> Diagnosis:
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        step = "install a torch with CUDA, see pytorch.org" if built is None else "look at `nvidia-smi`: no GPU is free"
        return Diagnosis("Devices", "CUDA", "problem", "this machine has a GPU that torch does not see", step)
    return Diagnosis("Devices", "CUDA", "ok", "none here")


def _dtypes(device: str) -> str:
    """The dtypes in which a device multiplies matrices."""
    import torch

    able = []
    for name in ("float32", "bfloat16", "float16"):
        try:
            one = torch.ones(2, 2, dtype=getattr(torch, name), device=device)
            (one @ one).sum().item()
            able.append(name)
        except (RuntimeError, TypeError):
            continue
    return ", ".join(able)


def memory_check(free: float | None = None) -> Diagnosis:
    """Memory that is free, and what it holds. free: bytes; this machine's if None."""
    whole = psutil.virtual_memory()
    free = _free_memory() if free is None else free
    small = free < 1.1 * WEIGHTS["7B"] * BYTES["bfloat16"]
    state: State = "problem" if free < GIB else "note" if small else "ok"
    step = "a 7B runs with --remote, or on a GPU with --quantize nf4" if state == "note" else ""
    step = "close other programs: the embedded models take 1 GiB" if state == "problem" else step
    found = f"{free / GIB:.1f} of {whole.total / GIB:.1f} GiB free; {enough_for(free)}"
    return Diagnosis("Memory and disk", "memory", state, found, step)


def _free_memory() -> float:
    """Bytes that are free, in a container no more than its own limit leaves."""
    free = float(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        return free if text == "max" else min(free, float(text) - float(used.read_text()))
    except (OSError, ValueError):
        return free


def disk_checks(folders: Mapping[str, Path] | None = None, free: float | None = None) -> list[Diagnosis]:
    """The disks of this folder and of the hub's cache: whether they can be written, and what fits.

    - folders: by name; those two if None. free: bytes on each; the disk's own if None.
    """
    checks = []
    for name, folder in (folders or _folders()).items():
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        room = float(shutil.disk_usage(there).free) if free is None else free
        found = f"{room / GIB:.1f} GiB free at {folder}"
        if not os.access(there, os.W_OK):
            step = "run in a folder that you can write" if name == "this folder" else "set HF_HOME to one that you can"
            checks.append(Diagnosis("Memory and disk", name, "problem", f"{folder} cannot be written", step))
        elif room < GIB / 4:
            checks.append(Diagnosis("Memory and disk", name, "problem", found, "free some space there"))
        elif name == "hub cache" and room < WEIGHTS["7B"] * 2:
            step = "free some, or set HF_HOME to another disk"
            checks.append(Diagnosis("Memory and disk", name, "note", f"{found}; a 7B takes 13 GiB", step))
        else:
            checks.append(Diagnosis("Memory and disk", name, "ok", found))
    return checks


def _folders() -> dict[str, Path]:
    from huggingface_hub.constants import HF_HUB_CACHE

    return {"this folder": Path.cwd(), "hub cache": Path(HF_HUB_CACHE)}


def speed_checks(environment: Mapping[str, str] = os.environ) -> list[Diagnosis]:
    """What will be slow here, and what to do about it."""
    import torch

    cores, slow = usable_cores(), "Speed"
    checks = []
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        step = "--remote for a large one, see `mmneuron ndif`; the embedded models need none"
        checks.append(Diagnosis(slow, "no GPU", "note", "a checkpoint of billions of weights is slow on a CPU", step))
    if torch.get_num_threads() > cores:
        step = f"export OMP_NUM_THREADS={cores}"
        checks.append(Diagnosis(slow, "threads", "note", f"{torch.get_num_threads()} threads on {cores} cores", step))
    if environment.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        found = "OMP_WAIT_POLICY=ACTIVE: idle threads spin, which on a busy machine costs ten times the time"
        checks.append(Diagnosis(slow, "idle threads", "note", found, "unset OMP_WAIT_POLICY"))
    load = psutil.getloadavg()[0]
    if load > cores:
        found = f"a load of {load:.1f} on {cores} cores: other programs are running"
        checks.append(Diagnosis(slow, "load", "note", found, "wait, or expect longer times"))
    pictures = "torchvision" if find_spec("torchvision") else "Pillow, exact; with torchvision they would be faster"
    checks.append(Diagnosis(slow, "pictures", "ok", f"prepared by {pictures}"))
    return checks
