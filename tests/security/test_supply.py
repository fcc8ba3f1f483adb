"""What is installed is what was pinned, and a list of it can be handed on."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NOT_PINNED = {"sprachbund", "pip", "setuptools", "wheel"}  # ours, and what Python's venv brings
WITH_TORCH = re.compile(
    "nvidia-|cuda-|triton"
)  # torch's pin is theirs: a build for GPUs names their exact versions


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt: a line that is no pin"
    return {canonical(name): version for name, version in pairs}


def stood_on() -> dict[str, str]:
    """Every distribution that ours needs, its extra for tests included, and all that those need in turn."""
    found: dict[str, str] = {}
    todo: list[tuple[str, frozenset[str]]] = [("sprachbund", frozenset({"dev"}))]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or of an extra that nobody installed
        found[canonical(name)] = distribution.version.partition("+")[0]  # torch's build says +cpu
        for line in distribution.requires or ():
            wanted = Requirement(line)
            if any(wanted.marker is None or wanted.marker.evaluate({"extra": one}) for one in {"", *extras}):
                todo.append((wanted.name, frozenset(wanted.extras)))
    return found


def test_everything_that_we_stand_on_is_pinned() -> None:
    known, found = pins(), stood_on()
    wrong = {
        f"{name}=={version}": known.get(name)
        for name, version in found.items()
        if name not in NOT_PINNED and not WITH_TORCH.match(name) and known.get(name) != version
    }
    assert len(found) > 80 and not wrong, f"installed, and what constraints.txt says of it: {wrong}"


@pytest.mark.soak
def test_the_bill_of_materials_is_a_valid_one_and_names_what_we_stand_on(tmp_path: Path) -> None:
    """As ``make sbom`` makes it."""
    command = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "cyclonedx_py" in line)
    options = command.partition("cyclonedx_py ")[2].split()
    options[options.index("--output-file") + 1] = str(tmp_path / "sbom.json")
    options = [sys.executable if option == "$(BIN)/python" else option for option in options]
    subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", *options], cwd=ROOT, check=True, capture_output=True
    )
    text = (tmp_path / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    named = {canonical(one["name"]): one["version"] for one in bill["components"]}
    known = pins()
    for name in ("torch", "grpcio", "cryptography", "msgspec", "safetensors", "protobuf"):
        assert named[name].partition("+")[0] == known[name]
    assert bill["metadata"]["component"]["name"] == "sprachbund"
