"""Experiments: the paper's stages, each a thin composition of corpora, interventions, a lens and artifacts."""
