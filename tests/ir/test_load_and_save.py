"""Reading, ordering, widening and writing models."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper, parser
from passes_oracle import build, norm_constants, normal, run

from onnxq.errors import ModelError, OutputError, UnsupportedError
from onnxq.ir import size as sizes
from onnxq.ir.load import load
from onnxq.ir.save import check_writable, save, to_proto, write_text
from onnxq.ir.topological_sort import reads, sort_nodes

RELU = "(float[2] x) => (float[2] y) { y = Relu(x) }"


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"not a model at all", "is not an ONNX file"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)
    path = tmp_path / "net.onnx"
    whole = build("(float[1,3] x) => (float[1,4] y) { y = MatMul(x, w) }", w=normal(0, 3, 4)).SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="truncated"):
        load(path)


@pytest.mark.parametrize("opset", [8, 99])
def test_an_opset_out_of_range_is_refused_and_named(opset: int) -> None:
    proto = build(RELU)
    proto.opset_import[0].version = opset
    with pytest.raises(UnsupportedError, match=f"opset {opset}; onnxq reads opsets 9 to 27"):
        load(proto)


def test_a_model_that_breaks_the_standard_is_refused_with_the_reason() -> None:
    proto = build(RELU)
    proto.graph.node[0].op_type = "Reluu"
    with pytest.raises(ModelError, match=r"breaks the ONNX standard: .*Reluu"):
        load(proto)


def test_external_data_is_read_and_its_absence_is_told(tmp_path: Path) -> None:
    proto = build("(float[1,30] x) => (float[1,40] y) { y = MatMul(x, w) }", w=normal(0, 30, 40))
    path = tmp_path / "net.onnx"
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    onnx.save(copy, path, save_as_external_data=True, location="net.data", size_threshold=0)
    found = to_proto(load(path)).graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(found), normal(0, 30, 40))
    (tmp_path / "net.data").unlink()
    with pytest.raises(ModelError, match="external data cannot be read"):
        load(path)


def test_loading_leaves_the_callers_model_alone() -> None:
    proto = build("(float16[2] x) => (float16[2] y) { a = Relu(x) y = Neg(a) }", opset=11, ir=6)
    proto.graph.node.reverse()
    before = proto.SerializeToString()
    load(proto, minimum_opset=21)
    assert proto.SerializeToString() == before


def test_every_node_gets_a_name_and_given_names_stay() -> None:
    proto = build("(float[2] x) => (float[2] y) { a = Relu(x) [Relu_0] b = Relu(a) [n] c = Neg(b) [n] y = Neg(c) }")
    assert names(to_proto(load(proto))) == ["Relu_0_0", "Relu_0", "n", "n_3"]


def test_header_and_metadata_come_through_unchanged_even_when_the_opset_is_raised() -> None:
    proto = build("(float[2,3] x) => (float[2,3] y) { [soft] y = Softmax<axis = 1>(x) }", opset=11, ir=6)
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "what it does"
    proto.metadata_props.add(key="author", value="me")
    proto.metadata_props.add(key="classes", value="a,b")
    proto.graph.node[0].metadata_props.add(key="origin", value="line 3")
    written = to_proto(load(proto, minimum_opset=21))
    assert (written.opset_import[0].version, written.ir_version) == (21, 10)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(written, field) == getattr(proto, field)
    assert [(p.key, p.value) for p in written.metadata_props] == [("author", "me"), ("classes", "a,b")]
    (node,) = (n for n in written.graph.node if n.name == "soft")
    assert [(p.key, p.value) for p in node.metadata_props] == [("origin", "line 3")]


def test_raising_the_opset_changes_no_answer() -> None:
    text = """(float[2,3] x) => (float[1,2,1] y) {
        s = Softmax<axis = 1>(x)
        q = Unsqueeze<axes = [0]>(s)
        y = ReduceSum<axes = [0,2]>(q)
    }"""
    proto = build(text, opset=11, ir=6)
    written = to_proto(load(proto, minimum_opset=21))
    np.testing.assert_array_equal(run(proto)[0], run(written)[0])


def test_an_opset_that_cannot_be_raised_is_refused_with_both_numbers() -> None:
    text = "(float[1,3,2,2] x) => (float[1,3,2,2] y) { y, mean, var, m2, v2 = BatchNormalization(x, s, b, m, v) }"
    proto = build(text, opset=9, ir=4, **norm_constants(3))  # five outputs are gone since opset 14
    with pytest.raises(UnsupportedError, match="has opset 9 and cannot be raised to opset 21"):
        load(proto, minimum_opset=21)


def test_a_function_of_the_model_is_inlined() -> None:
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[2] x) => (float[2] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }""")
    written = to_proto(load(proto))
    assert [n.op_type for n in written.graph.node] == ["Add"] and not written.functions
    np.testing.assert_array_equal(run(written, {"x": np.ones(2, np.float32)})[0], [2, 2])


def test_an_initializer_listed_as_input_stays_one_where_it_may_be_overridden() -> None:
    text = "(float[2] u, float[1,3] x, float[3,4] w) => (float[1,4] y) { y = MatMul(x, w) }"
    proto = build(text, w=normal(0, 3, 4), u=normal(1, 2))
    model = load(proto)
    written = to_proto(model)
    assert [v.name for v in written.graph.input] == ["u", "x", "w"]
    assert {t.name for t in written.graph.initializer} == {"u", "w"}
    assert [t.name for t in model.inputs] == ["x"]
    other = {"x": normal(2, 1, 3), "w": normal(3, 3, 4)}
    np.testing.assert_array_equal(run(proto, other)[0], run(written, other)[0])


def test_constants_of_the_oldest_files_are_no_inputs() -> None:
    proto = build("(float[1,3] x, float[3,4] w) => (float[1,4] y) { y = MatMul(x, w) }", ir=3, w=normal(0, 3, 4))
    assert [v.name for v in to_proto(load(proto)).graph.input] == ["x"]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), count=st.integers(1, 12))
def test_sorting_puts_every_node_behind_what_it_reads(data: st.DataObject, count: int) -> None:
    nodes = []
    for i in range(count):
        inputs = data.draw(st.lists(st.integers(-1, i - 1), min_size=1, max_size=3))
        nodes.append(helper.make_node("Sum", [f"t{j}" for j in inputs], [f"t{i}"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        data.draw(st.permutations(nodes)),
        "g",
        [value("t-1", TensorProto.FLOAT, [1])],
        [value(f"t{count - 1}", TensorProto.FLOAT, [1])],
    )
    sort_nodes(graph)
    assert sorted(n.output[0] for n in graph.node) == sorted(n.output[0] for n in nodes)
    seen = {"t-1"}
    for node in graph.node:
        assert set(node.input) <= seen
        seen.update(node.output)
    once = graph.SerializeToString()
    sort_nodes(graph)
    assert graph.SerializeToString() == once, "what is in order stays as it is"


def test_thousands_of_nodes_in_reverse_order_are_sorted_without_recursion() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(5000)]
    graph = helper.make_graph(nodes[::-1], "g", [], [])
    sort_nodes(graph)
    assert [n.input[0] for n in graph.node] == [f"t{i}" for i in range(5000)]


def test_a_cycle_is_refused_by_the_name_of_one_of_its_nodes() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["b"], "one"), helper.make_node("Relu", ["b"], ["a"], "two")]
    with pytest.raises(ModelError, match=r"cycle through node '(one|two)'"):
        sort_nodes(helper.make_graph(nodes, "g", [], []))


BRANCH = """(float[1,3] x, bool p) => (float[1,3] y) {
    a = Mul(x, w)
    y = If (p) <then_branch = t () => (float[1,3] t1) { t0 = Relu(a) t1 = Mul(t0, w) },
                else_branch = e () => (float[1,3] e1) { e1 = Sub(x, k) }>
}"""


def test_what_a_branch_reads_counts_as_read_by_its_node_and_is_sorted_before_it() -> None:
    proto = build(BRANCH, w=normal(0, 3), k=normal(1, 3))
    assert set(reads(proto.graph.node[1])) == {"p", "a", "w", "x", "k"}
    proto.graph.node.reverse()
    assert [n.op_type for n in to_proto(load(proto)).graph.node] == ["Mul", "If"]


@pytest.mark.parametrize("taken", [False, True])
def test_a_constant_read_inside_and_outside_a_branch_is_written_once(taken: bool) -> None:
    proto = build(BRANCH, w=normal(0, 3), k=normal(1, 3))
    written = to_proto(load(proto))
    inner = [t.name for a in written.graph.node[1].attribute for t in a.g.initializer]
    assert "w" in {t.name for t in written.graph.initializer} and "w" not in inner
    feeds = {"p": np.array(taken), "x": normal(2, 1, 3)}
    np.testing.assert_array_equal(run(proto, feeds)[0], run(written, feeds)[0])


@pytest.mark.parametrize("taken", [False, True])
def test_a_half_precision_model_computes_in_single_precision_behind_its_interface(taken: bool) -> None:
    text = """(float16[2,3] x, bool p) => (float16[2,4] y, float16[2,3] z) {
        r = Constant<value = float[1] {3.0}>()
        k = Cast<to = 10>(r)
        a = Mul(x, k)
        y = MatMul(a, w)
        wide = Cast<to = 1>(a)
        back = Cast<to = 10>(wide)
        z = If (p) <then_branch = t () => (float16[2,3] t1) { t1 = Add(x, back) },
                    else_branch = e () => (float16[2,3] e1) { e1 = Neg(a) }>
    }"""
    proto = build(text, w=normal(0, 3, 4).astype(np.float16))
    written = to_proto(load(proto))
    checker.check_model(written, full_check=True)
    half = TensorProto.FLOAT16
    assert [v.type.tensor_type.elem_type for v in written.graph.output] == [half, half]
    assert all(t.data_type != half for t in written.graph.initializer)
    feeds = {"x": normal(1, 2, 3).astype(np.float16), "p": np.array(taken)}
    for expected, found in zip(run(proto, feeds), run(written, feeds), strict=True):
        assert found.dtype == np.float16
        # Half floats carry 11 bits: three operations deep they may be off by a few parts in a thousand.
        assert np.abs(expected.astype(float) - found).max() <= 4e-3 * np.abs(expected).max()


def test_a_single_precision_model_gets_no_casts() -> None:
    assert [n.op_type for n in to_proto(load(build(RELU))).graph.node] == ["Relu"]


@pytest.mark.parametrize("opset", range(9, min(28, onnx.defs.onnx_opset_version() + 1)))
def test_a_written_model_states_the_ir_version_that_its_opset_needs(opset: int) -> None:
    model = load(build(RELU, opset=opset, ir=4), minimum_opset=opset)
    assert to_proto(model).ir_version >= helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def test_a_saved_model_is_the_model_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("an older result")
    proto = to_proto(load(build(RELU)))
    save(proto, path)
    assert onnx.load(path) == proto and os.listdir(tmp_path) == ["net.onnx"]


def test_a_large_model_goes_to_two_files_and_stays_whole_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = to_proto(load(build("(float[1,30] x) => (float[1,40] y) { y = MatMul(x, w) }", w=normal(0, 30, 40))))
    before = proto.SerializeToString()
    monkeypatch.setattr(sizes, "PROTOBUF_LIMIT", 100)  # two gigabytes would not do for a test
    save(proto, tmp_path / "net.onnx")
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnx.data"]
    monkeypatch.undo()
    np.testing.assert_array_equal(
        run(to_proto(load(tmp_path / "net.onnx")))[0], run(onnx.ModelProto.FromString(before))[0]
    )
    assert numpy_helper.to_array(proto.graph.initializer[0]).shape == (30, 40)


def test_a_full_disk_leaves_the_older_result_and_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "net.onnx"
    path.write_text("an older result")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; nothing was left behind"):
        save(build(RELU), path)
    with pytest.raises(OutputError, match="No space left on device; nothing was left behind"):
        write_text(path, "new")
    assert path.read_text() == "an older result" and os.listdir(tmp_path) == ["net.onnx"]


def test_a_place_that_cannot_be_written_is_known_beforehand(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match="does not exist; create it first"):
        check_writable(tmp_path / "missing" / "net.onnx")
    check_writable(tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


def test_a_written_text_is_readable_like_any_new_file(tmp_path: Path) -> None:
    write_text(tmp_path / "report.html", "größer")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "größer"
    assert (tmp_path / "report.html").stat().st_mode == (tmp_path / "plain").stat().st_mode
