"""Commands of the consortium's admin: sites in and out, campaigns begun and ended, heads moved by hand."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from console.app import BEGIN, CAMPAIGNS, As, Json, Reason, command, group
from console.output import answer, note, put, transfer_bar

if TYPE_CHECKING:
    from console.client import Coordinator, Done

sites = group("sites", CAMPAIGNS, "Take sites out of the work, and back into it.")

Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="Its name, or its digest, or eight or more digits of that.")
]


@command("invite", "sprachbund invite sofia --organisation 'Sofia University' --country BG", BEGIN)
def invite(
    site: Annotated[str, typer.Argument(metavar="SITE", help="Its name from now on: of a-z, 0-9 and '-'.")],
    organisation: Annotated[str, typer.Option("--organisation", help="Who operates it.")],
    country: Annotated[str, typer.Option("--country", help="Of the organisation: ISO 3166-1 alpha-2.")],
    valid_hours: Annotated[
        float | None,
        typer.Option("--valid-hours", min=0.01, help="Default: the coordinator's token_hours."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: SITE.invitation.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the invitation, secret token and all, instead of a file.")
    ] = False,
    as_json: Json = False,
    who: As = None,
) -> None:
    """Invite an organisation's site: write the file with which it enrols, once.

    The file holds a secret: give it to the site's operator over a channel you trust.
    """
    from console.client import Coordinator, ask
    from consortium.errors import BadInput
    from consortium.ids import site_name
    from consortium.invitation import Invitation, write_invitation

    name = site_name(site)
    path = out or Path(f"{name}.invitation")
    if path.exists() and not show:
        raise BadInput(f"{path}: exists already; remove it, or give another --out")

    async def issue(coordinator: Coordinator) -> Invitation:
        person = coordinator.person
        token = await coordinator.invite(name, organisation, country, valid_hours)
        return Invitation(
            consortium=person.connection.consortium,
            site=name,
            coordinator=person.connection.coordinator,
            enrolment=person.connection.enrolment,
            authority=person.authority.decode(),
            token=token,
        )

    invitation = ask(who, issue)
    if show:
        put(invitation)
        return
    write_invitation(invitation, path)
    text = (
        f"{path}: for the operator of {name}, who says\n"
        f"  sprachbund site enrol SITE.yaml --invitation {path.name}\nIt works once."
    )
    answer(as_json, {"file": str(path), "site": name, "organisation": organisation}, text)


@command("submit", "sprachbund submit examples/campaign-tiny.yaml", CAMPAIGNS)
def submit(
    file: Annotated[Path, typer.Argument(metavar="CAMPAIGN.yaml", help="The campaign file.")],
    as_json: Json = False,
    who: As = None,
) -> None:
    """Begin a campaign.

    A model directory or tokenizer file that it names is uploaded first; interrupted, the same command goes on
    where it stopped.
    """
    from console.client import ask
    from console.submitting import submit_campaign
    from policies.reading import load_campaign

    read = load_campaign(file)
    for sentence in read.notes:
        note(sentence)
    with transfer_bar(quiet=as_json) as bar:
        done = ask(who, lambda coordinator: submit_campaign(coordinator, read, bar))
    name = read.campaign.campaign
    text = (
        f"Campaign {name} is with the coordinator (event {done.sequence}).\n"
        f"Next: sprachbund watch, or sprachbund why {name}"
    )
    answer(as_json, {"campaign": name, "reason": done.reason, "sequence": done.sequence}, text)


@command("stop", "sprachbund stop balkan-1 --reason 'the tokenizer was wrong'", CAMPAIGNS)
def stop(
    campaign: Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Its name.")],
    reason: Reason,
    as_json: Json = False,
    who: As = None,
) -> None:
    """End a campaign before its time.

    Its jobs are cancelled; its versions stay.
    """
    _do(who, as_json, lambda coordinator: coordinator.stop(campaign, reason))


@command("promote", "sprachbund promote balkan-1/v3 --reason 'mk is scored anew, by hand'", CAMPAIGNS)
def promote(version: Version, reason: Reason, as_json: Json = False, who: As = None) -> None:
    """Make a waiting or rejected version the head of its campaign after all."""
    _do(who, as_json, lambda coordinator: _move_head(coordinator, False, version, reason))


@command("rollback", "sprachbund rollback balkan-1/v2 --reason 'v3 answers in English'", CAMPAIGNS)
def rollback(version: Version, reason: Reason, as_json: Json = False, who: As = None) -> None:
    """Make a version that was promoted earlier the head again."""
    _do(who, as_json, lambda coordinator: _move_head(coordinator, True, version, reason))


@command("drain", "sprachbund sites drain sofia --reason 'maintenance on Friday'", under=sites)
def drain(site: Site, reason: Reason, as_json: Json = False, who: As = None) -> None:
    """Let a site finish what it has, and ask nothing more of it."""
    _do(who, as_json, lambda coordinator: coordinator.set_site(site, "drain", reason))


@command("resume", "sprachbund sites resume sofia --reason 'maintenance is over'", under=sites)
def resume(site: Site, reason: Reason, as_json: Json = False, who: As = None) -> None:
    """Take a drained or suspended site back into the work."""
    _do(who, as_json, lambda coordinator: coordinator.set_site(site, "resume", reason))


@command("suspend", "sprachbund sites suspend sofia --reason 'its key was stolen'", under=sites)
def suspend(site: Site, reason: Reason, as_json: Json = False, who: As = None) -> None:
    """Refuse a site's certificate from its next call on."""
    _do(who, as_json, lambda coordinator: coordinator.set_site(site, "suspend", reason))


@command("revoke", "sprachbund revoke auditor maria --reason 'her laptop was stolen'", CAMPAIGNS)
def revoke(
    role: Annotated[Literal["admin", "auditor", "reader"], typer.Argument(metavar="ROLE")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in the certificate.")],
    reason: Reason,
    as_json: Json = False,
    who: As = None,
) -> None:
    """Refuse all certificates of a person from now on, for good.

    Calls that are under way end, too. The person needs a certificate of another name; see `coordinator person`.
    """
    _do(who, as_json, lambda coordinator: coordinator.revoke(role, name, reason))


def _do(who: Path | None, as_json: bool, work: "Callable[[Coordinator], Awaitable[Done]]") -> None:
    """Carry out one command and say what the coordinator decided."""
    from console.client import ask

    done = ask(who, work)
    answer(as_json, done, f"{done.reason} (event {done.sequence})")


async def _move_head(coordinator: "Coordinator", is_back: bool, text: str, reason: str) -> "Done":
    from console.exporting import find_version

    campaign, version = find_version(await coordinator.view(), text)
    return await coordinator.move_head(is_back, campaign.campaign, version.digest, reason)
