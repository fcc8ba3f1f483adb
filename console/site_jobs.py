"""Commands on a site's jobs: what they hand to the batch system."""

import shlex
from typing import Annotated

import typer

from console.app import Json, command
from console.output import answer
from console.site import Config, site


@command("render", "sprachbund site render site.yaml --job nordic_r3-fi.a1", under=site)
def render(
    config: Config,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="JOB", help="A job.json, or an attempt in the site's spool."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the exact sbatch line and batch script of a job, to read before trusting them.

    Asks nobody and changes nothing. Without --job: as for any training job.
    """
    from site_agent.config import load_site_config
    from site_agent.rendering import render as rendered

    found = rendered(load_site_config(config), job)
    notes = [f"# {key}: nobody has tried this value of the profile" for key in found.unverified]
    text = "\n".join([*notes, f"# {shlex.join(found.command)}", "", found.script.rstrip("\n")])
    answer(as_json, found, text)
