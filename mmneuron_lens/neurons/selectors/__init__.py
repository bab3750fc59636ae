"""Selectors: pure functions from what was measured of a model's neurons to how specific each is to each domain."""

from mmneuron_lens.neurons.selectors import manu as manu
from mmneuron_lens.neurons.selectors import margin as margin
from mmneuron_lens.neurons.selectors import miner as miner
