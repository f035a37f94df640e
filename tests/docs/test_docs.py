"""The documents say what is so: pages that are generated, links, commands, examples, schemas."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from tiny_model import tiny_images, tiny_model

import onnxq.docs
from onnxq.cli import main
from onnxq.cli.options import FIELDS, configured
from onnxq.docs import reference
from onnxq.docs.descriptions import UndescribedError, describe
from onnxq.docs.reference import generated_pages
from onnxq.docs.schemas import documents

pytestmark = pytest.mark.slow

TOP = Path(__file__).parents[2]
DOCS = TOP / "onnxq" / "docs"
PAGES = [
    *(TOP / page for page in ("README.md", "benchmarks/RESULTS.md", "models/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(TOP)) for path in paths]


def blocks(page: Path) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> Iterator[str]:
    """Every complete command line in the pages."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if re.match(r"    onnxq [a-z]", line) and "[OPTIONS]" not in line:
                yield line.strip()


def heading_ids(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults(schema: dict[str, Any], value: Any, place: str = "$") -> Iterator[str]:
    """Where a value is not what a schema says; keywords beyond those used in ours are a fault of the test."""
    known = {"$schema", "title", "description", "type", "enum", "pattern", "properties", "required", "items"}
    assert set(schema) <= known | {"additionalProperties"}, place
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is {value!r}, none of {schema['enum']}"
    kinds = schema.get("type", list(KINDS))
    allowed = [t for kind in ([kinds] if isinstance(kinds, str) else kinds) for t in KINDS[kind]]
    if type(value) not in allowed and "enum" not in schema:
        yield f"{place} is {value!r}, no {kinds}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{place} is {value!r}, which does not match {schema['pattern']}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(schema.get("items", {}), item, f"{place}[{index}]")
    if isinstance(value, dict):
        entries, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        yield from (f"{place} has no {name}" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            if name in entries:
                yield from faults(entries[name], item, f"{place}.{name}")
            elif others is False:
                yield f"{place}.{name} is in no schema"
            else:
                yield from faults(others, item, f"{place}.{name}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the verbs print and write for a small model."""
    folder = tmp_path_factory.mktemp("written")
    images = tiny_images(48)
    onnx.save(tiny_model(), folder / "net.onnx")
    np.savez(folder / "samples.npz", image=images)
    np.savez(folder / "test.npz", image=images, labels=np.zeros(len(images), np.int64))
    candidates = "w4a8,w8a8,float"
    runs = {
        "inspect": "inspect net.onnx",
        "mixed": f"quantize net.onnx -o mixed.onnx --calibration samples.npz --candidates {candidates} "
        "--budget size=0.7 --check samples.npz",
        "quantize": "quantize net.onnx -o out.onnx --calibration samples.npz --adapt samples.npz",
        "verify": "verify net.onnx out.onnx --data test.npz --labels labels --ranges",
        "verified": "verify net.onnx out.onnx --data samples.npz",
        "table": f"sensitivity net.onnx --calibration samples.npz --candidates {candidates} -o table.json",
        "allocation": "allocate table.json --budget size=0.7 -o bits.json",
        "pareto": "allocate table.json --pareto --points 4 -o front.json",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in runs.items():
            done = CliRunner().invoke(main, [*shlex.split(words), "--json"])
            assert done.exit_code in (0, 1), done.output
            (folder / f"{name}.json").write_text(done.stdout) if name != "table" else None
    return folder


@pytest.mark.parametrize("name", generated_pages())
def test_generated_page_is_what_the_code_makes_now(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == generated_pages()[name], "run python -m onnxq.docs"


def test_schemas_of_documents_that_are_gone_are_gone() -> None:
    assert {path.stem for path in (DOCS / "schemas").iterdir()} == set(documents())


def test_field_without_a_description_is_refused() -> None:
    @dataclasses.dataclass
    class Half:
        """Half described.

        Attributes:
            told, both: of it
                on two lines.
        """

        told: int
        both: int
        silent: int

    assert describe(Half, "told") == describe(Half, "both") == "Of it on two lines."
    with pytest.raises(UndescribedError, match="says nothing of silent"):
        describe(Half, "silent")


def test_flag_without_help_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = click.Command("silent", help="Do nothing.", params=[click.Option(["--quiet"], is_flag=True)])
    monkeypatch.setitem(main.commands, "silent", silent)
    with pytest.raises(UndescribedError, match="onnxq silent says nothing of --quiet"):
        generated_pages()


def test_every_flag_and_key_is_in_the_reference() -> None:
    text = generated_pages()["reference.md"]
    flags = {flag for command in main.commands.values() for option in command.params for flag in option.opts}
    assert [flag for flag in flags if flag.startswith("-") and f"`{flag}" not in text] == []
    keys = {field.name for field in dataclasses.fields(onnxq.Config)}
    assert [key for key in keys if f"| `{key}` |" not in text and f"### [{key}]" not in text] == []


@pytest.mark.parametrize(
    ("document", "file"),
    [
        ("inspect", "inspect.json"),
        ("quantize", "mixed.json"),
        ("quantize", "quantize.json"),
        ("verify", "verify.json"),
        ("verify", "verified.json"),
        ("sensitivity-table", "table.json"),
        ("allocation", "allocation.json"),
        ("allocation", "bits.json"),
        ("pareto", "pareto.json"),
        ("pareto", "front.json"),
    ],
)
def test_output_is_what_its_schema_says(written: Path, document: str, file: str) -> None:
    assert list(faults(documents()[document], json.loads((written / file).read_text()))) == []


def test_schema_check_finds_what_is_wrong() -> None:
    schema = documents()["allocation"]
    found = list(faults(schema, {"choice": {"a": "w4"}, "status": "good", "gap": "none", "extra": 1}))
    assert len([f for f in found if f.startswith("$ has no ")]) == len(schema["required"]) - 3
    assert {f.split(" is ")[0] for f in found if " is " in f} == {"$.choice.a", "$.status", "$.gap", "$.extra"}


def test_readme_is_short_and_keeps_its_two_commands() -> None:
    text = (TOP / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 6 * 1024
    assert ".venv/bin/pip install --quiet . && .venv/bin/onnxq demo" in text
    assert '.venv/bin/pip install --quiet ".[test]" && .venv/bin/pytest' in text


@pytest.mark.parametrize("page", names(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    path = TOP / page
    broken = []
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        aim = path if not place else (path.parent / place).resolve()
        if not aim.exists() or (anchor and anchor not in heading_ids(aim)):
            broken.append(link)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, open_ends = set(), [(TOP / "README.md").resolve()]
    while open_ends:
        page = open_ends.pop()
        reached.add(page)
        links = {(page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(page.read_text("utf-8"))}
        open_ends += [aim for aim in links if aim.suffix == ".md" and aim not in reached and aim not in open_ends]
    assert {page.resolve() for page in PAGES} == reached


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_documented_command_is_one_that_the_command_takes(line: str) -> None:
    _, verb, *words = shlex.split(line.partition(" > ")[0])
    context = main.commands[verb].make_context(verb, words)
    flags = {name: value for name, value in context.params.items() if name in FIELDS}
    if verb in ("quantize", "inspect", "sensitivity"):
        configured(None, flags)


def test_quickstart_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(TOP / "README.md")
    exec(compile(block, "README.md", "exec"), {})
    onnx.checker.check_model(onnx.load("digits.w4a8.onnx"))
    assert (tmp_path / "report.html").stat().st_size > 0


@pytest.mark.parametrize("page", ["samples.md", "accuracy.md", "ci.md"])
def test_example_of_a_page_runs_on_what_the_verbs_write(
    page: str, written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(written)
    (block,) = blocks(DOCS / "how-to" / page)
    try:
        exec(compile(block, page, "exec"), {})
    except SystemExit as end:  # the gate of CI: the small model's file hardly shrinks
        assert page == "ci.md" and "top-1 drops" in str(end)
    # The first and the last of three layers are edges.
    assert len(capsys.readouterr().out.splitlines()) == (1 if page == "accuracy.md" else 0)


def test_stage_table_stands_first_in_contributing() -> None:
    lines = (DOCS / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line.startswith("|")) == "| stage | call | lives in | output |"
    assert lines.index("| stage | call | lives in | output |") < 6


def test_each_result_has_a_date_a_commit_and_a_command() -> None:
    text = (TOP / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    for section in re.split(r"^##+ ", text, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        assert re.search(r"20\d\d-\d\d-\d\d", section), f"{title} has no date"
        assert re.search(r"\b[0-9a-f]{7}\b", section), f"{title} has no commit"
        assert re.search(r"^    (python benchmarks/|onnxq )", section, re.MULTILINE), f"{title} has no command"


def test_benchmarks_that_the_pages_name_are_there() -> None:
    named = {name for page in PAGES for name in re.findall(r"benchmarks/(\w+\.py)", page.read_text(encoding="utf-8"))}
    assert [name for name in named if not (TOP / "benchmarks" / name).exists()] == []
    assert reference.WRITTEN_BY.keys() == documents().keys()
