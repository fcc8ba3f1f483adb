"""How a site takes part that no network reaches: its bundles are heard as its own calls would be.

A signature by the site's certificate stands in for mutual TLS, an admin's connection for the site's. All else
is the same: the same standing is asked for, the same Sync is executed, the same blobs are let in and out, and the
ledger cannot tell who carried them; the log can.

    courier/<site>.json   below home: the newest bundle that was heard of each site, to know older ones by

A bundle that is heard twice is a Sync that is repeated, so whoever lost an answer carries the bundle again.
"""

import logging
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.message import DecodeError
from sprachbund.v1 import admin_pb2, enrolment_pb2, site_pb2

from consortium import ids
from consortium.blobs import Blobs
from consortium.bundles import Head, sign_head
from consortium.canonical import Fact, decode, encode, replace
from consortium.courier import (
    ANSWERED,
    ENROLMENT_ASKED,
    ENROLMENT_GIVEN,
    Answered,
    EnrolmentGiven,
    Said,
    kind_of,
    signed_by_its_key,
    statement_of,
)
from consortium.errors import BadInput, Refused, TooOften
from consortium.files import write_bytes_atomically
from consortium.identity import Identity, check_signing_request
from consortium.ids import AttemptId, Digest, SiteName, digest_of
from consortium.manifests import FileRef
from consortium.roles import Role
from consortium.signing import key_of_certificate
from coordinator.config import CoordinatorConfig
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.access import may_call, may_read
from coordinator.driver import Driver
from coordinator.founding import Keys
from coordinator.services.enrolment import EnrolmentService
from coordinator.services.site import SiteService
from coordinator.services.words import sync_command

_log = logging.getLogger(__name__)

_SYNC = "/sprachbund.v1.SiteService/Sync"  # what a bundle amounts to: who may call it may send one
_PAST_MAX = 100  # series of one site that are remembered to be over


class Heard(Fact):
    """The newest bundle of a site."""

    series: str = ""
    number: int = 0
    statement: Digest | None = None
    fingerprint: str = ""  #: of the certificate that signed it
    past: tuple[str, ...] = ()  #: series before this one, oldest first


class Courier:
    def __init__(
        self,
        driver: Driver,
        keys: Keys,
        config: CoordinatorConfig,
        store: Blobs,
        sites: SiteService,
        enrolments: EnrolmentService,
    ) -> None:
        self._driver = driver
        self._keys = keys
        self._config = config
        self._store = store
        self._sites = sites
        self._enrolments = enrolments
        self._folder = Path(config.home) / "courier"
        self._awaited: dict[str, dict[Digest, int]] = {}  # by site: sizes of the blobs that may be brought
        key = load_pem_private_key(keys.server.key, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), (
            "all certificates of the authority are for such keys"
        )
        self._key = key

    def carry(self, head: bytes, carrier: Identity) -> admin_pb2.CarryResponse:
        """Hear what a bundle's ``head`` says, and answer it; or say which of its blobs have to come first.

        Raises BadInput, Corrupt or Refused with what is wrong; then nothing has happened.
        """
        said = decode(head, Head, "the bundle's head")
        if kind_of(said) == ENROLMENT_ASKED:
            return admin_pb2.CarryResponse(answer=self._enrol(said, carrier))
        authority, consortium = self._keys.authority.pem, self._driver.state.consortium
        who, statement = statement_of(said, Role.SITE, authority, consortium, time.time())
        assert isinstance(statement, Said)
        heard = self._heard(statement.site)
        self._standing(who, statement, heard)
        heard = _next(heard, statement, digest_of(said.envelope), who)
        request = _request(statement)
        command = replace(sync_command(statement.site, request), courier=True)
        self._awaited[statement.site] = missing = self._missing(statement, command)
        if missing:
            return admin_pb2.CarryResponse(missing=sorted(missing))
        # Noted before it is done: after a crash the same bundle may be heard again, an older one may not
        write_bytes_atomically(self._folder / f"{statement.site}.json", encode(heard))
        _log.info(
            "bundle %d of site %s was carried by %s %s",
            statement.number, statement.site, carrier.role, carrier.name,
            extra={"site": statement.site, "series": statement.series, "number": statement.number},
        )  # fmt: skip
        return admin_pb2.CarryResponse(answer=self._answer(statement, request, command))

    def act_for(self, caller: Identity, site: str) -> Identity:
        """As whom a blob for ``site`` moves: the site, if an admin carries it and the site is in good standing."""
        if caller.role is not Role.ADMIN:
            raise Refused(f"{caller.role} {caller.name} may not carry blobs for site {site}; an admin may")
        known = self._driver.state.sites.get(ids.site_name(site))
        if known is None or known.status == "suspended":
            raise Refused(
                f"site {site} is {known.status if known else 'not enrolled here'}; nothing is carried for it"
            )
        return Identity(
            role=Role.SITE, name=known.name, fingerprint=known.fingerprint, not_after=known.not_after
        )

    def may_carry(self, site: Identity, digest: Digest, size: int) -> tuple[bool, str]:
        """Only what a bundle that was shown here names, and only as long as it is missing."""
        if size > self._config.upload_bytes_max:
            return (
                False,
                f"{size} bytes exceed the coordinator's upload_bytes_max of {self._config.upload_bytes_max}",
            )
        if self._awaited.get(site.name, {}).get(digest) != size:
            return (
                False,
                f"no bundle of {site.name} that was shown here waits for it; begin the exchange again",
            )
        return True, f"a bundle of {site.name} names it"

    # ---- inside

    def _enrol(self, head: Head, carrier: Identity) -> bytes:
        consortium = self._driver.state.consortium
        asked = signed_by_its_key(head)
        if asked.consortium != consortium:
            raise Refused(
                f"this bundle asks to join consortium {asked.consortium!r}, this one is {consortium!r}"
            )
        request = enrolment_pb2.EnrolRequest(
            token=asked.token, signing_request=asked.signing_request.encode()
        )
        given = self._enrolments.enrol(request)
        _log.info("the enrolment of site %s was carried by %s %s", asked.site, carrier.role, carrier.name)
        answer = EnrolmentGiven(
            consortium=consortium,
            site=asked.site,
            certificate=given.certificate.decode(),
            ledger_key=given.ledger_key.hex(),
        )
        return self._sealed(answer, ENROLMENT_GIVEN)

    def _heard(self, site: SiteName) -> Heard:
        path = self._folder / f"{site}.json"
        return decode(path.read_bytes(), Heard, str(path)) if path.exists() else Heard()

    def _standing(self, who: Identity, statement: Said, heard: Heard) -> None:
        """What the guard asks of a caller. Raises Refused."""
        state = self._driver.state
        verdict = may_call(state, who.role, who.name, who.fingerprint, _SYNC)
        site = state.sites.get(statement.site)
        if verdict.allowed or (
            # The answer that brought the newer certificate has not arrived: the same holder asks for it again
            site is not None
            and site.status != "suspended"
            and who.fingerprint == heard.fingerprint
            and statement.signing_request
            and self._is_certified(statement)
        ):
            return
        raise Refused(verdict.reason)

    def _is_certified(self, statement: Said) -> bool:
        """Whether the key for which a certificate is asked already has the site's newest."""
        newest = self._driver.state.sites[statement.site].certificate.encode()
        asked = check_signing_request(statement.signing_request.encode(), statement.site)
        return asked == key_of_certificate(newest)

    def _missing(self, statement: Said, command: cm.SyncSite) -> dict[Digest, int]:
        """Blobs of the results that the core would take, less those that are here as this site's."""
        taken = {
            event.attempt
            for event in self._driver.foresee(command)
            if isinstance(event, ev.ContributionReceived)
        }
        refs = {ref for attempt in taken for ref in statement.results.get(attempt, ())}
        return {ref.digest: ref.size for ref in refs if not self._is_here(ref, statement.site)}

    def _is_here(self, ref: FileRef, site: SiteName) -> bool:
        """As ``Stat`` would say to the site: it sent every byte itself, or may read them anyway."""
        if not self._store.has(ids.digest(ref.digest)):
            return False
        allowed = may_read(self._driver.state, Role.SITE, site, ref.digest).allowed
        return allowed or self._store.delivered(ref.digest, site)

    def _answer(self, statement: Said, request: site_pb2.SyncRequest, command: cm.SyncSite) -> bytes:
        site, certificate, not_renewed = statement.site, "", ""
        if statement.signing_request:
            try:
                if not self._is_certified(statement):
                    self._sites.renew(site, statement.signing_request.encode())
                certificate = self._driver.state.sites[site].certificate
            except TooOften as error:  # over the network this call alone would be refused, and the Sync heard
                not_renewed = str(error)
        response = self._sites.hear(site, request, command)
        inputs = {
            digest
            for job in self._driver.state.live(site)
            for digest in (*job.inputs, *([job.tokenizer] if job.tokenizer else []))
        }
        answer = Answered(
            consortium=statement.consortium,
            site=site,
            series=statement.series,
            number=statement.number,
            answered=tuple(AttemptId(line.attempt) for line in request.attempts),
            response=response.SerializeToString(deterministic=True),
            certificate=certificate,
            not_renewed=not_renewed,
            blobs=tuple(
                FileRef(digest=digest, size=self._store.size(digest))
                for digest in sorted(inputs - set(statement.has))
            ),
        )
        return self._sealed(answer, ANSWERED)

    def _sealed(self, statement: Answered | EnrolmentGiven, kind: str) -> bytes:
        return encode(sign_head(statement, kind, self._key, self._keys.server.certificate))


def _next(heard: Heard, statement: Said, digest: Digest, who: Identity) -> Heard:
    """What is to be remembered once ``statement`` is heard. Raises Refused if it comes too late."""
    what, past = f"bundle {statement.number} of site {statement.site}", heard.past
    if statement.series in past:
        raise Refused(f"{what}: it is of an earlier home of the site, which another has replaced; leave it")
    if statement.series != heard.series:
        past = (*past, heard.series)[-_PAST_MAX:] if heard.series else past
    elif statement.number < heard.number:
        raise Refused(
            f"{what}: number {heard.number} was heard already and says more; carry the newest bundle only"
        )
    elif statement.number == heard.number and digest != heard.statement:
        raise Refused(
            f"{what}: another bundle has had this number; two copies of one home are in use, keep one of them"
        )
    return Heard(
        series=statement.series,
        number=statement.number,
        statement=digest,
        fingerprint=who.fingerprint,
        past=past,
    )


def _request(statement: Said) -> site_pb2.SyncRequest:
    try:
        request = site_pb2.SyncRequest.FromString(statement.request)
    except DecodeError as error:
        raise BadInput(
            f"bundle {statement.number} of site {statement.site}: no SyncRequest ({error})"
        ) from error
    request.incarnation = statement.series  # agents come and go; what may not be doubled is the home
    request.seen = 0
    return request
