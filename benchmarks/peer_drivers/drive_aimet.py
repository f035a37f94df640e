"""AIMET for ONNX: batch normalization folded, then its simulation, with its own methods for the weights."""

from __future__ import annotations

import onnx
from aimet_onnx import QuantizationSimModel, apply_adaround, apply_seq_mse
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.common.defs import QuantScheme
from aimet_onnx.common.quantsim_config import __path__ as configurations
from aimet_onnx.cross_layer_equalization import equalize_model
from common import Job, drive

PER_CHANNEL = "default_config_per_channel.json"
MINMAX = ("minmax", "seq_mse")
"""Methods on plain ranges; its sequential search of ranges takes no other."""


def quantise(job: Job) -> None:
    """``minmax``, ``tf_enhanced``, ``cle`` (equalized), ``seq_mse``, or ``adaround-ITERATIONS``."""
    model = onnx.load(job.model)
    if job.method == "cle":
        equalize_model(model)  # folds batch normalisation itself
    else:
        fold_all_batch_norms_to_weight(model)
    sim = QuantizationSimModel(
        model,
        param_type=f"int{job.weights}",
        activation_type=f"int{job.activations}",
        quant_scheme=QuantScheme.min_max if job.method in MINMAX else QuantScheme.post_training_tf_enhanced,
        config_file=f"{configurations[0]}/{PER_CHANNEL}",
        dummy_input=next(job.batches(1)),
    )
    weights = [weight for weight, _ in job.edges] if job.weights < job.edge_bits else []
    inputs = [tensor for _, tensor in job.edges] if job.activations < job.edge_bits else []
    sim.set_tensor_precision(weights + inputs, f"int{job.edge_bits}", strict=False)
    batches = list(job.batches())
    if job.method == "seq_mse":
        apply_seq_mse(sim, batches)
    if job.method.startswith("adaround"):
        apply_adaround(sim, batches, num_iterations=int(job.method.split("-")[1]))
    sim.compute_encodings(batches)
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), job.output)


if __name__ == "__main__":
    drive(quantise)
