"""Whether the site's own rules allow what it is asked to do."""

from collections.abc import Collection

from consortium.ids import Language
from consortium.jobs import ANY_SITE, Assignment, FlowerMessage, Purpose, Train, Work
from site_agent.config import Consent


def refusal(
    assignment: Assignment,
    consent: Consent,
    gpus: int = 0,
    public: Collection[Language] = (),
    apps: Collection[str] = (),
) -> str:
    """The sentence with which the site refuses, or "" if it consents. An absent rule allows all but merging and apps.

    gpus    of one job at this site
    public  languages of which this site has text that it declared public
    apps    Flower ClientApps that the site lets run
    """
    if isinstance(assignment.work, FlowerMessage) and assignment.work.app not in apps:
        return (
            f"this site does not run the Flower app {assignment.work.app}: its flower.apps names "
            f"{', '.join(sorted(apps)) or 'none'}"
        )
    if consent.senders is not None and assignment.sender not in consent.senders:
        who = f"{assignment.sender}'s campaign" if assignment.sender else "a campaign of nobody it is told of"
        return _says("senders", who, f"only those of {_some(consent.senders, 'nobody')}")
    if consent.campaigns is not None and assignment.campaign not in consent.campaigns:
        return _says(
            "campaigns", f"campaign {assignment.campaign}", f"only {_some(consent.campaigns, 'no campaign')}"
        )
    if assignment.purpose is Purpose.MERGE and not consent.merges:
        return _says("purposes", "a merge job", "it only where it names merge")
    if consent.purposes is not None and assignment.purpose not in consent.purposes:
        return _says(
            "purposes", f"a {assignment.purpose} job", f"only {_some(consent.purposes, 'no kind of job')}"
        )
    if consent.languages is not None:
        others = sorted(_languages_of(assignment.work, public) - set(consent.languages))
        if others:
            return _says(
                "languages", f"work on {', '.join(others)}", f"only {_some(consent.languages, 'no language')}"
            )
    if consent.steps_max is not None and isinstance(assignment.work, Train):
        if assignment.work.steps > consent.steps_max:
            return _says("steps_max", f"{assignment.work.steps} steps", f"at most {consent.steps_max}")
    if consent.gpus_max is not None and gpus > consent.gpus_max:
        return _says("gpus_max", f"a job of {gpus} GPUs", f"at most {consent.gpus_max}")
    if consent.merged_by is not None and isinstance(assignment.work, Train):
        return _refuses_merger(assignment, consent.merged_by)
    return ""


def _languages_of(work: Work, public: Collection[Language]) -> set[Language]:
    """Those that the job works on here. A campaign replays public text of all its languages; a site has some."""
    languages = set(work.languages)
    if isinstance(work, Train) and (work.replay_share or not work.languages):
        languages |= set(work.public_languages) & set(public)
    return languages


def slots(wanted: int, consent: Consent, gpus: int) -> int:
    """Jobs at once under ``gpus_max``; one that exceeds it by itself is refused, so one slot is left for others.

    gpus  of one job at this site; 0: none, so that there is nothing to limit
    """
    if consent.gpus_max is None or gpus == 0:
        return wanted
    return max(1, min(wanted, consent.gpus_max // gpus))


def _refuses_merger(assignment: Assignment, allowed: tuple[str, ...]) -> str:
    where = _some(allowed, "no site")
    if assignment.merged_by is None:
        return _says("merged_by", "a delta of which it is not told who merges it", f"only {where}")
    if ANY_SITE in assignment.merged_by:
        return _says("merged_by", "a delta that any site may merge", f"only {where}")
    others = sorted(set(assignment.merged_by) - set(allowed) - {assignment.site})
    if others:
        return _says("merged_by", f"its delta being merged by {', '.join(others)}", f"only {where}")
    return ""


def _says(rule: str, asked: str, allowed: str) -> str:
    return f"this site does not consent to {asked}: its rule consent.{rule} allows {allowed}"


def _some(names: tuple[str, ...], none: str) -> str:
    return ", ".join(sorted(names)) or none
