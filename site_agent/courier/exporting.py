"""What a bundle of a site holds, and how it is written: all that the agent says, and every result not yet settled."""

import time
from pathlib import Path

from sprachbund.v1 import site_pb2

from consortium.bundles import Begin, sign_head, silent, write_bundle
from consortium.canonical import Fact, decode
from consortium.courier import ENROLMENT_ASKED, SAID, EnrolmentAsked, Said
from consortium.errors import BadInput, Refused, Unavailable
from consortium.identity import signing_request
from consortium.ids import AttemptId, Digest, attempt_id, digest
from consortium.invitation import Invitation
from consortium.manifests import Contribution, FileRef
from consortium.signing import CONTRIBUTION, unsigned_payload
from consortium.store import BlobStore
from site_agent.carry import ARTIFACTS
from site_agent.config import SiteConfig
from site_agent.courier.memory import Asked, Memory
from site_agent.identity import SiteIdentity, has_enrolled, next_key
from site_agent.spool import Spool

_ENVELOPE_BYTES_MAX = 16 << 20
_HAS_MAX = 50_000  # blobs that are told of: 3 MB of digests; what is not told of is sent again at worst


class Written(Fact):
    """What went into a bundle."""

    file: str
    number: int  #: 0: a request to enrol
    bytes: int
    attempts: tuple[AttemptId, ...] = ()  #: that it speaks of
    results: tuple[AttemptId, ...] = ()  #: that it brings
    renewal: bool = False  #: it asks for a new certificate


def ask_to_enrol(config: SiteConfig, invitation: Invitation, out: Path) -> Written:
    """Write the bundle with which the site joins; the answer brings its certificate.

    It holds the invitation's token, so it is as secret as that. Raises Refused if the site has joined already.
    """
    home = Path(config.home)
    if invitation.site != config.site:
        raise BadInput(
            f"the invitation is for site {invitation.site}, this is {config.site}; use this site's own"
        )
    if has_enrolled(home) and SiteIdentity.load(home).seconds_left(time.time()) > 0:
        raise Refused(f"{home}: has enrolled already; export without --invitation")
    key = next_key(home)
    asked = EnrolmentAsked(
        consortium=invitation.consortium,
        site=config.site,
        token=invitation.token,
        signing_request=signing_request(config.site, key).decode(),
    )
    Memory(home).ask(Asked(consortium=invitation.consortium, authority=invitation.authority))
    size = write_bundle(out, sign_head(asked, ENROLMENT_ASKED, key), ())
    return Written(file=str(out), number=0, bytes=size)


def export(config: SiteConfig, out: Path, begin: Begin = silent) -> Written:
    """Write what the agent has said last, with every result that it speaks of, signed by the site's key.

    Raises Unavailable if the agent has said nothing yet, BadInput if ``out`` exists, Corrupt if a result is not
    what its signed description says.
    """
    home = Path(config.home)
    identity, memory = SiteIdentity.load(home), Memory(home)
    if (until := identity.seconds_left(time.time())) <= 0:
        raise Refused(
            f"this site's certificate expired {-until / 86_400:.1f} days ago; ask for a new invitation and export "
            "with it"
        )
    request = memory.said()
    if request is None:
        raise Unavailable(f"{home}: the agent has said nothing yet; `sprachbund site doctor` says why")
    store = BlobStore(home)
    results, sources = _results(request, Spool(home / "spool"), store)
    asks = identity.is_due(time.time())
    series = memory.next_number()
    said = Said(
        consortium=identity.trust.consortium,
        site=config.site,
        series=series.series,
        number=series.written,
        request=request.SerializeToString(deterministic=True),
        signing_request=signing_request(config.site, next_key(home)).decode() if asks else "",
        results=results,
        has=tuple(store.digests()[:_HAS_MAX]),
    )
    head = sign_head(said, SAID, identity.key, identity.certificate)
    blobs = [(ref, sources[ref.digest]) for ref in said.blobs]
    size = write_bundle(out, head, blobs, begin(sum(ref.size for ref in said.blobs)))
    return Written(
        file=str(out),
        number=series.written,
        bytes=size,
        attempts=tuple(sorted(attempt_id(line.attempt) for line in request.attempts)),
        results=tuple(sorted(results)),
        renewal=asks,
    )


def _results(
    request: site_pb2.SyncRequest, spool: Spool, store: BlobStore
) -> tuple[dict[AttemptId, tuple[FileRef, ...]], dict[Digest, Path]]:
    """The blobs of every attempt that is told as delivered, and the files that hold them."""
    results: dict[AttemptId, tuple[FileRef, ...]] = {}
    sources: dict[Digest, Path] = {}
    for line in request.attempts:
        if not line.contribution:
            continue
        attempt, envelope = attempt_id(line.attempt), digest(line.contribution)
        contribution = _contribution(store.read_bytes(envelope, _ENVELOPE_BYTES_MAX))
        result = spool.directory(attempt) / "result"
        files = {ref: result / ARTIFACTS.get(kind, kind) for kind, ref in contribution.artifacts.items()}
        files[FileRef(digest=envelope, size=store.size(envelope))] = store.path(envelope)
        results[attempt] = tuple(sorted(files, key=lambda ref: ref.digest))
        sources |= {ref.digest: path for ref, path in files.items()}
    return dict(sorted(results.items())), sources


def _contribution(envelope: bytes) -> Contribution:
    # our own; signed when the result was ready, perhaps with the key before this one, and inspected over there
    return decode(unsigned_payload(envelope, CONTRIBUTION), Contribution, "contribution manifest")
