"""What a campaign would do and cost before it begins: ``sprachbund plan``."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.app import CAMPAIGNS, As, Json, command
from console.output import answer

if TYPE_CHECKING:
    from consortium.forecasts import Assumptions, Forecast, SiteAssumption
    from policies.campaign import Campaign
    from policies.reading import CampaignFile

_NUMBERS = ("tokens_per_second", "queue_hours", "gpu_hours")
_COUNTS = ("gpus", "slots")


@command("plan", "sprachbund plan campaign.yaml --dry-run --site sofia:gpus=8,queue_hours=6", CAMPAIGNS)
def plan(
    file: Annotated[Path, typer.Argument(metavar="CAMPAIGN.yaml", help="The campaign's file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="As always: a plan records nothing. `submit` begins a campaign.")
    ] = True,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no coordinator; take only what --site says.")
    ] = False,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            metavar="NAME:KEY=VALUE,…",
            help="Assume this of a site instead of what is known: gpus (of one job), slots, tokens_per_second, "
            "queue_hours, gpu_hours (of its allocation), until (a day), languages (fi+sv), "
            "window (0 20 * * *@10h), timezone. Again for each site.",
        ),
    ] = None,
    as_json: Json = False,
    who: As = None,
) -> None:
    """A campaign's rounds, sites, waits, hours and GPU-hours before one of them is spent, and what limits it.

    From the coordinator's present state: what its sites hold, how fast they were, how long they queued, what is left
    of their allocations. Speeds that nobody measured are assumed, and said to be.
    """
    from console.screens.planning import forecast_page
    from policies.reading import load_campaign

    read = load_campaign(file)
    assumptions = _assumptions(site or [])
    campaign = _complete(read)
    found = _by_itself(campaign, assumptions) if offline else _asked(who, campaign, assumptions)
    answer(as_json, found, forecast_page(found))


def _asked(who: Path | None, campaign: "Campaign", assumptions: "Assumptions") -> "Forecast":
    from console.client import ask

    return ask(who, lambda coordinator: coordinator.forecast(campaign, assumptions))


def _by_itself(campaign: "Campaign", assumptions: "Assumptions") -> "Forecast":
    from consortium.canonical import replace
    from consortium.errors import BadInput
    from consortium.forecasts import Assumptions, SiteAssumption
    from coordinator.core.forecast import forecast
    from coordinator.core.state import State
    from policies.windows import opening

    told = {one.site: one for one in assumptions.sites}
    named = {name: told.get(name) or SiteAssumption(site=name) for name in campaign.sites}
    sites = {**told, **named}
    if not sites:
        raise BadInput(
            "--offline: say which sites take part: --site NAME:gpus=8,tokens_per_second=50000, or `sites`"
        )
    whole = replace(Assumptions(), sites=tuple(one for _, one in sorted(sites.items())))
    return forecast(State(), campaign, time.time(), lambda site, at: opening(site.windows, at), whole)


def _complete(read: "CampaignFile") -> "Campaign":
    """The campaign with the sizes of the files that ``submit`` would upload; their digests do not matter here."""
    from consortium.canonical import replace
    from consortium.ids import Digest
    from consortium.manifests import FileRef

    campaign, nobody = read.campaign, Digest("0" * 64)
    if read.model_directory is not None:
        files = {
            path.relative_to(read.model_directory).as_posix(): FileRef(
                digest=nobody, size=path.stat().st_size
            )
            for path in sorted(read.model_directory.rglob("*"))
            if path.is_file()
        }
        campaign = replace(campaign, model=replace(campaign.model, files=files))
    if read.tokenizer_file is not None:
        campaign = replace(campaign, tokenizer=replace(campaign.tokenizer, digest=nobody))
    return campaign


def _assumptions(written: list[str]) -> "Assumptions":
    from consortium.errors import BadInput
    from consortium.forecasts import Assumptions

    sites = tuple(_assumption(text) for text in written)
    if len({one.site for one in sites}) < len(sites):
        raise BadInput("--site: one of them stands there twice; give all its keys at once")
    return Assumptions(sites=sites)


def _assumption(text: str) -> "SiteAssumption":
    """``sofia:gpus=8,queue_hours=6,languages=bg+mk`` as a fact. Raises BadInput."""
    from consortium.canonical import decode, encode
    from consortium.capacity import Window
    from consortium.errors import BadInput
    from consortium.forecasts import SiteAssumption
    from consortium.ids import site_name
    from policies import windows
    from policies.languages import load_languages

    name, _, rest = text.partition(":")
    known: dict[str, object] = {"site": site_name(name)}
    said = dict(pair.partition("=")[::2] for pair in re.split(r",(?=[a-z_]+=)", rest) if pair)
    zone = said.pop("timezone", "UTC")
    languages = load_languages()
    for key, value in said.items():
        try:
            if key in _NUMBERS:
                known[key] = float(value)
            elif key in _COUNTS:
                known[key] = int(value)
            elif key == "languages":
                known[key] = sorted(languages.normalise(one) for one in value.split("+"))
            elif key == "until":
                known[key] = windows.end_of_day(value, zone)
            elif key == "window":
                cron, _, hours = value.partition("@")
                window = Window(cron=cron, seconds=float(hours.removesuffix("h")) * 3600.0, timezone=zone)
                known["windows"] = [windows.check(window)]
            else:
                keys = ", ".join((*_COUNTS, *_NUMBERS, "languages", "until", "window", "timezone"))
                raise BadInput(f"--site {name}: {key!r} is no key; use {keys}")
        except ValueError:
            raise BadInput(
                f"--site {name}: {key}={value} cannot be read; a number looks like 5e4, a window like 0 20 * * sat@10h"
            ) from None
    return decode(encode(known), SiteAssumption, f"--site {name}")
