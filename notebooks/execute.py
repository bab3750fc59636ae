"""Executes notebooks and stores them with what they show, as they are committed.

    python notebooks/execute.py                  all but those that need a server
    python notebooks/execute.py 01 10_on_ndif    by the beginning of their names

The last needs `MMNEURON_NDIF_URL`, the address of a server that `mmneuron ndif up --model embedded/llava-next --cpu` started.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent
NEEDS_SERVER = ("10_on_ndif",)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LARGEST_PICTURE, LARGEST_NOTEBOOK = 150_000, 1_500_000
"""Bytes."""

FORBIDDEN = {
    "a progress bar": r"[█▉▊▋▌▍▎▏]|\bit/s\b|\bs/it\b|\d+%\|",
    "a tokenizer's byte": r"[ĠĊ▁]",
    "a path of this machine": r"(?<![\w.])/(?:tmp|home|root|work|usr|Users|opt|var)/\w",
    "the address of an object": r"\bat 0x[0-9a-f]{6,}|<[\w.]+ object",
    "a warning": r"\b\w*Warning: ",
    "a time": r"\b\d+(?:\.\d+)? ?(?:ms|µs)\b|\bin \d+\.\d+ ?s\b",
}
"""What no output that is committed may show."""


def names() -> list[str]:
    """Of all notebooks, in their order."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(name: str) -> Any:
    """The notebook as it comes out of a new kernel, in an empty folder of its own."""
    notebook = read(name)
    # Threads that spin while they wait are ruinous on a busy machine.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            store_widget_state=False,
        ).execute()
    return tidy(notebook)


def tidy(notebook: Any) -> Any:
    """Without what differs from one execution to the next: times, versions, how a stream was cut into pieces."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat_minor = 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [*_joined(cell.outputs)]
            for output in cell.outputs:
                _tidy_output(output)
    return notebook


def _joined(outputs: Iterable[Any]) -> Iterator[Any]:
    """Streams that follow each other and have one name, as one."""
    last = None
    for output in outputs:
        if last is not None and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            last = output
            yield output


def _tidy_output(output: Any) -> None:
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = _smaller(data["image/png"])
        # `<Figure size ...>` says nothing that the picture does not.
        data["text/plain"] = "figure"
        output.metadata = nbformat.from_dict({})


def _smaller(encoded: str) -> str:
    """Without the name of the software; of 256 colours where all of them would be too large."""
    with Image.open(BytesIO(b64decode(encoded))) as picture:
        if "Software" not in picture.info and len(b64decode(encoded)) <= LARGEST_PICTURE:
            return encoded
        every = picture.convert("RGB")
    for drawn in (every, every.quantize(256, dither=Image.Dither.NONE)):
        buffer = BytesIO()
        drawn.save(buffer, format="PNG", optimize=True)
        if len(buffer.getvalue()) <= LARGEST_PICTURE:
            break
    return b64encode(buffer.getvalue()).decode()


def faults(notebook: Any) -> list[str]:
    """What keeps it from being committed as it is: a sentence each."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counted = [cell.execution_count for cell in cells]
    found = (
        [] if counted == [*range(1, len(cells) + 1)] else [f"cells were executed as {counted}, not one after another"]
    )
    for number, cell in enumerate(cells, 1):
        found += [f"cell {number}: {fault}" for output in cell.outputs for fault in _output_faults(output)]
    outputs = [output for cell in cells for output in cell.outputs]
    if not any("image/png" in output.get("data", {}) for output in outputs):
        found.append("no figure")
    if len(nbformat.writes(notebook)) > LARGEST_NOTEBOOK:
        found.append(f"it has more than {LARGEST_NOTEBOOK} bytes")
    return found


def _output_faults(output: Any) -> Iterator[str]:
    if output.output_type == "error":
        yield f"{output.ename}: {output.evalue}"
    if output.get("name") == "stderr":
        yield f"stderr: {output.text[:200]}"
    data = output.get("data", {})
    for kind, shown in {**data, "stream": output.get("text", "")}.items():
        if kind == "image/png":
            size = len(b64decode(shown))
            if size > LARGEST_PICTURE:
                yield f"a picture of {size} bytes"
            with Image.open(BytesIO(b64decode(shown))) as picture:
                if "Software" in picture.info:
                    yield "a picture that names the software it was drawn with"
            continue
        # Pictures inside HTML are no text.
        text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", str(shown))
        for what, pattern in FORBIDDEN.items():
            if found := re.search(pattern, text):
                yield f"{kind} shows {what}: {text[max(0, found.start() - 30) : found.end() + 30]!r}"
    if "text/html" in data and "text/plain" not in data:
        yield "HTML without plain text"


def chosen(asked: list[str]) -> list[str]:
    if not asked:
        return [name for name in names() if name not in NEEDS_SERVER or "MMNEURON_NDIF_URL" in os.environ]
    found = [name for name in names() if name.startswith(tuple(asked))]
    return found or sys.exit(f"no notebook begins with {' or '.join(asked)}; there are {', '.join(names())}.")


def main() -> None:
    wrong = False
    for name in chosen(sys.argv[1:]):
        notebook = executed(name)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        said = faults(notebook)
        wrong |= bool(said)
        print(f"{name}: {'; '.join(said) or 'stored'}")
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
