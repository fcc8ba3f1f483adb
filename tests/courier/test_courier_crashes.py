"""Killed anywhere, begun again: exports, imports and exchanges end as if nothing had happened."""

import os
import threading
from pathlib import Path

import pytest
from island import Island, answer_in, said_in, signed_anew
from real_coordinator import Consortium, job_state

from consortium import bundles, files
from consortium.errors import Broken, Refused
from consortium.identity import signing_request
from consortium.store import BlobStore
from coordinator.courier import Courier
from coordinator.services.site import SiteService
from site_agent.courier.memory import Memory
from site_agent.identity import SiteIdentity

TRAIN = "demo_r1-train-ohrid.a1"


class Killed(BaseException):
    """As a SIGKILL: nothing of ours catches it."""


def kill_at(monkeypatch, place: object, name: str, number: int) -> None:
    """The call of that number of ``place.name``, from now on, is where the process ends.

    Of ``os``, only what this thread calls: the coordinator lives in the same process, and writes files, too.
    """
    original, calls, here = getattr(place, name), [], threading.get_ident()

    def call(*arguments, **named):
        if place is not os or threading.get_ident() == here:
            calls.append(name)
            if len(calls) == number:
                raise Killed(f"{name}, call {number}")
        return original(*arguments, **named)

    monkeypatch.setattr(place, name, call)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 9, 12])
async def test_an_import_that_was_killed_is_begun_again(
    leased: Path, ohrid: Island, monkeypatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, os, "replace", number)
        with pytest.raises(Killed):
            ohrid.take_in(leased)
    answer = Memory(ohrid.home).answer()
    assert answer is not None and answer.number == answer_in(leased).number - 1
    await ohrid.work()  # by the answer before
    assert ohrid.launcher.launched == []
    taken = ohrid.take_in(leased)
    assert taken.wanted == (TRAIN,)
    for ref in answer_in(leased).blobs:
        BlobStore(ohrid.home).verify(ref.digest)
    await ohrid.work()
    assert ohrid.launcher.launched == [TRAIN]


async def test_an_export_that_was_killed_uses_up_its_number_and_nothing_else(
    leased: Path, ohrid: Island, monkeypatch, consortium: Consortium
) -> None:
    ohrid.take_in(leased)
    await ohrid.work()
    written = said_in(await ohrid.export()).number
    for number in (1, 2):
        with monkeypatch.context() as patch:
            kill_at(patch, files.os, "replace", number)
            with pytest.raises(Killed):
                ohrid.write_down()
    assert not list(ohrid.folder.glob(".*.tmp"))
    said = ohrid.write_down()
    assert said_in(said).number == written + 2  # the first kill came before the number was used
    assert ohrid.take_in(await ohrid.exchange(said)).settled == (TRAIN,)


async def test_an_exchange_that_broke_off_goes_on_without_sending_twice(
    done: Path, ohrid: Island, admin, consortium: Consortium, monkeypatch
) -> None:
    total = sum(ref.size for ref in said_in(done).blobs)
    answer = ohrid.fresh("answer")
    with monkeypatch.context() as patch:
        kill_at(patch, bundles, "move_into_place", 1)  # all is heard, the answer is about to be there
        with pytest.raises(Killed):
            await ohrid.carry(done, answer)
    assert not answer.exists()
    await admin.until(lambda view: job_state(view, "demo_r1-train-ohrid") == "done", "admitted")
    again = await ohrid.carry(done, answer)
    assert again.sent_bytes == 0 < total
    assert ohrid.take_in(answer).settled == (TRAIN,)


@pytest.mark.parametrize(("place", "name"), [(SiteService, "hear"), (Courier, "_sealed")])
async def test_a_coordinator_that_dies_while_it_hears_a_bundle_hears_it_again(
    done: Path, ohrid: Island, admin, consortium: Consortium, monkeypatch, place: type, name: str
) -> None:
    with monkeypatch.context() as patch:
        original = getattr(place, name)

        def dies(*arguments):
            original(*arguments)
            raise RuntimeError("killed before it answered")

        patch.setattr(place, name, dies)
        with pytest.raises(Broken, match="the coordinator failed"):
            await ohrid.exchange(done)
    taken = ohrid.take_in(await ohrid.exchange(done))
    assert taken.settled == (TRAIN,)
    view = await admin.until(lambda view: job_state(view, "demo_r1-train-ohrid") == "done", "admitted")
    assert [job.attempts for job in view.jobs if job.job == "demo_r1-train-ohrid"] == [1]


async def test_a_certificate_is_renewed_by_courier_even_if_the_answer_is_lost(
    leased: Path, ohrid: Island, admin, consortium: Consortium, monkeypatch
) -> None:
    ohrid.take_in(leased)
    await ohrid.work()
    old = ohrid.identity
    monkeypatch.setattr(SiteIdentity, "is_due", lambda self, now: self.certificate == old.certificate)
    first = await ohrid.export()
    assert said_in(first).signing_request
    await ohrid.exchange(first)  # this answer never arrives, but the old certificate is replaced by now
    second = ohrid.write_down()
    taken = ohrid.take_in(await ohrid.exchange(second))
    assert taken.certificate and taken.valid_days > 29
    renewed = ohrid.identity
    assert renewed.certificate != old.certificate and not (ohrid.home / "identity" / "next.key").exists()
    assert renewed.seconds_left(0) >= old.seconds_left(0)
    third = await ohrid.export()
    assert said_in(third).signing_request == ""
    await ohrid.exchange(third)
    # now that the new one was used, the old one is over, whatever is shown with it
    request = signing_request(ohrid.config.site, renewed.key).decode()
    late = signed_anew(third, ohrid.fresh("late"), old, number=99, signing_request=request)
    with pytest.raises(Refused, match="was replaced by a newer one"):
        await ohrid.exchange(late)
    view = await admin.until(lambda view: job_state(view, "demo_r1-train-ohrid") == "done", "admitted")
    assert view and [line for line in await admin.why("ohrid") if "renewed its certificate" in line]
    assert len([line for line in await admin.why("ohrid") if "renewed its certificate" in line]) == 1
