"""A process that runs serialized jobs where nothing of this project, nor jaxtyping, can be imported.

Arguments: names of functions in `newer_models.py` or `tiny_models.py`, which build the models. A line of standard input
is `model-number payload-file result-file`; the answer line is `ok` or the error in one line.
"""

from __future__ import annotations

import sys
import traceback
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

ABSENT = ("interventions", "mmneuron_lens", "jaxtyping", "beartype")


class Absent(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(names: list[str]) -> None:
    sys.meta_path.insert(0, Absent())
    sys.path.insert(0, str(Path(__file__).parent))
    answers, sys.stdout = sys.stdout, sys.stderr
    import newer_models
    import tiny_models
    import torch
    from nnsight.modeling.transformers import TransformersModel
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.tracer import _saves, dec, inc

    torch.set_num_threads(1)
    models = []
    for name in names:
        module, processor = getattr(newer_models if hasattr(newer_models, name) else tiny_models, name)()
        made = TransformersModel(module, task="image-text-to-text", processor=processor, tokenizer=processor.tokenizer)
        models.append(made)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        number, payload, result = line.split()
        model = models[int(number)]
        inc()
        try:
            content = Path(payload).read_bytes()
            tracer = RequestModel.deserialize(content, model._remoteable_persistent_objects(), compress=False)
            tracer.execute(tracer.info.code)
            saves, found = _saves(), tracer.info.frame.f_locals
            torch.save({name: value for name, value in found.items() if id(value) in saves}, result)
            print("ok", file=answers, flush=True)
        except BaseException as error:
            traceback.print_exc()
            print(" ".join(f"{type(error).__name__}: {error}".split()), file=answers, flush=True)
        finally:
            dec()


if __name__ == "__main__":
    main(sys.argv[1:])
