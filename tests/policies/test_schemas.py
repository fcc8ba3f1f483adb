"""The committed JSON Schemas are those of the types, and agree with the loaders about our own files."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from consortium.loading import read
from policies.schemas import KINDS, main, schema_of

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "policies").rglob("*.yaml"), *(ROOT / "examples").rglob("*.yaml")])


def schema_line(file: Path) -> Path:
    """The schema that an editor would use, by the file's first line."""
    first = file.read_text(encoding="utf-8").splitlines()[0]
    return (file.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve()


def test_the_committed_schemas_are_those_of_the_types(tmp_path: Path) -> None:
    main(str(tmp_path))
    committed = ROOT / "policies/schemas"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        file.name: file.read_text() for file in committed.iterdir()
    }, "run: python -m policies.schemas policies/schemas"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_our_files_satisfy_the_schema_they_name(file: Path) -> None:
    path = schema_line(file)
    assert path.stem in KINDS
    jsonschema.Draft202012Validator(schema_of(path.stem)).validate(read(file).value)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_schemas_refuse_unknown_keys(name: str) -> None:
    schema = schema_of(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors({"surprise": 1})
    assert any("'surprise' was unexpected" in error.message for error in errors)


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({"merge": "average"}, True),
        ({"merge": "avrage"}, False),
        ({"merge": {"preset": "diloco", "outer": {"momentum": 0.5}}}, True),
        ({"merge": {"preset": "ties", "parameters": {"density": 0.5, "weight": [0, 1]}}}, True),
        ({"merge": {"parameters": {"density": [{"filter": "mlp", "value": [0.1, 1]}, {"value": 1}]}}}, True),
        ({"merge": {"parameters": {"density": "half"}}}, False),
        ({"merge": {"parameters": {"density": [{"filtr": "mlp", "value": 1}]}}}, False),
        ({"model": {"directory": "m"}}, True),
        ({"model": {"files": {}}}, False),
        ({"gate": {"confidence": 1}}, False),
    ],
)
def test_the_campaign_schema_is_of_what_people_write(change: dict[str, Any], accepted: bool) -> None:
    tiny = read(ROOT / "examples/campaign-tiny.yaml").value
    validator = jsonschema.Draft202012Validator(schema_of("campaign"))
    assert validator.is_valid({**tiny, **change}) is accepted
