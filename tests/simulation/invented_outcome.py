"""Outcomes made by hand: runs that never were, with everything in them that a screen has to show."""

from consortium.ids import CampaignId, Digest, Language, SiteName
from simulation.outcome import Cost, Ending, Happening, Made, Outcome
from simulation.streams import stream

BEGAN = 1767571200.0
CENTRES = (
    "lumi",
    "leonardo",
    "marenostrum5",
    "jupiter",
    "snellius",
    "karolina",
    "discoverer",
    "vega",
    "meluxina",
)
SITE_FAULTS = ("preempted", "node lost", "agent killed", "disk full", "torn write", "clock jump", "hostile")


def centres(count: int) -> list[str]:
    return sorted(CENTRES[n] if n < len(CENTRES) else f"university-{n}" for n in range(count))


def invented(num_sites: int = 6, hours: float = 100.0, rounds: int = 4, faults: int = 3) -> Outcome:
    """Sites that wait, train and send in every round; one is closed at night, one is cut off, one is down."""
    dice = stream(1, "invented", num_sites, rounds)
    each = hours / (rounds + 1)
    found: list[Happening] = []

    def add(
        place: str, kind: str, begin: float, end: float | None = None, subject: str = "", detail: str = ""
    ) -> None:
        until = None if end is None else BEGAN + 3600 * end
        found.append(
            Happening(
                at=BEGAN + 3600 * begin, place=place, kind=kind, subject=subject, detail=detail, until=until
            )
        )

    sites = centres(num_sites)
    for number in range(rounds + 1):
        begin, end = number * each, (number + 1) * each
        add("coordinator", "round", begin, end, f"tiny-1/{number}")
        for index, site in enumerate(sites if number else sites[:1]):
            attempt = f"tiny-1_r{number}-train-{site}.a1" if number else "tiny-1_r0-seed.a1"
            parts = [0.1 + 0.25 * dice.random(), 0.4 + 0.2 * dice.random(), 0.04 + 0.04 * dice.random()]
            at = begin + 0.01 * each
            for kind, share in zip(("queued", "running", "uploading"), parts, strict=True):
                add(site, kind, at, at + share * each, attempt)
                at += share * each
            add("coordinator", "inspecting", at, at + 0.005 * each, attempt)
            if index % 3 == 0:
                add(
                    site,
                    "running",
                    begin + 0.2 * each,
                    begin + 0.5 * each,
                    f"tiny-1_r{number}-gate-{site}.a1",
                )
        add("coordinator", "merging", end - 0.08 * each, end - 0.03 * each, f"tiny-1/{number}")
        add("coordinator", "judging", end - 0.03 * each, end - 0.01 * each, f"tiny-1/{number}")
        kind = "rejected" if number == 2 else "promoted"
        add("coordinator", kind, end, None, f"{number:064x}", "fi got worse" if number == 2 else "")
    for site in sites:
        for kind in SITE_FAULTS[: 1 + faults]:
            for _ in range(faults):
                add(site, kind, hours * dice.random())
    for day in range(int(hours // 24) + 1):
        add(sites[1 % num_sites], "window closed", min(hours, 24 * day), min(hours, 24 * day + 10))
    add(sites[-1], "partitioned", 0.3 * hours, 0.37 * hours)
    add(sites[0], "outage", 0.55 * hours, 0.6 * hours, detail="maintenance")
    add(sites[0], "down", 0.2 * hours, 0.205 * hours, "agent")
    add("coordinator", "down", 0.42 * hours, 0.43 * hours)
    add("coordinator", "crash", 0.42 * hours)
    found.sort(key=lambda one: (one.at, one.place, one.kind, one.subject))
    counts: dict[str, int] = {}
    for one in found:
        if one.kind in SITE_FAULTS or one.kind in ("crash", "partitioned"):
            counts[one.kind] = counts.get(one.kind, 0) + 1
    cost = Cost(
        gpu_hours=8 * 0.6 * hours,
        joules=8 * 0.6 * hours * 3600 * 500,
        uploaded_bytes=rounds * 2_200_000_000,
        downloaded_bytes=rounds * 4_400_000_000,
        attempts=rounds,
        trained_tokens={Language("fi"): 1_000_000_000},
    )
    return Outcome(
        seed=7,
        plan=Digest("0" * 64),
        weather="rough",
        began_at=BEGAN,
        hours=hours,
        head="ab" * 32,
        events=1000,
        steps=20_000,
        versions=tuple(
            Made(
                name=f"tiny-1/v{number}",
                digest=Digest(f"{number:064x}"),
                status="rejected" if number == 2 else "promoted",
                round=number,
            )
            for number in range(rounds + 1)
        ),
        happenings=tuple(found),
        tokens={Language("fi"): 3_000_000_000, Language("ga"): 12_000_000},
        costs={SiteName(site): cost for site in sites},
        faults=counts,
        ended=(
            Ending(
                campaign=CampaignId("tiny-1"),
                status="completed",
                reason="all rounds done",
                rounds=rounds + 1,
                promoted=rounds,
            ),
        ),
    )
