"""What a rule says of one case, and why."""

from consortium.canonical import Fact


class Verdict(Fact):
    allowed: bool
    reason: str  #: a sentence that names the case, the rule and, if not allowed, the way out
