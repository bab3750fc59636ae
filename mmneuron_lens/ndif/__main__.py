"""`python -m mmneuron_lens.ndif up|status|down`."""

from mmneuron_lens.ndif.command import ndif_app

ndif_app()
