"""Who may call what, and who may read and write which blob."""

from dataclasses import dataclass

from consortium.ids import Digest, SiteName
from consortium.roles import Role
from coordinator.core.state import State


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    reason: str


#: Every method of every service, and who may call it. A method that is not here is refused to everybody.
METHODS = {
    "/sprachbund.v1.SiteService/Sync": {Role.SITE},
    "/sprachbund.v1.SiteService/RenewCertificate": {Role.SITE},
    "/sprachbund.v1.ArtifactService/Stat": {Role.SITE, Role.ADMIN, Role.AUDITOR},
    "/sprachbund.v1.ArtifactService/Upload": {Role.SITE, Role.ADMIN},
    "/sprachbund.v1.ArtifactService/Download": {Role.SITE, Role.ADMIN, Role.AUDITOR},
    "/sprachbund.v1.AdminService/SubmitCampaign": {Role.ADMIN},
    "/sprachbund.v1.AdminService/StopCampaign": {Role.ADMIN},
    "/sprachbund.v1.AdminService/IssueToken": {Role.ADMIN},
    "/sprachbund.v1.AdminService/SetSite": {Role.ADMIN},
    "/sprachbund.v1.AdminService/Promote": {Role.ADMIN},
    "/sprachbund.v1.AdminService/RollBack": {Role.ADMIN},
    "/sprachbund.v1.AdminService/GetView": {Role.ADMIN, Role.AUDITOR},
    "/sprachbund.v1.AdminService/Watch": {Role.ADMIN, Role.AUDITOR},
    "/sprachbund.v1.AdminService/Why": {Role.ADMIN, Role.AUDITOR},
    "/sprachbund.v1.AdminService/Carry": {Role.ADMIN},
    "/sprachbund.v1.AdminService/Forecast": {Role.ADMIN, Role.AUDITOR},
    "/sprachbund.v1.AuditService/ReadLedger": {Role.AUDITOR, Role.ADMIN},
    "/sprachbund.v1.AuditService/GetCheckpoint": {Role.AUDITOR, Role.ADMIN, Role.SITE},
    "/grpc.health.v1.Health/Check": {Role.SITE, Role.ADMIN, Role.AUDITOR},
    "/grpc.health.v1.Health/Watch": {Role.SITE, Role.ADMIN, Role.AUDITOR},
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {Role.ADMIN, Role.AUDITOR},
}


def may_call(state: State, role: Role, name: str, fingerprint: str, method: str) -> Verdict:
    """Role, then standing: a site must be enrolled with this very certificate and not suspended."""
    if role not in METHODS.get(method, set()):
        return Verdict(False, f"{role.value} {name} may not call {method}")
    if role is not Role.SITE:
        return Verdict(True, f"{role.value} {name}")
    site = state.sites.get(SiteName(name))
    if site is None:
        return Verdict(
            False, f"site {name} is not enrolled here; ask the consortium's admin for an invitation"
        )
    if site.status == "suspended":
        return Verdict(False, f"site {name} is suspended; its operator should talk to the consortium's admin")
    if fingerprint != site.fingerprint:
        return Verdict(
            False, f"site {name}: this certificate was replaced by a newer one; use that, or enrol anew"
        )
    return Verdict(True, f"site {name}")


def may_read(state: State, role: Role, name: str, digest: Digest) -> Verdict:
    """A site reads the inputs of the jobs it holds a lease on, and nothing else."""
    if role is not Role.SITE:
        return Verdict(True, f"{role.value} {name} reads everything")
    for job in state.live(SiteName(name)):
        if digest in job.inputs or digest == job.tokenizer:
            return Verdict(True, f"an input of {job.attempt}")
    return Verdict(False, f"no job that {name} holds needs it")


def may_write(state: State, role: Role, name: str, size: int, bytes_max: int) -> Verdict:
    """A site writes while it holds a lease, so that an idle or strange one cannot fill the disk."""
    if size > bytes_max:
        return Verdict(False, f"{size} bytes exceed the coordinator's upload_bytes_max of {bytes_max}")
    if role is Role.SITE and not state.live(SiteName(name)):
        return Verdict(False, f"{name} holds no job whose result this could be")
    return Verdict(True, f"{role.value} {name} may upload")
