"""Graphs and the values of sites inside nnsight's own traces."""
