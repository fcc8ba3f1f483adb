"""Which sites could do what, by what they hold and how they stand."""

from consortium.ids import Language, SiteName
from coordinator.core.state import CampaignState, Site, State


def participants(state: State, campaign: CampaignState) -> tuple[Site, ...]:
    """Sites that can train a specialist: enrolled, invited, holding own text of the campaign's languages."""
    spec = campaign.spec
    return tuple(
        site
        for name, site in sorted(state.sites.items())
        if site.status == "enrolled"
        and not site.draining
        and (not spec.sites or name in spec.sites)
        and own_languages(site, campaign)
    )


def own_languages(site: Site, campaign: CampaignState) -> tuple[Language, ...]:
    return tuple(x for x in site.languages("private") if x in campaign.spec.languages)


def holders_of_public_text(state: State, campaign: CampaignState) -> tuple[SiteName, ...]:
    wanted = set(campaign.spec.languages)
    return tuple(s.name for s in participants(state, campaign) if wanted <= set(s.languages("public")))


def judges(state: State, campaign: CampaignState) -> list[tuple[Site, tuple[Language, ...]]]:
    """Sites that hold held-out text of the campaign's languages, each with those languages."""
    found = []
    for name, site in sorted(state.sites.items()):
        heldout = tuple(x for x in site.languages("private", heldout=True) if x in campaign.spec.languages)
        if site.status == "enrolled" and heldout and (not campaign.spec.sites or name in campaign.spec.sites):
            found.append((site, heldout))
    return found
