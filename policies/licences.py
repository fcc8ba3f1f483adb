"""What may be done with text under which licence."""

from pathlib import Path
from typing import Literal

from consortium.canonical import Fact
from consortium.checking import nearest, shown
from consortium.errors import BadInput
from consortium.loading import Problems, read
from policies.verdict import Verdict

DEFAULT = Path(__file__).parent / "licences.yaml"


class RedistributionClass(Fact):
    name: str
    text_may_leave: bool  #: the text itself may be handed to others
    replay: bool  #: may be a campaign's public text, from copies that each site got itself
    attribution: bool  #: its source is to be named with the model


class Licences(Fact):
    classes: tuple[RedistributionClass, ...]
    licences: dict[str, str]  #: SPDX identifier, or LicenseRef-..., -> name of a class

    def class_of(self, licence: str) -> RedistributionClass:
        """The redistribution class of a licence; an unlisted ``LicenseRef-`` is private. Raises BadInput."""
        name = self.licences.get(licence)
        if name is None:
            if not licence.startswith("LicenseRef-"):
                raise BadInput(
                    f"licence {shown(licence)} is not in our list; {nearest(licence, self.licences)} "
                    f"For a contract of your own write LicenseRef-<name>"
                )
            name = "private"
        return next(one for one in self.classes if one.name == name)

    def redistribution(self, licence: str, said: str | None) -> RedistributionClass:
        """The class that an operator says, or the licence's. Raises BadInput if it is unknown or allows more.

        For a licence of our list no class may allow more than its own; an unlisted ``LicenseRef-`` is a
        contract that only its holder has read, so what they say counts.
        """
        own = self.class_of(licence)
        if said is None:
            return own
        names = [one.name for one in self.classes]
        found = next((one for one in self.classes if one.name == said), None)
        if found is None:
            raise BadInput(f"no redistribution class is called {shown(said)}; {nearest(said, names)}")
        is_wider = (found.text_may_leave and not own.text_may_leave) or (found.replay and not own.replay)
        if licence in self.licences and is_wider:
            raise BadInput(f"{licence} is {own.name}, which allows less than {said}; write {own.name!r}")
        return found

    def judge(self, licence: str, access: Literal["private", "public"]) -> Verdict:
        """Whether text under ``licence`` may be offered with that access. Raises BadInput for one unknown."""
        rule = self.class_of(licence)
        if access == "public" and not rule.replay:
            reason = (
                f"{licence} is {rule.name}, which may not be replayed as public text; write 'access: private'"
            )
            return Verdict(allowed=False, reason=reason)
        return Verdict(allowed=True, reason=f"{licence} is {rule.name}, which may be {access} text")


def load_licences(path: str | Path = DEFAULT) -> Licences:
    """The licences in a YAML file, ours if none is given. Raises BadInput, also for an unknown class."""
    document = read(path)
    licences = document.convert(Licences)
    problems = Problems(document)
    names = [one.name for one in licences.classes]
    for licence, name in licences.licences.items():
        if name not in names:
            problems.add(("licences", licence), f"no class is called {shown(name)}; {nearest(name, names)}")
    if "private" not in names:
        problems.add(
            ("classes",), "no class is called 'private', which an unlisted LicenseRef- falls into; add it"
        )
    problems.raise_if_any()
    return licences
