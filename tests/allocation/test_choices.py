"""Bits of tables and of products of two activations, chosen beside those of the layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_transformer import encoder, sentences

from onnxq.allocation.choices import make_choices
from onnxq.allocation.cost.dummy_model import placeholder_model
from onnxq.allocation.cost.measured import read_latency
from onnxq.allocation.cost.operations import read_energy
from onnxq.allocation.cost.table import cost_table
from onnxq.allocation.measure import Measuring, merged
from onnxq.allocation.mixed import tables_for
from onnxq.allocation.sensitivity import How, Reference, measure_sensitivities
from onnxq.allocation.sensitivity_table import SensitivityTable
from onnxq.api import quantize
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT, Candidate, parse_candidates
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan
from onnxq.progress import silent
from onnxq.quant.spec import QuantParams
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.session import Session
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.closed_form.embedding import solve_table
from onnxq.solve.network import solve_network

pytestmark = pytest.mark.slow

W4A32, W4A8, W8A8 = Candidate(4, 32), Candidate(4, 8), Candidate(8, 8)
FREE = Config(edge_bits="same", candidates=("w4a32", "w8a8", "w4a8"), equalise=False)
TABLES, PRODUCTS = ["words", "places"], ["scores", "context"]


def prepared() -> Model:
    return prepare(load(encoder(), minimum_opset=21))


def outputs(proto: onnx.ModelProto) -> np.ndarray:
    return np.asarray(next(iter(Session(proto, "").run(sentences()).values())), np.float64)


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.square(found - exact).mean() / exact.var())


@pytest.mark.parametrize(("candidate", "attention"), [(W4A32, 8), (W8A8, 8), (W4A8, 8), (W8A8, 32)])
def test_a_candidate_for_every_part_is_the_uniform_model(candidate: Candidate, attention: int) -> None:
    model = prepared()
    usual = dataclasses.replace(FREE, attention=attention)  # type: ignore[arg-type]
    config = dataclasses.replace(
        usual,
        candidates=(),
        budget=(),
        weights=candidate.weights,  # type: ignore[arg-type]
        activations=candidate.activations,  # type: ignore[arg-type]
    )
    names = make_choices(model, parse_candidates(FREE.candidates), usual).names
    assert [n for n in names if n in TABLES + PRODUCTS] == TABLES + PRODUCTS
    mixed, uniform = make_plan(model, usual, dict.fromkeys(names, candidate)), make_plan(model, config)
    assert (mixed.tables, mixed.products, mixed.outputs) == (uniform.tables, uniform.products, uniform.outputs)
    assert [(p.weights, p.activations, p.block) for p in mixed.layers] == [
        (p.weights, p.activations, p.block) for p in uniform.layers
    ]


def test_tables_and_products_that_an_allocation_does_not_name_follow_the_configuration() -> None:
    model = prepared()
    layers = [layer.name for layer in make_choices(model, [W8A8], FREE).layers]
    plan = make_plan(model, dataclasses.replace(FREE, candidates=(), budget=(), weights=4), dict.fromkeys(layers, W8A8))
    assert ([p.bits for p in plan.tables], [p.name for p in plan.products]) == ([4, 4], PRODUCTS)


def test_an_entry_of_a_table_or_a_product_is_the_loss_with_it_alone_quantised() -> None:
    model, feed = prepared(), sentences()
    choices = make_choices(model, (W4A32, W8A8), FREE)
    table = measure_sensitivities(model, choices, [feed], FREE, how=How(metric="mse"))
    exact = outputs(to_proto(model))
    for name, candidate, bits in (("words", W4A32, 4), ("words", W8A8, 8), ("places", W4A32, 4)):
        constant = {"words": "table", "places": "positions"}[name]
        proto = to_proto(model)
        stored = next(t for t in proto.graph.initializer if t.name == constant)
        rows = solve_table(name, numpy_helper.to_array(stored), bits, blocked=True).dequantized()
        stored.CopyFrom(numpy_helper.from_array(rows, constant))
        assert entry(table, name, candidate) == pytest.approx(relative_error(outputs(proto), exact), rel=2e-3)
    grids = quantized_throughout(model, W8A8).outputs
    for name, operands in (("scores", ("qt", "kt")), ("context", ("weights", "vt"))):
        assert entry(table, name, W4A32) == 0.0
        wanted = relative_error(outputs(rounded(to_proto(model), {t: grids[t] for t in operands})), exact)
        assert entry(table, name, W8A8) == pytest.approx(wanted, rel=2e-2)


def test_around_a_quantised_network_a_part_as_it_is_changes_nothing_and_in_float_it_gains() -> None:
    model = prepared()
    choices = make_choices(model, (W4A8, FLOAT), FREE)
    found = quantized_throughout(model, W4A8)
    reference = Reference(dict.fromkeys(choices.names, W4A8), found)
    table = measure_sensitivities(model, choices, [sentences()], FREE, reference=reference)
    for name in TABLES + PRODUCTS:
        assert entry(table, name, W4A8) == pytest.approx(0.0, abs=1e-9)
    assert entry(table, "words", FLOAT) < -0.1 * table.reference_loss


def test_the_size_of_any_mixture_is_predicted_with_its_tables_and_products() -> None:
    model = prepared()
    choices = make_choices(model, (W4A32, W8A8, W4A8), FREE)
    costs = cost_table(model, choices, FREE, float_bytes=10**6, energy=read_energy())
    rng = np.random.default_rng(0)
    for _ in range(8):
        choice = {name: choices.candidates[rng.integers(3)] for name in choices.names}
        first = next(iter(choice.values()))
        choice |= {name: first for name in ("q0", "k0", "v0")}  # they read one tensor
        written = placeholder_model(model, FREE, choice)[0].ByteSize()
        assert costs.total("size", choice) == pytest.approx(written, abs=300)


def test_sensitivities_are_those_of_migrated_ranges_where_inputs_are_rounded() -> None:
    model, feed = prepared(), sentences()
    config = dataclasses.replace(FREE, equalise=True, table_samples=16)
    ready = tables_for(model, [feed], config, Measuring(), silent, float_bytes=10**6).sensitivity
    choices = make_choices(model, parse_candidates(config.candidates), config)
    as_it_is = measure_sensitivities(model, choices, [feed], config)
    assert entry(ready, "i0", W8A8) < 0.5 * entry(as_it_is, "i0", W8A8)  # channel 3 is eight times larger
    assert entry(ready, "i0", W4A32) == pytest.approx(entry(as_it_is, "i0", W4A32), rel=0.5)


def test_of_two_tables_the_one_made_for_a_candidate_counts_and_others_fill_what_it_lacks() -> None:
    model = prepared()
    choices = make_choices(model, (W4A8, W8A8), FREE)

    def table(candidates: tuple[Candidate, ...], *columns: float) -> SensitivityTable:
        rows = (columns,) * len(choices.names)
        return SensitivityTable(choices.names, candidates, rows, rows, "mse", "full", 1)

    raised = (table((W4A8, W8A8), 4.0, 5.0), (W4A8,))
    found = merged(choices, [raised, (table((W8A8,), 8.0), (W8A8,))])
    assert set(found.loss) == {(4.0, 8.0)}
    assert set(merged(choices, [raised]).loss) == {(4.0, 5.0)}


def test_measured_elsewhere_tables_and_products_need_no_latencies(tmp_path: Path) -> None:
    (tmp_path / "npu.csv").write_text("layer,candidate,milliseconds\na,w4a8,2\na,float,5\n")
    table = read_latency(tmp_path / "npu.csv", ["a", "words"], [W4A8, W8A8], {"a"})
    assert (table.values["latency"][1], table.whole["latency"]) == ((0.0, 0.0), 5.0)


def test_a_mixed_model_takes_products_in_float_and_tables_of_other_bits_where_that_loses_less() -> None:
    uniform = quantize(encoder(), sentences(), Config(edge_bits="same"))
    config = dataclasses.replace(FREE, equalise=True, table_samples=16, budget=(f"size={uniform.model.ByteSize()}",))
    result = quantize(encoder(), sentences(), config)
    account = result.report.allocation or {}
    assert {*TABLES, *PRODUCTS} < account["choice"].keys()
    assert result.model.ByteSize() <= uniform.model.ByteSize()
    exact = outputs(encoder())
    assert relative_error(outputs(result.model), exact) < relative_error(outputs(uniform.model), exact)


def test_factors_of_migrated_ranges_are_kept_within_the_size(tmp_path: Path) -> None:
    """In this model a Mul takes more than a product's quantizers do, and the normalization cannot take it in."""
    config = dataclasses.replace(FREE, equalise=True, table_samples=16)
    plain = quantize(encoder(), sentences(), Config(edge_bits="same", equalise=False)).model.ByteSize()
    whole = quantize(encoder(), sentences(), Config(edge_bits="same")).model.ByteSize()
    assert whole > plain
    for size in (whole, (whole + plain) // 2, plain):
        budget = dataclasses.replace(config, budget=(f"size={size}",))
        result = quantize(encoder(), sentences(), budget, work_dir=tmp_path, resume=size != whole)
        assert result.model.ByteSize() <= size


def entry(table: SensitivityTable, name: str, candidate: Candidate) -> float:
    return table.loss[table.layers.index(name)][table.candidates.index(candidate)]


def quantized_throughout(model: Model, candidate: Candidate) -> QuantizedNetwork:
    names = make_choices(model, [candidate], FREE).names
    plan = make_plan(model, FREE, dict.fromkeys(names, candidate))
    return solve_network(model, plan, FREE, [sentences()], Checkpoint(None, "", resume=False), silent)


def rounded(proto: onnx.ModelProto, grids: dict[str, QuantParams]) -> onnx.ModelProto:
    """The model with a Q/DQ pair behind each of some tensors."""
    for name, grid in grids.items():
        readers = [n for n in proto.graph.node if name in n.input]
        for node in readers:
            node.input[list(node.input).index(name)] = f"{name}/rounded"
        scale, zero = np.float32(grid.scale), np.asarray(grid.zero_point, np.uint8)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(scale), f"{name}/s"))
        proto.graph.initializer.append(numpy_helper.from_array(zero, f"{name}/z"))
        place = next(i for i, n in enumerate(proto.graph.node) if name in n.output)
        inputs = [f"{name}/s", f"{name}/z"]
        proto.graph.node.insert(place + 1, onnx.helper.make_node("QuantizeLinear", [name, *inputs], [f"{name}/i"]))
        pair = onnx.helper.make_node("DequantizeLinear", [f"{name}/i", *inputs], [f"{name}/rounded"])
        proto.graph.node.insert(place + 2, pair)
    return proto
