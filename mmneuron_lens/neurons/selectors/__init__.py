"""Selectors: pure functions from what was measured of a model's neurons to how specific each is to each domain."""
