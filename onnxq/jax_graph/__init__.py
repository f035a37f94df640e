"""ONNX graphs as JAX functions: what is needed to differentiate a whole network.

Operators are plain functions, one file a family, entered in ``registry``; ``interpreter`` runs a graph
with them, ``hooks`` let a caller replace the values of single tensors on the way.
"""
