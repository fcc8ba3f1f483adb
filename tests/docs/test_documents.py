"""What the documents say, held to the code: links, commands, tables, code, pictures.

After a wanted change of a screen renew the pictures, ``python tests/docs/test_documents.py``, and look at them.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
import typer

from console.app import app
from console.main import COMMANDS
from console.screens import live, results_table, to_svg
from consortium.canonical import Fact, decode
from consortium.deltas import write_delta
from consortium.merging.recipes.files import load as load_merge
from consortium.merging.recipes.merge_file import Extensions
from consortium.merging.recipes.signatures import SIGNATURES
from consortium.tensor_writer import CheckpointWriter
from consortium.tensors import Checkpoint
from consortium.views import CampaignView, ConsortiumView
from coordinator.config import CoordinatorConfig
from coordinator.core.access import METHODS
from policies.campaign import Campaign
from policies.reading import ModelInFile, TokenizerInFile
from site_agent.config import SiteConfig

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NAMES = [page.name for page in PAGES]
EMPTY = {"none", "all", "empty", "no limit"}  # words for a default that is nothing


def text_of(name: str) -> str:
    return next(page for page in PAGES if page.name == name).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(name), re.MULTILINE | re.DOTALL)


def rows(name: str, title: str, columns: int) -> dict[str, list[str]]:
    """The tables below a heading: code spans of each row's first cell, joined by a blank -> its other cells."""
    section = re.split(r"^#+ ", text_of(name).split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == columns and (key := " ".join(re.findall("`([^`]+)`", cells[0]))):
            found[key] = cells[1:]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = next(page for page in PAGES if page.name == name)
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(place), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    pattern = r"`((?:console|consortium|coordinator|site_agent|policies|protos|tests|examples|benchmarks)/[\w/.-]*)`"
    for path in re.findall(pattern, text_of(name)):
        assert (ROOT / path).exists(), f"{name}: {path}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_ones_that_the_program_knows(name: str) -> None:
    assert COMMANDS
    lines = [line for block in blocks(name, "sh") for line in block.splitlines()]
    lines += re.findall("`(sprachbund [^`]+)`", text_of(name))
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["sprachbund"]:
            check_command(words[1:], f"{name}: {line}")
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


def check_command(words: list[str], where: str) -> None:
    node = typer.main.get_command(app)
    while isinstance(node, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in node.commands, where
        node, words = node.commands[words[0]], words[1:]
    options = {option for parameter in node.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        assert not word.startswith("-") or word.partition("=")[0] in {*options, "--help"}, f"{where}: {word}"


def keys_of(kind: type[Fact], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that may be written for ``kind``, those of facts within it too, with its default."""
    for field in msgspec.structs.fields(kind):
        inner = [one for one in getattr(field.type, "__args__", (field.type,)) if isinstance(one, type)]
        facts = [one for one in inner if issubclass(one, Fact)]
        for fact in facts:
            yield from keys_of(fact, f"{prefix}{field.name}.")
        if not facts:
            yield f"{prefix}{field.name}", "required" if field.required else field.default


def check_table(table: dict[str, list[str]], wanted: dict[str, Any]) -> None:
    assert table.keys() == wanted.keys()
    for key, default in wanted.items():
        said = table[key][0]
        is_nothing = default in (None, (), "", msgspec.NODEFAULT, msgspec.UNSET)
        assert said in EMPTY if is_nothing else said == in_words(default), (key, said)


def in_words(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return f"{default:.12g}"
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def test_every_key_of_a_site_is_explained() -> None:
    table = rows("site-reference.md", "site.yaml", 3)
    apart = (
        "text",
        "consent",
        "windows",
        "slurm",
        "ssh",
    )  # these have tables of their own, the last two elsewhere
    table |= rows("site-reference.md", "Consent", 3)
    for key in apart:
        del table[key]
    wanted = {}
    for key, default in keys_of(SiteConfig):
        first, _, rest = key.partition(".")
        if first not in ("slurm", "ssh"):
            wanted[rest if first in apart else key] = default
    check_table(table, wanted)


def test_every_key_of_a_coordinator_is_explained() -> None:
    check_table(rows("admin.md", "Found it", 3), dict(keys_of(CoordinatorConfig)))


def test_every_key_of_a_campaign_is_explained() -> None:
    table = rows("admin.md", "The campaign file", 3)
    for section in ("model", "tokenizer", "seed_round", "seed_round.optimizer", "merge", "gate", "admission"):
        del table[section]  # what they hold has rows of its own
    wanted = {
        key: default
        for key, default in keys_of(Campaign)
        if not key.startswith(("model.", "tokenizer.", "seed_round.optimizer."))
    }
    in_file = (*keys_of(ModelInFile, "model."), *keys_of(TokenizerInFile, "tokenizer."))
    check_table(table, {**wanted, **dict(in_file)})


def test_every_merge_method_is_explained() -> None:
    table = rows("merging.md", "Methods", 6)
    assert table.keys() == SIGNATURES.keys()
    for method, signature in SIGNATURES.items():
        parameters = [
            f"`{name}`" + ("" if one.default is None else f" ({in_words(one.default)})")
            for name, one in signature.parameters.items()
        ]
        assert table[method][:2] == [signature.base, ", ".join(parameters) or "none"], method
        assert table[method][4] == signature.paper


def test_every_key_of_our_block_in_recipes_is_explained() -> None:
    check_table(rows("merging.md", "The `sprachbund:` block", 3), dict(keys_of(Extensions)))


def test_the_recipes_in_the_guide_are_recipes(tmp_path: Path) -> None:
    for number, block in enumerate(blocks("merging.md", "yaml")):
        (tmp_path / f"{number}.yaml").write_text(block, encoding="utf-8")
        assert load_merge(tmp_path / f"{number}.yaml").models


def test_the_roles_are_those_of_the_guard() -> None:
    said: dict[str, set[str]] = {}
    for calls, cells in rows("admin.md", "Roles", 6).items():
        roles = {
            role for role, cell in zip(("site", "admin", "auditor", "reader"), cells[1:], strict=True) if cell
        }
        said |= {call: roles for call in calls.split()}
    allowed: dict[str, set[str]] = {}
    for method, who in METHODS.items():
        if method != "/grpc.health.v1.Health/Watch":  # has the name of ours
            allowed[method.rpartition("/")[2]] = {role.value for role in who}
    assert said == allowed


def test_the_merge_in_ten_lines_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base is 1, the deltas are 0.25 and 0.75 of equal weight: the average is 1.5."""
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    with CheckpointWriter(Path("base"), {"weight": (3,)}, "F32", 1 << 20) as writer:
        writer.write("weight", 0, np.ones(3, np.float32))
    Path("base/config.json").write_text("{}")
    with Checkpoint(Path("base")) as base:
        for site, change in (("north", 0.25), ("sofia", 0.75)):
            write_delta(base, {"weight": np.full(3, 1 + change, np.float32)}, Path(f"{site}.safetensors"))
    code = next(block for block in blocks("researcher.md", "python") if "merge(" in block)
    exec(compile(code, "researcher.md", "exec"), {})
    assert re.fullmatch("[0-9a-f]{64}\n", capsys.readouterr().out)
    with Checkpoint(Path("merged")) as merged:
        assert merged.array("weight").tolist() == [1.5, 1.5, 1.5]


def test_all_python_in_the_documents_is_python() -> None:
    for name in NAMES:
        for block in blocks(name, "python"):
            compile(block, name, "exec")


def pictures() -> dict[str, str]:
    view = decode((PICTURES / "live.json").read_bytes(), ConsortiumView)
    campaign = decode((PICTURES / "results.json").read_bytes(), CampaignView)
    return {
        "live.svg": to_svg(live(view, 100), "sprachbund watch"),
        "results.svg": to_svg(results_table(campaign), "sprachbund versions demo"),
    }


def test_the_pictures_are_what_the_screens_show_today() -> None:
    for name, picture in pictures().items():
        assert (PICTURES / name).read_text(encoding="utf-8") == picture, f"{name}: renew it, see above"


if __name__ == "__main__":
    for name, picture in pictures().items():
        (PICTURES / name).write_text(picture, encoding="utf-8")
