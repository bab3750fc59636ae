"""What may travel to a server: plain functions over dicts, tuples and tensors that import only one another.

Local runs use these very functions. Keep them undecorated, without dataclasses and without annotations that
need a package: a server has torch, transformers and nnsight, and perhaps a newer Python.
"""
