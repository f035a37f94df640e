from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from small_models import build, conv_chain, images, relu_chain, weight
from small_problems import problem as small_problem
from tiny_model import LAYERS, tiny_images, tiny_model

import onnxq
from onnxq.allocation import latency_loop
from onnxq.allocation.allocate import allocate
from onnxq.allocation.bit_allocation import BitAllocation, Outcome
from onnxq.allocation.choices import Choices, make_choices
from onnxq.allocation.cost.dummy_model import placeholder_model
from onnxq.allocation.cost.latency import latency_table, run_times, time_models
from onnxq.allocation.cost.measured import read_latency
from onnxq.allocation.cost.operations import EnergyTable, bit_operations, read_energy
from onnxq.allocation.cost.table import cost_table
from onnxq.allocation.latency_loop import winner
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.sensitivity_table import CostTable, SensitivityTable
from onnxq.allocation.terms import InfeasibleError
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT, Candidate, parse_candidates
from onnxq.config.budget import Budget, parse_budgets
from onnxq.errors import ConfigError
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.passes.prepare import prepare

FREE = Config(edge_bits="same")
MANY = parse_candidates("float,w2a8,w3a4,w4a8,w4a32,w5a8,w8a8,w16a16")
HEAD = 64
"""Bytes that the file's head and the descriptions of its outputs may differ by."""


def allocation(choice: dict[str, Candidate]) -> BitAllocation:
    return BitAllocation(choice, 0.0, 0.0, {}, "loss", Outcome.OPTIMAL, 0.0, 0.0, {})


def costs(proto: object, config: Config = FREE) -> tuple[CostTable, Choices, Model]:
    model = prepare(load(proto, minimum_opset=25))  # type: ignore[arg-type]
    choices = make_choices(model, MANY, config)
    return cost_table(model, choices, config, float_bytes=10_000, energy=read_energy()), choices, model


@pytest.mark.parametrize("container", ["packed", "int4", "int8"])
@pytest.mark.parametrize(
    "mix", ["w4a8 w4a8 w8a8", "w2a8 float w16a16", "w3a4 w4a32 w5a8", "w8a8 w8a8 w8a8", "w5a8 w4a32 w8a8"]
)
def test_a_predicted_size_is_that_of_the_emitted_file(mix: str, container: str) -> None:
    config = Config(edge_bits="same", container=container, equalise=False)  # type: ignore[arg-type]
    table, _, _ = costs(tiny_model(), config)
    choice = dict(zip(LAYERS, (parse_candidates(word)[0] for word in mix.split()), strict=True))
    result = onnxq.quantize(tiny_model(), tiny_images(16), config, allocation=allocation(choice))
    # The quantizer behind an integer layer depends on what follows it: two nodes and two scalars.
    integer = [c for c in choice.values() if c.activations == 8 and (c.weights > 4 or container != "int4")]
    room = 300 if integer and len(integer) < len(choice) else HEAD
    assert table.total("size", choice) == pytest.approx(result.model.ByteSize(), abs=room)


def test_sizes_count_the_bits_of_the_weights_at_every_width() -> None:
    model = build(
        "(float[N,64,8,8] x) => (float[N,64,8,8] y) { c = Conv(x, w0) y = Conv(c, w1) }",
        w0=weight(0, 64, 64, 1, 1),
        w1=weight(1, 64, 64, 1, 1),
    )
    prepared = prepare(load(model, minimum_opset=25))
    widths = range(2, 9)
    choices = make_choices(prepared, parse_candidates([f"w{bits}a8" for bits in widths]), FREE)
    sizes = cost_table(prepared, choices, FREE, float_bytes=10_000, energy=read_energy()).values["size"]
    for layer in sizes:
        for bits, size in zip(widths, layer, strict=True):
            saved = 64 * 64 * (8 - bits) / 8
            nodes = layer[-1] - saved
            assert nodes <= size + 64 and size <= nodes + 800  # those that unpack, with their names


def test_bit_operations_and_energy_are_those_counted_by_hand() -> None:
    table, choices, _ = costs(tiny_model())
    macs = [8 * 64 * 27, 12 * 9 * 72, 5 * 12]
    bits, energy = table.values["bops"], table.values["energy"]
    w4a8, w4a32 = choices.candidates.index(Candidate(4, 8)), choices.candidates.index(Candidate(4, 32))
    for i, count in enumerate(macs):
        assert bits[i][w4a8] == count * 32
        held = choices.layers[i].parameters
        assert energy[i][w4a8] == pytest.approx(count * (0.2 * 32 / 64 + 0.1) + held * 4 * 1.5625)
        assert energy[i][w4a32] == pytest.approx(count * (3.7 + 0.9) + held * 4 * 1.5625)
    assert table.whole["bops"] == sum(macs) * 1024
    assert bit_operations(10, FLOAT) == 10 * 32 * 32


def test_work_is_left_out_where_sizes_are_open() -> None:
    proto = build(
        "(float[N,3,H,W] x) => (float[N,8,H,W] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=weight(0, 8, 3, 3, 3)
    )
    table, _, _ = costs(proto)
    assert set(table.values) == {"size"}


def test_another_energy_table_can_be_given_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "energy.toml"
    numbers = "multiply_integer = 1\naccumulate_integer = 0\nmultiply_float = 9\naccumulate_float = 0\n"
    path.write_text(f'source = "a data sheet"\n{numbers}weight_bit = 0\n')
    table = read_energy(path)
    assert table == EnergyTable("a data sheet", 1, 0, 9, 0, 0)
    assert table.of(64, 3, Candidate(8, 8)) == 64
    path.write_text(f'source = "a data sheet"\n{numbers}weight_bit = -1\nspeed = 3\n')
    with pytest.raises(ConfigError, match=r"look at weight_bit, speed"):
        read_energy(path)
    path.write_text("= 3")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_energy(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_energy(tmp_path / "none.toml")
    assert "ISSCC 2014" in read_energy().source


CSV = """layer,candidate,milliseconds
rest,,0.5
first,float,4
first,w8a8,1
first,w4a8,0.5
middle,float,4
middle,w8a8,3
last,float,1
last,w4a8,2
last,w8a8,1.5
"""


def foreign(tmp_path: Path, text: str = CSV) -> CostTable:
    (tmp_path / "npu.csv").write_text(text)
    return read_latency(tmp_path / "npu.csv", LAYERS, parse_candidates("w4a8,w8a8"))


def test_latencies_of_foreign_hardware_come_from_a_csv_and_missing_candidates_cannot_be_chosen(tmp_path: Path) -> None:
    table = foreign(tmp_path)
    assert table.whole == {"latency": 9.5}
    w4, w8 = parse_candidates("w4a8,w8a8")
    assert table.total("latency", dict.fromkeys(LAYERS, w8)) == 6.0
    assert math.isnan(table.values["latency"][1][0])
    loss = ((2.0, 1.0), (2.0, 1.0), (2.0, 1.0))
    size = CostTable(table.layers, table.candidates, {"size": ((4, 8), (4, 8), (4, 8))}, {"size": 96.0}, {"size": 0.0})
    sensitivity = SensitivityTable(tuple(LAYERS), (w4, w8), loss, loss, "kl", "full", 8)
    problem = AllocationProblem(sensitivity, size.merged(table))
    found = allocate(problem, parse_budgets(["size=20,latency=5.6ms"]))
    assert found.choice == {"first": w4, "middle": w8, "last": w8}
    assert found.costs == {"size": 20.0, "latency": 5.5}
    assert allocate(problem, [Budget("latency", 0.6, relative=True)]).costs["latency"] == 5.5
    with pytest.raises(InfeasibleError, match=r"the least latency that can be reached is 5\.5 \(0\.5789 of the float"):
        allocate(problem, [Budget("latency", 0.5, relative=True)])


@pytest.mark.parametrize(
    ("text", "told"),
    {
        "layer,candidate\nfirst,w8a8\n": "its first line must be layer,candidate,milliseconds",
        CSV + "first,w8a8,fast\n": "line 11: 'fast' is no number of milliseconds",
        CSV + "first,w8a8,-1\n": "line 11: '-1' is no number",
        CSV + "other,w8a8,1\n": "line 11: the model has no layer 'other'",
        CSV + "first,w9a8,1\n": "candidate 'w9a8' is not understood",
        CSV.replace("middle,w8a8", "middle,w2a8"): "has no line for layer 'middle' at any of w4a8, w8a8",
    }.items(),
)
def test_a_csv_that_cannot_be_used_is_told(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        foreign(tmp_path, text)


def test_a_fraction_of_a_latency_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    table = foreign(tmp_path, CSV.replace("last,float,1\n", ""))
    w4, w8 = parse_candidates("w4a8,w8a8")
    loss = ((2.0, 1.0), (2.0, 1.0), (2.0, 1.0))
    problem = AllocationProblem(SensitivityTable(tuple(LAYERS), (w4, w8), loss, loss, "kl", "full", 8), table)
    with pytest.raises(ConfigError, match="does not say what latency the float network spends"):
        allocate(problem, [Budget("latency", 0.5, relative=True)])
    assert allocate(problem, [Budget("latency", 9.0)]).costs["latency"] <= 9


def test_measured_times_of_layers_and_rest_add_up_to_the_run() -> None:
    model = prepare(load(conv_chain("a = Relu(c0)", "d0 = Relu(c1) d = Add(d0, a)"), minimum_opset=21))
    choices = make_choices(model, parse_candidates("w4a8,w8a8"), FREE)
    feed = {"x": images(1)}
    table = latency_table(model, choices, FREE, feed)
    values = np.array(table.values["latency"])
    assert np.isfinite(values).all()
    assert (values > 0).all()
    assert table.whole["latency"] > table.rest["latency"] >= 0
    names = [layer.name for layer in choices.layers]
    protos = [placeholder_model(model, FREE, dict.fromkeys(names, c))[0] for c in choices.candidates]
    for timing in time_models(model, choices.layers, protos, feed):
        assert set(timing.layers) == set(names)
        assert timing.total == pytest.approx(timing.rest + sum(timing.layers.values()))
    assert all(spent > 0 for spent in run_times(protos, feed))


def test_a_timed_choice_gives_way_to_what_is_faster_and_no_less_accurate_but_not_to_speed_alone() -> None:
    def losing(loss: float) -> BitAllocation:
        return dataclasses.replace(allocation({"a": Candidate(8, 8)}), loss=loss)

    own, worse, same = losing(0.1), losing(0.5), losing(0.1)
    assert winner(own, 2.0, [(worse, 1.0)], in_float=3.0) is own  # 2 bits in the same containers are as fast as 8
    assert winner(own, 2.0, [(worse, 1.0), (same, 1.5)], in_float=3.0) is same
    assert winner(own, 2.0, [(worse, 2.5), (same, 2.0)], in_float=3.0) is own
    assert winner(own, 2.0, [(worse, 1.0)], in_float=1.5) is worse  # slower than float and than the rival
    assert winner(own, 2.0, [], in_float=1.5) is own


def test_where_mixed_models_turn_out_too_slow_one_candidate_throughout_keeps_the_latency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = (Candidate(8, 8), FLOAT)
    given = small_problem([[1, 0], [1, 0]], {"latency": [[1, 2], [1, 2]]}, pair)
    slow = small_problem([[1, 0], [1, 0]], {"latency": [[9, 9], [9, 9]]}, pair)
    monkeypatch.setattr(latency_loop, "_timed", lambda *_: slow)
    found = latency_loop.allocate_timed(None, given, [Budget("latency", 3.0)], FREE, {})  # type: ignore[arg-type]
    assert set(found.choice.values()) == {Candidate(8, 8)}
    apart = small_problem([[1, 0], [0, 1]], {"latency": [[1, 9], [9, 1]]}, pair)
    with pytest.raises(InfeasibleError, match="no allocation keeps latency"):
        latency_loop.allocate_timed(None, apart, [Budget("latency", 3.0)], FREE, {})  # type: ignore[arg-type]


def test_a_placeholder_is_as_large_as_the_solved_model_and_gives_numbers() -> None:
    config = Config(edge_bits="same", equalise=False)
    model = prepare(load(relu_chain(), minimum_opset=21))
    choice = dict.fromkeys((layer.name for layer in make_choices(model, MANY, config).layers), Candidate(4, 8))
    proto, plan = placeholder_model(model, config, choice)
    solved = onnxq.quantize(relu_chain(), images(16), config, allocation=allocation(choice)).model
    assert len(plan.layers) == 3
    assert proto.ByteSize() == pytest.approx(solved.ByteSize(), abs=HEAD)
