"""Commands on the coordinator's own machine: found a consortium, run it, give people certificates; the demo."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from console.app import BEGIN, Json, command, group
from console.output import answer
from consortium.errors import BadInput

coordinator = group("coordinator", BEGIN, "Run the coordinator; give people certificates.")

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The coordinator's config.")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    typer.Option("--log-level", help="Of the JSON lines on stderr."),
]


@command("demo", "sprachbund demo --workdir demo-run --seed 1", BEGIN)
def demo(
    workdir: Annotated[
        Path | None,
        typer.Option(
            "--workdir",
            metavar="DIR",
            help="Where everything is put; must be empty. Default: demo-run, or the next one that is free.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="The same seed gives the same model, bit for bit.")
    ] = 1,
    launcher: Annotated[
        Literal["local", "slurm"],
        typer.Option("--launcher", help="Start jobs as processes, or through the Slurm of this machine."),
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            metavar="[SITE:]KEY=VALUE",
            help="Of the sites' `slurm:`, such as partition=debug or south:account=project_1. May be repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """See a whole consortium train a model on this machine, in minutes.

    Founds a consortium, starts a coordinator and four sites as processes of their own, and leads a campaign
    in eight languages to its end.
    """
    from console.demo import free_workdir, run_demo, slurm_of_sites

    if slurm and launcher != "slurm":
        raise BadInput("--slurm says how Slurm jobs are asked for; add `--launcher slurm`")
    profiles = slurm_of_sites(slurm or []) if launcher == "slurm" else None
    raise typer.Exit(run_demo(workdir or free_workdir(Path("demo-run")), seed, as_json, profiles))


@command("init", "sprachbund init examples/coordinator.yaml", BEGIN)
def init(config: Config, as_json: Json = False) -> None:
    """Found a consortium: its authority, its keys, its ledger, its first admin.

    Everything lies below the config's `home`. Done once; a home that has a consortium is refused.
    """
    import time

    from coordinator.config import load_coordinator_config
    from coordinator.founding import found
    from coordinator.ledgers import shown
    from coordinator.stores import places_in

    loaded = load_coordinator_config(config)
    keys = found(loaded, time.time())
    home = Path(loaded.home)
    places = {
        "authority": home / "authority",
        "admin": home / "admin",
        "ledger": shown(places_in(loaded).ledger),
        "home": home,
    }
    told = {name: str(place) for name, place in places.items()}
    fact = {**told, "consortium": keys.authority.consortium}
    lines = [
        f"Consortium {keys.authority.consortium} is founded.",
        f"  {told['authority']}  who may speak for a site; back it up, keep it secret",
        f"  {told['admin']}  the first admin's certificate, for --as",
        f"  {told['ledger']}  everything that will happen",
        "Next:",
        f"  sprachbund coordinator run {config}",
        f"  export SPRACHBUND_ADMIN={told['admin']}",
        "  sprachbund invite SITE --organisation NAME --country CODE",
    ]
    answer(as_json, fact, "\n".join(lines))


@command("run", "sprachbund coordinator run examples/coordinator.yaml", under=coordinator)
def run(config: Config, log_level: LogLevel = "info") -> None:
    """Be the coordinator until SIGTERM or SIGINT.

    Logs JSON lines to stderr. May be killed at any moment: started again, it goes on from its ledger.
    """
    import asyncio
    import os
    import sys

    from consortium.allocator import keep_freed_memory
    from consortium.logs import log_json
    from coordinator.config import load_coordinator_config
    from coordinator.daemon import serve

    loaded = load_coordinator_config(config)
    os.umask(0o077)  # what a coordinator writes is for nobody else to read
    log_json(sys.stderr, log_level.upper())
    keep_freed_memory()
    asyncio.run(serve(loaded))


@command("person", "sprachbund coordinator person coordinator.yaml maria --role auditor", under=coordinator)
def person(
    config: Config,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a-z, 0-9 and '-'.")],
    role: Annotated[
        Literal["admin", "auditor", "reader"],
        typer.Option(
            "--role", help="An auditor reads everything, a reader what is released; neither changes anything."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Give an admin, auditor or reader a certificate, or a new one.

    Hand the files to that person over a channel you trust, then remove the key here.
    """
    import time

    from consortium.identity import Authority
    from consortium.roles import Role
    from coordinator.config import load_coordinator_config
    from coordinator.founding import issue_person, tell_people

    loaded = load_coordinator_config(config)
    authority = Authority.load(Path(loaded.home) / "authority")
    stem = issue_person(Path(loaded.home), authority, Role(role), name, time.time())
    tell_people(loaded)
    places = {
        "certificate": f"{stem}.pem",
        "key": f"{stem}.key",
        "authority": str(stem.parent / "ca.pem"),
        "connection": str(stem.parent / "connection.json"),
    }
    text = "\n".join(
        [f"{role} {name} needs these four files, in one folder:", *(f"  {x}" for x in places.values())]
    )
    answer(as_json, {**places, "name": name, "role": role}, text)


@command(
    "move", "sprachbund coordinator move coordinator.yaml --ledger service=sprachbund", under=coordinator
)
def move(
    config: Config,
    ledger: Annotated[
        str | None,
        typer.Option(
            "--ledger", metavar="PLACE", help="A file, postgresql://user@host/name or service=name."
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="PLACE", help="A folder, or s3://bucket/prefix.")
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option("--s3-endpoint", metavar="URL", help="Of a bucket that is not Amazon's.")
    ] = None,
    s3_region: Annotated[str | None, typer.Option("--s3-region", help="Of the new bucket.")] = None,
    as_json: Json = False,
) -> None:
    """Copy ledger or artifacts from where CONFIG.yaml has them to another place, and check the copy.

    The coordinator must not be running. The old ones stay; then write the new places into the config.
    """
    from rich.progress import Progress

    from console.output import screen
    from consortium.canonical import replace
    from coordinator.config import load_coordinator_config
    from coordinator.moving import move_blobs, move_ledger
    from coordinator.stores import open_store, places_in

    if ledger is None and store is None:
        raise BadInput("say what to move where: --ledger PLACE, --store PLACE, or both")
    places = places_in(load_coordinator_config(config))
    told: dict[str, object] = {}
    lines = []
    console = screen(stderr=True)
    with Progress(console=console, disable=as_json or not console.is_terminal) as bars:
        if store is not None:
            bar = bars.add_task("blobs")
            there = replace(places, store=store, s3_endpoint=s3_endpoint, s3_region=s3_region)
            told["blobs"] = move_blobs(
                open_store(places),
                open_store(there),
                lambda done, all_: bars.update(bar, completed=done, total=all_),
            )
            lines.append(f"{told['blobs']} blobs are in {store}")
        if ledger is not None:
            line = bars.add_task("entries")
            moved = move_ledger(
                places.ledger, ledger, lambda done, all_: bars.update(line, completed=done, total=all_)
            )
            told["ledger"] = moved
            lines.append(f"{moved.ledger} has {moved.sequence} entries, head {moved.head}, as before")
    lines.append(f"Now write the new places into {config}; the old ones are as they were.")
    answer(as_json, told, "\n".join(lines))
