"""Who may call, read and write what: the whole matrix, against the contract itself."""

import pytest
from consortium_in_facts import GIVEN, Coordinator, campaign, consortium, d, success
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from sprachbund.v1 import admin_pb2, artifact_pb2, audit_pb2, enrolment_pb2, flower_pb2, site_pb2

from consortium.ids import Digest, SiteName
from consortium.roles import Role
from coordinator.core import commands as cm
from coordinator.core.access import (
    METHODS,
    WITHOUT_CERTIFICATE,
    may_call,
    may_go_on,
    may_read,
    may_write,
)

READER = {"Stat", "Download", "GetCheckpoint", "ReleaseService", "Health"}
SITE = {*READER, "SiteService", "ArtifactService", "AuditService"}
ADMIN = {*READER, "ArtifactService", "AdminService", "FlowerService", "AuditService", "ServerReflection"}
AUDITOR = {
    *READER,
    "GetView",
    "Watch",
    "Why",
    "Forecast",
    "AuditService",
    "Health",
    "ServerReflection",
}


def methods(*modules: object) -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()  # type: ignore[attr-defined]
        for method in service.methods
    }


def test_every_method_of_every_service_behind_mtls_is_listed() -> None:
    served = (site_pb2, artifact_pb2, admin_pb2, audit_pb2, flower_pb2, health_pb2, reflection_pb2)
    assert set(METHODS) == methods(*served)
    assert WITHOUT_CERTIFICATE == methods(enrolment_pb2)  # a port of its own


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_matrix(method: str) -> None:
    """Each role may call the services and methods named above, and nothing else."""
    state = consortium().state
    service, name = method.rpartition("/")[0].rpartition(".")[2], method.rpartition("/")[2]
    for role, allowed in (
        (Role.SITE, SITE),
        (Role.ADMIN, ADMIN),
        (Role.AUDITOR, AUDITOR),
        (Role.READER, READER),
    ):
        found = may_call(state, role, "north", d("certificate of north"), method)
        assert found.allowed == bool({service, name} & allowed), (role, found)
    assert not may_call(state, Role.COORDINATOR, "coordinator", "", method).allowed


def test_an_unknown_method_is_refused_to_everybody() -> None:
    for role in Role:
        found = may_call(consortium().state, role, "north", d("certificate of north"), "/x.Y/Z")
        assert not found.allowed and "may not call /x.Y/Z" in found.reason


def test_a_site_calls_with_its_present_certificate_while_it_is_in_good_standing() -> None:
    coordinator = consortium()
    sync = "/sprachbund.v1.SiteService/Sync"

    def verdict(name: str = "north", certificate: str = "certificate of north") -> tuple[bool, str]:
        found = may_call(coordinator.state, Role.SITE, name, d(certificate), sync)
        return found.allowed, found.reason

    assert verdict() == (True, "site north")
    assert verdict("nobody")[1].startswith("site nobody is not enrolled here")
    coordinator.do(
        cm.RenewCertificate(site=SiteName("north"), certificate="new", fingerprint=d("new"), not_after=2e9)
    )
    assert not verdict()[0] and "replaced by a newer one" in verdict()[1]
    began = may_go_on(coordinator.state, Role.SITE, "north", d("certificate of north"))
    assert began.allowed  # what it began with the older one
    assert verdict(certificate="new")[0]
    coordinator.do(cm.SetSite(site=SiteName("north"), status="draining", reason="so"))
    assert verdict(certificate="new")[0]
    coordinator.do(cm.SetSite(site=SiteName("north"), status="suspended", reason="so"))
    assert not verdict(certificate="new")[0] and "is suspended" in verdict(certificate="new")[1]


@pytest.fixture
def working() -> Coordinator:
    """North trains, the others wait."""
    coordinator = consortium(campaign(**GIVEN))
    coordinator.work()
    coordinator.sync("north")
    return coordinator


def test_a_site_reads_what_its_jobs_need_while_it_holds_them(working: Coordinator) -> None:
    base = Digest(str(working.state.campaigns[campaign().campaign].head))

    def readable(site: str) -> list[bool]:
        blobs = (d("weights"), d("tokenizer"), base, d("delta of demo_r1-train-north.a1"))
        return [may_read(working.state, Role.SITE, site, blob).allowed for blob in blobs]

    assert readable("north") == [True, True, True, False]
    assert readable("south") == [False] * 4
    working.sync("north", success("demo_r1-train-north.a1"))
    assert readable("north") == [False] * 4
    for role in (Role.ADMIN, Role.AUDITOR):
        assert may_read(working.state, role, "ada", d("anything")).allowed


def test_a_site_writes_while_it_holds_a_job(working: Coordinator) -> None:
    def writable(role: Role, name: str, size: int = 10) -> bool:
        return may_write(working.state, role, name, size, bytes_max=10).allowed

    assert writable(Role.SITE, "north") and not writable(Role.SITE, "south")
    assert not writable(Role.SITE, "north", 11) and not writable(Role.ADMIN, "ada", 11)
    assert writable(Role.ADMIN, "ada")
    working.sync("north", success("demo_r1-train-north.a1"))
    assert not writable(Role.SITE, "north")
