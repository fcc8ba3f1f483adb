"""How an organisation with an invitation becomes a site."""

import grpc
from sprachbund.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
)

from consortium import identity
from consortium.ids import SiteName
from consortium.signing import key_of_certificate
from coordinator.config import CoordinatorConfig
from coordinator.core import commands as cm
from coordinator.driver import Driver
from coordinator.founding import Keys


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServiceServicer):
    def __init__(self, driver: Driver, keys: Keys, config: CoordinatorConfig) -> None:
        self._driver = driver
        self._keys = keys
        self._config = config

    async def Enrol(
        self, request: enrolment_pb2.EnrolRequest, context: grpc.aio.ServicerContext
    ) -> enrolment_pb2.EnrolResponse:
        return self.enrol(request)

    def enrol(self, request: enrolment_pb2.EnrolRequest) -> enrolment_pb2.EnrolResponse:
        """The certificate that an invitation's token is worth. Raises what the core refuses."""
        token_hash = identity.token_hash(request.token)
        if (again := self._enrolled_before(token_hash, request.signing_request)) is not None:
            return self._response(again)
        invited = self._driver.state.tokens.get(token_hash)
        # The core refuses an unknown token with the reason; a name is needed only to sign for a known one.
        site = invited.site if invited else SiteName("unknown")
        certificate = b""
        fingerprint, not_after = "", 0.0
        if invited:
            certificate = self._keys.authority.site(
                request.signing_request, site, self._driver.clock(), self._config.certificate_days
            )
            who = identity.identity_of(certificate, self._driver.state.consortium)
            fingerprint, not_after = who.fingerprint, who.not_after
        self._driver.execute(
            cm.EnrolSite(
                site=site,
                token_hash=token_hash,
                certificate=certificate.decode(),
                fingerprint=fingerprint,
                not_after=not_after,
            )
        )
        return self._response(certificate)

    def _enrolled_before(self, token_hash: str, signing_request: bytes) -> bytes | None:
        """The certificate that this token gave for this very key: the first answer may have been lost."""
        for site in self._driver.state.sites.values():
            if site.token_hash == token_hash:
                certificate = site.certificate.encode()
                asked = identity.check_signing_request(signing_request, site.name)
                return certificate if asked == key_of_certificate(certificate) else None
        return None

    def _response(self, certificate: bytes) -> enrolment_pb2.EnrolResponse:
        return enrolment_pb2.EnrolResponse(
            certificate=certificate,
            authority=self._keys.authority.pem,
            ledger_key=self._keys.ledger.public_key().public_bytes_raw(),
        )
