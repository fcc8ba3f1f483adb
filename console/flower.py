"""Commands that run Flower apps on the consortium."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from console.app import CAMPAIGNS, As, Json, command, group
from console.output import answer, note

flower = group("flower", CAMPAIGNS, "Run existing Flower apps at the consortium's sites.")


@command("run", "sprachbund flower run examples/flower --run first-try --sites lumi,sofia", under=flower)
def run_app(
    app: Annotated[
        str,
        typer.Argument(metavar="APP", help="A Flower app's folder, or its ServerApp as module:attribute."),
    ],
    run: Annotated[
        str, typer.Option("--run", metavar="NAME", help="Its name; the same name goes on with it.")
    ],
    client_app: Annotated[
        str | None,
        typer.Option("--client-app", metavar="MODULE:ATTRIBUTE", help="Default: the folder's own."),
    ] = None,
    sites: Annotated[
        str, typer.Option("--sites", metavar="SITE,...", help="Default: every site that is enrolled.")
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of the app's run config; may be repeated."),
    ] = None,
    reply_hours: Annotated[
        float | None,
        typer.Option("--reply-hours", min=0.001, help="Give a message up after so long. Default: never."),
    ] = None,
    lease_seconds: Annotated[
        float,
        typer.Option(
            "--lease-seconds", min=1.0, help="How long a site may be silent while it holds a message."
        ),
    ] = 900.0,
    attempts_max: Annotated[
        int,
        typer.Option("--attempts-max", min=1, help="Failed attempts at one message before it is given up."),
    ] = 3,
    reply_gigabytes: Annotated[
        float,
        typer.Option("--reply-gigabytes", min=0.001, help="Of one reply; a larger one is refused."),
    ] = 16.0,
    as_json: Json = False,
    who: As = None,
) -> None:
    """Run an unmodified Flower ServerApp: its messages become jobs of the sites.

    Killed at any time and started again with the same words, it goes on. Stop a run with `sprachbund stop`.
    """
    if "PYTHONHASHSEED" not in os.environ:  # a ServerApp that is started again must do the same again
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    import tempfile

    from console.client import find_person
    from consortium.channels import open_channel
    from consortium.flower.runs import FlowerRun
    from consortium.ids import campaign_id, site_name
    from coordinator.flower.apps import find_app, overridden
    from coordinator.flower.driving import drive
    from coordinator.flower.post import CoordinatorPost

    found = find_app(app, client_app)
    asked = FlowerRun(
        run=campaign_id(run),
        app=found.client,
        server_app=found.server,
        sites=tuple(sorted({site_name(name.strip()) for name in sites.split(",") if name.strip()})),
        run_config=overridden(found.config, settings or []),
        lease_seconds=lease_seconds,
        attempts_max=attempts_max,
        reply_hours=reply_hours,
        reply_bytes_max=int(reply_gigabytes * (1 << 30)),
    )
    person = find_person(who)
    with tempfile.TemporaryDirectory(prefix="sprachbund-flower-") as folder:
        post = CoordinatorPost(
            lambda: open_channel(person.connection.coordinator, person.authority, person.credentials),
            Path(folder),
        )
        try:
            done = drive(found, asked, post, note)
        finally:
            post.close()
    answer(as_json, done, f"run {done.run} has ended; `sprachbund why {done.run}` tells how")
