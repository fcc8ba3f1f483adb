"""A bundle of which one wish is one too many: all else in it is heard, and the answer says what was not."""

from pathlib import Path

from island import Island, answer_in, said_in
from real_coordinator import job_state

from coordinator.core.budgets import BUDGETS, RENEWED, Budget
from site_agent.identity import SiteIdentity


async def test_a_certificate_too_many_does_not_cost_the_rest_of_the_bundle(
    leased: Path, ohrid: Island, admin, monkeypatch
) -> None:
    monkeypatch.setitem(BUDGETS, RENEWED, Budget(0, 3600.0))
    ohrid.take_in(leased)
    await ohrid.work()
    old = ohrid.identity
    monkeypatch.setattr(SiteIdentity, "is_due", lambda self, now: self.certificate == old.certificate)
    said = await ohrid.export()
    assert said_in(said).signing_request
    answer = await ohrid.exchange(said)
    assert not answer_in(answer).certificate
    taken = ohrid.take_in(answer)
    assert taken.settled == ("demo_r1-train-ohrid.a1",)
    assert "had 0 new certificates in a short time" in taken.not_renewed and not taken.certificate
    assert ohrid.identity.certificate == old.certificate
    await admin.until(lambda view: job_state(view, "demo_r1-train-ohrid") == "done", "admitted")
    monkeypatch.setitem(BUDGETS, RENEWED, Budget(1, 3600.0))
    taken = ohrid.take_in(await ohrid.exchange(await ohrid.export()))
    assert taken.certificate and not taken.not_renewed
    assert ohrid.identity.certificate != old.certificate
