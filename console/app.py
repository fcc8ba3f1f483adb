"""The program itself: its panels of help, the options that many commands share, how a failure is told."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click
import typer
from rich.markup import escape
from typer.core import TyperGroup

from console.output import complain
from consortium.errors import SprachbundError

BEGIN, SITE, CAMPAIGNS, LOOK, AUDIT = (
    "Found a consortium",
    "Operate a site",
    "Lead campaigns",
    "Look",
    "Models and audit",
)
_ORDER = (  # in which help names the commands; panels come in the order of their first one
    *("demo", "init", "coordinator", "backup", "restore", "gc", "invite", "site", "data", "courier"),
    *("plan", "simulate", "submit", "stop", "flower", "promote", "rollback", "sites", "revoke"),
    *("status", "watch", "versions", "why"),
    *("merge", "releases", "export", "checksums", "ledger", "verify"),
)

Json = Annotated[bool, typer.Option("--json", help="Print canonical JSON on stdout, and nothing else there.")]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="HOME",
        help="Read a coordinator's home, or a copy of one, instead of asking a coordinator.",
    ),
]
As = Annotated[
    Path | None,
    typer.Option(
        "--as",
        envvar="SPRACHBUND_ADMIN",
        metavar="FOLDER",
        help="Your certificate: the folder (or FOLDER/name) that `init` or `coordinator person` wrote. "
        "Default: ./admin",
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stands in the ledger for the auditor.")]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Program(TyperGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            if isinstance(error, SprachbundError):
                complain(str(error))
                raise click.exceptions.Exit(error.exit_code) from None
            way_out = "" if ctx.params["debug"] else "; `sprachbund --debug ...` shows where"
            complain(f"{type(error).__name__}: {error}{way_out}")
            raise click.exceptions.Exit(1) from None


app = typer.Typer(
    cls=_Program,
    name="sprachbund",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # it would show local variables, keys and tokens among them
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sprachbund {version('sprachbund')}")
        raise typer.Exit


@app.callback()
def _program(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="SPRACHBUND_DEBUG", help="Show a traceback with every failure.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    """Sprachbund: many sites train one open multilingual language model, and no text ever leaves its site."""


def group(name: str, panel: str | None, purpose: str, under: typer.Typer = app) -> typer.Typer:
    """A word under which several commands stand, such as ``sprachbund site``."""
    made = typer.Typer(no_args_is_help=True)
    under.add_typer(made, name=name, help=purpose, rich_help_panel=panel)
    return made


def command(
    name: str, example: str, panel: str | None = None, under: typer.Typer = app
) -> Callable[[_Function], _Function]:
    """Make a function a command; its docstring is the help, ``example`` closes it."""
    return under.command(name, rich_help_panel=panel, epilog=f"Example: [cyan]{escape(example)}[/]")
