"""Neurons: from counts to probabilities, entropies, selections and their controls. Pure: tensors and artifacts."""
