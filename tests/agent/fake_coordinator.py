"""A coordinator that does as the test says, over real mutually authenticated gRPC."""

import asyncio
import time
from pathlib import Path

import grpc
from free_ports import free_port
from sprachbund.v1 import artifact_pb2_grpc, enrolment_pb2, enrolment_pb2_grpc, site_pb2, site_pb2_grpc

from consortium.canonical import encode
from consortium.channels import SERVER_OPTIONS, enrolment_credentials, peer_identity, server_credentials
from consortium.errors import Refused
from consortium.identity import Authority
from consortium.ids import AttemptId, CampaignId, Digest, Language, SiteName, digest_of, job_of
from consortium.invitation import Invitation
from consortium.jobs import Assignment, Optimizer, Purpose, Train
from consortium.manifests import VersionManifest
from consortium.signing import ASSIGNMENT, new_ledger_key, sign, sign_checkpoint
from consortium.store import BlobStore
from coordinator.artifacts import ArtifactService
from coordinator.errors_on_wire import ErrorsOnWire

NORTH = SiteName("north")
A1 = AttemptId("demo_r1-train-north.a1")
PATIENCE_SECONDS = 240.0  #: for what takes a second here

# What a trainer does, less the training: it needs the base, leaves a result, and waits for `go` where `hold` is.
PROGRAM = """
import hashlib, json, os, pathlib, sys, time
place = pathlib.Path(sys.argv[1])
with open(place / "began", "a") as file:
    file.write(f"{os.getpid()}\\n")
(place / "progress.jsonl").write_text('{"step": 1, "steps": 2, "tokens": 64, "loss": 2.5}\\n')
hold = pathlib.Path(__file__).parent
while (hold / "hold").exists() and not (hold / "go").exists():
    if (place / "STOP").exists():
        sys.exit(75)
    time.sleep(0.01)
job = json.loads((place / "job.json").read_bytes())
delta = b"delta of " + (place / "base" / "config.json").read_bytes()
result = place / "result.tmp"
result.mkdir()
(result / "delta.safetensors").write_bytes(delta)
contribution = {
    "job": job["job"], "attempt": job["attempt"], "campaign": job["campaign"], "site": job["site"],
    "assignment": hashlib.sha256((place / "job.json").read_bytes()).hexdigest(),
    "artifacts": {"delta": {"digest": hashlib.sha256(delta).hexdigest(), "size": len(delta)}},
}
(result / "contribution.json").write_text(json.dumps(contribution))
os.rename(result, place / "result")
"""


class FakeCoordinator(site_pb2_grpc.SiteServiceServicer, enrolment_pb2_grpc.EnrolmentServiceServicer):
    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create("test", time.time())
        self.credentials = self.authority.coordinator([], time.time())
        self.ledger_key = new_ledger_key()
        self.store = BlobStore(folder)
        self.wanted: dict[str, site_pb2.SignedAssignment] = {}
        self.told: dict[str, site_pb2.AttemptReport] = {}  # the newest report of each attempt
        self.phases: dict[str, list[str]] = {}
        self.requests: list[site_pb2.SyncRequest] = []
        self.tokens = {"token": NORTH}
        self.sequence, self.head = 1, "aa"
        self.renewals = 0
        self.port, self.enrolment_port = free_port(self), free_port(self)
        self._revision = 1
        self._changed = asyncio.Event()
        self._servers: list[grpc.aio.Server] = []

    # ---- what a test says

    def want(self, attempt: AttemptId = A1, key=None, **changes) -> Assignment:
        assignment = self.assignment(attempt, **changes)
        job = encode(assignment)
        signature = sign(key or self.ledger_key, ASSIGNMENT, job)
        self.wanted[attempt] = site_pb2.SignedAssignment(attempt=attempt, job=job, signature=signature)
        self.stir()
        return assignment

    def forsake(self, attempt: AttemptId = A1) -> None:
        del self.wanted[attempt]
        self.stir()

    def assignment(self, attempt: AttemptId, **changes) -> Assignment:
        config, weights = self.store.put_bytes(b'{"a": "config"}'), self.store.put_bytes(b"weights" * 99)
        manifest = VersionManifest(base=None, files={"config.json": config, "model.safetensors": weights})
        base = self.store.put_bytes(encode(manifest)).digest
        tokenizer = self.store.put_bytes(b"{}").digest
        work = Train(
            base=base,
            languages=(Language("fi"),),
            public_languages=(),
            replay_share=0.0,
            steps=2,
            batch_sequences=1,
            sequence_tokens=8,
            optimizer=Optimizer(learning_rate=0.1),
            seed=0,
        )
        fields = dict(
            job=job_of(attempt),
            attempt=attempt,
            campaign=CampaignId("demo"),
            round=1,
            site=NORTH,
            purpose=Purpose.ROUND,
            work=work,
            inputs=tuple(sorted({base, config.digest, weights.digest, tokenizer})),
            tokenizer=tokenizer,
        )
        return Assignment(**(fields | changes))

    def stir(self) -> None:
        self._revision += 1
        self._changed.set()

    async def until_told(self, condition, what: str, attempt: AttemptId = A1) -> site_pb2.AttemptReport:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while attempt not in self.told or not condition(self.told[attempt]):
                await asyncio.sleep(0.01)
        return self.told[attempt]

    async def until_phase(self, phase: str, attempt: AttemptId = A1) -> site_pb2.AttemptReport:
        value = site_pb2.AttemptPhase.Value(f"ATTEMPT_PHASE_{phase}")
        return await self.until_told(lambda report: report.phase == value, phase, attempt)

    async def until_synced(self, more: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            seen = len(self.requests)
            while len(self.requests) < seen + more:
                await asyncio.sleep(0.01)

    # ---- the services

    async def Sync(self, request, context):
        peer_identity(context.auth_context(), "test", time.time())
        self.requests.append(request)
        self._take(request)
        if request.seen >= self._revision:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), request.wait.ToTimedelta().total_seconds())
            except TimeoutError:
                pass
        settled = [
            report.attempt
            for report in request.attempts
            if report.phase == site_pb2.ATTEMPT_PHASE_ENDED or report.attempt not in self.wanted
        ]
        settled = [attempt for attempt in settled if self._is_ended(attempt)]
        answer = site_pb2.SyncResponse(
            revision=self._revision, wanted=[self.wanted[a] for a in sorted(self.wanted)], settled=settled
        )
        signed = sign_checkpoint(self.ledger_key, self.sequence, self.head)
        answer.checkpoint.CopyFrom(
            site_pb2.LedgerCheckpoint(
                sequence=signed.sequence,
                head=signed.head,
                signature=signed.signature,
                public_key=signed.public_key,
            )
        )
        answer.now.FromNanoseconds(time.time_ns())
        return answer

    async def RenewCertificate(self, request, context):
        peer_identity(context.auth_context(), "test", time.time())
        self.renewals += 1
        certificate = self.authority.site(request.signing_request, NORTH, time.time())
        return site_pb2.RenewCertificateResponse(certificate=certificate)

    async def Enrol(self, request, context):
        site = self.tokens.pop(request.token, None)
        if site is None:
            raise Refused("token: unknown, used or expired; ask the admin for a new invitation")
        return enrolment_pb2.EnrolResponse(
            certificate=self.authority.site(request.signing_request, site, time.time()),
            authority=self.authority.pem,
            ledger_key=self.ledger_key.public_key().public_bytes_raw(),
        )

    def _take(self, request) -> None:
        for report in request.attempts:
            self.told[report.attempt] = report
            phase = site_pb2.AttemptPhase.Name(report.phase).removeprefix("ATTEMPT_PHASE_")
            phases = self.phases.setdefault(report.attempt, [])
            if phases[-1:] != [phase]:
                phases.append(phase)
            if phase == "ENDED":
                self.wanted.pop(report.attempt, None)

    def _is_ended(self, attempt: str) -> bool:
        return self.told[attempt].phase == site_pb2.ATTEMPT_PHASE_ENDED

    # ---- being there, or not

    async def up(self) -> None:
        server = grpc.aio.server(interceptors=[ErrorsOnWire()], options=SERVER_OPTIONS)
        site_pb2_grpc.add_SiteServiceServicer_to_server(self, server)
        artifacts = ArtifactService(
            self.store,
            lambda context: peer_identity(context.auth_context(), "test", time.time()),
            lambda caller, digest: (True, ""),
            lambda caller, digest, size: (True, ""),
        )
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
        door = server_credentials(self.authority.pem, self.credentials)
        server.add_secure_port(f"127.0.0.1:{self.port}", door)
        enrolment = grpc.aio.server(interceptors=[ErrorsOnWire()], options=SERVER_OPTIONS)
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(self, enrolment)
        enrolment.add_secure_port(f"127.0.0.1:{self.enrolment_port}", enrolment_credentials(self.credentials))
        self._servers = [server, enrolment]
        for one in self._servers:
            await one.start()

    async def down(self) -> None:
        for server in self._servers:
            await server.stop(grace=0)

    def invitation(self) -> Invitation:
        return Invitation(
            consortium="test",
            site=NORTH,
            coordinator=f"127.0.0.1:{self.port}",
            enrolment=f"127.0.0.1:{self.enrolment_port}",
            authority=self.authority.pem.decode(),
            token="token",
        )

    def has(self, digest: str) -> bool:
        return self.store.has(Digest(digest))


def delta_of_base() -> Digest:
    return digest_of(b'delta of {"a": "config"}')
