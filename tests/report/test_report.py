from __future__ import annotations

import dataclasses
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser
from rich.console import Console
from small_models import build, images, weight
from tiny_model import LAYERS, tiny_images, tiny_model

import onnxq
from onnxq.api import inspect
from onnxq.ir.model import Remark
from onnxq.plan.inspection import Inspection, describe
from onnxq.report.run import RunReport
from onnxq.report.text import make_console, show_run
from onnxq.report.wording import bits, in_bytes, printable, sizes

NASTY = "<script>alert('x')</script>&[bold red]\x1b[31m"


@pytest.fixture(scope="module")
def report() -> RunReport:
    config = onnxq.Config(preset="light", weights=4)
    return onnxq.quantize(tiny_model(), tiny_images(24), config).report


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str | None]] = {}
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta",):
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def page_of(report: RunReport, folder: Path, title: str = "Quantisation report") -> Page:
    report.to_html(folder / "report.html", title=title)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_page_holds_every_layer_level_and_option(report: RunReport, tmp_path: Path) -> None:
    page = page_of(report, tmp_path)
    assert page.open == []
    assert set(LAYERS) <= set(page.texts)
    assert {"disable", "basic", "extended", "all"} <= set(page.texts)
    assert {"weights", "preset", "light", "refinement.steps"} <= set(page.texts)
    assert "done and verified" in page.texts
    assert {"4/8", "8/8"} <= set(page.texts)


def test_a_poor_result_is_said_to_be_one_with_what_to_do(report: RunReport) -> None:
    assert not any("signal to noise" in note.reason for note in report.notes)
    text = "(float[N, 3, 8, 8] x) => (float y) { a = Conv(x, w)  b = Tanh(a)  y = Conv(b, v) }"
    model = build(text, w=weight(0, 8, 3, 3, 3), v=weight(1, 8, 8, 3, 3))
    poor = onnxq.quantize(model, images(24), onnxq.Config(weights=2, activations=2, edge_bits="same")).report
    (name, found), *_ = poor.simulated_sqnr_db.items()
    assert found is not None and found < 10
    (note,) = [note for note in poor.notes if "signal to noise" in note.reason]
    assert f"output {name} keeps {found:.1f} dB" in note.reason and "exclude" in note.reason


def test_page_needs_nothing_beside_it(report: RunReport, tmp_path: Path) -> None:
    page = page_of(report, tmp_path)
    assert not {"link", "script", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & page.attributes.keys()
    text = (tmp_path / "report.html").read_text()
    assert "http" not in text
    assert "url(" not in text


def test_page_escapes_every_name(report: RunReport, tmp_path: Path) -> None:
    layers = tuple(dataclasses.replace(layer, name=NASTY, status=NASTY) for layer in report.layers)
    nasty = dataclasses.replace(
        report, layers=layers, left_in_float=(Remark(NASTY, NASTY),), simulated_sqnr_db={NASTY: 1.0}
    )
    page = page_of(nasty, tmp_path, title=NASTY)
    assert "script" not in page.tags
    assert page.texts.count(NASTY) == 2 * len(layers) + 4  # and a remark's two, the title and the heading


def test_page_tells_missed_bits_and_infinite_losses(report: RunReport, tmp_path: Path) -> None:
    first = dataclasses.replace(report.layers[1], stored_weight_bits=8, loss=math.inf, loss_nearest=math.nan)
    page = page_of(dataclasses.replace(report, layers=(first,)), tmp_path)
    assert "below what was asked for" in page.texts
    assert page.texts.count("middle") == 2


def test_page_that_cannot_be_written_leaves_what_was_there(
    report: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "report.html").write_text("earlier")
    monkeypatch.setattr("onnxq.ir.save.os.fsync", full)
    with pytest.raises(onnxq.OutputError, match="No space left"):
        report.to_html(tmp_path / "report.html")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("report.html", "earlier")]


def test_json_of_a_report_holds_finite_numbers_only(report: RunReport) -> None:
    layer = dataclasses.replace(report.layers[0], loss=math.nan)
    plain = json.loads(dataclasses.replace(report, layers=(layer,)).to_json())
    assert plain["layers"][0]["loss"] is None
    assert plain["ok"] is True
    assert plain["config"]["weights"] == 4


def test_text_prints_names_as_they_are_but_no_control_characters(report: RunReport) -> None:
    layers = tuple(dataclasses.replace(layer, name=NASTY) for layer in report.layers)
    remarks = tuple(Remark(f"node{i}", "left in float") for i in range(30))
    stream = io.StringIO()
    console = Console(file=stream, width=160, markup=False, emoji=False, highlight=False)
    show_run(console, dataclasses.replace(report, layers=layers, left_in_float=remarks), title=NASTY)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.count(printable(NASTY)) == 1 + len(layers)
    assert "Left as it was (30)" in text
    assert "node7:" in text
    assert "node8:" not in text
    assert "and 22 more" in text


def test_console_in_a_pipe_is_wide_enough_for_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_console().width >= 120


def test_words_for_numbers() -> None:
    assert [in_bytes(n) for n in (0, 1023, 1024, 3 * 2**20, 5 * 2**40)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "3.0 MiB",
        "5120.0 GiB",
    ]
    assert [bits(4, 8), bits(8, 32), bits(8, None), bits(None, 8)] == ["4/8", "8/float", "8/float", "–/8"]
    assert sizes(4096, 1024).endswith("4.0 times smaller")
    assert sizes(1024, 2048).endswith("2.0 times larger")


def facts(text: str, **weights: tuple[int, ...]) -> Inspection:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    return describe(*inspect(model))


def test_work_of_a_grouped_strided_convolution_is_counted_once_for_every_weight_and_output_position() -> None:
    found = facts(
        "g (float[N, 4, 9, 7] x) => (float[N, 6, h, k] y) { y = Conv <group = 2, strides = [2, 1]> (x, w) }",
        w=(6, 2, 3, 3),
    )
    (layer,) = found.layers
    positions = [(i, j) for i in range(0, 9 - 2, 2) for j in range(7 - 2)]
    assert layer.output_shape == (1, 6, 4, 5)
    assert layer.macs == found.macs == len(positions) * 6 * 2 * 9
    assert layer.parameters == 6 * 2 * 9


def test_work_of_a_transposed_convolution_is_counted_for_every_input_position() -> None:
    text = "g (float[N, 4, 5, 5] x) => (float[N, 6, h, k] y) { y = ConvTranspose <strides = [2, 2]> (x, w) }"
    (layer,) = facts(text, w=(4, 6, 2, 2)).layers
    assert layer.output_shape == (1, 6, 10, 10)
    assert layer.macs == 25 * 4 * 6 * 4


def test_work_is_that_of_one_sample_where_the_batch_is_fixed_or_hidden_in_a_reshape() -> None:
    fixed = facts("g (float[8, 4] x) => (float[8, 3] y) { y = MatMul (x, w) }", w=(4, 3))
    assert fixed.layers[0].input_shape == (8, 4)
    assert fixed.macs == 4 * 3
    rows = facts(
        """g (float[N, 6, 4] x) => (float[r, 3] y) <int64[2] s = {-1, 4}>
        { a = Reshape (x, s)
          y = MatMul (a, w) }""",
        w=(4, 3),
    )
    assert rows.macs == 6 * 4 * 3


def test_work_is_unknown_where_a_size_is_open() -> None:
    found = facts("g (float[N, 4, h, k] x) => (float[N, 6, p, q] y) { y = Conv (x, w) }", w=(6, 4, 1, 1))
    assert found.layers[0].output_shape == (1, 6, None, None)
    assert found.layers[0].macs is None
    assert found.macs is None
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["macs"] is None
