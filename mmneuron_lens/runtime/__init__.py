"""Runtime: a graph compiled for one model, and run."""
