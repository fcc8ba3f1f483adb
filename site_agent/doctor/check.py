"""One finding of the doctor, and how a look that may fail becomes one."""

from collections.abc import Callable

from consortium.canonical import Fact
from consortium.errors import Refused, SprachbundError, Unavailable


class Check(Fact):
    name: str
    is_good: bool
    detail: str
    way_out: str = ""  #: what to do, if it is not good
    exit_code: int = 0  #: of the kind of error it is; see consortium/errors.py
    is_warning: bool = False  #: good enough to go on, and worth a thought


def check(name: str, look: Callable[[], str], way_out: str, if_refused: str | None = None) -> Check:
    """``look`` returns what it found, or raises one of our errors or an OSError.

    if_refused  the way out if it is a rule that says no, where that is another
    """
    try:
        return Check(name=name, is_good=True, detail=look())
    except (SprachbundError, OSError) as error:
        code = error.exit_code if isinstance(error, SprachbundError) else Unavailable.exit_code
        if if_refused is not None and isinstance(error, Refused):
            way_out = if_refused
        return Check(name=name, is_good=False, detail=str(error), way_out=way_out, exit_code=code)


def warning(name: str, detail: str, way_out: str) -> Check:
    return Check(name=name, is_good=True, detail=detail, way_out=way_out, is_warning=True)
