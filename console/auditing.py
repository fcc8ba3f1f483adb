"""Commands for those who check and those who use what was made: models out, the ledger out, everything verified."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.app import AUDIT, As, Json, command, group
from console.output import answer, note, screen, transfer_bar

if TYPE_CHECKING:
    from coordinator.verification import Report

ledger = group("ledger", AUDIT, "Take the ledger out of the coordinator.")


@command("export", "sprachbund export balkan-1/v3 models/balkan-1-v3 --as auditor", AUDIT)
def export(
    version: Annotated[
        str,
        typer.Argument(metavar="VERSION", help="Its name, or its digest, or eight or more digits of that."),
    ],
    place: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A folder that does not exist yet.")],
    as_json: Json = False,
    who: As = None,
) -> None:
    """Download a version as a Hugging Face directory.

    Every file is verified by its digest. Interrupted, the same command goes on where it stopped.
    """
    from console.client import ask
    from console.exporting import export_version

    with transfer_bar(quiet=as_json) as bar:
        made = ask(who, lambda coordinator: export_version(coordinator, version, place, bar))
    answer(
        as_json, made, f"{made.name} ({made.digest})\n  {made.files} files, {made.bytes} bytes in {made.path}"
    )


@command("releases", "sprachbund releases --as reader", AUDIT)
def releases(as_json: Json = False, who: As = None) -> None:
    """List the versions that were promoted, oldest first: what a reader's certificate may export."""
    from console.client import ask

    found = ask(who, lambda coordinator: coordinator.releases())
    lines = [
        f"{one.name}{' (head)' if one.is_head else ''}  {one.digest}  {', '.join(one.languages)}"
        for one in found.releases
    ]
    answer(as_json, found, "\n".join(lines) or f"{found.consortium} has released nothing yet")


@command("export", "sprachbund ledger export --out ledger.jsonl --as auditor", under=ledger)
def export_ledger(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write to this file rather than to stdout.")
    ] = None,
    who: As = None,
) -> None:
    """Write the ledger as JSON lines, checking its hash chain on the way.

    A line holds `entry` (the very bytes that were hashed), `hash` and `sequence`; the last one holds the
    coordinator's signed `checkpoint`.
    """
    from console.client import ask
    from console.exporting import export_ledger as write

    count = ask(who, lambda coordinator: write(coordinator, out))
    note(f"{count} entries; the chain holds and the coordinator's signature of it is good")


@command("checksums", "sprachbund checksums models/balkan-1-v3 --resume checked.txt", AUDIT)
def checksums(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A folder with a merged model.")],
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep in this file how far the check is, and go on from there."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", "-j", min=1, help="Read and hash with so many.")] = 2,
    as_json: Json = False,
) -> None:
    """Compare a model's weights with the checksums that its merge left beside them.

    Piece by piece, in parallel; cut off, the same command with `--resume` goes on where it stopped.
    """
    from console.checking_models import check_model

    with transfer_bar(quiet=as_json) as bar:
        found = check_model(model, resume, threads, bar)
    answer(
        as_json,
        found,
        f"{model}: all {found.pieces} pieces are as they were merged\n  weights {found.digest}",
    )


@command("verify", "sprachbund verify coordinator-home --model models/balkan-1-v3", AUDIT)
def verify(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="A coordinator's home, or a copy of one.")],
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="A model folder that should be a version.")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild/--no-rebuild", help="Merge every version again from its contributions.")
    ] = True,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option("--checkpoints", metavar="FILE", help="A site's checkpoints.jsonl; may be given often."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check everything a coordinator keeps, offline, and change nothing.

    The ledger's chain and signatures, every blob, every contribution, every gate; and that each version comes
    out of its contributions with the same digest. With what sites kept, also that history was not rewritten.
    """
    from consortium.errors import Corrupt
    from consortium.witnesses import kept_in
    from coordinator.verification import verify as check

    console = screen(stderr=True)
    seen = [one for path in checkpoints or () for one in kept_in(path)]
    if as_json or not console.is_terminal:
        report = check(home, rebuild=rebuild, model=model, seen=seen)
    else:
        with console.status("") as status:
            report = check(home, rebuild=rebuild, model=model, progress=status.update, seen=seen)
    answer(as_json, report, _told(report, home))
    if not report.ok:
        raise typer.Exit(Corrupt.exit_code)


def _told(report: "Report", home: Path) -> str:
    checked = ", ".join(f"{number} {kind}" for kind, number in sorted(report.checked.items()))
    lines = [f"checked: {checked or 'nothing'}"]
    lines += [f"made again: {name} {digest}" for name, digest in sorted(report.versions.items())]
    lines += [f"let go: {what}: {since}" for what, since in sorted(report.let_go.items())]
    lines += [f"✗ {problem}" for problem in report.problems]
    ending = "everything holds" if report.ok else f"{len(report.problems)} thing(s) do not hold"
    return "\n".join([*lines, f"{home}: {ending}"])
