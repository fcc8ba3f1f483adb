"""Which sites could do what, by what they hold and how they stand."""

from collections.abc import Iterable

from consortium.ids import Language, SiteName
from coordinator.core.state import CampaignState, Round, Site, State


def participants(state: State, campaign: CampaignState) -> tuple[Site, ...]:
    """Sites that can train a specialist: enrolled, invited, holding own text of the campaign's languages."""
    return tuple(site for site in holders(state, campaign) if not site.draining)


def holders(state: State, campaign: CampaignState) -> tuple[Site, ...]:
    """The same with those that take no work now."""
    spec = campaign.spec
    return tuple(
        site
        for name, site in sorted(state.sites.items())
        if site.status == "enrolled"
        and (not spec.sites or name in spec.sites)
        and own_languages(site, campaign)
    )


def own_languages(site: Site, campaign: CampaignState) -> tuple[Language, ...]:
    return tuple(x for x in site.languages("private") if x in campaign.spec.languages)


def holders_of_public_text(state: State, campaign: CampaignState) -> tuple[SiteName, ...]:
    wanted = set(campaign.spec.languages)
    return tuple(s.name for s in participants(state, campaign) if wanted <= set(s.languages("public")))


def mergers(state: State, campaign: CampaignState) -> tuple[Site, ...]:
    """Sites that may merge for the campaign and offer it now; they need hold no text."""
    return tuple(site for site in merging_sites(state, campaign) if why_no_merge(site) is None)


def merging_sites(state: State, campaign: CampaignState) -> tuple[Site, ...]:
    """Sites that the campaign lets merge, able or not."""
    named = campaign.spec.merge_sites or campaign.spec.sites
    return tuple(site for name, site in sorted(state.sites.items()) if not named or name in named)


def why_no_merge(site: Site) -> str | None:
    """Why this site cannot be given a merge; None: it can."""
    if site.status != "enrolled":
        return f"{site.name} is {site.status}"
    if site.draining:
        return f"{site.name} is draining"
    if not site.merges:
        return f"{site.name} does not offer to merge"
    return None


def names_of(sites: Iterable[Site]) -> str:
    return ", ".join(site.name for site in sites)


def judges(state: State, campaign: CampaignState) -> list[tuple[Site, tuple[Language, ...]]]:
    """Sites that hold held-out text of the campaign's languages and take work, each with those languages."""
    return [(site, heldout) for site, heldout in _who_could_judge(state, campaign) if _takes_work(site)]


def judges_of_candidate(state: State, campaign: CampaignState) -> list[tuple[Site, tuple[Language, ...]]]:
    """Who scores a candidate: the judges, and sites that take no work now if it must fail without them.

    A site that is suspended or drains for an hour may be the only one that knows a language. Its evaluation waits for
    it, as long as for anybody else's; without it the work of all sites in that round would be lost at once.
    """
    able, gate = judges(state, campaign), campaign.spec.gate
    needed = set(gate.protected or campaign.spec.languages) if gate.unscored == "reject" else set()
    needed -= {language for _, heldout in able for language in heldout}
    return [
        (site, heldout)
        for site, heldout in _who_could_judge(state, campaign)
        if _takes_work(site) or needed & {*heldout}
    ]


def _takes_work(site: Site) -> bool:
    return site.status == "enrolled" and not site.draining


def _who_could_judge(state: State, campaign: CampaignState) -> list[tuple[Site, tuple[Language, ...]]]:
    found = []
    for name, site in sorted(state.sites.items()):
        heldout = tuple(x for x in site.languages("private", heldout=True) if x in campaign.spec.languages)
        if heldout and (not campaign.spec.sites or name in campaign.spec.sites):
            found.append((site, heldout))
    return found


def coordinator_merges(state: State, round_: Round) -> bool:
    """Whether the coordinator's own worker is to merge this round, which is collected."""
    if round_.merged_by == "coordinator":
        return True
    # with ``merge_at: site`` the round ends together with its job, so this is ``any``
    return round_.merge_job is not None and state.jobs[round_.merge_job].is_final
