"""A whole campaign: what it makes, what it tells of itself, and that only its inputs decide what comes out."""

from pathlib import Path

import pytest
import torch
from real_coordinator import SITES, Consortium, campaign, campaign_in, fetch
from scripted_sites import ScriptedSite, at_work, enrolled_at
from transformers import AutoModelForCausalLM, AutoTokenizer

from consortium.canonical import decode
from consortium.ids import short
from consortium.manifests import VersionManifest
from consortium.versions import verify_directory

STORIES = {
    "demo": """
campaign demo opened: 2 rounds, bg, mk
tokenizer {tokenizer} chosen: given with the campaign
demo/v0 ({v0}) made: the base that the campaign was submitted with
round 1 opened on {v0}: 3 site(s) take part: ohrid, plovdiv, sofia
demo_r1-train-ohrid planned: ohrid holds mk
demo_r1-train-plovdiv planned: plovdiv holds bg
demo_r1-train-sofia planned: sofia holds bg
round 1 collected 3 contribution(s): 3 of 3 contributions are in and no other can come
demo/v1 ({v1}) made from 3 contribution(s): merged 3 contribution(s) of ohrid, plovdiv, sofia onto demo/v0
demo_r1-gate-ohrid planned: ohrid holds held-out text of mk
demo_r1-gate-plovdiv planned: plovdiv holds held-out text of bg
demo_r1-gate-sofia planned: sofia holds held-out text of bg
{v1} passed the gate: no protected language regressed: 2 better
{v1} promoted: no protected language regressed: 2 better
round 2 opened on {v1}: 3 site(s) take part: ohrid, plovdiv, sofia
""",
    "demo_r1-train-ohrid": """
demo_r1-train-ohrid planned: ohrid holds mk
demo_r1-train-ohrid.a1 leased to ohrid: ohrid asked with 4 free slot(s)
demo_r1-train-ohrid.a1 delivered by ohrid, envelope {envelope}
demo_r1-train-ohrid.a1 admitted: signature, base, shapes and norms are as they should be
now: done: signature, base, shapes and norms are as they should be
""",
    "demo/v1": """
demo/v1 ({v1}) made from 3 contribution(s): merged 3 contribution(s) of ohrid, plovdiv, sofia onto demo/v0
{v1} passed the gate: no protected language regressed: 2 better
{v1} promoted: no protected language regressed: 2 better
""",
    "demo/r1": """
round 1 opened on {v0}: 3 site(s) take part: ohrid, plovdiv, sofia
demo_r1-train-ohrid planned: ohrid holds mk
...
demo/v1 ({v1}) made from 3 contribution(s): merged 3 contribution(s) of ohrid, plovdiv, sofia onto demo/v0
...
{v1} passed the gate: no protected language regressed: 2 better
{v1} promoted: no protected language regressed: 2 better
""",
    "ohrid": """
Institute (BG) was invited as site ohrid: BG may join: member state of the European Union
site ohrid enrolled with certificate {certificate}
site ohrid offers 4 slot(s) and holds mk
demo_r1-train-ohrid planned: ohrid holds mk
demo_r1-train-ohrid.a1 leased to ohrid: ohrid asked with 4 free slot(s)
demo_r1-train-ohrid.a1 delivered by ohrid, envelope {envelope}
demo_r1-train-ohrid.a1 admitted: signature, base, shapes and norms are as they should be
...
""",
}


@pytest.mark.parametrize("subject", STORIES)
async def test_why_tells_the_story_from_the_beginning(rested: Consortium, subject: str) -> None:
    async with rested.running(), rested.admin() as admin:
        told = await admin.why(subject)
        seen = campaign_in(await admin.view(), "demo")
    names = {version.name.removeprefix("demo/"): short(version.digest) for version in seen.versions}
    for word, before in (
        ("envelope", " delivered by ohrid, envelope "),
        ("certificate", " with certificate "),
    ):
        names[word] = next((line.rpartition(" ")[2] for line in told if before in line), "")
    rest = iter(told)
    for part in STORIES[subject].format(**names, tokenizer=short(seen.tokenizer or "")).split("...\n"):
        lines = part.strip().splitlines()
        first = next((line for line in rest if not lines or line == lines[0]), None)
        assert [first, *(next(rest, None) for _ in lines[1:])] == lines or not lines


async def test_the_view_after_the_campaign(rested: Consortium) -> None:
    async with rested.running(), rested.admin() as admin:
        view = await admin.view()
    seen = campaign_in(view, "demo")
    assert (seen.status, seen.reason) == ("completed", "all 2 rounds are closed; 2 version(s) were promoted")
    assert [(v.name, v.status, v.contributions) for v in seen.versions] == [
        ("demo/v0", "promoted", 0),
        ("demo/v1", "promoted", 3),
        ("demo/v2", "promoted", 3),
    ]
    assert seen.head == seen.versions[2].digest
    assert [(r.round, r.state, r.jobs_done, r.jobs) for r in seen.rounds] == [
        (1, "closed", 3, 3),
        (2, "closed", 3, 3),
    ]
    assert [model.mean for model in seen.models] == sorted((m.mean for m in seen.models), reverse=True)
    assert {job.state for job in view.jobs} == {"done"} and len(view.jobs) == 12
    assert [(s.site, s.status, s.languages, s.busy, s.slots) for s in view.sites] == [
        (name, "enrolled", SITES[name], 0, 4) for name in sorted(SITES)
    ]
    assert view.attempts == ()


async def test_an_admin_downloads_the_promoted_model_and_it_loads(rested: Consortium, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    async with rested.running(), rested.admin() as admin:
        head = campaign_in(await admin.view(), "demo").head
        assert head is not None
        manifest = decode(await fetch(admin.artifacts, head), VersionManifest)
        for name, ref in manifest.files.items():
            (folder / name).write_bytes(await fetch(admin.artifacts, ref.digest))
    assert manifest.digest == head
    verify_directory(manifest, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)("Охрид", return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**words).logits).all()


async def test_other_keys_make_the_same_versions_and_a_watcher_sees_it(
    rested: Consortium, base: Path, tmp_path: Path
) -> None:
    other = await enrolled_at(tmp_path / "other", base)
    assert other.keys.authority.pem != rested.keys.authority.pem
    async with other.running(), other.admin() as admin:
        states = set()
        async with at_work(*(ScriptedSite(other, name) for name in SITES)):
            await admin.submit(campaign(base))
            async for view in admin.watch():
                seen = campaign_in(view, "demo")
                states.update((r.round, r.state) for r in seen.rounds)
                if seen.status != "open":
                    break
    async with rested.running(), rested.admin() as admin:
        first = campaign_in(await admin.view(), "demo")
    assert seen.versions == first.versions
    assert {(1, "closed"), (2, "closed")} < states


async def test_the_same_order_sent_twice_is_one_campaign(rested: Consortium, base: Path) -> None:
    async with rested.running(), rested.admin() as admin:
        before = (await admin.view()).sequence
        answer = await admin.submit(campaign(base))
        assert (answer.reason, answer.sequence) == ("nothing to do: it is so already", before)
