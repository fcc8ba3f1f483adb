"""Which site, campaign or version a command means; what is not there is refused, with the names of those that are."""

from consortium.errors import BadInput, Refused
from coordinator.core.state import CampaignState, Site, State, Version


def find_version(campaign: CampaignState, text: str) -> Version | None:
    """By name, by digest, or by the first digits of one (at least eight) if only one fits."""
    fits = [
        v
        for digest, v in sorted(campaign.versions.items())
        if v.name == text or (len(text) >= 8 and digest.startswith(text))
    ]
    return fits[0] if len(fits) == 1 else None


def enrolled_site(state: State, name: str) -> Site:
    for site in state.sites.values():
        if site.name == name:
            return site
    raise Refused(f"site {name!r} is not enrolled; known: {listed(state.sites)}")


def open_campaign(state: State, name: str) -> CampaignState:
    for known, campaign in state.campaigns.items():
        if known == name:
            if campaign.status != "open":
                raise Refused(f"campaign {name} is {campaign.status}: {campaign.reason}")
            return campaign
    raise BadInput(f"there is no campaign {name!r}; known: {listed(state.campaigns)}")


def listed(things: object) -> str:
    return ", ".join(sorted(map(str, things))) or "none"  # type: ignore[call-overload]
