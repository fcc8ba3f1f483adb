"""A campaign tried on virtual sites before a GPU-hour is spent: ``sprachbund simulate``."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.app import CAMPAIGNS, Json, command
from console.output import answer, note, screen

if TYPE_CHECKING:
    from simulation.outcome import Outcome
    from simulation.plan import Plan
    from simulation.report import Report
    from simulation.weather import Weather

REPORT, PICTURE = "report.json", "timeline.svg"


@command(
    "simulate", "sprachbund simulate plan.yaml --sites 40 --seed 7 --weather rough --out tried", CAMPAIGNS
)
def simulate(
    file: Annotated[
        Path,
        typer.Argument(metavar="PLAN.yaml", help="The consortium and its campaign; see examples/simulation."),
    ],
    sites: Annotated[
        int | None,
        typer.Option(
            "--sites",
            metavar="N",
            help="So many sites together: those that the plan names, and others of its `generate:`.",
        ),
    ] = None,
    campaign: Annotated[
        Path | None,
        typer.Option("--campaign", metavar="CAMPAIGN.yaml", help="In place of the plan's: another policy."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Another seed is another fate of the same sites.")
    ] = 0,
    weather: Annotated[
        str,
        typer.Option(
            "--weather",
            metavar="NAME[:FACTOR]",
            help="How much goes wrong besides what the plan says: calm, fair, rough or storm; rough:2 is twice that.",
        ),
    ] = "fair",
    speed: Annotated[
        float,
        typer.Option("--speed", metavar="FACTOR", help="GPUs that are so many times as fast; queues stay."),
    ] = 1.0,
    hours_max: Annotated[
        float | None, typer.Option("--hours-max", metavar="H", help="Simulated; in place of the plan's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help=f"A folder that does not exist yet, for {REPORT} and {PICTURE}."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a campaign would go through: the same programs on a virtual clock, with sites that queue, fail and return.

    The coordinator and the agents are the real ones, their decisions, messages and ledger included; the sites, the
    network, the queues and the training are simulated. The same plan, seed and weather give the same bytes.
    """
    from console.screens.simulation import simulation_page
    from consortium.canonical import replace
    from consortium.errors import BadInput
    from simulation.plan import faster
    from simulation.reading import load_plan
    from simulation.report import report
    from simulation.weather import weather_of

    chosen = weather_of(weather)
    if not 0 < speed <= 1e6:
        raise BadInput(
            f"--speed {speed:g}: the GPUs' speed is multiplied by it; write a number above 0, such as 2"
        )
    if hours_max is not None and not 0 < hours_max <= 1e6:
        raise BadInput(f"--hours-max {hours_max:g}: write hours above 0, such as 500")
    if out is not None and out.exists():
        raise BadInput(f"--out {out}: exists already; choose another name or remove it")
    read = load_plan(file, sites, campaign)
    plan = faster(read.plan, speed) if speed != 1.0 else read.plan
    plan = replace(plan, hours_max=hours_max) if hours_max is not None else plan
    found = report(plan, _run(plan, seed, chosen, as_json), read.notes)
    if out is not None:
        _keep(out, found)
    answer(as_json, found, simulation_page(found))
    if out is not None:
        note(f"{out / PICTURE} is the picture, {out / REPORT} all of it for scripts")
    if found.outcome.violations:
        raise typer.Exit(7)


def _run(plan: "Plan", seed: int, weather: "Weather", quiet: bool) -> "Outcome":
    from simulation.run import simulate

    with _progress(plan.hours_max, quiet) as moved:
        return simulate(plan, seed, weather, progress=moved)


@contextlib.contextmanager
def _progress(hours_max: float, quiet: bool) -> Iterator[Callable[[float, float], None]]:
    """A bar on stderr: call with the simulated hours, and how many there are at most."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = screen(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("simulating", total=hours_max)

        def moved(hours: float, most: float) -> None:
            progress.update(
                task, completed=hours, total=most, description=f"{hours:.0f} of {most:g} h simulated"
            )

        yield moved


def _keep(out: Path, found: "Report") -> None:
    from console.screens.timeline import timeline
    from consortium.canonical import encode
    from consortium.files import write_bytes_atomically
    from consortium.folders import fresh_folder

    with fresh_folder(out) as folder:
        write_bytes_atomically(folder / REPORT, encode(found) + b"\n")
        write_bytes_atomically(folder / PICTURE, timeline(found.outcome).encode())
