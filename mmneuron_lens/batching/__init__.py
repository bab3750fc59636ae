"""Batching: samples to batches of a model, decoded ahead, with progress."""
