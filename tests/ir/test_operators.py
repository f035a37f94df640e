"""The table of operators: complete, true by the cases that onnx has for its operators, and asked by everybody."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from onnx import defs, numpy_helper
from onnx.backend.test.case import node as node_cases
from small_models import build, weight

from onnxq.allocation.choices import find_agreements
from onnxq.emit.spare import MOVERS
from onnxq.ir.ceiling import find_ceilings
from onnxq.ir.layer import find_layers
from onnxq.ir.load import load
from onnxq.ir.operators import TABLE, UNKNOWN, Trait, operators_with
from onnxq.ir.reachability import carried_into, carried_to
from onnxq.ir.singular import CARRIERS, not_negative
from onnxq.ir.spectrogram import WITHIN
from onnxq.passes.lift_constants import MOVING
from onnxq.passes.prepare import prepare

Arrays = list[np.ndarray]
Claim = Callable[[Arrays, Arrays], bool]


def test_every_operator_of_the_standard_is_entered_or_listed_as_unknown() -> None:
    standard = {schema.name for schema in defs.get_all_schemas_with_history() if schema.domain == ""}
    assert standard - TABLE.keys() - UNKNOWN == set(), "enter these in ir/operators.py"
    assert not TABLE.keys() & UNKNOWN
    assert standard >= UNKNOWN


def test_every_trait_is_one_of_some_operator() -> None:
    assert [trait.name for trait in Trait if not operators_with(trait)] == []


def among(found: np.ndarray, *sources: np.ndarray) -> bool:
    return bool(np.isin(found, np.concatenate([s.reshape(-1) for s in sources])).all())


CLAIMS: dict[Trait, Claim] = {
    Trait.MOVES: lambda given, made: among(made[0], given[0]),
    Trait.REARRANGES: lambda given, made: np.array_equal(np.sort(made[0], None), np.sort(given[0], None)),
    Trait.PICKS: lambda given, made: among(made[0], given[0]) and made[0].max() <= given[0].max(),
    Trait.PARTS: lambda given, made: all(among(m, *given) for m in made),
    Trait.LIMITS: lambda given, made: among(made[0], np.zeros(1), *given),
    Trait.PADS: lambda given, made: among(made[0], np.zeros(1), *given),
    Trait.REDUCES: lambda given, made: made[0].size <= given[0].size or not given[0].size,
    Trait.NOT_NEGATIVE: lambda given, made: not (made[0] < 0).any(),
    Trait.ELEMENTWISE: lambda given, made: made[0].shape == np.broadcast_shapes(*(g.shape for g in given if g.size)),
}
"""What a trait says of what an operator is given and makes, where numbers can show it."""


def cases(trait: Trait) -> Iterator[tuple[str, Arrays, Arrays]]:
    """Operands and results of the cases that onnx has for the operators with a trait, numbers alone."""
    wanted = operators_with(trait)
    for module in pkgutil.iter_modules(node_cases.__path__):
        if module.name.replace("_", "") in {name.lower() for name in wanted}:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some divide by zero on purpose
                importlib.import_module(f"{node_cases.__name__}.{module.name}")
    for case in node_cases._NodeTestCases:
        node = case.model.graph.node[0]
        if node.op_type in wanted and len(case.model.graph.node) == 1 and "training" not in case.name:
            for inputs, outputs in case.data_sets:
                given, made = arrays(inputs), arrays(outputs)
                if given and made and all(a.dtype.kind in "fiub" for a in (*given, *made)):
                    yield case.name, given, made


def arrays(values: list[object]) -> Arrays:
    plain = [v for v in values if not isinstance(v, list) and v is not None]
    return [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v) for v in plain]


@pytest.mark.parametrize("trait", CLAIMS, ids=lambda trait: str(trait.name))
def test_a_trait_holds_in_every_case_that_onnx_has_for_its_operators(trait: Trait) -> None:
    found = list(cases(trait))
    assert len(found) >= 3
    assert [name for name, given, made in found if not CLAIMS[trait](given, made)] == []


# Each stands between a, of shape (1, 4, 8, 8) and between 0 and 6, and u.
MOVED = {
    "Compress": "u = Compress<axis=2>(a, kept)",
    "DepthToSpace": "u = DepthToSpace<blocksize=2>(a)",
    "Dropout": "u, dropped = Dropout(a)  m = Not(dropped)",
    "Expand": "u = Expand(a, five)",
    "Flatten": "f = Flatten<axis=2>(a)  u = Reshape(f, shape)",
    "Gather": "u = Gather<axis=2>(a, two)",
    "GatherElements": "u = GatherElements<axis=0>(a, places)",
    "GatherND": "u = GatherND<batch_dims=1>(a, rows)",
    "Identity": "u = Identity(a)",
    "Reshape": "u = Reshape(a, flat)",
    "ReverseSequence": "u = ReverseSequence<batch_axis=0, time_axis=1>(a, four)",
    "Slice": "u = Slice(a, zero, two, two)",
    "SpaceToDepth": "u = SpaceToDepth<blocksize=2>(a)",
    "Squeeze": "e = Unsqueeze(a, zero)  u = Squeeze(e, zero)",
    "Tile": "u = Tile(a, five)",
    "Transpose": "u = Transpose<perm=[0,1,3,2]>(a)",
    "Unsqueeze": "e = Squeeze(a, zero)  u = Unsqueeze(e, zero)",
}
INTEGERS = {
    "five": [5, 1, 1, 1],
    "shape": [1, 4, 8, 8],
    "flat": [1, 4, 4, 16],
    "zero": [0],
    "two": [2],
    "four": [4],
    "rows": [[[0]]],
}


@pytest.mark.parametrize("op", sorted(operators_with(Trait.MOVES)))
def test_whatever_only_moves_values_is_known_to_everybody_who_asks(op: str) -> None:
    """An operator that is entered as moving needs a line in MOVED; nothing else has to learn of it."""
    constants = {name: np.array(value, np.int64) for name, value in INTEGERS.items()}
    constants |= {"kept": np.arange(8) % 2 == 0, "places": np.zeros((1, 4, 8, 8), np.int64)}
    constants |= {"low": np.zeros((), np.float32), "high": np.full((), 6, np.float32), "w": weight(0, 4, 3, 1, 1)}
    channels = {"DepthToSpace": 1, "SpaceToDepth": 16, "GatherND": 8}.get(op, 4)
    constants["v"] = weight(1, 5, channels, *((1,) if op == "GatherND" else (1, 1)))
    text = f"""(float[1, 3, 8, 8] x) => (float y, float z) {{
        c = Conv(x, w)  a = Clip(c, low, high)  {MOVED[op]}  y = Conv(u, v)  z = Conv(a, h)
    }}"""
    model = load(build(text, h=weight(2, 2, 4, 1, 1), **constants))
    model = model if op in ("Dropout", "Identity") else prepare(model)
    assert find_ceilings(model)["u"] == 6
    assert not_negative(model.tensors["u"])
    assert carried_into(model, "a", {"u"}) == {"u"}
    (agreement,) = find_agreements(model, find_layers(model)[0])
    assert len(agreement.layers) == 2  # one grid serves both readers of the values, so they take the same bits
    assert op in MOVERS and op in CARRIERS and op in WITHIN


@pytest.mark.parametrize("op", sorted(operators_with(Trait.REARRANGES) - {"Dropout"}))
def test_whatever_rearranges_values_shares_its_grid_and_is_lifted_from_constants(op: str) -> None:
    constants = {name: np.array(value, np.int64) for name, value in INTEGERS.items()}
    channels = {"DepthToSpace": 1, "SpaceToDepth": 16}.get(op, 4)
    constants |= {"w": weight(0, 4, 3, 1, 1), "v": weight(1, 5, channels, 1, 1)}
    text = f"(float[1, 3, 8, 8] x) => (float y) {{ a = Conv(x, w)  {MOVED[op]}  y = Conv(u, v) }}"
    model = load(build(text, **constants))
    assert carried_to(model, "a", {"u"}) == "u"
    assert op in MOVING
