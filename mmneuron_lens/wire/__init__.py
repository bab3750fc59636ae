"""What may travel to a server: plain functions over dicts, tuples and tensors that import only one another.

Local runs use these very functions. Keep them undecorated: a server has torch, transformers and nnsight, and perhaps a
newer Python. Their annotations are left out of what is sent (`runtime.shipping.bare`), so no function uses the name of
a type when it runs; functions inside functions carry none, since those are made again where they run.
"""
