"""Artifacts: what stages hand to each other on disk, and the format they are written in."""
