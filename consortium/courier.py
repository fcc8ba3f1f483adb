"""What a site without a network and its coordinator tell each other in bundles.

    site                                   coordinator
    EnrolmentAsked  (token, key)    ──▶    EnrolmentGiven  (certificate, ledger key)
    Said  (a Sync, finished results) ──▶   Answered  (the answer, inputs of jobs, perhaps a certificate)

A site numbers what it says, in series: a series is one memory of the site (a home that was lost and set up anew
begins another). An answer names the number it answers. So a bundle that comes late, twice, or to somebody else
is known as such; one that is lost is made up for by the next, which says everything that is not settled.
"""

from typing import Annotated, Literal

from msgspec import Meta

from consortium.bundles import Head, open_head
from consortium.canonical import Fact, decode
from consortium.errors import BadInput, Refused
from consortium.identity import Identity, check_signing_request
from consortium.ids import AttemptId, Digest, SiteName, site_name
from consortium.manifests import FileRef
from consortium.roles import Role
from consortium.signing import envelope_claims, open_envelope

ENROLMENT_ASKED = "application/vnd.sprachbund.courier.enrolment-asked+json"
ENROLMENT_GIVEN = "application/vnd.sprachbund.courier.enrolment-given+json"
SAID = "application/vnd.sprachbund.courier.said+json"
ANSWERED = "application/vnd.sprachbund.courier.answered+json"

_Name = Annotated[str, Meta(min_length=1, max_length=100)]
_Number = Annotated[int, Meta(ge=1, le=1 << 53)]


class EnrolmentAsked(Fact):
    """Signed with the very key that a certificate is asked for. Holds a secret, as the invitation does."""

    schema: Literal[1] = 1
    consortium: _Name
    site: SiteName
    token: str
    signing_request: str  #: PEM
    blobs: tuple[FileRef, ...] = ()


class EnrolmentGiven(Fact):
    schema: Literal[1] = 1
    consortium: _Name
    site: SiteName
    certificate: str  #: PEM, the site's
    ledger_key: str  #: Ed25519, raw, hex
    blobs: tuple[FileRef, ...] = ()


class Said(Fact):
    """What the agent would say in a Sync, and what it would have uploaded before."""

    schema: Literal[1] = 1
    consortium: _Name
    site: SiteName
    series: _Name
    number: _Number
    request: bytes  #: sprachbund.v1.SyncRequest
    signing_request: str = ""  #: PEM, when the certificate should be renewed
    results: dict[AttemptId, tuple[FileRef, ...]] = {}  #: of finished attempts: envelope and artifacts
    has: tuple[Digest, ...] = ()  #: whole blobs at the site, which need not be sent

    @property
    def blobs(self) -> tuple[FileRef, ...]:
        """Each once, by digest."""
        found = {ref.digest: ref for refs in self.results.values() for ref in refs}
        return tuple(found[digest] for digest in sorted(found))


class Answered(Fact):
    schema: Literal[1] = 1
    consortium: _Name
    site: SiteName
    series: _Name
    number: _Number  #: of what is answered
    answered: tuple[AttemptId, ...]  #: whom it spoke of
    response: bytes  #: sprachbund.v1.SyncResponse
    certificate: str = ""  #: PEM, if a renewal was asked for
    not_renewed: str = ""  #: why there is none, though one was asked for; the next bundle asks again
    blobs: tuple[FileRef, ...] = ()  #: inputs of wanted attempts that the site did not have


def statement_of(
    head: Head, role: Role, authority: bytes, consortium: str, now: float
) -> tuple[Identity, Said | Answered | EnrolmentGiven]:
    """Who says what, verified; ``role`` is whose word is expected. Raises Corrupt, Refused or BadInput."""
    kinds: dict[str, type[Said] | type[Answered] | type[EnrolmentGiven]] = (
        {SAID: Said} if role is Role.SITE else {ANSWERED: Answered, ENROLMENT_GIVEN: EnrolmentGiven}
    )
    kind = kind_of(head)
    if kind not in kinds:
        raise BadInput(f"this bundle is {describe_kind(kind)}; the other direction's bundle is needed here")
    identity, payload = open_head(head, kind, authority, consortium, now)
    if identity.role is not role:
        raise Refused(f"this bundle is signed by {identity.role} {identity.name}; expected a {role}")
    statement = decode(payload, kinds[kind], "the bundle's statement")
    if statement.consortium != consortium:
        raise Refused(f"this bundle is of consortium {statement.consortium!r}, this one is {consortium!r}")
    if role is Role.SITE and statement.site != identity.name:
        raise Refused(f"this bundle speaks for site {statement.site}, but {identity.name} signed it")
    return identity, statement


def signed_by_its_key(head: Head) -> EnrolmentAsked:
    """A request to enrol, signed with the key that it asks a certificate for. Raises Corrupt, Refused, BadInput."""
    asked = claimed(head)
    if not isinstance(asked, EnrolmentAsked):
        raise BadInput(f"this bundle is {describe_kind(kind_of(head))}, not a request to enrol")
    key = check_signing_request(asked.signing_request.encode(), site_name(asked.site))
    open_envelope(head.envelope, ENROLMENT_ASKED, key)
    return asked


def kind_of(head: Head) -> str:
    """What the statement claims to be, not verified."""
    return envelope_claims(head.envelope)[0]


def claimed(head: Head) -> EnrolmentAsked | EnrolmentGiven | Said | Answered:
    """What the statement says, **not verified**: to show it, or to find out whose it is. Raises BadInput."""
    kind, payload = envelope_claims(head.envelope)
    kinds: dict[str, type[EnrolmentAsked] | type[EnrolmentGiven] | type[Said] | type[Answered]] = {
        ENROLMENT_ASKED: EnrolmentAsked,
        ENROLMENT_GIVEN: EnrolmentGiven,
        SAID: Said,
        ANSWERED: Answered,
    }
    if kind not in kinds:
        raise BadInput(f"this bundle is {describe_kind(kind)}; update the older side")
    return decode(payload, kinds[kind], "the bundle's statement")


def describe_kind(kind: str) -> str:
    return {
        ENROLMENT_ASKED: "a site's request to enrol",
        ENROLMENT_GIVEN: "the answer to a request to enrol",
        SAID: "what a site says",
        ANSWERED: "an answer to a site",
    }.get(kind, f"of an unknown kind {kind[:80]!r}")
