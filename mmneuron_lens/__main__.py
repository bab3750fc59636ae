"""`python -m mmneuron_lens` is the command `mmneuron`."""

from mmneuron_lens.cli import app

app(prog_name="mmneuron")
