"""How the YAML file of a plan becomes a Plan: its campaign read, its sites drawn or named, everything checked."""

import datetime
from pathlib import Path

from consortium.canonical import Fact, decode, replace
from consortium.checking import Place
from consortium.errors import BadInput
from consortium.ids import Language, site_name
from consortium.loading import Document, Problems, read, read_bytes
from policies.campaign import Campaign, ModelSource, TokenizerSource
from policies.languages import Languages, load_languages
from policies.reading import CampaignFile, load_campaign
from policies.windows import time_zone
from simulation.family import family_of
from simulation.plan import START, Held, Plan, PlanInFile, SitePlan

SITES_MAX = 1000
#: Numbers beyond which a plan is a slip of the pen, and floats of a simulated century no longer differ.
_NUMBER_MIN, _NUMBER_MAX = 1e-6, 1e15
_MOST = {"queue_sigma": 10, "sigma": 10, "slots": 10_000, "hours_max": 1e6}


class PlanFile(Fact):
    """A plan, and what is allowed in it and seldom meant; one sentence each."""

    plan: Plan
    notes: tuple[str, ...] = ()


def load_plan(
    path: str | Path,
    num_sites: int | None = None,
    campaign_file: str | Path | None = None,
    languages: Languages | None = None,
) -> PlanFile:
    """The plan in the YAML file ``path``. Raises BadInput with every ``file:line`` that is wrong.

    num_sites      all sites together: those that the file names, and as many of its family as are missing
    campaign_file  in place of the plan's own
    """
    document = read(path)
    written = document.convert(PlanInFile)
    known = languages or load_languages()
    problems = Problems(document)
    file = document.beside(written.campaign) if campaign_file is None else str(campaign_file)
    found = problems.attempt(("campaign",), lambda name: load_campaign(name, known), file)
    public = _held(written.public, ("public",), problems, known)
    sites = tuple(
        _checked(site, public, ("sites", index), problems, known) for index, site in enumerate(written.sites)
    )
    names = [site.name for site in sites]
    for index, name in enumerate(names):
        if name in names[:index]:
            problems.add(("sites", index, "name"), f"{name!r} is another site's name; give each its own")
    _numbers(written, (), problems)
    problems.attempt(("start",), _moment, written.start)
    problems.raise_if_any()
    assert found is not None
    campaign = _without_files(found)
    drawn = _drawn(written, len(sites), num_sites, campaign, document, known)
    for one in drawn:
        if one.name in names:
            problems.add(("generate",), f"a drawn site is called {one.name!r}, like a named one; rename that")
    everybody = tuple(sorted((*sites, *drawn), key=lambda site: site.name))
    missing = sorted(set(campaign.sites) - {site.name for site in everybody})
    if missing:
        sentence = f"{', '.join(missing)}: in the campaign's sites and not in this plan; add them under sites"
        problems.add(("campaign",), sentence)
    problems.raise_if_any()
    settings = {
        field: getattr(written, field)
        for field in Plan.__struct_fields__
        if field not in ("campaign", "sites")
    }
    plan = Plan(campaign=campaign, sites=everybody, **settings)
    return PlanFile(plan=plan, notes=(*found.notes, *_notes(plan, found, document)))


def _numbers(fact: Fact, place: Place, problems: Problems) -> None:
    """Every number of a plan is one that can be reckoned with."""
    for field in type(fact).__struct_fields__:
        value = getattr(fact, field)
        if isinstance(value, int | float):
            most = _MOST.get(field, _NUMBER_MAX)
            if value and not _NUMBER_MIN <= abs(value) <= most:
                sentence = f"{value:g} is beyond what is simulated; write {_NUMBER_MIN:g} to {most:g}, or 0"
                problems.add((*place, field), sentence)
        elif isinstance(value, Fact):
            _numbers(value, (*place, field), problems)
        elif isinstance(value, tuple):
            for index, one in enumerate(value):
                if isinstance(one, Fact):
                    _numbers(one, (*place, field, index), problems)


def _moment(text: str) -> datetime.datetime:
    """Raises BadInput for a moment that no calendar has, or from which one cannot count on."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInput(f"{text!r} is no moment ({error}); write one such as {START}") from error
    if not 1970 < found.year < 2200:
        raise BadInput(f"the year {found.year}; write one from 1971 to 2199")
    return found


def _checked(
    site: SitePlan, public: dict[Language, Held], place: Place, problems: Problems, known: Languages
) -> SitePlan:
    """The site with its languages as we spell them; ``public`` is what everybody has."""
    problems.attempt((*place, "name"), site_name, site.name)
    if problems.attempt((*place, "timezone"), time_zone, site.timezone) is not None:
        if site.allocation is not None:
            problems.attempt((*place, "allocation", "until"), site.allocation.told, site.timezone)
        for number, window in enumerate(site.windows):
            problems.attempt((*place, "windows", number), window.told, site.timezone)
    return replace(
        site,
        organisation=site.organisation or site.name,
        languages=_held(site.languages, (*place, "languages"), problems, known),
        public=_held(site.public, (*place, "public"), problems, known) or public,
        outages=tuple(sorted(site.outages, key=lambda outage: outage.from_hours)),
    )


def _held(
    written: dict[Language, Held], place: Place, problems: Problems, known: Languages
) -> dict[Language, Held]:
    """Text by language as we spell it, sorted."""
    held: dict[Language, Held] = {}
    for tag, one in written.items():
        code = problems.attempt((*place, tag), known.normalise, tag)
        if code is not None and code in held:
            problems.add((*place, tag), f"{code} stands there twice; keep one of them")
        if one.heldout >= one.documents:
            sentence = f"{one.heldout} of {one.documents} documents leave none to train on; hold out fewer"
            problems.add((*place, tag, "heldout"), sentence)
        held[code or Language(tag)] = one
    return dict(sorted(held.items()))


def _drawn(
    written: PlanInFile,
    named: int,
    wanted: int | None,
    campaign: Campaign,
    document: Document,
    known: Languages,
) -> tuple[SitePlan, ...]:
    total = named if wanted is None else wanted
    if not 1 <= total <= SITES_MAX:
        rule = f"1 to {SITES_MAX}; name some under sites, or add 'generate:' and say --sites"
        raise BadInput(f"{document.where(('sites',))}: {total} sites; a plan has {rule}")
    if total < named:
        raise BadInput(
            f"{document.where(('sites',))}: --sites {total}, but {named} are named here; ask for at least so many"
        )
    if total == named:
        return ()
    if written.generate is None:
        raise BadInput(
            f"{document.where(())}: --sites {total}, but {named} are named and nothing says what others are like; "
            "add 'generate:'"
        )
    return family_of(written.generate, total - named, campaign.languages, known)


def _without_files(found: CampaignFile) -> Campaign:
    """The campaign as if its model were made from the config, and its tokenizer trained: nothing is uploaded."""
    campaign, config = found.campaign, found.campaign.model.config
    if found.model_directory is not None:
        file = found.model_directory / "config.json"
        config = decode(read_bytes(file), dict[str, object], str(file))
        campaign = replace(campaign, model=ModelSource(config=config))
    if found.tokenizer_file is not None:
        words = (config or {}).get("vocab_size")
        size = words if isinstance(words, int) and words >= 257 else 32_000
        campaign = replace(campaign, tokenizer=TokenizerSource(vocabulary_size=size))
    return campaign


def _notes(plan: Plan, found: CampaignFile, document: Document) -> list[str]:
    notes = []
    if found.model_directory is not None or found.tokenizer_file is not None:
        sentence = "its model's and tokenizer's files are not read: the simulation makes both anew"
        notes.append(document.worded(("campaign",), sentence))
    held = {tag for site in plan.sites for tag in site.languages}
    whole = set(plan.campaign.languages)
    if not any(whole <= set(site.public) for site in plan.sites):
        sentence = "no site has public text in all languages, which the tokenizer and the seed round need"
        notes.append(document.worded(("public",), sentence))
    nobodys = [tag for tag in plan.campaign.languages if tag not in held]
    if nobodys:
        notes.append(document.worded(("sites",), f"nobody has text of its own in {', '.join(nobodys)}"))
    if plan.campaign.sites_expected > len(plan.sites):
        sentence = (
            f"the campaign waits for {plan.campaign.sites_expected} sites, and here are {len(plan.sites)}"
        )
        notes.append(document.worded(("sites",), sentence))
    return notes
