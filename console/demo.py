"""The main job, end to end, on one machine: four sites, one coordinator, one better multilingual model."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live

from console.client import Coordinator, ask
from console.corpora import LICENCES, write_corpora
from console.local import LocalConsortium, LocalSite
from console.screens import compare, live, results_table
from console.screens.changes import changes
from consortium.canonical import Fact, encode
from consortium.errors import BadInput, SprachbundError, Unavailable
from consortium.files import make_folder, write_bytes_atomically
from consortium.ids import Language
from consortium.views import CampaignView, ConsortiumView, ModelView

CAMPAIGN = "demo"

#: Organisations are invented; the languages are real. Three scripts: Latin, Greek, Cyrillic.
SITES = (
    LocalSite("north", "Nordic Text Institute", "FI", (Language("da"), Language("fi")), slots=2),
    LocalSite("west", "Atlantic Language Lab", "IE", (Language("ga"), Language("nl")), slots=2),
    LocalSite("centre", "Danube University", "CZ", (Language("cs"), Language("hu")), slots=2),
    LocalSite("south", "Aegean Computing Centre", "EL", (Language("bg"), Language("el")), slots=2),
)


class Column(Fact):
    """One model of the table."""

    model: str
    version: str  #: digest of the version, or of the base that its delta is relative to
    delta: str | None
    bits_per_byte: dict[str, float]
    mean: float | None


class Summary(Fact):
    """What ``sprachbund demo --json`` prints: measured, nothing assumed."""

    seed: int
    seconds: float
    version: str | None  #: digest of the promoted model
    version_name: str | None
    tokenizer: str | None
    ledger_head: str
    ledger_events: int
    base: Column | None
    promoted: Column | None
    specialists: tuple[Column, ...]
    public_only: Column | None
    beats_base_in_every_language: bool
    mean_beats_every_specialist: bool
    mean_beats_public_only: bool | None
    paths: dict[str, str]


#: What the demo's small CPU jobs ask of Slurm where nothing else is said.
SLURM = {
    "preset": "generic",
    "cpus_per_task": 1,
    "memory": "2G",
    "walltime_minutes": 30,
    "signal_seconds": 120,
    "poll_seconds": 2,
}


def consortium_at(workdir: Path, slurm: Mapping[str, Mapping[str, Any]] | None = None) -> LocalConsortium:
    """The demo's consortium below ``workdir``: not started, no file written.

    slurm  by site, what its ``slurm:`` says; sites left out use the local launcher
    """
    return LocalConsortium(
        workdir=workdir.resolve(),
        name=CAMPAIGN,
        sites=SITES,
        text=workdir.resolve() / "text",
        slurm=slurm or {},
    )


def slurm_of_sites(options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What ``--slurm KEY=VALUE`` and ``--slurm SITE:KEY=VALUE`` say, by site. Raises BadInput for other spellings."""
    names = [site.name for site in SITES]
    said: dict[str, dict[str, Any]] = {name: dict(SLURM) for name in names}
    for option in options:
        key, is_one, value = option.partition("=")
        site, of_one, short = key.partition(":")
        if not is_one or not (short if of_one else site) or (of_one and site not in said):
            raise BadInput(
                f"--slurm {option}: not KEY=VALUE or SITE:KEY=VALUE; keys are those of a site's `slurm:`, "
                f"sites are {', '.join(names)}"
            )
        for name in [site] if of_one else names:
            said[name][short if of_one else site] = yaml.safe_load(value)
    return said


def free_workdir(wanted: Path) -> Path:
    """``wanted``, or ``wanted-2``, ``wanted-3`` …: the first that is not there or is empty."""
    number = 1
    place = wanted
    while place.exists() and any(place.iterdir()):
        number += 1
        place = wanted.with_name(f"{wanted.name}-{number}")
    return place


def prepare(here: LocalConsortium, seed: int) -> Path:
    """Write the text, the config files and the campaign; returns the campaign file."""
    write_corpora(here.text, here.languages)
    # The public slice holds django's text (BSD) and some of gramps's: together, under the stricter licence.
    here.write_files({"private": LICENCES["gramps"], "public": LICENCES["gramps"]})
    campaign = yaml.safe_load(files("console").joinpath("demo-campaign.yaml").read_text())
    campaign["seed"] = seed
    campaign["model"]["seed"] = seed
    path = here.workdir / "campaign.yaml"
    write_bytes_atomically(path, yaml.safe_dump(campaign, sort_keys=False).encode())
    return path


def start(here: LocalConsortium, campaign: Path) -> None:
    """Provision, start every process, submit."""
    here.command("init", str(here.workdir / "coordinator.yaml"))
    here.start_coordinator()
    here.invite_and_enrol()
    for site in here.sites:
        here.start_agent(site.name)
    here.command("submit", str(campaign))


def run_demo(
    workdir: Path, seed: int, json_output: bool, slurm: Mapping[str, Mapping[str, Any]] | None = None
) -> int:
    """The whole demo. Returns the exit code: 0 only if the promoted model beats the base in every language."""
    if workdir.exists() and any(workdir.iterdir()):
        raise BadInput(f"{workdir} is not empty; remove it or give another --workdir")
    make_folder(workdir)
    screen = Console(stderr=json_output)
    began = time.monotonic()
    here = consortium_at(workdir, slurm)
    try:
        screen.print(f"[dim]text, keys and configs below[/] {workdir}", highlight=False)
        campaign = prepare(here, seed)
        start(here, campaign)
        view = follow(here, screen)
        if view.campaigns[0].head is not None:
            here.command("export", view.campaigns[0].head, str(here.workdir / "model"))
    finally:
        here.stop()
    summary = summarise(here, view, seed, time.monotonic() - began)
    write_bytes_atomically(here.workdir / "report.json", encode(summary) + b"\n")
    if json_output:
        sys.stdout.write(encode(summary).decode() + "\n")
    else:
        _epilogue(screen, view.campaigns[0], summary)
    return 0 if summary.beats_base_in_every_language else 1


# --- following ----------------------------------------------------------------------------------------


def views(here: LocalConsortium) -> Iterator[ConsortiumView]:
    """What the coordinator shows, once a second, until the campaign is over; survives the coordinator's death."""
    while True:
        try:
            view = ask(here.admin, Coordinator.view)
        except Unavailable:
            if "coordinator" in here.dead():
                raise
            time.sleep(0.5)
            continue
        yield view
        if view.campaigns and all(c.status != "open" for c in view.campaigns):
            return
        time.sleep(1.0)


def follow(here: LocalConsortium, screen: Console) -> ConsortiumView:
    """Show the campaign live until it is over; without a terminal, one line per change."""
    view: ConsortiumView | None = None
    if screen.is_terminal:
        with Live(console=screen, auto_refresh=False, screen=False, transient=True) as window:
            for view in views(here):
                _require_alive(here)
                window.update(live(view, screen.width, max(20, screen.height - 1)), refresh=True)
    else:
        for following in views(here):
            _require_alive(here)
            for line in changes(view, following):
                screen.print(line, highlight=False, markup=False, soft_wrap=True)
            view = following
    assert view is not None
    return view


def _require_alive(here: LocalConsortium) -> None:
    if dead := here.dead():
        logs = ", ".join(str(here.workdir / "logs" / f"{name}.log") for name in dead)
        raise SprachbundError(f"{', '.join(dead)} ended; the reason is in {logs}")


# --- the result ---------------------------------------------------------------------------------------


def summarise(here: LocalConsortium, view: ConsortiumView, seed: int, seconds: float) -> Summary:
    """The demo's claims, computed from the scores in the ledger."""
    campaign = view.campaigns[0]
    found = compare(campaign)
    base, promoted = _column(found.base), _column(found.promoted)
    specialists = tuple(c for c in map(_column, found.specialists) if c is not None)
    public_only = _column(found.rival)
    name = {v.digest: v.name for v in campaign.versions}.get(campaign.head or "")
    return Summary(
        seed=seed,
        seconds=round(seconds, 1),
        version=campaign.head,
        version_name=name,
        tokenizer=campaign.tokenizer,
        ledger_head=view.head,
        ledger_events=view.sequence,
        base=base,
        promoted=promoted,
        specialists=specialists,
        public_only=public_only,
        beats_base_in_every_language=promoted is not None
        and base is not None
        and all(promoted.bits_per_byte[x] < base.bits_per_byte[x] for x in campaign.languages),
        mean_beats_every_specialist=promoted is not None
        and bool(specialists)
        and all(_mean(promoted) < _mean(s) for s in specialists),
        mean_beats_public_only=None
        if promoted is None or public_only is None
        else _mean(promoted) < _mean(public_only),
        paths={
            "model": str(here.workdir / "model"),
            "ledger": str(here.home / "ledger.sqlite"),
            "report": str(here.workdir / "report.json"),
            "logs": str(here.workdir / "logs"),
        },
    )


def _column(model: ModelView | None) -> Column | None:
    if model is None:
        return None
    return Column(
        model=model.name,
        version=model.version,
        delta=model.delta,
        bits_per_byte={r.language: r.bits_per_byte for r in model.results},
        mean=model.mean,
    )


def _mean(column: Column) -> float:
    assert column.mean is not None
    return column.mean


def _epilogue(screen: Console, campaign: CampaignView, summary: Summary) -> None:
    screen.print(results_table(campaign))
    rows: list[tuple[str, Any]] = [
        ("model", summary.paths["model"]),
        ("ledger", f"{summary.paths['ledger']} ({summary.ledger_events} events)"),
        ("report", summary.paths["report"]),
        ("digest", f"{summary.version} ({summary.version_name})"),
        ("took", f"{summary.seconds:.0f} s"),
    ]
    screen.print()
    for title, text in rows:
        screen.print(f"[dim]{title:>7}[/]  {text}", highlight=False, soft_wrap=True)
    home = Path(summary.paths["ledger"]).parent
    screen.print("\nTry next:")
    for command in (
        f"sprachbund why {CAMPAIGN}/r1 --home {home}",
        f"sprachbund verify {home} --model {summary.paths['model']}",
        f"python -c \"from transformers import pipeline; print(pipeline('text-generation', "
        f"'{summary.paths['model']}')('Vælg en'))\"",
    ):
        screen.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
