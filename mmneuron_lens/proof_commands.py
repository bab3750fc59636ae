"""The commands `mmneuron prove` and `mmneuron describe`: what a model's sites are, and what discovery finds in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmneuron_lens.echo import echo
from mmneuron_lens.options import Checkpoint, Device, DeviceMap, Discover, Dtype, Quantize
from mmneuron_lens.printing import model_settings, print_table, quiet_loading


def prove(
    model: Checkpoint,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write proof.json to; runs/proofs/MODEL if left out.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    discover: Discover = False,
) -> None:
    """Prove that a model's sites are what they are called, and that every shortcut computes what it stands for.

    Prints what was seen and writes it to proof.json; what does not hold is one line, and exit code 1.
    """
    from mmneuron_lens.artifacts.file_names import file_name
    from mmneuron_lens.lens import Lens
    from mmneuron_lens.report.terminal import terminal_table

    quiet_loading()
    lens = Lens(model, **model_settings(None, dtype, device, device_map, quantize), discover=discover)
    certificate = lens.prove()
    file = (out or Path("runs/proofs") / file_name(lens.name)) / "proof.json"
    certificate.save(file)
    print_table(terminal_table(certificate.to_frame(), f"{certificate.architecture}, {certificate.model}"))
    for line in (*certificate.notes(), f"Proof: {file.resolve()}"):
        echo(line)


def describe(model: Checkpoint) -> None:
    """Say what discovery finds in a model, without reading its weights; for an unknown one, a table to start from."""
    from mmneuron_lens.architectures import loading
    from mmneuron_lens.report.terminal import terminal_table
    from mmneuron_lens.runtime.describing import describe as described

    quiet_loading()
    found = described(*loading.load_meta(loading.located(model), known=False))
    table = terminal_table(found.to_frame(), f"Activation modules of {model}")
    # Paths are read to their ends.
    table.columns[0].overflow = "fold"
    print_table(table)
    for line in (*found.lines(), *(("", found.start) if found.start else ())):
        echo(line)
