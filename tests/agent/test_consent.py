"""The site's own rules: what each refuses, and that the refusal names it."""

import pytest

from consortium.canonical import replace
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.jobs import ANY_SITE, Assignment, Evaluate, FlowerMessage, Optimizer, Purpose, Train
from consortium.manifests import FileRef
from site_agent.config import Consent
from site_agent.core.consent import refusal, slots

DIGEST = Digest("a" * 64)
TRAIN = Train(
    base=DIGEST,
    languages=(Language("fi"),),
    public_languages=(),
    replay_share=0.0,
    steps=10,
    batch_sequences=1,
    sequence_tokens=8,
    optimizer=Optimizer(learning_rate=0.1),
    seed=0,
)
EVALUATE = Evaluate(subjects=(), languages=(Language("fi"),), sequence_tokens=8)


def assignment(**changes) -> Assignment:
    fields = dict(
        job=JobId("demo_r1-train-north"),
        attempt=AttemptId("demo_r1-train-north.a1"),
        campaign=CampaignId("demo"),
        round=1,
        site=SiteName("north"),
        purpose=Purpose.ROUND,
        work=TRAIN,
        inputs=(DIGEST,),
        tokenizer=DIGEST,
        sender="maria",
        merged_by=(),
    )
    return Assignment(**(fields | changes))


@pytest.mark.parametrize(
    ("consent", "changes", "gpus", "rule"),
    [
        (Consent(senders=("ivan",)), {}, 0, "consent.senders allows only those of ivan"),
        (Consent(senders=()), {}, 0, "consent.senders allows only those of nobody"),
        (Consent(senders=("maria",)), {"sender": ""}, 0, "a campaign of nobody it is told of"),
        (Consent(gpus_max=4), {}, 8, "a job of 8 GPUs: its rule consent.gpus_max allows at most 4"),
        (
            Consent(merged_by=()),
            {"merged_by": ("sofia",)},
            0,
            "being merged by sofia: its rule consent.merged_by",
        ),
        (Consent(merged_by=(SiteName("ohrid"),)), {"merged_by": ("ohrid", "sofia")}, 0, "merged by sofia"),
        (Consent(merged_by=(SiteName("ohrid"),)), {"merged_by": (ANY_SITE,)}, 0, "that any site may merge"),
        (Consent(merged_by=()), {"merged_by": None}, 0, "of which it is not told who merges it"),
        (Consent(languages=(Language("sv"),)), {}, 0, "consent.languages allows only sv"),
        (Consent(campaigns=()), {}, 0, "consent.campaigns allows only no campaign"),
    ],
)
def test_each_rule_refuses_by_its_name(consent, changes, gpus, rule):
    assert rule in refusal(assignment(**changes), consent, gpus)


@pytest.mark.parametrize(
    ("consent", "changes", "gpus"),
    [
        (Consent(), {"sender": "", "merged_by": None}, 64),
        (Consent(senders=("maria",)), {}, 0),
        (Consent(gpus_max=8), {}, 8),
        (Consent(gpus_max=0), {}, 0),
        (Consent(merged_by=()), {}, 0),
        (Consent(merged_by=()), {"merged_by": ("north",)}, 0),  # its own delta, merged by itself
        (Consent(merged_by=(SiteName("sofia"),)), {"merged_by": ("sofia",)}, 0),
        (Consent(merged_by=()), {"work": EVALUATE, "purpose": Purpose.GATE, "merged_by": None}, 0),
    ],
)
def test_what_a_site_consents_to(consent, changes, gpus):
    assert refusal(assignment(**changes), consent, gpus) == ""


def test_the_replayed_public_text_of_the_site_is_under_its_languages_too():
    """The campaign names all its languages; a site replays those of which it declared text public."""
    consent = Consent(languages=(Language("fi"),))
    replaying = replace(TRAIN, public_languages=(Language("fi"), Language("sv")), replay_share=0.1)
    own, others = (Language("fi"),), (Language("fi"), Language("sv"))
    assert refusal(assignment(work=replaying), consent, public=own) == ""
    words = "work on sv: its rule consent.languages allows only fi"
    assert words in refusal(assignment(work=replaying), consent, public=others)
    assert refusal(assignment(work=replace(replaying, replay_share=0.0)), consent, public=others) == ""
    seed = replace(replaying, languages=(), replay_share=0.0)  # public text is all that it trains on
    assert words in refusal(assignment(work=seed), consent, public=others)


@pytest.mark.parametrize(
    ("wanted", "gpus_max", "gpus", "at_once"),
    [(4, None, 4, 4), (4, 8, 4, 2), (1, 8, 4, 1), (4, 8, 0, 4), (4, 2, 4, 1)],
)
def test_fewer_jobs_at_once_keep_within_the_gpus(wanted, gpus_max, gpus, at_once):
    assert slots(wanted, Consent(gpus_max=gpus_max), gpus) == at_once


MESSAGE = FlowerMessage(
    app="app.client:app",
    run_config={},
    message_type="train",
    group="1",
    node=7,
    letter=FileRef(digest=DIGEST, size=1),
)


def test_other_peoples_code_runs_only_where_it_is_named():
    """The list left out allows none: the other way round than in ``consent``."""
    asked = assignment(work=MESSAGE, purpose=Purpose.FLOWER)
    assert refusal(asked, Consent()) == (
        "this site does not run the Flower app app.client:app: its flower.apps names none"
    )
    assert "names another:app" in refusal(asked, Consent(), apps=("another:app",))
    assert refusal(asked, Consent(), apps=("another:app", "app.client:app")) == ""
    # and what consent says counts all the same
    assert "allows only round" in refusal(asked, Consent(purposes=(Purpose.ROUND,)), apps=("app.client:app",))
    assert refusal(asked, Consent(languages=(Language("fi"),)), apps=("app.client:app",)) == ""
