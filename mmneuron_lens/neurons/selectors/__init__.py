"""Selectors: pure functions from what was measured of a model's neurons to how specific each is to each domain.

Importing this package registers those of ours, one a file.
"""

from mmneuron_lens.neurons.selectors import attribution as attribution
from mmneuron_lens.neurons.selectors import can as can
from mmneuron_lens.neurons.selectors import dape as dape
from mmneuron_lens.neurons.selectors import manu as manu
from mmneuron_lens.neurons.selectors import margin as margin
from mmneuron_lens.neurons.selectors import miner as miner
from mmneuron_lens.neurons.selectors import random_neurons as random_neurons
