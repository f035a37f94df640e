"""Damaged and hostile model files, and what a quantization makes of them in a process of bounded memory and time.

python hostile_files.py SEED FIRST COUNT FOLDER     one line of JSON a file; file N of a seed is always the same
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from small_models import build, normal, relu_chain, weight

MEMORY = 6 * 2**30
"""Bytes of address space: libraries reserve much more than they use."""

SECONDS = 60
"""Time for one file; a machine with other work is slow."""

GOOD = ("quantised", "refused")


class LateError(BaseException):
    """The time for a file is over; no library may take it for an error of its own."""


Damage = Callable[[Random, Path], None]


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def _model(random: Random) -> onnx.ModelProto:
    kind = random.choice(("chain", "if", "matrix"))
    if kind == "chain":
        return relu_chain(opset=random.choice((11, 17, 21)))
    if kind == "matrix":
        return build(
            """(float[N,3,8,8] x) => (float[N,5] y) {
                f = Flatten(x)  s = Constant<value = float {0.5}>()  m = Mul(f, s)  h = MatMul(m, w)
                a = Add(h, b)  r = Relu(a)  y = Gemm<transB=1>(r, v, c) }""",
            w=weight(1, 192, 6),
            b=normal(2, 6),
            v=weight(3, 5, 6),
            c=normal(4, 5),
        )
    return build(
        """(float[N,3,8,8] x) => (float[N,4,6,6] y) {
            c = Conv(x, w)  r = Relu(c)  m = ReduceMax<keepdims=0>(x)  flag = Greater(m, three)
            y = If(flag) <then_branch = left () => (float[N,4,6,6] p) { p = Neg(r) },
                          else_branch = right () => (float[N,4,6,6] q) { q = Identity(r) }> }""",
        w=weight(1, 4, 3, 3, 3),
        three=np.float32(3.9),
    )


# Damage to the bytes of a file.


def truncated(random: Random, path: Path) -> None:
    data = _model(random).SerializeToString()
    path.write_bytes(data[: random.randint(1, len(data) - 1)])


def flipped_bits(random: Random, path: Path) -> None:
    data = bytearray(_model(random).SerializeToString())
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(bytes(data))


def flipped_bits_of_the_graph(random: Random, path: Path) -> None:
    """Flips outside the weights, where they change the structure."""
    model = _model(random)
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in model.graph.initializer]
    del model.graph.initializer[:]
    data = bytearray(model.graph.SerializeToString())
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    try:
        model.graph.ParseFromString(bytes(data))
    except Exception:
        path.write_bytes(bytes(data))
        return
    model.graph.initializer.extend(kept)
    _save(model, path)


def overwritten_block(random: Random, path: Path) -> None:
    data = bytearray(_model(random).SerializeToString())
    start = random.randrange(len(data))
    block = bytes(random.choice((0, 255, random.randrange(256))) for _ in range(random.randint(1, 64)))
    data[start : start + len(block)] = block
    path.write_bytes(bytes(data))


def not_a_model(random: Random, path: Path) -> None:
    text = b"import torch\n# this is a script, not a model\n"
    path.write_bytes(
        random.choice((b"", b"\x00", text, text * 1000, random.randbytes(4096), b"\x08\x07", b"PK\x03\x04"))
    )


# Damage to the graph.


def absurd_dims(random: Random, path: Path) -> None:
    model = _model(random)
    size = random.choice((2**62, 2**63 - 1, 2**31, 2**40, -1, -(2**62), 0))
    if random.random() < 0.5:
        tensor = random.choice(model.graph.initializer)
        if tensor.dims:
            tensor.dims[random.randrange(len(tensor.dims))] = size
        else:
            tensor.dims.append(size)
    else:
        value = random.choice((*model.graph.input, *model.graph.output))
        random.choice(value.type.tensor_type.shape.dim).dim_value = size
    _save(model, path)


def wrong_size_of_a_constant(random: Random, path: Path) -> None:
    model = _model(random)
    tensor = random.choice(model.graph.initializer)
    raw = tensor.raw_data
    forms = (raw[:-1], raw[: len(raw) // 2], raw + b"\0" * 64, b"")
    tensor.raw_data = random.choice(forms)
    if random.random() < 0.3:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([0.5] * random.choice((0, 1, 1000)))
    _save(model, path)


def odd_type_of_a_constant(random: Random, path: Path) -> None:
    model = _model(random)
    tensor = random.choice(model.graph.initializer)
    tensor.data_type = random.choice((0, 2, 7, 8, 10, 11, 14, 16, 17, 22, 23, 99, -1))
    _save(model, path)


def odd_numbers(random: Random, path: Path) -> None:
    model = _model(random)
    tensor = random.choice([t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT])
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[: random.randint(1, max(values.size, 1))] = random.choice((np.nan, np.inf, 3e38, 1e-45, 0.0))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    _save(model, path)


def wiring(random: Random, path: Path) -> None:
    """Cycles, inputs that nothing makes, names made twice, nodes that lack inputs or outputs."""
    model = _model(random)
    nodes, graph = model.graph.node, model.graph
    node, other = random.choice(nodes), random.choice(nodes)
    kind = random.choice(("cycle", "self", "missing", "twice", "twins", "none", "fewer", "more", "output", "shadow"))
    if kind == "cycle" and nodes[0].input:
        nodes[0].input[0] = nodes[-1].output[0]
    elif kind == "self" and node.input:
        node.input[0] = node.output[0]
    elif kind == "missing" and node.input:
        node.input[random.randrange(len(node.input))] = "nowhere"
    elif kind == "twice":
        node.output[0] = other.output[0]
    elif kind == "twins":
        graph.initializer.append(random.choice(graph.initializer))
    elif kind == "none":
        del node.output[:]
    elif kind == "fewer":
        del node.input[:]
    elif kind == "more":
        node.input.extend(["", "x", "x", "x"])
    elif kind == "output":
        graph.output[0].name = random.choice(("nowhere", "", "x"))
    else:
        graph.initializer[0].name = random.choice(("x", "", node.output[0] if node.output else ""))
    _save(model, path)


def odd_attribute(random: Random, path: Path) -> None:
    model = relu_chain()
    node = random.choice([n for n in model.graph.node if n.op_type == "Conv"])
    name = random.choice(("pads", "strides", "group", "dilations", "kernel_shape", "auto_pad", "unheard_of"))
    numbers: tuple[list[int], ...] = (
        [0, 0],
        [-1, -1],
        [2**62, 2**62],
        [10**9, 10**9],
        [1],
        [1, 1, 1],
        [],
        [1, 1, 1, -100],
        [2**31] * 4,
    )
    value = random.choice((*numbers, 0, -1, 2**62, 3, 1.5, [1.5, 2.5], "SAME_UPPER", "NONSENSE", ["a"]))
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    kind = onnx.AttributeProto.INTS if value == [] else None
    node.attribute.extend([*kept, helper.make_attribute(name, value, attr_type=kind)])
    if random.random() < 0.2:
        node.attribute[-1].type = random.choice((0, 1, 2, 3, 4, 5, 6, 7, 13))
    _save(model, path)


def odd_header(random: Random, path: Path) -> None:
    model = _model(random)
    kind = random.choice(("ir", "opset", "none", "two", "op", "domain", "empty", "no outputs", "no inputs", "no nodes"))
    if kind == "ir":
        model.ir_version = random.choice((0, 1, 2, 99, 2**40))
    elif kind == "opset":
        model.opset_import[0].version = random.choice((0, 1, 8, 28, 999, 2**40, -1))
    elif kind == "none":
        del model.opset_import[:]
    elif kind == "two":
        model.opset_import.add(domain="", version=9)
    elif kind == "op":
        random.choice(model.graph.node).op_type = random.choice(
            ("", "Mystery", "Loop", "Scan", "LSTM", "DequantizeLinear")
        )
    elif kind == "domain":
        random.choice(model.graph.node).domain = "acme"
    elif kind == "empty":
        model.ClearField("graph")
    elif kind == "no outputs":
        del model.graph.output[:]
    elif kind == "no inputs":
        del model.graph.input[:]
    else:
        del model.graph.node[:]
    _save(model, path)


def deep_subgraphs(random: Random, path: Path) -> None:
    """Branches within branches, up to and beyond what protobuf parses."""
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["z0"])], "g", [], [_value("z0")]).SerializeToString()
    depth = random.choice((5, 20, 31, 33, 60, 1000))
    for level in range(1, depth):
        plain = helper.make_graph([helper.make_node("Abs", ["x"], [f"e{level}"])], "e", [], [_value(f"e{level}")])
        node = helper.make_node("If", ["flag"], [f"z{level}"], f"i{level}", else_branch=plain).SerializeToString()
        # Written byte by byte: the library makes no message that it would not parse.
        deeper = _field(1, b"then_branch") + _field(6, inner) + bytes([20 << 3 & 127 | 128, 20 << 3 >> 7, 5])
        outer = helper.make_graph([], f"g{level}", [], [_value(f"z{level}")]).SerializeToString()
        inner = _field(1, node + _field(5, deeper)) + outer
    model = relu_chain()
    model.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
    data = model.graph.SerializeToString() + inner  # messages of one field merge: nodes and outputs are added
    model.ClearField("graph")
    path.write_bytes(model.SerializeToString() + _field(7, data))


def _field(number: int, payload: bytes) -> bytes:
    """A protobuf field that holds bytes."""
    size, length = b"", len(payload)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 8, 8])


def odd_function(random: Random, path: Path) -> None:
    """A function that calls itself, or lacks what it reads, or is called and not there."""
    model = relu_chain()
    body = random.choice(
        (
            [helper.make_node("f", ["a"], ["b"], domain="own")],
            [helper.make_node("Relu", ["nowhere"], ["b"])],
            [helper.make_node("Relu", ["a"], ["c"])],
            [],
            [helper.make_node("Relu", ["a"], ["b"])],
        )
    )
    function = helper.make_function(
        "own", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    )
    if random.random() < 0.8:
        model.functions.append(function)
    model.opset_import.add(domain="own", version=1)
    node = next(n for n in model.graph.node if n.op_type == "Relu")
    node.op_type, node.domain = "f", "own"
    if random.random() < 0.3:
        node.input.extend(["x", "x"])
    _save(model, path)


def external_data(random: Random, path: Path) -> None:
    """Weights in a file that is elsewhere, too short, missing, or the file of someone else."""
    model = relu_chain()
    folder = path.parent / f"{path.stem}-data"
    folder.mkdir()
    outside = path.parent / f"{path.stem}-secret.bin"
    outside.write_bytes(bytes(10_000))
    (folder / "weights.bin").write_bytes(bytes(10_000))
    (folder / "link.bin").symlink_to(outside)
    (folder / "linked").symlink_to(path.parent)
    location = random.choice(
        (
            "weights.bin",
            "weights.bin",
            "weights.bin",
            f"../{outside.name}",
            str(outside),
            "link.bin",
            f"linked/{outside.name}",
            "missing.bin",
            "",
            ".",
            "/dev/zero",
            "/etc/passwd",
            "weights.bin\0.txt",
            "x" * 5000,
        )
    )
    tensor = random.choice([t for t in model.graph.initializer if len(t.dims) == 4])
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    offset = random.choice(("0", "9999", "10000000", "-1", str(2**62), "abc", "1e3"))
    size = random.choice((str(length), str(length), "1", "0", "-5", str(2**62), "many"))
    if random.random() < 0.6:
        tensor.external_data.add(key="offset", value=offset)
    if random.random() < 0.6:
        tensor.external_data.add(key="length", value=size)
    _save(model, folder / "net.onnx")
    path.symlink_to(folder / "net.onnx")


DAMAGES: tuple[Damage, ...] = (
    truncated,
    flipped_bits,
    flipped_bits_of_the_graph,
    flipped_bits_of_the_graph,
    overwritten_block,
    not_a_model,
    absurd_dims,
    wrong_size_of_a_constant,
    odd_type_of_a_constant,
    odd_numbers,
    wiring,
    wiring,
    odd_attribute,
    odd_attribute,
    odd_header,
    deep_subgraphs,
    odd_function,
    external_data,
)


def make(seed: int, number: int, folder: Path) -> tuple[str, Path]:
    """Write a hostile file; the kind of damage and the model's path."""
    random = Random(f"{seed} {number}")
    damage = DAMAGES[number % len(DAMAGES)]
    path = folder / f"hostile-{seed}-{number}.onnx"
    damage(random, path)
    return damage.__name__, path.resolve()


def attempt(path: Path) -> dict[str, Any]:
    """Quantize a file; what came of it."""
    from onnxq.api import quantize
    from onnxq.config import Config
    from onnxq.errors import OnnxqError

    try:
        result = quantize(path, {"x": normal(9, 8, 3, 8, 8)}, Config(second_order=False))
    except OnnxqError as error:
        return {"outcome": "refused", "error": type(error).__name__, "reason": str(error)[:300]}
    except MemoryError as error:
        return {"outcome": "memory", "reason": str(error)}
    except LateError:
        return {"outcome": "late"}
    except Exception as error:
        return {"outcome": "leaked", "error": type(error).__name__, "reason": str(error)[:300]}
    return {"outcome": "quantised", "levels": sum(check.ok for check in result.report.loads)}


def run_files(seed: int, first: int, count: int, folder: Path) -> list[dict[str, Any]]:
    """Try files in processes of their own, a new one after each that ends one; a row for each file."""
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        at = first + len(rows)
        command = [sys.executable, __file__, str(seed), str(at), str(count - len(rows)), str(folder)]
        done = subprocess.run(command, capture_output=True, check=False)
        lines = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
        rows += lines
        if done.returncode and len(rows) < count:
            complaint = done.stderr.decode(errors="replace").strip().split("\n")[-1]
            kind = DAMAGES[(first + len(rows)) % len(DAMAGES)].__name__
            rows.append(
                {
                    "number": first + len(rows),
                    "kind": kind,
                    "outcome": "ended",
                    "reason": f"{done.returncode} {complaint}",
                }
            )
    return rows


def _late(*_: object) -> None:
    raise LateError


def main() -> None:
    """What the process does."""
    seed, first, count = (int(a) for a in sys.argv[1:4])
    import onnxq.api  # noqa: F401  (its memory is not the file's)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _late)
    for number in range(first, first + count):
        kind, path = make(seed, number, Path(sys.argv[4]))
        began = time.perf_counter()
        signal.alarm(SECONDS)
        row = attempt(path)
        signal.alarm(0)
        print(
            json.dumps({"number": number, "kind": kind, **row, "seconds": round(time.perf_counter() - began, 2)}),
            flush=True,
        )
    os._exit(0)


if __name__ == "__main__":
    main()
