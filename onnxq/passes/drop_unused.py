"""Taking out nodes that nothing needs."""

from __future__ import annotations

from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft, reads_inside


def drop_unused(model: Model) -> Model:
    """Drop every node of the main graph that no output depends on, in one walk from the back.

    ``gs.Graph.cleanup`` would overlook a value that a subgraph hands out without a node of its own.
    """
    draft = Draft(model)
    needed = {t.name for t in draft.graph.outputs}
    for node in reversed(draft.nodes):
        if any(t.name in needed for t in node.outputs):
            needed.update(t.name for t in node.inputs if not t.is_empty())
            needed.update(reads_inside(node))
        else:
            draft.drop(node)
    return draft.finish()
