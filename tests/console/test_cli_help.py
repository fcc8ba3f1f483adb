import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from console.app import app
from console.main import COMMANDS
from consortium.errors import Refused


def every_command(node: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(node, "commands", {}).items():
        yield from every_command(inner, (*path, name))


PATHS = sorted(every_command(typer.main.get_command(app)))


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_has_help_and_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="sprachbund", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Usage: {' '.join(('sprachbund', *path))}" in result.output
    assert "Options" in result.output
    if "COMMAND" not in result.output:
        assert f"Example: {' '.join(('sprachbund', *path))} " in result.output + " "


def test_help_names_what_an_admin_looks_for_first_at_the_top() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    places = [output.index(f"│ {name} ") for name in ("demo", "init", "site", "submit", "status", "verify")]
    assert places == sorted(places)
    assert COMMANDS


def test_the_start_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'grpc', 'numpy', 'transformers', 'cryptography'} & set(sys.modules)"
    code = f"import sys, console.main; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_completion_script(shell: str) -> None:
    result = CliRunner().invoke(
        app, [], prog_name="sprachbund", env={"_SPRACHBUND_COMPLETE": f"source_{shell}"}
    )
    assert result.exit_code == 0
    assert "sprachbund" in result.output and "COMPLETE" in result.output


def test_a_shell_completes_the_commands_of_a_group() -> None:
    env = {
        "_SPRACHBUND_COMPLETE": "complete_bash",
        "COMP_WORDS": "sprachbund sites ",
        "COMP_CWORD": "2",
    }
    result = CliRunner().invoke(app, [], prog_name="sprachbund", env=env)
    assert result.output.split() == ["drain", "resume", "suspend"]


def test_an_unknown_command_is_an_error_of_usage() -> None:
    result = CliRunner().invoke(app, ["statsu"])
    assert result.exit_code == 2
    assert "Did you mean 'status'" in result.output


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(place: object, work: object) -> None:
        raise error

    monkeypatch.setattr("console.client.ask", fail)


def test_our_errors_are_one_sentence_on_stderr_and_their_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, Refused("site [bold]x[/]: \x1b[31mno"))
    result = CliRunner().invoke(app, ["status", "--json"])
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == "sprachbund: site [bold]x[/]:  [31mno\n"


def test_our_mistakes_are_short_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 1
    assert result.stderr.startswith("sprachbund: ZeroDivisionError: division by zero; `sprachbund --debug")
    assert "Traceback" not in result.stderr
    assert "Traceback" in CliRunner().invoke(app, ["--debug", "status"]).stderr
