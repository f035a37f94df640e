"""What stays in float whatever bits are asked for: what was excluded by name, and the front ends of audio models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from small_models import build, normal, weight
from small_transformer import encoder, sentences

from onnxq.api import inspect, quantize
from onnxq.cli import main
from onnxq.config import Config
from onnxq.errors import ConfigError, UnsupportedError
from onnxq.verify.session import start_session

CHAIN = (
    "(float[N, 3, 8, 8] x) => (float y) { a = Conv(x, w0)  b = Relu(a)  c = Conv(b, w1)  d = Relu(c)  y = Conv(d, w2) }"
)


def chain() -> onnx.ModelProto:
    shapes = ((8, 3, 1, 1), (8, 8, 1, 1), (4, 8, 1, 1))
    return build(CHAIN, **{f"w{i}": weight(i, *shape) for i, shape in enumerate(shapes)})


def bits(model: onnx.ModelProto, **options: object) -> dict[str, int]:
    _, plan = inspect(model, Config(**options))  # type: ignore[arg-type]
    return {p.layer.name: p.weights for p in plan.layers}


def test_excluded_layers_stay_in_float_with_a_remark() -> None:
    assert bits(chain()) == {"a": 8, "c": 8, "y": 8}
    assert bits(chain(), exclude="c") == {"a": 8, "y": 8}
    assert bits(chain(), exclude="[ac]") == {"y": 8}
    _, plan = inspect(chain(), Config(exclude=("c",)))
    assert [(r.node, r.reason) for r in plan.remarks] == [("c", "left in float as asked")]


def test_the_emitted_model_multiplies_excluded_weights_as_they_were() -> None:
    x = normal(0, 32, 3, 8, 8)
    result = quantize(chain(), x, Config(weights=4, exclude=("c",)))
    made = {o: n for n in result.model.graph.node for o in n.output}
    kept = next(n for n in result.model.graph.node if n.name == "c")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    np.testing.assert_array_equal(stored[kept.input[1]], weight(1, 8, 8, 1, 1))
    # Neither operand of the float layer is rounded right before it: onnxruntime would quantize it on its own account.
    assert all(made[name].op_type != "DequantizeLinear" for name in kept.input if name in made)
    assert result.report.ok


def test_a_pattern_that_names_nothing_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"exclude names 'conv\*', which none of the model's 3 layers.*'a', 'c', 'y'"):
        inspect(chain(), Config(exclude=("a", "conv*")))


def test_all_layers_excluded_leave_nothing_to_do() -> None:
    with pytest.raises(UnsupportedError, match="no layer to quantise: a: left in float as asked"):
        inspect(chain(), Config(exclude=("*",)))


def test_products_and_tables_can_be_excluded_too() -> None:
    _, whole = inspect(encoder(), Config())
    product, table = whole.products[0].name, whole.tables[0].table.name
    _, plan = inspect(encoder(), Config(exclude=(product, table)))
    assert product not in {p.name for p in plan.products} and len(plan.products) == len(whole.products) - 1
    assert table not in {t.table.name for t in plan.tables} and len(plan.tables) == len(whole.tables) - 1
    assert {product, table} <= {r.node for r in plan.remarks}
    assert quantize(encoder(), [sentences(16)], Config(exclude=(product, table))).report.ok


def test_an_allocation_has_no_bits_for_what_is_excluded() -> None:
    config = Config(candidates=("w4a8", "w8a8"), budget=("size=2600B",), exclude=("c",), table_samples=8)
    result = quantize(chain(), normal(0, 32, 3, 8, 8), config)
    assert {row.name for row in result.report.layers} == {"a", "y"}


def test_the_command_excludes(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "net.onnx")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "net.onnx"), "--exclude", "a,c", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [layer["name"] for layer in found["layers"] if layer["weight_bits"]] == ["y"]


SPECTROGRAM = """(float[N, 1, 512] x) => (float y) {{
    s = Conv<strides=[32]>(x, basis)  p = Mul(s, s)  t = Transpose<perm=[0, 2, 1]>(p)  m = MatMul(t, mel)
    f = Clip(m, least)  {between}  l = Log(z)  u = Transpose<perm=[0, 2, 1]>(l)
    c = Conv(u, w0)  r = Relu(c)  g = GlobalAveragePool(r)  y = Conv(g, w1)
}}"""


def listener(between: str = "z = Identity(f)") -> onnx.ModelProto:
    """A network on the logarithm of a spectrum in mel bands, made within it."""
    angle = 2 * np.pi * np.outer(np.arange(16), np.arange(64)) / 64
    return build(
        SPECTROGRAM.format(between=between),
        basis=np.concatenate([np.cos(angle), np.sin(angle)])[:, None].astype(np.float32),
        mel=np.abs(weight(1, 32, 8)),
        least=np.full((), 1e-6, np.float32),
        w0=weight(2, 8, 8, 3),
        w1=weight(3, 4, 8, 1),
    )


def sounds(count: int, seed: int = 0) -> np.ndarray:
    """Tones whose loudness falls by 60 dB."""
    rng, t = np.random.default_rng(seed), np.arange(512) / 512
    tones = np.sin(2 * np.pi * rng.uniform(5, 200, (count, 1)) * t) * 10 ** (-3 * t)
    return tones[:, None].astype(np.float32)


def test_the_front_end_of_an_audio_model_stays_in_float() -> None:
    _, plan = inspect(listener(), Config())
    assert [p.layer.name for p in plan.layers] == ["c", "y"]
    assert {r.node for r in plan.remarks} == {"s", "m"} and all("spectrogram" in r.reason for r in plan.remarks)
    model = listener()
    result = quantize(model, sounds(64), Config(edge_bits="same"))
    run = {name: start_session(m.SerializeToString()) for name, m in (("exact", model), ("quantised", result.model))}
    exact, quantized = (s.run(None, {"x": sounds(32, seed=1)})[0] for s in run.values())
    # 8-bit grids on their own bring some 35 dB; with the waveform and its spectrum on them it would be less than 20.
    assert 10 * np.log10(np.square(exact).sum() / np.square(exact - quantized).sum()) > 28


@pytest.mark.parametrize("between", ["q = Relu(f)  z = Add(q, least)", "q = Exp(f)  z = Add(q, least)"])
def test_a_logarithm_behind_an_activation_function_is_no_front_end(between: str) -> None:
    _, plan = inspect(listener(between), Config())
    assert [p.layer.name for p in plan.layers] == ["s", "m", "c", "y"]
