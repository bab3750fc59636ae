"""Turns: every method in a process of its own, timed one after the other: memory is its own, noise is shared."""

from __future__ import annotations

import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MIB = 2**20


class Worker:
    """A process that has loaded a model and times a method on request.

    model, dtype: as of `models.load`. python: of the environment that it runs in, this one's if None. Raises
    `RuntimeError` with the child's last words when it fails.
    """

    def __init__(self, method: str, model: str, dtype: str, threads: int, python: Path | None = None) -> None:
        self.pipe, child = Pipe()
        command = [str(python or sys.executable), __file__, str(child.fileno()), method, model, dtype, str(threads)]
        self.process = subprocess.Popen(command, pass_fds=[child.fileno()])
        child.close()
        self._answer()

    def time(self, images: int, questions: int, at_most: int | None = None) -> tuple[float, float, int]:
        """Seconds a question, the peak of memory above what the loaded model takes in MiB, and questions asked."""
        self.pipe.send((images, questions, at_most))
        return self._answer()

    def close(self) -> None:
        self.pipe.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            code = self.process.wait()
            raise RuntimeError(f"a worker ended with exit code {code} (-9: out of memory?).") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def _serve(pipe: Any, method: str, model: str, dtype: str, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    import methods
    import models
    import transformers

    transformers.logging.disable_progress_bar()

    try:
        lens = models.load(model, dtype)
        # Pages of the file that weights were read from become memory of our own at the first touch.
        for parameter in lens.module.parameters():
            parameter.data = parameter.data.clone()
        held = resident("VmRSS")
        pipe.send(None)
        while True:
            images, questions, at_most = pipe.recv()
            work = [
                (picture, text)
                for place, picture in enumerate(models.pictures(model, images))
                for text in models.asked(place, questions)
            ][:at_most]
            forget_peak()
            begun = time.perf_counter()
            methods.METHODS[method](lens, work, models.ROWS[model])
            spent = time.perf_counter() - begun
            pipe.send((spent / len(work), max(resident("VmHWM") - held, 0) / MIB, len(work)))
    except EOFError:
        return
    except Exception as error:
        pipe.send(f"{method} on {model}: {type(error).__name__}: {error}")


def resident(what: str) -> int:
    """A line of this process's status in bytes: VmRSS, what it holds now, or VmHWM, the most it held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise KeyError(what)


def forget_peak() -> None:
    """Let VmHWM start again from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), *sys.argv[2:5], int(sys.argv[5]))
