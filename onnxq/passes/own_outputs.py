"""Graph outputs that a node makes.

A graph may give out one of its constants or inputs as it is. Stages hand tensors on from node to node, so such an
output comes from an Identity of its own.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.ir.surgeon import renamed_constant
from onnxq.passes.graph_editor import Draft


def own_outputs(model: Model) -> Model:
    """Let an Identity make every graph output that is a constant; what reads the constant reads it under another name.

    A constant that a caller may override stays an output as it is, and so does an input.
    """
    draft = Draft(model)
    inputs = {t.name for t in draft.graph.inputs}
    for index, output in enumerate(draft.graph.outputs):
        if not isinstance(output, gs.Constant) or output.name in inputs or draft.is_read_inside(output):
            continue
        source = renamed_constant(output, draft.new_name(f"{output.name}/constant"))
        for reader in list(output.outputs):
            for place, tensor in enumerate(reader.inputs):
                if tensor is output:
                    reader.inputs[place] = source
        made = gs.Variable(output.name, output.dtype, output.shape)
        draft.graph.outputs[index] = made
        draft.graph.nodes.append(
            gs.Node("Identity", draft.new_name(f"{output.name}/Identity"), inputs=[source], outputs=[made])
        )
    return draft.finish()
