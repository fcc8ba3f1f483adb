"""What a coordinator keeps beyond what its models need: a rule, and the same in words.

Nothing is let go unless a rule says so. Whatever rule: every promoted model, what made each campaign's present head,
what is open, all scores, tokenizers, manifests and signatures stay.
"""

from consortium.canonical import Fact
from policies.ranges import Count, Positive


class Keep(Fact):
    """How long what is large stays. A setting left out keeps for ever."""

    #: deltas stay that went into so many of the newest promoted versions of their campaign, or came since
    contributions_versions: Count | None = None
    #: deltas stay for so many days after they were admitted; with `contributions_versions` for as long as either says
    contributions_days: Positive | None = None
    #: the outer optimizer's state stays with so many of the newest promoted versions of each campaign
    outer_state_versions: Count | None = None
    #: the weights of a model that was not promoted stay for so many days after it was made
    rejected_days: Positive | None = None

    @property
    def lets_go(self) -> bool:
        """Whether anything may ever go by it."""
        return self != Keep()

    @property
    def words(self) -> str:
        """The rule as its file has it, on one line."""
        said = {
            "contributions_versions": self.contributions_versions,
            "contributions_days": self.contributions_days,
            "outer_state_versions": self.outer_state_versions,
            "rejected_days": self.rejected_days,
        }
        set_ = [f"{name} {value:g}" for name, value in said.items() if value is not None]
        return "keep: " + (", ".join(set_) or "everything")
