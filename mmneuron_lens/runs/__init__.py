"""Runs: a folder of artifacts, and what makes the value of each key unless it is there."""
