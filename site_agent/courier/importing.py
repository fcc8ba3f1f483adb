"""How a site takes in what a bundle brings: all of it is verified first, and one write at the end makes it count.

Until that write the agent goes by the answer before. What an interrupted import has put into the store is true to
its digests and asked for by nobody; the next import goes on from there.
"""

import time
from pathlib import Path

from consortium.bundles import Begin, Bundle, open_bundle, silent
from consortium.canonical import Fact
from consortium.courier import Answered, EnrolmentGiven, statement_of
from consortium.errors import Refused
from consortium.ids import AttemptId
from consortium.roles import Role
from consortium.store import BlobStore
from site_agent import wire
from site_agent.config import SiteConfig
from site_agent.courier.memory import Memory, digest_of_head, response_of
from site_agent.identity import SiteIdentity, Trust, has_enrolled, next_key
from site_agent.witness import Witness


class TakenIn(Fact):
    """What a bundle brought."""

    number: int  #: of the bundle that it answers; 0: an enrolment
    new: bool  #: False: it had been taken in before
    bytes: int = 0  #: of blobs
    wanted: tuple[AttemptId, ...] = ()
    settled: tuple[AttemptId, ...] = ()
    certificate: bool = False  #: it brought one
    not_renewed: str = ""  #: why it brought none that was asked for
    valid_days: float = 0.0  #: of the site's certificate, from now on


def take_in(config: SiteConfig, path: Path, begin: Begin = silent) -> TakenIn:
    """Take in the bundle at ``path``: an answer, or the certificate that was asked for.

    Raises Corrupt, Refused or BadInput with what is wrong with it; then the agent goes on as before.
    """
    home = Path(config.home)
    with open_bundle(path) as bundle:
        if has_enrolled(home):
            identity = SiteIdentity.load(home)
            authority, consortium = identity.authority, identity.trust.consortium
        else:
            asked = Memory(home).asked()
            if asked is None:
                raise Refused(
                    f"{home}: this site has not enrolled, nor asked to; run `sprachbund site courier export` with the "
                    "invitation first"
                )
            authority, consortium = asked.authority.encode(), asked.consortium
        _, statement = statement_of(bundle.head, Role.COORDINATOR, authority, consortium, time.time())
        if statement.site != config.site:
            raise Refused(f"{path}: is for site {statement.site}, this is {config.site}; send it there")
        if isinstance(statement, EnrolmentGiven):
            return _join(home, statement, authority)
        if not has_enrolled(home) or not isinstance(statement, Answered):
            raise Refused(
                f"{path}: answers a site that has enrolled; the one that brings the certificate comes first"
            )
        return _take_in(home, bundle, statement, begin)


def _join(home: Path, given: EnrolmentGiven, authority: bytes) -> TakenIn:
    certificate = given.certificate.encode()
    trust = Trust(
        consortium=given.consortium,
        site=given.site,
        authority=authority.decode(),
        ledger_key=given.ledger_key,
    )
    if has_enrolled(home):
        present = SiteIdentity.load(home)
        if present.certificate.strip() == certificate.strip():
            return TakenIn(number=0, new=False, certificate=True, valid_days=_days(present))
        if present.seconds_left(time.time()) > 0:
            raise Refused(f"{home}: has another, valid certificate already; this bundle is an old one")
    identity = SiteIdentity(trust, next_key(home), certificate)
    identity.check()
    identity.save(home)
    return TakenIn(number=0, new=True, certificate=True, valid_days=_days(identity))


def _take_in(home: Path, bundle: Bundle, answer: Answered, begin: Begin) -> TakenIn:
    memory, identity = Memory(home), SiteIdentity.load(home)
    response = response_of(answer)
    new = _is_new(memory, bundle, answer)
    bundle.take_in(answer, BlobStore(home), begin(sum(ref.size for ref in answer.blobs)))
    # After the blobs, so that a damaged bundle leaves no trace here; before the rest, lest a rewritten ledger counts
    Witness(home / "checkpoints.jsonl", identity.ledger_key).see(wire.checkpoint(response.checkpoint))
    certificate = answer.certificate.encode()
    if certificate and certificate.strip() != identity.certificate.strip():
        identity = identity.renewed(next_key(home), certificate)
        identity.save(home)
    memory.keep_answer(bundle.head)
    return TakenIn(
        number=answer.number,
        new=new,
        bytes=sum(ref.size for ref in answer.blobs),
        wanted=tuple(AttemptId(message.attempt) for message in response.wanted),
        settled=tuple(AttemptId(attempt) for attempt in response.settled),
        certificate=bool(answer.certificate),
        not_renewed=answer.not_renewed,
        valid_days=_days(identity),
    )


def _is_new(memory: Memory, bundle: Bundle, answer: Answered) -> bool:
    """Whether it has not been taken in before. Raises Refused if it comes too late, or to the wrong home."""
    series, what = memory.series(), f"{bundle.path}: answers bundle {answer.number}"
    if answer.series != series.series:
        raise Refused(
            f"{what} of another home of this site, not of this one; export anew and have that answered"
        )
    if answer.number > series.written:
        raise Refused(
            f"{what}, but this home has written {series.written}; was it put back from a backup? Remove its folder "
            "courier/ and export anew"
        )
    head, known = memory.answer_head(), memory.answer()
    if head is None or known is None:
        return True
    if digest_of_head(head) == digest_of_head(bundle.head):
        return False
    order = answer.number, response_of(answer).checkpoint.sequence
    if order < (known.number, response_of(known).checkpoint.sequence):
        raise Refused(f"{what}, a newer answer (to {known.number}) was taken in already; this one says less")
    return True


def _days(identity: SiteIdentity) -> float:
    return round(identity.seconds_left(time.time()) / 86_400, 2)
