"""Which sites a family of them has: named after languages, as different as its ranges say."""

from random import Random

from consortium.ids import Language, SiteName
from policies.languages import Languages, load_languages
from simulation.draws import normal
from simulation.plan import Habits, Held, SiteFamily, SitePlan, Spread
from simulation.streams import stream


def family_of(
    family: SiteFamily, count: int, languages: tuple[Language, ...], known: Languages | None = None
) -> tuple[SitePlan, ...]:
    """``count`` sites; the first ``n`` of more are the same sites, so that a consortium can be seen to grow.

    languages  of the campaign, sorted; the first site's own, the second's, and so on, again from the first
    """
    known = known or load_languages()
    sites = [_member(family, number, languages, known) for number in range(count)]
    return tuple(sorted(sites, key=lambda site: site.name))


def _member(family: SiteFamily, number: int, languages: tuple[Language, ...], known: Languages) -> SitePlan:
    each = min(family.languages_each, len(languages))
    own = [languages[(number * each + index) % len(languages)] for index in range(each)]
    first = known.find(own[0]).english.lower()
    name = SiteName(f"{first}-{1 + number * each // len(languages)}")

    def drawn(key: str, spread: Spread) -> float:
        return _drawn(spread, stream(family.seed, "family", name, key))

    return SitePlan(
        name=name,
        organisation=name,
        languages={tag: _held(drawn(f"documents {tag}", family.documents)) for tag in sorted(own)},
        public={tag: _held(drawn(f"public {tag}", family.public_documents)) for tag in languages},
        **{
            **{key: getattr(family.like, key) for key in Habits.__struct_fields__},
            "tokens_per_second": drawn("speed", family.tokens_per_second),
            "queue_median_minutes": drawn("queue", family.queue_median_minutes),
            "up_mbps": drawn("up", family.up_mbps),
            "down_mbps": drawn("down", family.down_mbps),
            "merges": stream(family.seed, "family", name, "merges").random() < family.merging_share,
        },
    )


def _held(documents: float) -> Held:
    count = max(1, round(documents))
    return Held(documents=count, heldout=min(500, count // 10))


def _drawn(spread: Spread, dice: Random) -> float:
    """Three digits: no mathematical library's last bit can show."""
    value = spread.median * 2.0 ** (1.442695 * spread.sigma * normal(dice))
    return float(f"{min(spread.most, max(spread.least, value)):.3g}")
