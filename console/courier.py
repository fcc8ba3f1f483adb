"""Commands for a site that no network reaches: what its operator writes and reads, what the admin carries."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.app import SITE, As, Json, command, group
from console.output import answer, note, transfer_bar
from console.site import Config, site

if TYPE_CHECKING:
    from site_agent.config import SiteConfig

courier = group("courier", SITE, "Carry bundles for sites without a network.")
at_site = group("courier", None, "Say and hear by bundles, where there is no network.", under=site)

Out = Annotated[Path, typer.Argument(metavar="OUT.bundle", help="The bundle to write; must not exist.")]
In = Annotated[Path, typer.Argument(metavar="IN.bundle", help="The bundle to read.")]


@command("export", "sprachbund site courier export site.yaml sofia-1.bundle", under=at_site)
def export(
    config: Config,
    out: Out,
    invitation: Annotated[
        Path | None,
        typer.Option("--invitation", metavar="FILE", help="Ask to enrol, with what the admin gave you."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what the site has to say: what it has, what it has finished, what it needs.

    Does first what `site run --once` does, unless an agent runs. Every bundle says all that is not settled, so a
    lost one is made up for by the next.
    """
    from site_agent.config import load_site_config
    from site_agent.courier.exporting import ask_to_enrol
    from site_agent.courier.exporting import export as write
    from site_agent.enrol import read_invitation

    loaded = _by_courier(load_site_config(config), config)
    if invitation is not None:
        fact = ask_to_enrol(loaded, read_invitation(invitation), out)
        text = (
            f"{out}: asks to join as {loaded.site}; as secret as the invitation.\n"
            f"For the admin, who says: sprachbund courier exchange {out.name} ANSWER.bundle"
        )
        answer(as_json, fact, text)
        return
    _work(loaded)
    with transfer_bar(quiet=as_json) as bar:
        fact = write(loaded, out, partial(bar, out.name))
    results = ", ".join(fact.results) or "none"
    text = (
        f"{out}: bundle {fact.number} of {loaded.site}, {fact.bytes} bytes; speaks of {len(fact.attempts)} "
        f"attempt(s), brings the results of: {results}\n"
        f"For the admin, who says: sprachbund courier exchange {out.name} ANSWER.bundle"
    )
    answer(as_json, fact, text)


@command("import", "sprachbund site courier import site.yaml answer-1.bundle", under=at_site)
def import_(config: Config, bundle: In, as_json: Json = False) -> None:
    """Take in what the coordinator answered, and begin what it wants.

    Everything is verified before anything counts; a bundle that was taken in before does no harm. Does then what
    `site run --once` does, unless an agent runs: that one goes by it at once.
    """
    from site_agent.config import load_site_config
    from site_agent.courier.importing import take_in

    loaded = _by_courier(load_site_config(config), config)
    with transfer_bar(quiet=as_json) as bar:
        fact = take_in(loaded, bundle, partial(bar, bundle.name))
    if fact.number == 0:
        text = (
            f"{loaded.site} has joined; certified for {fact.valid_days:.0f} days.\n"
            f"Next: sprachbund site courier export {config} OUT.bundle"
        )
    else:
        _work(loaded)
        again = "" if fact.new else " (it was taken in before)"
        text = (
            f"Answer to bundle {fact.number}{again}: {len(fact.wanted)} attempt(s) wanted, "
            f"{len(fact.settled)} settled.\n"
            + (
                f"No new certificate: {fact.not_renewed}; the next bundle asks again.\n"
                if fact.not_renewed
                else ""
            )
            + f"Next: sprachbund site run {config}, or --once now and then; export when something is finished"
        )
    answer(as_json, fact, text)


@command("exchange", "sprachbund courier exchange sofia-1.bundle answer-1.bundle", under=courier)
def exchange(bundle: In, out: Out, as_json: Json = False, who: As = None) -> None:
    """Have a site's bundle heard, and write the coordinator's answer for it.

    Needs an admin's certificate: without a site's signature it can say nothing for the site. Broken off, the same
    command goes on where it stopped.
    """
    from console.carrying import exchange as carry
    from console.client import ask

    with transfer_bar(quiet=as_json) as bar:
        fact = ask(who, lambda coordinator: carry(coordinator, bundle, out, bar))
    wanted = ", ".join(fact.wanted) or "nothing"
    said = f"wants of it: {wanted}" if fact.number else "gives it a certificate"
    answer(as_json, fact, f"{out}: for {fact.site}; the coordinator {said}")


@command("show", "sprachbund courier show sofia-1.bundle", under=courier)
def show(bundle: In, as_json: Json = False) -> None:
    """What a bundle claims to be, and whether it is whole; its signature is checked by who takes it in."""
    from console.carrying import look

    fact = look(bundle)
    text = (
        f"{bundle}: {fact.kind}; site {fact.site} of {fact.consortium}"
        + (f", number {fact.number}" if fact.number else "")
        + f"; {fact.blobs} blob(s), {fact.bytes} bytes in all; whole"
    )
    answer(as_json, fact, text)


def _by_courier(loaded: "SiteConfig", config: Path) -> "SiteConfig":
    from consortium.errors import BadInput

    if not loaded.by_courier:
        raise BadInput(
            f"{config}: coordinator is {loaded.coordinator}; write `coordinator: courier` to use bundles"
        )
    return loaded


def _work(loaded: "SiteConfig") -> None:
    """One look and what follows, if no agent does it all the time."""
    from site_agent.running import run_agent
    from site_agent.status import at_work

    agent = at_work(Path(loaded.home))
    if agent is not None:
        note(f"an agent is at work here (pid {agent.pid} on {agent.host}); it does the rest")
        return
    run_agent(loaded, once=True)
