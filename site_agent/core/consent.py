"""Whether the site's own rules allow what it is asked to do."""

from consortium.jobs import Assignment, Purpose, Train
from site_agent.config import Consent


def refusal(assignment: Assignment, consent: Consent) -> str:
    """The sentence with which the site refuses, or "" if it consents. An absent rule allows all but merging."""
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
        others = sorted(set(assignment.work.languages) - set(consent.languages))
        if others:
            return _says(
                "languages", f"work on {', '.join(others)}", f"only {_some(consent.languages, 'no language')}"
            )
    if consent.steps_max is not None and isinstance(assignment.work, Train):
        if assignment.work.steps > consent.steps_max:
            return _says("steps_max", f"{assignment.work.steps} steps", f"at most {consent.steps_max}")
    return ""


def _says(rule: str, asked: str, allowed: str) -> str:
    return f"this site does not consent to {asked}: its rule consent.{rule} allows {allowed}"


def _some(names: tuple[str, ...], none: str) -> str:
    return ", ".join(sorted(names)) or none
