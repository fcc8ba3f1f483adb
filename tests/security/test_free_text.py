"""Words that another party chose: bounded where they enter, and harmless wherever they are shown."""

import io
import json
import logging
import unicodedata

import pytest
from sprachbund.v1 import admin_pb2, site_pb2

from console import output
from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput
from consortium.flower.runs import FlowerOrder, FlowerRun
from consortium.harmless import harmless, harmless_json
from consortium.ids import CampaignId, SiteName, digest_of
from consortium.logs import log_json
from consortium.manifests import FileRef
from coordinator.core import commands as cm
from coordinator.core.decide import decide
from coordinator.core.moment import Moment
from coordinator.core.state import FlowerRunState, Site, State
from coordinator.services.words import move, said, short, sync_command
from policies.campaign import Campaign
from policies.consistency import problems_in

#: Ends a window's title, clears the screen, is a control sequence in one character, turns writing around, hides.
EVIL = "a\x1b]0;t\x07\x1b[2J\x9b31m\x7f\r\n\u202eb\u200b\u2028\U000e0041\ud800c"
SITE = SiteName("sofia")


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in text)


def test_what_is_shown_has_nothing_to_steer_with() -> None:
    assert not is_harmless(EVIL)
    assert is_harmless(harmless(EVIL))
    assert harmless("Ελληνικά, ქართული, e\u0301") == "Ελληνικά, ქართული, e\u0301"
    assert harmless("abcdef", 3) == "abc"


def test_json_says_the_same_and_is_harmless() -> None:
    line = json.dumps({EVIL: [EVIL]}, ensure_ascii=False)
    assert is_harmless(harmless_json(line))
    assert json.loads(harmless_json(line)) == json.loads(line) == {EVIL: [EVIL]}
    assert harmless_json('{"a":"ქართული"}') == '{"a":"ქართული"}'


class Said(Fact):
    text: str


def test_json_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = EVIL.replace("\ud800", "")  # no JSON of ours has half a character
    output.put(Said(text=evil))
    shown = capsys.readouterr().out
    assert is_harmless(shown.removesuffix("\n"))
    assert decode(shown.encode(), Said) == Said(text=evil)


def test_a_line_of_the_log_stays_one_line() -> None:
    root, target = logging.getLogger(), io.StringIO()
    before, level = list(root.handlers), root.level
    root.handlers = []  # pytest's would keep the word, and half a character goes into no report between processes
    try:
        log_json(target)
        logging.getLogger("there").error("it said %s", EVIL, extra={"word": EVIL})
    finally:
        root.handlers = before
        root.setLevel(level)
    (line,) = target.getvalue().splitlines()
    assert is_harmless(line)
    assert json.loads(line)["word"] == EVIL


def test_what_a_site_says_goes_to_the_ledger_without_controls() -> None:
    evil = EVIL.replace("\ud800", "")
    request = site_pb2.SyncRequest(
        site=site_pb2.SiteDescription(agent_version=evil * 50, launcher=evil * 50),
        attempts=[
            site_pb2.AttemptReport(
                attempt="a_r1-train-sofia.a1",
                phase=site_pb2.ATTEMPT_PHASE_RUNNING,
                reason=evil * 500,
                detail=evil * 500,
            )
        ],
    )
    command = sync_command(SITE, request)
    (report,) = command.reports
    for text, most in (
        (command.agent_version, 100),
        (command.launcher, 100),
        (report.reason, 1000),
        (report.detail, 1000),
    ):
        assert is_harmless(text)
        assert len(text) == most


@pytest.mark.parametrize("field", ["name"])
def test_names_with_controls_are_refused(field: str) -> None:
    with pytest.raises(BadInput, match="cannot be printed"):
        short(EVIL, field)
    with pytest.raises(BadInput, match="cannot be printed"):
        sync_command(SITE, site_pb2.SyncRequest(site={"allocations": [{"name": "a\x1b[2J", "gpu_hours": 1}]}))
    with pytest.raises(BadInput, match="cannot be printed"):
        sync_command(
            SITE,
            site_pb2.SyncRequest(
                site={"holdings": [{"language": "bg", "licence": "\x9b2J", "digest": digest_of(b"")}]}
            ),
        )


def test_reasons_of_people_are_bounded_and_harmless() -> None:
    evil = EVIL.replace("\ud800", "") * 500
    assert is_harmless(said(evil))
    assert len(said(evil)) == 1000
    request = admin_pb2.PromoteRequest(campaign="demo", version="v1", reason=evil)
    assert is_harmless(move(request, "promote").reason)


def test_a_description_of_any_size_is_refused() -> None:
    holdings = [{"language": "bg", "licence": "x" * 200, "digest": digest_of(b"")}] * 900
    with pytest.raises(BadInput, match=r"says \d+ bytes of itself, at most 131072"):
        sync_command(SITE, site_pb2.SyncRequest(site={"holdings": holdings}))
    lines = [site_pb2.AttemptReport(attempt="a_r1-train-sofia.a1")] * 10_001
    with pytest.raises(BadInput, match="10001 attempts in one Sync; at most 10000"):
        sync_command(SITE, site_pb2.SyncRequest(attempts=lines))


def campaign(**changes: object) -> Campaign:
    plain = {
        "campaign": "demo",
        "languages": ["bg"],
        "model": {"config": {"model_type": "llama"}},
        "tokenizer": {"vocabulary_size": 300},
        "rounds": 1,
        "train": {
            "steps": 1,
            "batch_sequences": 1,
            "sequence_tokens": 8,
            "optimizer": {"learning_rate": 0.1},
        },
    }
    return decode(encode({**plain, **changes}), Campaign)


def problems(**changes: object) -> dict[str, str]:
    known = set(problems_in(campaign()))
    return {place[0]: why for place, why in problems_in(campaign(**changes)) if (place, why) not in known}


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("description", "x" * 4001, "4001 characters; at most 4000"),
        ("description", "fine\x1b[2J", "may steer a terminal"),
        ("description", "\u202efine", "may steer a terminal"),
        ("lease_seconds", 1e-9, "1e-09 s are over before anybody can say a word"),
        ("courier_lease_hours", 1e-9, "are over before"),
    ],
)
def test_a_campaign_says_what_people_can_read_and_keep_up_with(field: str, value: object, why: str) -> None:
    found = problems(**{field: value})
    assert set(found) == {field}
    assert why in found[field]


def test_a_description_of_several_lines_in_any_script_is_fine() -> None:
    assert problems(description="Ελληνικά\n\tქართული — français", lease_seconds=0.5) == {}


def flower_state() -> State:
    run = FlowerRun(run=CampaignId("fed"), app="app:client", sites=(SITE,))
    state = State(flower_runs={run.run: FlowerRunState(spec=run, opened_at=0.0)})
    state.sites[SITE] = Site(SITE, "", "BG", "", "", 0.0)
    return state


def test_a_flower_run_is_held_to_the_same() -> None:
    other = CampaignId("other")
    for run, why in (
        (FlowerRun(run=other, app="app:client", lease_seconds=1e-9), "shorter than 0.5 s"),
        (FlowerRun(run=other, app="app:client", run_config={"x": "y" * 300_000}), "more than 262144 bytes"),
    ):
        with pytest.raises(BadInput, match=why):
            decide(cm.OpenFlowerRun(run=run), flower_state(), Moment(now=1.0))
    letter = FileRef(digest=digest_of(b""), size=0)
    for group in ("x" * 201, "\x1b[2J"):
        order = FlowerOrder(
            ordinal=1, site=SITE, message_type="train", group=group, letter=letter, inputs=(letter.digest,)
        )
        command = cm.PushFlowerMessages(run=CampaignId("fed"), orders=(order,))
        with pytest.raises(BadInput, match="its group has to be one line"):
            decide(command, flower_state(), Moment(now=1.0))
