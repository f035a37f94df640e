"""All rewrites in their order: an exported graph becomes one whose layers can be quantized."""

from __future__ import annotations

from onnxq.ir.model import Model
from onnxq.passes.drop_identity import drop_identity
from onnxq.passes.drop_unused import drop_unused
from onnxq.passes.explicit_bias import explicit_bias
from onnxq.passes.explicit_padding import explicit_padding
from onnxq.passes.fold_batchnorm import fold_batchnorm
from onnxq.passes.fold_pad import fold_pad
from onnxq.passes.lift_constants import lift_constants
from onnxq.passes.matmul_forms import matmul_forms
from onnxq.passes.matmul_to_gemm import matmul_to_gemm
from onnxq.passes.own_operands import own_operands
from onnxq.passes.own_outputs import own_outputs
from onnxq.passes.plain_gemm import plain_gemm

# Each needs those before it: a BatchNormalization is found behind its layer only when no Identity stands
# between, pads fold only into pads that are written out, and everything looks for constants.
PASSES = (
    drop_unused,
    drop_identity,
    lift_constants,
    own_outputs,
    explicit_padding,
    matmul_forms,
    matmul_to_gemm,
    plain_gemm,
    fold_pad,
    fold_batchnorm,
    explicit_bias,
    drop_unused,
    own_operands,
)


def prepare(model: Model) -> Model:
    """Bring a loaded model into the form that the later stages work on; its answers stay the same.

    Args:
        model: as `onnxq.ir.load.load` returns it; it is not changed.

    Returns:
        The rewritten model, with what was left alone in `remarks`.
    """
    for rewrite in PASSES:
        model = rewrite(model)
    return model
