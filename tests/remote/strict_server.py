"""A server without our packages: runs serialized jobs through ndif's own functions, one per line of standard input.

Started with the interpreter of a server environment and its models: folders, or the names of functions in
`newer_models.py`, which build what no folder can be loaded as without torchvision. It must import nothing of this
project. A line is `model-number payload-file result-file`; the answer line is `ok` or `error` and the message.
"""

import contextlib
import io
import sys
import traceback
from pathlib import Path

import torch
from ndif.services.ray.deployments.modeling.nns import block_scope, execute_traced_block, prepare_traced_block
from nnsight.intervention import serialization
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel


def load_function(source, name, defaults, kwdefaults, annotations, *origin, genuine=serialization._load_function):
    """As nnsight does, but a function that was sent with annotations is refused: they may need what is not here."""
    if annotations:
        raise ValueError(f"{name} was sent with annotations: {annotations}")
    return genuine(source, name, defaults, kwdefaults, annotations, *origin)


def made(one: str) -> TransformersModel:
    """A model from its folder, or as the tests build it."""
    if "/" in one:
        return TransformersModel(one, task="image-text-to-text", dispatch=True)
    sys.path[:0] = [str(Path(__file__).parent.parent)]
    import newer_models

    module, processor = getattr(newer_models, one)()
    return TransformersModel(module, task="image-text-to-text", processor=processor, tokenizer=processor.tokenizer)


def main(folders: list[str]) -> None:
    for forbidden in ("interventions", "mmneuron_lens", "jaxtyping", "beartype"):
        with contextlib.suppress(ImportError):
            __import__(forbidden)
            raise SystemExit(f"this server has {forbidden}, so it proves nothing")
    answers = sys.stdout
    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    serialization._load_function = load_function
    models = [made(one) for one in folders]
    for model in models:
        model._module.eval()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        number, payload, result = line.split()
        try:
            with open(payload, "rb") as file, block_scope():
                tracer, _ = prepare_traced_block(models[int(number)], file.read(), False, RequestModel.deserialize)
                saved = execute_traced_block(tracer, torch.float32)
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            with open(result, "wb") as file:
                file.write(buffer.getvalue())
            print("ok", file=answers, flush=True)
        except BaseException as error:
            traceback.print_exc()
            print("error", " ".join(f"{type(error).__name__}: {error}".split()), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
