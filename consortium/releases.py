"""Which releases of the two programs work together: those at most one minor version apart."""

import re

_NUMBER = re.compile(r"(\d+)\.(\d+)(\.|$)")
_MINORS_APART = 1


def misfit(agent: str, coordinator: str) -> str:
    """Why an agent of one release cannot work with a coordinator of another; "" if it can.

    A version that is no release number (a build of a developer's own) is not judged.
    """
    theirs, ours = _NUMBER.match(agent), _NUMBER.match(coordinator)
    if theirs is None or ours is None:
        return ""
    (major, minor), (own_major, own_minor) = (int(theirs[1]), int(theirs[2])), (int(ours[1]), int(ours[2]))
    if major == own_major and abs(minor - own_minor) <= _MINORS_APART:
        return ""
    who = "agent" if (major, minor) < (own_major, own_minor) else "coordinator"
    return (
        f"the agent is release {agent}, the coordinator {coordinator}; they work together at most one minor "
        f"version apart; upgrade the {who}"
    )
