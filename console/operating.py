"""Commands with which an operator keeps an agent going, and holds it back: service, drain, pause, resume."""

from pathlib import Path
from typing import Annotated

import typer

from console.app import Json, command
from console.output import answer
from console.site import Config, site

_Why = Annotated[str, typer.Option("--reason", help="For whoever looks at `site status` later.")]


@command("service", "sprachbund site service site.yaml > sprachbund-agent-sofia.service", under=site)
def service(
    config: Config,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="As a small Slurm job that submits its successor.")
    ] = False,
    submit: Annotated[
        bool, typer.Option("--submit", help="With --slurm: submit it, unless one runs or waits already.")
    ] = False,
    minutes: Annotated[
        int, typer.Option("--minutes", min=30, help="With --slurm: walltime of one job.")
    ] = 240,
    partition: Annotated[
        str,
        typer.Option(
            "--partition", help="With --slurm: one that reaches the network. Default: the profile's."
        ),
    ] = "",
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch", metavar="OPTION", help="With --slurm: one more option of sbatch, e.g. --qos=x."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what keeps the agent running: a systemd user unit, or with --slurm a batch script.

    The unit goes to ~/.config/systemd/user; its first lines say how. A Slurm chain ends with
    `scancel --name=sprachbund-agent-SITE`.
    """
    import os
    import sys

    from consortium.errors import BadInput
    from site_agent.config import load_site_config
    from site_agent.service import chain
    from site_agent.service.unit import unit

    loaded = load_site_config(config)
    place = str(config.absolute())
    environment = {"MALLOC_ARENA_MAX": "2", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment = {name: value for name, value in environment.items() if value}
    if not slurm:
        if submit:
            raise BadInput(
                "--submit goes with --slurm; a unit is put in place by hand, its first lines say how"
            )
        words = (sys.executable, "-P", "-m", "console.main", "site", "run", place)
        has_jobs = loaded.launcher == "local"
        text = unit(loaded.site, place, str(Path(place).parent), words, environment, has_jobs=has_jobs)
        return answer(as_json, {"unit": text}, text.rstrip("\n"))
    extra = tuple(sbatch or ())
    chain.check(minutes, extra)
    link = chain.Link(
        name=chain.chain_name(loaded.site),
        folder=loaded.home,
        config=place,
        python=sys.executable,
        environment=environment,
        minutes=minutes,
        partition=partition,
        extra=extra,
    )
    if not submit:
        text = chain.script(link)
        return answer(as_json, {"script": text}, text.rstrip("\n"))
    done = chain.submit(link, loaded, os.environ.get("SLURM_JOB_ID", ""))
    said = "is submitted" if done.is_new else "runs or waits already; nothing was submitted"
    answer(as_json, done, f"Slurm job {done.id} ({link.name}) {said}")


@command("drain", "sprachbund site drain site.yaml --reason 'maintenance on Monday'", under=site)
def drain(config: Config, reason: _Why = "", as_json: Json = False) -> None:
    """Take nothing new, finish what is here. `site status` says when no job is left."""
    _set_mode(config, "drain", reason, as_json, "takes nothing new and finishes what is here")


@command("pause", "sprachbund site pause site.yaml --reason 'the group needs the node'", under=site)
def pause(config: Config, reason: _Why = "", as_json: Json = False) -> None:
    """Hold everything: running jobs save a training checkpoint and leave, nothing starts. Results are still sent."""
    _set_mode(config, "pause", reason, as_json, "asks running jobs to save and leave, and starts nothing")


@command("resume", "sprachbund site resume site.yaml", under=site)
def resume(config: Config, reason: _Why = "", as_json: Json = False) -> None:
    """End `drain` or `pause`: paused jobs go on from their training checkpoints."""
    _set_mode(config, "work", reason, as_json, "works; what was paused goes on")


def _set_mode(config: Path, mode: str, reason: str, as_json: bool, means: str) -> None:
    import time

    from consortium.canonical import replace
    from site_agent.config import load_site_config
    from site_agent.mode import Mode, write_mode
    from site_agent.status import at_work

    loaded = load_site_config(config)
    wish = replace(Mode(reason=reason, since=time.time()), mode=mode)
    write_mode(Path(loaded.home), wish)
    agent = at_work(Path(loaded.home))
    when = "within seconds" if agent else "as soon as one runs; none seems to run now"
    answer(as_json, wish, f"{loaded.site}: the agent {means}, {when}.")
