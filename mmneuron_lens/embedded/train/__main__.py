"""`python -m mmneuron_lens.embedded.train llava-next --out FOLDER --minutes 60 --seed 0`: train an embedded model."""

from __future__ import annotations

import argparse

import torch

from mmneuron_lens.embedded.train.build import NAMES
from mmneuron_lens.embedded.train.train import train


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=NAMES)
    parser.add_argument("--out", required=True, help="folder for the model, its processor and train.jsonl")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts-share", type=float, default=0.2, help="share of the time for the vision tower alone")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--start", default=None, help="an exported folder to go on from")
    parser.add_argument("--images", type=int, default=32, help="images in a batch")
    parser.add_argument("--questions", type=int, default=5, help="questions about each")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = ("minutes", "seed", "facts_share", "rate", "images", "questions", "start")
    train(given.model, given.out, **{name: getattr(given, name) for name in names})


if __name__ == "__main__":
    main()
