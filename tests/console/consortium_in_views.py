"""A small consortium, frozen at two moments: in the middle of a round, and when its campaign was done."""

from consortium.views import (
    AttemptView,
    CampaignView,
    ConsortiumView,
    JobView,
    LanguageResult,
    ModelView,
    RoundView,
    SiteView,
    VersionView,
)

LANGUAGES = ("bg", "cs", "da", "el", "fi", "ga", "hu", "nl")
V0, V1, V2 = ("1a" * 32, "2b" * 32, "3c" * 32)

SITES = tuple(
    SiteView(
        site=site,
        organisation=organisation,
        status=status,
        languages=languages,
        slots=slots,
        busy=busy,
        seen_seconds_ago=seen,
        agent_version="0.1.0",
    )
    for site, organisation, status, languages, slots, busy, seen in (
        ("north", "Pohjola University", "enrolled", ("da", "fi"), 1, 1, 1.2),
        ("west", "Western Institute", "enrolled", ("ga", "nl"), 1, 1, 0.4),
        ("middle", "Moravia Compute", "enrolled", ("cs", "hu"), 1, 1, 71.0),
        ("south", "Balkan Language Lab", "draining", ("bg", "el"), 2, 0, None),
    )
)


def job(
    name: str, purpose: str, site: str, state: str, reason: str, number: int = 2, attempts: int = 1
) -> JobView:
    return JobView(
        job=f"demo_{name}",
        campaign="demo",
        round=number,
        purpose=purpose,
        site=site,
        state=state,
        reason=reason,
        attempts=attempts,
    )


JOBS = (
    job("r2-train-north", "round", "north", "leased", "north has a free slot"),
    job("r2-train-west", "round", "west", "leased", "west has a free slot"),
    job("r2-train-middle", "round", "middle", "leased", "middle has a free slot", attempts=2),
    job(
        "r2-train-south",
        "round",
        "south",
        "planned",
        "preempted by the site; waits for south, which is draining",
    ),
    job("rival-public", "rival", "north", "planned", "waits for a free slot at north, west or middle", 1, 0),
    job("r1-train-north", "round", "north", "done", "admitted: norm 0.031 of the base's", 1),
)


def attempt(
    name: str, site: str, phase: str, step: int, tokens: int, loss: float | None, speed: float
) -> AttemptView:
    return AttemptView(
        attempt=f"demo_{name}",
        job=f"demo_{name.partition('.')[0]}",
        site=site,
        phase=phase,
        step=step,
        steps=120,
        tokens=tokens,
        loss=loss,
        tokens_per_second=speed,
    )


ATTEMPTS = (
    attempt("r2-train-north.a1", "north", "running", 84, 344_064, 4.1273, 11_420.0),
    attempt("r2-train-west.a1", "west", "uploading", 120, 491_520, 3.9021, 10_877.0),
    attempt("r2-train-middle.a2", "middle", "staging", 0, 0, None, 0.0),
)

VERSIONS = (
    VersionView(
        name="demo/v0",
        digest=V0,
        status="promoted",
        round=0,
        base=None,
        contributions=1,
        reason="the first version: nothing to compare it with",
    ),
    VersionView(
        name="demo/v1",
        digest=V1,
        status="promoted",
        round=1,
        base=V0,
        contributions=4,
        reason="no protected language regressed: 8 better",
    ),
)

ROUNDS = (
    RoundView(
        round=0, state="closed", reason="demo/v0 promoted", base="0f" * 32, candidate=V0, jobs_done=1, jobs=1
    ),
    RoundView(round=1, state="closed", reason="demo/v1 promoted", base=V0, candidate=V1, jobs_done=4, jobs=4),
    RoundView(
        round=2,
        state="training",
        reason="4 site(s) take part: middle, north, south, west",
        base=V1,
        candidate=None,
        jobs_done=0,
        jobs=4,
    ),
)


def model(name: str, role: str, version: str, scores: tuple[float, ...]) -> ModelView:
    results = tuple(
        LanguageResult(language=language, bits_per_byte=score, documents=80)
        for language, score in zip(LANGUAGES, scores, strict=True)
    )
    return ModelView(
        name=name, role=role, version=version, delta=None, results=results, mean=sum(scores) / len(scores)
    )


BASE = model("demo/v0", "version", V0, (1.402, 2.611, 2.398, 1.377, 2.433, 2.702, 2.588, 2.471))
FIRST = model("demo/v1", "version", V1, (1.301, 2.402, 2.242, 1.271, 2.282, 2.391, 2.403, 2.299))
SECOND = model("demo/v2", "version", V2, (1.231, 2.262, 2.127, 1.198, 2.166, 2.224, 2.279, 2.181))
SPECIALISTS = (
    model("north", "specialist", V0, (1.388, 2.574, 2.071, 1.361, 2.102, 2.688, 2.561, 2.402)),
    model("south", "specialist", V0, (1.172, 2.583, 2.377, 1.131, 2.417, 2.693, 2.569, 2.455)),
)
RIVAL = model("public text only", "rival", V0, (1.296, 2.401, 2.251, 1.266, 2.281, 2.412, 2.398, 2.303))

RUNNING = CampaignView(
    campaign="demo",
    status="open",
    reason="5 job(s): demo_r2-train-middle, demo_r2-train-north, demo_r2-train-south, demo_r2-train-west …",
    languages=LANGUAGES,
    rounds_planned=2,
    tokenizer="4d" * 32,
    head=V1,
    rounds=ROUNDS,
    versions=VERSIONS,
    models=(BASE, FIRST),
)

DONE = CampaignView(
    campaign="demo",
    status="completed",
    reason="all 2 rounds are closed; 2 version(s) were promoted",
    languages=LANGUAGES,
    rounds_planned=2,
    tokenizer="4d" * 32,
    head=V2,
    rounds=ROUNDS,
    versions=VERSIONS,
    models=(BASE, FIRST, SECOND, *SPECIALISTS, RIVAL),
)

IN_ROUND_TWO = ConsortiumView(
    consortium="demo consortium",
    sequence=214,
    head="a1b2c3d4e5f6" + "0" * 52,
    now=1_795_000_000.0,
    sites=SITES,
    campaigns=(RUNNING,),
    jobs=JOBS,
    attempts=ATTEMPTS,
)
