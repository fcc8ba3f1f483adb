"""Commands on the coordinator's machine that keep its state safe and small: backup, restore, gc."""

from pathlib import Path
from typing import Annotated

import typer

from console.app import BEGIN, Json, command
from console.output import answer, progress_bar

Where = Annotated[
    Path,
    typer.Argument(metavar="CONFIG.yaml", help="The coordinator's config, or its home if all lies below it."),
]
Passphrase = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE", help="Its first line seals, or opens, the secret keys."
    ),
]


@command("backup", "sprachbund backup coordinator.yaml /mnt/backup --passphrase-file ~/.sealing", BEGIN)
def backup(
    where: Where,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="An empty folder, or an earlier backup.")],
    passphrase_file: Passphrase = None,
    as_json: Json = False,
) -> None:
    """Copy the consortium's state while its coordinator runs.

    Into an earlier backup only what is new is copied. Secret keys go along only under a passphrase: without them
    the copy can be read and verified, but no coordinator can go on from it.
    """
    import time

    from coordinator.backup import back_up
    from coordinator.stores import places_of

    with progress_bar(quiet=as_json) as tell:
        made = back_up(places_of(where), out, time.time(), where, _passphrase(passphrase_file), tell)
    keys = "with its keys, sealed" if made.keys else "without its secret keys"
    text = (
        f"{out}: {made.consortium} up to event {made.sequence} ({made.head[:12]}), {keys}\n"
        f"  {made.blobs} blobs, {made.new_blobs} of them new"
    )
    answer(as_json, made, text)


@command("restore", "sprachbund restore /mnt/backup coordinator --passphrase-file ~/.sealing", BEGIN)
def restore(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A folder that `backup` wrote.")],
    home: Annotated[Path, typer.Argument(metavar="HOME", help="A folder that does not exist yet.")],
    passphrase_file: Passphrase = None,
    as_json: Json = False,
) -> None:
    """Make a coordinator's home from a backup, verified: every event by the chain, every blob by its digest.

    What happened after the backup is lost, and the sites notice: an agent that was shown a later event stops and
    says so. See docs/admin.md before you go on.
    """
    from coordinator.backup import restore as restore_backup

    with progress_bar(quiet=as_json) as tell:
        made = restore_backup(source, home, _passphrase(passphrase_file), tell)
    runs = "" if passphrase_file else "\nIt has no keys: it can be read and verified, not run."
    answer(as_json, made, f"{home}: {made.consortium} up to event {made.sequence} ({made.head[:12]}){runs}")


@command("gc", "sprachbund gc coordinator.yaml --dry-run", BEGIN)
def gc(
    where: Where,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    grace_hours: Annotated[
        float | None,
        typer.Option(
            "--grace-hours", min=0.0, help="Younger blobs stay, named or not. Default: 168, a week."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove from the store what nothing refers to, and what the rule `keep` of the config lets go.

    Refused and abandoned uploads and remains of crashes go; of what the ledger names only what a rule lets go, which
    stands in the ledger first, and which `verify` tells. Without a rule all of it stays. The coordinator may run.
    """
    import time

    from coordinator.cleaning import GRACE_HOURS, clean
    from coordinator.stores import places_of

    hours = GRACE_HOURS if grace_hours is None else grace_hours
    with progress_bar(quiet=as_json) as tell:
        done = clean(
            places_of(where), time.time(), hours, dry_run, lambda now, all_: tell("blobs", now, all_)
        )
    verb = "would be removed" if dry_run else "removed"
    decided = "".join(f"{sentence}\n" for sentence in done.decided)
    waits = f"\n  not more: {done.waits_for}" if done.waits_for else ""
    text = decided + (
        f"{len(done.removed)} blobs of {done.removed_bytes} bytes {verb}, {done.kept} stay"
        f" ({done.young} of them unnamed, but too young)\n"
        f"  {done.let_go} of them, of {done.let_go_bytes} bytes, let go by {done.rule}\n"
        f"  {done.partials} abandoned uploads, {done.leftovers} leftovers {verb}{waits}"
    )
    answer(as_json, done, text)


def _passphrase(path: Path | None) -> str | None:
    from consortium.errors import BadInput

    if path is None:
        return None
    if not path.is_file():
        raise BadInput(f"{path}: not there; write the passphrase into its first line")
    return path.read_text().partition("\n")[0].strip()
