"""Commands of a site's operator: enrol it, run its agent, see how it stands and what is wrong with it."""

from pathlib import Path
from typing import Annotated

import typer

from console.app import SITE, Json, command, group
from console.home import LogLevel
from console.output import answer

site = group("site", SITE, "Enrol a site, run its agent, see how it stands.")

_NOT_USED = (
    "It was enrolled already, so the invitation was not used. After a stolen or lost key, remove {folder} "
    "and enrol again."
)

Config = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The site's config.")]


@command("enrol", "sprachbund site enrol site.yaml --invitation sofia.invitation", under=site)
def enrol(
    config: Config,
    invitation: Annotated[
        Path, typer.Option("--invitation", metavar="FILE", help="What the consortium's admin gave you.")
    ],
    as_json: Json = False,
) -> None:
    """Join the consortium: trade an invitation for a certificate.

    The site's key is made here and never leaves. A site that is enrolled already keeps what it has.
    """
    import time

    from site_agent.config import load_site_config
    from site_agent.enrol import enrol as join
    from site_agent.enrol import read_invitation

    loaded = load_site_config(config)
    kept = Path(loaded.home) / "identity" / "site.pem"
    before = kept.read_bytes() if kept.is_file() else b""
    identity = join(loaded, read_invitation(invitation))
    is_new = kept.read_bytes() != before
    days = identity.seconds_left(time.time()) / 86_400
    fact = {
        "consortium": identity.trust.consortium,
        "home": loaded.home,
        "new": is_new,
        "site": loaded.site,
        "valid_days": round(days, 2),
    }
    text = (
        f"{loaded.site} is a site of {identity.trust.consortium}; certified for {days:.0f} days, renewed by itself.\n"
        f"{f'Remove {invitation}: it works no more.' if is_new else _NOT_USED.format(folder=kept.parent)}\n"
        f"Next: sprachbund site doctor {config}, then sprachbund site run {config}"
    )
    answer(as_json, fact, text)


@command("run", "sprachbund site run site.yaml", under=site)
def run(
    config: Config,
    once: Annotated[
        bool, typer.Option("--once", help="Sync once, do what follows, and leave: for cron jobs.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Although one was seen on another host within 5 minutes."),
    ] = False,
    log_level: LogLevel = "info",
) -> None:
    """Be the site's agent until SIGTERM or SIGINT; jobs go on without it.

    Logs JSON lines to stderr, or where the config's `log` says. May be killed at any moment: started again, it
    finds its jobs.
    """
    import os
    import sys

    from consortium.allocator import keep_freed_memory
    from consortium.files import make_private_folder
    from consortium.logs import log_json
    from site_agent.config import load_site_config
    from site_agent.running import run_agent

    loaded = load_site_config(config)
    os.umask(0o077)  # what an agent writes, and its jobs after it, is for nobody else to read
    make_private_folder(Path(loaded.home))
    log = loaded.log
    target = Path(log.file) if log.file else sys.stderr
    log_json(target, log_level.upper(), log.bytes_max, log.keep)
    keep_freed_memory()
    raise typer.Exit(run_agent(loaded, once, take_over=take_over))


@command("status", "sprachbund site status site.yaml", under=site)
def status(config: Config, as_json: Json = False) -> None:
    """How the site stands, from what lies in its home; asks nobody."""
    import time

    from console.output import screen
    from console.screens.site import site_page
    from site_agent.config import load_site_config
    from site_agent.status import site_status

    loaded = load_site_config(config)
    found = site_status(loaded)
    answer(as_json, found, site_page(loaded.site, found, time.time(), screen().width))


@command("doctor", "sprachbund site doctor site.yaml", under=site)
def doctor(config: Config, as_json: Json = False) -> None:
    """Find what is wrong with a site before a night is lost, and how to mend it.

    Exits with 0 if all is well, else with the code of the first failure: 2 input, 3 corrupt, 4 refused,
    5 unavailable, 6 disk full, 7 broken.
    """
    from console.output import screen
    from console.screens.site import doctors_page
    from consortium.errors import Unavailable
    from site_agent.config import load_site_config
    from site_agent.doctor import doctor as examine

    checks = examine(load_site_config(config))
    answer(as_json, checks, doctors_page(checks, screen().width))
    bad = [check for check in checks if not check.is_good]
    if bad:
        raise typer.Exit(bad[0].exit_code or Unavailable.exit_code)


@command("clean", "sprachbund site clean site.yaml --dry-run", under=site)
def clean(
    config: Config,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")] = False,
    as_json: Json = False,
) -> None:
    """Delete from the site's home what no job of its needs any more, by `cleaning` of the config.

    Bases of jobs that are over, downloads that were given up, old logs. Never text, what a job has under way, or a
    result that is not delivered. The agent may run, and does the same by itself every few hours.
    """
    import time

    from console.output import note
    from consortium.errors import DiskFull, Unavailable
    from site_agent.cleaning import clean as tidy
    from site_agent.config import load_site_config

    loaded = load_site_config(config)
    shown = not as_json and not dry_run
    done = tidy(
        loaded, time.time(), dry_run, tell=lambda one: note(f"{one.name}: {one.reason}") if shown else None
    )
    verb = "would go" if dry_run else "gone"
    lines = [f"{one.name}: {one.reason}" for one in done.gone] if dry_run else []
    lines.append(f"{loaded.home}: {len(done.gone)} things {verb}, {done.bytes} bytes in {done.inodes} inodes")
    if done.bytes_left is not None:
        lines.append(f"  {done.bytes_left} bytes in {done.inodes_left} inodes stay")
    lines += [f"✗ {said}" for said in (done.over, done.trouble) if said]
    answer(as_json, done, "\n".join(lines))
    if done.trouble or done.over:
        raise typer.Exit(Unavailable.exit_code if done.trouble else DiskFull.exit_code)


@command("audit", "sprachbund site audit site.yaml", under=site)
def audit(
    config: Config,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read what `sprachbund ledger export` wrote, rather than ask the coordinator.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the coordinator's ledger with every signed head that this site was shown.

    Exits with 3 if history was rewritten or cut: keep checkpoints.jsonl then, and show both to the auditor.
    """
    from console.output import screen
    from console.site_audit import audit as compare
    from consortium.errors import Corrupt
    from site_agent.config import load_site_config

    loaded, console = load_site_config(config), screen(stderr=True)
    if as_json or not console.is_terminal:
        found = compare(loaded, ledger)
    else:
        with console.status("") as status:
            found = compare(loaded, ledger, lambda number: status.update(f"entry {number}"))
    ending = "history is what it was" if not found.problems else "do not go on; show this to the auditor"
    lines = [f"✗ {problem}" for problem in found.problems]
    text = "\n".join([*lines, f"{found.entries} entries, {found.heads} signed heads compared: {ending}"])
    answer(as_json, found, text)
    if found.problems:
        raise typer.Exit(Corrupt.exit_code)
