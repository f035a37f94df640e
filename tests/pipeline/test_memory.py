"""The most memory that a run takes, beside the size of its model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import normal, weight

pytestmark = pytest.mark.slow

LAYERS, WIDTH = 16, 1024

SCRIPT = """
import json, sys
import onnxruntime
import onnxq.api
from onnxq.cli import main

def held(kind):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind))

before = held("VmRSS")
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(held("VmHWM") - before), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 MiB with its weights beside it, samples, and options of a quick run.

    Nobody reads the values of the constant behind its Reshape: a part of the file that is kept as it came.
    """
    place = tmp_path_factory.mktemp("memory")
    graph = onnx.GraphProto(name="large")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, WIDTH]))
    graph.output.append(helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, ["N", WIDTH]))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, WIDTH]), "shape"))
    graph.node.append(helper.make_node("Reshape", ["x", "shape"], ["h0"], "reshape"))
    for layer in range(LAYERS):
        graph.initializer.append(numpy_helper.from_array(1.4 * weight(layer, WIDTH, WIDTH), f"w{layer}"))
        graph.node.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"m{layer}"], f"layer{layer}"))
        graph.node.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer + 1}"], f"relu{layer}"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, place / "float.onnx", save_as_external_data=True, location="float.data")
    np.savez(place / "samples.npz", x=normal(0, 16, 1, WIDTH))
    (place / "options.toml").write_text("second_order = false\n")
    return place


def grown(*command: str | Path) -> float:
    """How many bytes a command adds at its peak to what the libraries take."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_peaks_stay_within_a_few_times_the_model(folder: Path) -> None:
    size = LAYERS * 4 * WIDTH * WIDTH
    float_model, small, samples = folder / "float.onnx", folder / "small.onnx", folder / "samples.npz"
    options = ("--calibration", samples, "--config", folder / "options.toml")
    # Between 4.1 and 4.5 times, by how long the system keeps pages of the files that were read: the network as it was
    # and as it is rewritten are held beside each other while one is judged against the other.
    assert grown("quantize", float_model, "-o", small, *options) < 4.8 * size
    assert grown("verify", float_model, small, "--data", samples) < 2.5 * size
