"""Organisations of which countries may join the consortium, and if not, why."""

import re
from pathlib import Path

from msgspec import field

from consortium.canonical import Fact
from consortium.checking import shown
from consortium.errors import BadInput
from consortium.loading import Problems, read
from policies.verdict import Verdict

DEFAULT = Path(__file__).parent / "membership.yaml"

_COUNTRY = re.compile(r"[A-Z]{2}")


class Group(Fact):
    name: str
    title: str  #: completes "<country> is a ..."
    may_join: bool
    countries: tuple[str, ...]  #: ISO 3166-1 alpha-2


class Membership(Fact):
    groups: tuple[Group, ...]
    aliases: dict[str, str] = field(default_factory=dict)  #: other spellings of a country's code
    otherwise: str  #: why a country in no group may not join

    def country(self, text: str) -> str:
        """The ISO 3166-1 alpha-2 code that ``text`` spells. Raises BadInput."""
        country = text.strip().upper()
        if not _COUNTRY.fullmatch(country):
            raise BadInput(
                f"country {shown(text)} is not a code; write the two letters of ISO 3166-1, such as BG"
            )
        return self.aliases.get(country, country)

    def judge(self, country: str) -> Verdict:
        """Whether an organisation whose seat is in ``country`` (two letters) may join. Raises BadInput."""
        code = self.country(country)
        for group in self.groups:
            if code in group.countries:
                says = "may join" if group.may_join else "may not join"
                return Verdict(allowed=group.may_join, reason=f"{code} {says}: {group.title}")
        return Verdict(allowed=False, reason=f"{code} may not join: {self.otherwise}")


def load_membership(path: str | Path = DEFAULT) -> Membership:
    """The membership rule in a YAML file, ours if none is given. Raises BadInput."""
    document = read(path)
    membership = document.convert(Membership)
    problems = Problems(document)
    seen: dict[str, str] = {}
    for number, group in enumerate(membership.groups):
        for index, country in enumerate(group.countries):
            place = ("groups", number, "countries", index)
            if not _COUNTRY.fullmatch(country):
                problems.add(
                    place, f"{shown(country)} is not a code; write the two letters of ISO 3166-1, such as BG"
                )
            if country in seen:
                problems.add(place, f"{country!r} is in group {seen[country]!r} already; keep one")
            seen[country] = group.name
    problems.raise_if_any()
    return membership
