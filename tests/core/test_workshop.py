"""The worker's own work: a base that can or cannot be made, and a model laid out once for many."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from consortium_in_facts import DEMO, campaign, d
from delivering_site import TRAIN, House

from consortium.canonical import encode
from consortium.errors import BadInput, Unavailable
from consortium.manifests import FileRef, VersionManifest
from coordinator import making
from coordinator.core import commands as cm
from coordinator.core.state import CampaignState
from coordinator.workshop import make_base
from policies.campaign import ModelSource


def test_the_base_is_what_was_given(training: House) -> None:
    state = training.driver.state.campaigns[DEMO]
    report = make_base(state, training.workshop)
    assert report.manifest is not None and report.manifest.digest == state.head
    assert training.store.read_bytes(report.manifest.digest, 1 << 20) == encode(report.manifest)


def test_a_given_base_waits_for_its_upload(training: House) -> None:
    missing = {"model.safetensors": FileRef(digest=d("still on its way"), size=5)}
    state = CampaignState(spec=campaign(model=ModelSource(files=missing)), opened_at=0.0)
    with pytest.raises(Unavailable, match="uploaded"):
        make_base(state, training.workshop)


def test_a_config_that_makes_no_model_ends_the_campaign(
    training: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*arguments: object) -> VersionManifest:
        raise BadInput("model_type 'lama' is unknown")

    monkeypatch.setattr(making, "made", no)
    tokenizer = training.store.put_bytes(b"a tokenizer").digest
    state = CampaignState(spec=campaign(), opened_at=0.0, tokenizer=tokenizer)
    assert make_base(state, training.workshop) == cm.ReportBase(
        campaign=DEMO,
        manifest=None,
        reason="no model can be made from the campaign's config: model_type 'lama' is unknown",
    )


def test_a_model_is_laid_out_once_for_all_who_need_it(training: House) -> None:
    """Two deltas of one round are inspected at once; neither may be refused because the other was faster."""
    base = training.job(TRAIN).inputs
    state = training.driver.state.campaigns[DEMO]
    assert state.head in base
    manifest = state.versions[state.head].manifest
    start = threading.Barrier(8)

    def lay_out(_: int) -> bool:
        start.wait()
        return training.workshop.version_dir(manifest.digest, manifest).is_dir()

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lay_out, range(8)))
