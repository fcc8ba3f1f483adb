"""Who may call what, and who may read and write which blob."""

from dataclasses import dataclass

from consortium.ids import Digest, SiteName
from consortium.roles import Role
from coordinator.core.state import Site, State


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    reason: str


_PEOPLE = {Role.ADMIN, Role.AUDITOR}
_EVERYBODY = {Role.SITE, Role.ADMIN, Role.AUDITOR, Role.READER}
_RENEW = "/sprachbund.v1.SiteService/RenewCertificate"

#: Every method of every service behind mutual TLS, and who may call it. One that is not here is refused to everybody.
METHODS = {
    "/sprachbund.v1.SiteService/Sync": {Role.SITE},
    _RENEW: {Role.SITE},
    "/sprachbund.v1.ArtifactService/Stat": _EVERYBODY,
    "/sprachbund.v1.ArtifactService/Upload": {Role.SITE, Role.ADMIN},
    "/sprachbund.v1.ArtifactService/Download": _EVERYBODY,
    "/sprachbund.v1.AdminService/SubmitCampaign": {Role.ADMIN},
    "/sprachbund.v1.AdminService/StopCampaign": {Role.ADMIN},
    "/sprachbund.v1.AdminService/IssueToken": {Role.ADMIN},
    "/sprachbund.v1.AdminService/SetSite": {Role.ADMIN},
    "/sprachbund.v1.AdminService/Promote": {Role.ADMIN},
    "/sprachbund.v1.AdminService/RollBack": {Role.ADMIN},
    "/sprachbund.v1.AdminService/GetView": _PEOPLE,
    "/sprachbund.v1.AdminService/Watch": _PEOPLE,
    "/sprachbund.v1.AdminService/Why": _PEOPLE,
    "/sprachbund.v1.AdminService/Carry": {Role.ADMIN},
    "/sprachbund.v1.AdminService/Forecast": _PEOPLE,
    "/sprachbund.v1.AdminService/Revoke": {Role.ADMIN},
    "/sprachbund.v1.FlowerService/OpenRun": {Role.ADMIN},
    "/sprachbund.v1.FlowerService/Push": {Role.ADMIN},
    "/sprachbund.v1.FlowerService/Replies": {Role.ADMIN},
    "/sprachbund.v1.FlowerService/CompleteRun": {Role.ADMIN},
    "/sprachbund.v1.AuditService/ReadLedger": _PEOPLE | {Role.SITE},
    "/sprachbund.v1.AuditService/GetCheckpoint": _EVERYBODY,
    "/sprachbund.v1.ReleaseService/ListReleases": _EVERYBODY,
    "/grpc.health.v1.Health/Check": _EVERYBODY,
    "/grpc.health.v1.Health/Watch": _EVERYBODY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _PEOPLE,
}

#: Methods of the other port, on which nobody shows a certificate: whoever holds an invitation.
WITHOUT_CERTIFICATE = frozenset({"/sprachbund.v1.EnrolmentService/Enrol"})


def may_call(state: State, role: Role, name: str, fingerprint: str, method: str) -> Verdict:
    """Role, then standing: a person not revoked, a site enrolled with this very certificate and not suspended."""
    if role not in METHODS.get(method, set()):
        return Verdict(False, f"{role.value} {name} may not call {method}")
    standing = may_go_on(state, role, name, fingerprint)
    if not standing.allowed or role is not Role.SITE:
        return standing
    if fingerprint != state.sites[SiteName(name)].fingerprint and method != _RENEW:
        return _replaced(name)
    return standing


def may_go_on(state: State, role: Role, name: str, fingerprint: str) -> Verdict:
    """Whether a call that was let in may still be answered: asked again before each message of a long one.

    A site that renewed its certificate meanwhile goes on with what it began; one that enrolled anew, because its
    key was stolen perhaps, does not.
    """
    if role is not Role.SITE:
        why = state.revoked.get(f"{role.value}/{name}")
        if why is not None:
            return Verdict(
                False, f"{role.value} {name} was revoked: {why}; ask for a certificate of another name"
            )
        return Verdict(True, f"{role.value} {name}")
    site = state.sites.get(SiteName(name))
    if site is None:
        return Verdict(
            False, f"site {name} is not enrolled here; ask the consortium's admin for an invitation"
        )
    if site.status == "suspended":
        return Verdict(False, f"site {name} is suspended; its operator should talk to the consortium's admin")
    if fingerprint not in site.since_enrolment:
        return _replaced(name)
    return Verdict(True, f"site {name}")


def may_renew(site: Site, fingerprint: str, has_newest_key: bool) -> Verdict:
    """Who shows an older certificate may only ask once more for the newest: the answer that brought it was lost.

    has_newest_key  whether the request is signed with the key of the site's newest certificate
    """
    if fingerprint == site.fingerprint or has_newest_key:
        return Verdict(True, f"site {site.name}")
    return _replaced(site.name)


def _replaced(name: str) -> Verdict:
    return Verdict(
        False, f"site {name}: this certificate was replaced by a newer one; use that, or enrol anew"
    )


def may_read(state: State, role: Role, name: str, digest: Digest) -> Verdict:
    """A site reads the inputs of the jobs it holds a lease on, a reader what is released, and nothing else."""
    if role is Role.READER:
        if digest in released(state):
            return Verdict(True, f"reader {name} reads releases")
        return Verdict(False, f"no released version that reader {name} may read has it")
    if role is not Role.SITE:
        return Verdict(True, f"{role.value} {name} reads everything")
    for job in state.live(SiteName(name)):
        if digest in job.inputs or digest == job.tokenizer:
            return Verdict(True, f"an input of {job.attempt}")
    return Verdict(False, f"no job that {name} holds needs it")


def released(state: State) -> set[Digest]:
    """The blobs of promoted versions: manifests and files, not what the outer optimizer keeps."""
    return {
        digest
        for campaign in state.campaigns.values()
        for version in campaign.versions.values()
        if version.status == "promoted"
        for digest in (version.digest, *(ref.digest for ref in version.manifest.files.values()))
    }


def may_write(state: State, role: Role, name: str, size: int, bytes_max: int) -> Verdict:
    """A site writes while it holds a lease, so that an idle or strange one cannot fill the disk."""
    if size > bytes_max:
        return Verdict(False, f"{size} bytes exceed the coordinator's upload_bytes_max of {bytes_max}")
    if role is Role.SITE and not state.live(SiteName(name)):
        return Verdict(False, f"{name} holds no job whose result this could be")
    return Verdict(True, f"{role.value} {name} may upload")
