"""Blocks found in a graph, and their layers refined together."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from small_models import SAME, build, images, normal, relu_chain, weight
from small_transformer import encoder

import onnxq.solve.gradient.block_reconstruction
from onnxq.api import quantize
from onnxq.config import Config
from onnxq.config.optimization import Tuning
from onnxq.ir.block import Block, block_model, find_blocks
from onnxq.ir.layer import find_layers
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.ir.stage import split_stages
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan
from onnxq.progress import silent
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.gradient.block_reconstruction import RECONSTRUCTED
from onnxq.solve.gradient.fake_quantization import Mixing, fake_quantize, mixed
from onnxq.solve.network import solve_network

pytestmark = pytest.mark.slow

QUICK = Tuning(steps=60, rate=0.01, weight_rate=0.01, input_rate=0.01, integer_rate=0, features=0)


def residual() -> onnx.ModelProto:
    """A stem, two residual blocks of two layers, one with its activation before, and a head."""
    constants = {f"w{i}": weight(i, 8, 8 if i else 3, 3, 3) for i in range(6)}
    constants |= {f"b{i}": 0.1 * normal(100 + i, 8) for i in range(6)}
    text = f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{
        c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0)
        c1 = Conv{SAME}(r0, w1, b1) r1 = Relu(c1) c2 = Conv{SAME}(r1, w2, b2) s2 = Add(c2, r0)
        r2 = Relu(s2) c3 = Conv{SAME}(r2, w3, b3) r3 = Relu(c3) c4 = Conv{SAME}(r3, w4, b4) s4 = Add(c4, s2)
        r4 = Relu(s4) y = Conv{SAME}(r4, w5, b5) }}"""
    return build(text, **constants)


def blocks_of(proto: onnx.ModelProto) -> tuple[Model, tuple[Block, ...]]:
    model = prepare(load(proto))
    return model, find_blocks(model, split_stages(model, find_layers(model)[0]))


def solved(preset: str, folder: Path | None = None, resume: bool = False) -> tuple[Model, QuantizedNetwork]:
    """Of 64 samples at 3 bits, from nearest rounding, which leaves most to gain."""
    config = Config(
        preset=preset,  # type: ignore[arg-type]
        weights=3,
        activations=3,
        edge_bits="same",
        second_order=False,
        tune=False,
        reconstruct=True,
        reconstruction=QUICK,
        refinement={"steps": 1},  # type: ignore[arg-type]
    )
    model = prepare(load(residual()))
    feeds = [{"x": part} for part in np.split(images(64), 4)]
    checkpoint = Checkpoint(folder, "mark", resume=resume)
    return model, solve_network(model, make_plan(model, config), config, feeds, checkpoint, silent)


@pytest.fixture(scope="module")
def refined() -> tuple[Model, QuantizedNetwork]:
    return solved("advanced")


def test_residual_blocks_are_found_also_where_an_activation_stands_before_them() -> None:
    _, blocks = blocks_of(residual())
    assert [[layer.output for layer in block.layers] for block in blocks] == [["c1", "c2"], ["c3", "c4"]]
    assert [set(block.leaves) for block in blocks] == [{"r2", "s2"}, {"r4"}]


def test_a_chain_of_layers_has_no_blocks() -> None:
    assert blocks_of(relu_chain())[1] == ()


def test_attention_and_feed_forward_parts_are_blocks() -> None:
    _, blocks = blocks_of(encoder())
    assert [[layer.name for layer in block.layers] for block in blocks] == [["q0", "k0", "v0", "o0"], ["i0", "d0"]]


def test_a_block_alone_makes_what_it_makes_in_its_network() -> None:
    model, blocks = blocks_of(residual())
    whole = to_proto(model)
    for block in blocks:
        proto = block_model(model, block, dict.fromkeys(("r0", "r2", "s2"), np.dtype(np.float32)))
        read = [i.name for i in proto.graph.input]
        names = list(dict.fromkeys([*read, *block.leaves]))
        probe = onnx.ModelProto()
        probe.CopyFrom(whole)
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        found = dict(
            zip(names, ort.InferenceSession(probe.SerializeToString()).run(names, {"x": images(4)}), strict=True)
        )
        made = ort.InferenceSession(proto.SerializeToString()).run(list(block.leaves), {n: found[n] for n in read})
        for name, values in zip(block.leaves, made, strict=True):
            np.testing.assert_allclose(values, found[name], rtol=1e-5, atol=1e-5)


def test_refined_blocks_bring_the_network_closer_to_the_float_one(refined: tuple[Model, QuantizedNetwork]) -> None:
    _, plain = solved("light")
    _, found = refined
    assert RECONSTRUCTED in {solution.status for solution in found.layers.values()}
    assert found.sqnr_db["y"] > plain.sqnr_db["y"] + 0.5  # type: ignore[operator]


def test_a_resumed_run_takes_finished_blocks_as_they_are(
    refined: tuple[Model, QuantizedNetwork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved("advanced", tmp_path)
    monkeypatch.setattr(onnxq.solve.gradient.block_reconstruction, "block_model", None)  # nothing may be refined again
    _, again = solved("advanced", tmp_path, resume=True)
    for name, solution in refined[1].layers.items():
        np.testing.assert_array_equal(again.layers[name].integers, solution.integers)
        np.testing.assert_array_equal(again.layers[name].weight.scale, solution.weight.scale)
        np.testing.assert_array_equal(again.layers[name].bias, solution.bias)


def test_what_is_emitted_with_refined_blocks_is_what_was_simulated() -> None:
    # The gate compares the emitted model with the simulation, and raises where they part.
    options = {"reconstruct": True, "reconstruction": QUICK, "refinement": {"steps": 1}}
    result = quantize(
        residual(), images(32), Config(preset="advanced", tune=False, weights=4, activations=4, **options)
    )  # type: ignore[arg-type]
    assert result.report.missed == ()


def test_mixing_leaves_the_asked_share_of_an_input_as_it_is() -> None:
    x, grid = jnp.asarray(normal(1, 100, 100)), jnp.asarray([0.5, 0.0, -8.0, 7.0])
    made = mixed(x, grid, Mixing(jax.random.key(0), jnp.float32(0.3)), 2)
    kept = np.asarray(made == x)
    assert kept.mean() == pytest.approx(0.3, abs=0.02)  # four standard deviations of 10,000 draws
    np.testing.assert_array_equal(np.where(kept, 0, made), np.where(kept, 0, fake_quantize(x, grid)))
    np.testing.assert_array_equal(mixed(x, grid, None, 2), fake_quantize(x, grid))
