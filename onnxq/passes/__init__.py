"""Graph rewrites, one a file: what stands between an exported graph and one whose layers can be quantized.

A pass is a function ``name(model: Model) -> Model`` that keeps these rules:

* It works on a copy (`Draft`); the model it was given is as before.
* The graph computes the same function, up to float rounding.
* Graph inputs and outputs keep names, types and order. Nodes and tensors that remain keep their names;
  a new constant is called after its layer (``<layer>/bias``, ``<weight>/<layer>``).
* What it leaves alone although it was its business is recorded as a `Remark` with the reason.
* A value that the caller may override, or that a subgraph reads, is never folded away.
* Nodes stand in topological order before and after it.

`onnxq.passes.prepare.prepare` runs them all.
"""
