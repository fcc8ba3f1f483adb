"""How everything in the consortium is named.

Names are spelt here and nowhere else, so that a person who reads one in a log can tell what it is:

    campaign   ``balkan-1``                     a slug, chosen by the admin
    round      ``balkan-1/r2``                  round 0 is the seed round
    job        ``balkan-1_r2-train-sofia``      unit of work for one site
    attempt    ``balkan-1_r2-train-sofia.a1``   one try at it, used once
    version    ``balkan-1/v3``                  third model the campaign made; its digest is its true name
    digest     64 lower-case hex digits         sha256 of the bytes
"""

import hashlib
import re
from typing import NewType

from consortium.errors import BadInput

SiteName = NewType("SiteName", str)
CampaignId = NewType("CampaignId", str)
JobId = NewType("JobId", str)
AttemptId = NewType("AttemptId", str)
Digest = NewType("Digest", str)
Language = NewType("Language", str)  #: BCP-47, lower case, as policies/languages.yaml spells it

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OWNER = re.compile(r"[a-z0-9-]{1,40}(\.[a-z0-9-]{1,40})?")
_JOB = re.compile(r"[a-z0-9][a-z0-9-]{0,39}_[a-z0-9-]{1,120}")  # the one '_' ends the campaign's name
_ATTEMPT = re.compile(_JOB.pattern + r"\.a[1-9][0-9]{0,4}")
_LANGUAGE = re.compile(r"[a-z]{2,8}(-[a-z0-9]{1,8}){0,4}")


def site_name(text: str) -> SiteName:
    if not _SLUG.fullmatch(text):
        raise BadInput(
            f"site name {text!r}: use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'"
        )
    return SiteName(text)


def consortium_name(text: str) -> str:
    if not _SLUG.fullmatch(text):
        raise BadInput(
            f"consortium name {text!r}: use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'; "
            "it stands in every certificate"
        )
    return text


def campaign_id(text: str) -> CampaignId:
    if not _SLUG.fullmatch(text):
        raise BadInput(
            f"campaign name {text!r}: use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'"
        )
    return CampaignId(text)


def digest(text: str) -> Digest:
    """The digest that ``text`` spells; anything else is refused (it may become a file name)."""
    if not _DIGEST.fullmatch(text):
        raise BadInput(f"digest {text[:80]!r}: expected 64 lower-case hex digits (sha256)")
    return Digest(text)


def is_digest(name: str) -> bool:
    """Whether a file's or an object's name is a blob's; other names are somebody else's, and left alone."""
    return _DIGEST.fullmatch(name) is not None


def is_owner(name: str) -> bool:
    """Whether somebody of that name may own an upload: a site, or ``<role>.<name>``."""
    return _OWNER.fullmatch(name) is not None


def no_owner(name: str) -> BadInput:
    return BadInput(f"owner {name[:80]!r} of an upload: expected a name, or <role>.<name>")


def attempt_id(text: str) -> AttemptId:
    """The attempt id that ``text`` spells; it names a folder in the spool, so it is checked."""
    if not _ATTEMPT.fullmatch(text):
        raise BadInput(f"attempt id {text[:80]!r}: expected <job>.a<number>")
    return AttemptId(text)


def language(text: str) -> Language:
    """The language tag that ``text`` spells; whether the consortium trains it is for the policies to say."""
    if not _LANGUAGE.fullmatch(text):
        raise BadInput(f"language {text[:80]!r}: expected a BCP-47 tag in lower case, such as mk")
    return Language(text)


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def job_named(campaign: CampaignId, what: str) -> JobId:
    return JobId(f"{campaign}_{what}")


def attempt_of(job: JobId, number: int) -> AttemptId:
    return AttemptId(f"{job}.a{number}")


def job_of(attempt: AttemptId) -> JobId:
    return JobId(attempt.rpartition(".a")[0])


def version_name(campaign: CampaignId, number: int) -> str:
    return f"{campaign}/v{number}"


def short(digest: str) -> str:
    """The first twelve digits, for people."""
    return digest[:12]
